"""A cluster to measure: three node processes that `raftq up` starts, found through its `cluster.json`."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from raftq.bench import measure

T = TypeVar("T")

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0
#: `raftq up` takes as the peers' port of a node its API port and this.
PEER_PORTS = 1000


class ClusterFailed(Exception):
    """The cluster did not do what the benchmark needs of it."""


@dataclass(frozen=True)
class Node:
    id: str
    api_url: str
    pid: int
    data: Path


@dataclass(frozen=True)
class Usage:
    """Of all nodes together, since they started."""

    cpu_seconds: float
    commits: float
    #: That these commits took.
    commit_seconds: float

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_seconds - other.cpu_seconds,
            self.commits - other.commits,
            self.commit_seconds - other.commit_seconds,
        )


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def nodes(self) -> list[Node]:
        """As `cluster.json` says now. Raises OSError or ValueError while it is not there yet, and ClusterFailed while
        a node has no process."""
        nodes = json.loads((self.folder / "cluster.json").read_text())["nodes"]
        dead = [node["id"] for node in nodes if node["pid"] is None]
        if dead:
            raise ClusterFailed(f"no process: {', '.join(dead)}")
        return [_node(node) for node in nodes]

    def node(self, node_id: str) -> Node | None:
        """None while it has no process."""
        nodes = json.loads((self.folder / "cluster.json").read_text())["nodes"]
        return next((_node(node) for node in nodes if node["id"] == node_id and node["pid"] is not None), None)

    def leader(self) -> Node:
        """Raises ClusterFailed when there is none that its nodes agree on."""
        leaders = {self.view(node)["leader"] for node in self.nodes()}
        for node in self.nodes():
            if leaders == {node.id}:
                return node
        raise ClusterFailed(f"the nodes name as leader: {leaders}")

    def view(self, node: Node) -> dict[str, Any]:
        return get(node.api_url + "/v1/cluster")

    def term(self) -> int:
        return max(int(self.view(node)["term"]) for node in self.nodes())

    def start(self, node: Node) -> None:
        """A node that was killed: once `raftq up` knows that it died, since what runs is not started."""
        wait(lambda: self.node(node.id) is None, f"raftq up sees that {node.id} died")
        subprocess.run([raftq(), "start", node.id, "--data", self.folder], stdout=subprocess.DEVNULL, check=True)

    def queue_url(self, queue: str) -> str:
        return f"{self.leader().api_url}/v1/queues/{queue}"

    def stats(self, queue: str) -> dict[str, Any]:
        return get(self.queue_url(queue) + "/stats")

    def settled(self) -> bool:
        """Every node is reached by the leader and has applied what the leader has."""
        views = self.view(self.leader())["nodes"]
        reached = len(views) == len(self.nodes()) and all(view["reachable"] for view in views)
        return reached and len({view["applied_index"] for view in views}) == 1

    def usage(self) -> Usage:
        nodes = self.nodes()
        pages = [text(node.api_url + "/metrics") for node in nodes]
        commits = sum(measure.metric(page, measure.COMMITS_METRIC) for page in pages)
        commit_seconds = sum(measure.metric(page, measure.COMMIT_SECONDS_METRIC) for page in pages)
        return Usage(sum(measure.cpu_seconds(node.pid) for node in nodes), commits, commit_seconds)

    def memory(self) -> measure.Memory:
        return measure.memory(node.pid for node in self.nodes())

    def allocated_bytes(self) -> int:
        return sum(measure.allocated_bytes(node.data) for node in self.nodes())


def _node(node: dict[str, Any]) -> Node:
    return Node(node["id"], node["api_url"], node["pid"], Path(node["data"]))


@contextmanager
def running(parent: Path, nodes: int = 3) -> Iterator[Cluster]:
    """A new cluster in a folder of its own under `parent`, removed afterwards. A node that dies stays down."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    size, port = str(nodes), str(free_ports(nodes))
    command = [raftq(), "up", "--no-restart", "--nodes", size, "--data", str(folder), "--port", port]
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        cluster = Cluster(folder)
        wait(lambda: _alive(process, folder) and cluster.settled(), "all nodes are ready")
        yield cluster
    finally:
        _stop(process)
        shutil.rmtree(folder)


def _alive(process: subprocess.Popen[bytes], folder: Path) -> bool:
    if process.poll() is not None:
        raise SystemExit(f"raftq up ended with {process.returncode}:\n{(folder / 'up.log').read_text()}")
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait(condition: Callable[[], T], what: str, *, most_seconds: float = START_SECONDS_MAX) -> T:
    """The first true value of `condition`; what it raises while the cluster is not there yet counts as not yet."""
    end = time.monotonic() + most_seconds
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except (OSError, ValueError, KeyError, http.client.HTTPException, ClusterFailed) as error:
            last = error
        time.sleep(0.05)
    raise ClusterFailed(f"waited {most_seconds:.0f} s in vain until {what}") from last


def raftq() -> str:
    """The command of this very environment."""
    beside = Path(sys.executable).with_name("raftq")
    command = str(beside) if beside.exists() else shutil.which("raftq")
    if command is None:
        raise SystemExit("the command raftq is not installed: make setup")
    return command


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on now, and whose peers' ports are free too. They lie
    anywhere below those that the system gives to outgoing connections: two that start at once must not share any."""
    for first in random.sample(range(10_001, 30_000, 10), 1_000):
        if not any(_taken(port + offset) for port in (first, first + PEER_PORTS) for offset in range(count)):
            return first
    raise SystemExit("no free ports")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def request(method: str, url: str, body: object = None, *, seconds: float = 10.0) -> tuple[int, bytes, str | None]:
    """Status, body and Location of one request on a connection of its own; redirects are not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, url[url.index(parts.netloc) + len(parts.netloc) :], content, _JSON)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Location")
    finally:
        connection.close()


_JSON = {"Content-Type": "application/json"}


def text(url: str, *, seconds: float = 10.0) -> str:
    status, body, _ = request("GET", url, seconds=seconds)
    if status != 200:
        raise ClusterFailed(f"GET {url} answered {status}: {body[:200]!r}")
    return body.decode()


def get(url: str, *, seconds: float = 10.0) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text(url, seconds=seconds))
    return answer
