"""The examples as processes beside a cluster: what each kind of consumer does is seen in its queue and in the dead
letters."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftq.node import probe
from raftq.node.local_cluster import LocalCluster
from raftq.node.local_ports import free_first
from raftq.node.waiting import wait_until
from tests.cluster.client import ask

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
Example = subprocess.Popen[str]


@pytest.fixture
def example(cluster: LocalCluster) -> Iterator[Callable[..., Example]]:
    """Starts one: `example("consume", "succeed")`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = os.environ | {"RAFTQ_URL": cluster.url("n1"), "PYTHONPATH": path}
    started: list[Example] = []

    def start(name: str, *arguments: str) -> Example:
        command = [sys.executable, "-m", f"examples.{name}", *arguments]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def front(example: Callable[..., Example]) -> str:
    """The URL of the front end."""
    port = free_first(1, 0)
    process = example("front", f"--port={port}")
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None
        try:
            return probe.ask("GET", f"{url}/health", seconds=5).status == 200
        except OSError:
            return False

    wait_until(healthy, 30, "the front end answers")
    return url


def ended(process: Example) -> list[str]:
    """What it printed, once it has ended well."""
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return printed.splitlines()


def test_each_kind_of_consumer_does_what_it_says(
    cluster: LocalCluster, front: str, example: Callable[..., Example]
) -> None:
    for kind in ("succeed", "reject", "retry"):
        for number in range(3):
            answer = ask("POST", f"{front}/publish", {"queue": kind, "body": number, "dedup_id": f"{kind}-{number}"})
            assert (answer.status, answer.json()["duplicate"]) == (201, False)
    again = ask("POST", f"{front}/publish", {"queue": "retry", "body": 0, "dedup_id": "retry-0"})
    assert again.json()["duplicate"] is True
    assert ask("POST", f"{front}/publish", {"queue": "another", "body": 0}).status == 400
    health = ask("GET", f"{front}/health").json()
    assert health == {"status": "ok", "queues": {"succeed": 3, "reject": 3, "retry": 3, "dead": 0}}

    running = {kind: example("consume", kind, "--until-empty") for kind in ("succeed", "reject", "retry")}
    printed = {kind: ended(process) for kind, process in running.items()}

    health = ask("GET", f"{front}/health").json()
    assert health["queues"] == {"succeed": 0, "reject": 0, "retry": 0, "dead": 6}
    assert totals(cluster, "succeed") >= {"acked": 3, "nacked": 0, "dead_lettered": 0}.items()
    assert totals(cluster, "reject") >= {"acked": 0, "rejected": 3, "dead_lettered": 3}.items()
    assert totals(cluster, "retry") >= {"acked": 0, "nacked": 12, "dead_lettered": 3, "delivered": 12}.items()
    found = ask("GET", f"{cluster.url('n1')}/v1/queues/dead/messages?limit=10").json()["messages"]
    told = sorted((of["queue"], of["reason"], of["failures"], of["deliveries"]) for of in map(dead_letter, found))
    rejected = [("reject", f"rejected: nobody knows what to do with {number}", 0, 1) for number in range(3)]
    assert told == rejected + [("retry", "max_failures", 4, 4)] * 3
    assert [len(lines) for lines in printed.values()] == [3, 3, 12]
    for message in (of["id"] for of in map(dead_letter, found) if of["queue"] == "retry"):
        lines = [line for line in printed["retry"] if f"retry {message} " in line]
        gaps = [float(gap) for gap in re.findall(r"after ([\d.]+) s", "\n".join(lines))]
        assert [gap >= least for gap, least in zip(gaps, (0.39, 0.79, 1.59), strict=True)] == [True] * 3, lines


def test_a_pool_of_workers_finishes_what_it_has_in_hand(
    cluster: LocalCluster, front: str, example: Callable[..., Example]
) -> None:
    for number in range(8):
        assert ask("POST", f"{front}/publish", {"body": number}).status == 201
    pool = example("consume", "succeed", "--workers=4", "--seconds=2")
    stats = f"{cluster.url('n1')}/v1/queues/succeed/stats"
    wait_until(lambda: ask("GET", stats).json()["leased"] == 4, 20, "the pool works on 4 messages")
    pool.send_signal(signal.SIGTERM)
    assert len(ended(pool)) == 4
    left = ask("GET", stats).json()
    assert (left["ready"], left["leased"], left["totals"]["acked"]) == (4, 0, 4)


def totals(cluster: LocalCluster, queue: str) -> Any:
    return ask("GET", f"{cluster.url('n1')}/v1/queues/{queue}/stats").json()["totals"].items()


def dead_letter(message: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = message["dead_letter"]
    return found
