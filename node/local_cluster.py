"""A cluster of real `raftq node` processes on this machine: the children of the process that holds a `LocalCluster`.

One process at a time runs the cluster of a folder; a lock sees to that. `cluster.json` tells everyone else what runs
where. Nothing here restarts a node by itself.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from raftq.node import folder_lock, local_ports, node_process, probe
from raftq.node.cluster_file import ClusterFile, LocalClusterState, LocalNode
from raftq.node.exits import Exit, Fatal
from raftq.node.folder_lock import FolderInUse, FolderLock
from raftq.node.probe import Access
from raftq.node.secure_folder import SecureFolder
from raftq.node.waiting import wait_until

FIRST_PORT = 7701
#: The peers' port of a node is its API port and this.
PEER_PORTS = 1000


class Ended(NamedTuple):
    node: str
    #: The exit code, or the number of the signal that ended it, negative.
    code: int
    last_line: str


class LocalCluster:
    def __init__(
        self,
        folder: Path,
        *,
        size: int | None = None,
        port: int | None = None,
        flags: Sequence[str] = (),
        secure: bool = False,
    ) -> None:
        """Takes the folder and the cluster in it; else makes one of `size` nodes (3), its API ports from `port` on,
        and, if it is to be `secure`, with certificates, a secret and tokens. Starts nothing yet. `flags` are added to
        each `raftq node`. Raises Fatal."""
        self.folder = folder.absolute()
        self.file = ClusterFile(self.folder)
        self._lock = _take(self.folder)
        self._flags = flags
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        #: As they were started.
        self._started: dict[str, LocalNode] = {}
        try:
            state = self._open(size, port, secure)
            #: None of a cluster that is not secure.
            self.secure = _prepared(self.folder) if state.secure else None
        except BaseException:
            self._lock.release()
            raise

    @property
    def nodes(self) -> list[LocalNode]:
        return self._state().nodes

    @property
    def running(self) -> list[str]:
        return sorted(self._processes)

    @property
    def access(self) -> Access:
        """What `raftq.node.probe` needs to ask the nodes."""
        return self.secure.access() if self.secure is not None else probe.NO_ACCESS

    def url(self, node_id: str) -> str:
        return (self._state().find(node_id) or self._started[node_id]).api_url

    def pid(self, node_id: str) -> int:
        return self._processes[node_id].pid

    def start_all(self, seconds: float = 20.0) -> None:
        """Raises Fatal when a port is taken, TimeoutError when a node of an earlier run does not end."""
        for node in self.nodes:
            self._wait_for_folder(node, seconds)
        for node in self.nodes:
            _check_ports(node)
        for node in self.nodes:
            self.start(node.id)

    def start(self, node_id: str) -> None:
        """Starts a node that does not run, if it is still in the file."""
        assert node_id not in self._processes, f"{node_id} runs"
        state = self._state()
        if (node := state.find(node_id)) is None:
            return
        flags = list(self._flags)
        if self.secure is not None:
            self.secure.issue(node_id)
            flags = [*self.secure.flags(node_id), *flags]
        process = node_process.spawn(state, node, flags)
        self._processes[node_id], self._started[node_id] = process, node
        self._record(node_id, process.pid)

    def signal(self, node_id: str, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT, SIGTERM, ..."""
        self._processes[node_id].send_signal(number)

    def kill(self, node_id: str) -> None:
        """SIGKILL. It is gone when this returns."""
        self._processes[node_id].kill()
        self._reap(node_id)

    def keep_down(self, node_id: str) -> None:
        """Note of a node that ended that nobody is to start it unasked."""
        with self.file.change() as state:
            if (node := state.find(node_id)) is not None:
                node.kept_down = True

    def ended(self) -> list[Ended]:
        """The nodes that ended by themselves, or by the hand of others, since this was last asked."""
        dead = [node_id for node_id, process in self._processes.items() if process.poll() is not None]
        return [Ended(node, self._reap(node), node_process.last_line(self._started[node])) for node in dead]

    def strays(self) -> list[str]:
        """The nodes that run, and are not in the file any more, or are so with another data folder."""
        state = self._state()
        found = [(node_id, state.find(node_id)) for node_id in self.running]
        return [node_id for node_id, node in found if node is None or node.data != self._started[node_id].data]

    def stop_one(self, node_id: str, seconds: float = 10.0) -> None:
        """SIGTERM, then SIGKILL."""
        self._terminate(node_id)
        self._await_end(node_id, seconds)

    def drop_those_that_left(self) -> list[LocalNode]:
        """Those that are to leave, once no node that answers counts them as members: stopped, and in the file no more.
        Their data stays."""
        leaving = [node for node in self.nodes if node.leaves]
        if not leaving:
            return []
        staying = [node.api_url for node in self.nodes if not node.leaves and node.id in self._processes]
        answers = [answer for url in staying if (answer := probe.cluster(url, access=self.access)) and answer["nodes"]]
        members = {member["id"] for answer in answers for member in answer["nodes"]}
        left = [node for node in leaving if any(answer["leader"] for answer in answers) and node.id not in members]
        for node in left:
            if node.id in self._processes:
                self.stop_one(node.id)
            with self.file.change() as state:
                state.nodes.remove(state.node(node.id))
        return left

    def stop(self, seconds: float = 10.0) -> list[str]:
        """SIGTERM to all, SIGKILL to those that have not ended within `seconds`; these are returned."""
        for node_id in self.running:
            self._terminate(node_id)
        end = time.monotonic() + seconds
        return [node_id for node_id in self.running if self._await_end(node_id, end - time.monotonic())]

    def close(self, seconds: float = 10.0) -> list[str]:
        """Stops what runs, and lets go of the folder."""
        late = self.stop(seconds)
        self._lock.release()
        return late

    def leader(self) -> str | None:
        """The leader, when every running node names the same one and that one runs. One that waits to be added to the
        cluster is not asked."""
        joining = {node.id for node in self.nodes if node.joins}
        answers = {node_id: probe.cluster(self.url(node_id), access=self.access) for node_id in self.running}
        waiting = {node_id for node_id, answer in answers.items() if answer and not answer["nodes"]} & joining
        leaders = {answer["leader"] if answer else None for node, answer in answers.items() if node not in waiting}
        return next((leader for leader in leaders if len(leaders) == 1 and leader in self._processes), None)

    def wait_ready(self, seconds: float = 20.0) -> str:
        """The leader, as soon as every running node knows it. A node whose folder may not take part any more stays
        down. Raises Fatal when another ends, or none leads in time."""
        try:
            return wait_until(self._leader_or_ended, seconds, "a leader that every node knows")
        except TimeoutError as error:
            raise Fatal(Exit.NOT_READY, f"the cluster in {self.folder} is not ready: {error}") from error

    def _leader_or_ended(self) -> str | None:
        for ended in self.ended():
            if ended.code == Exit.FENCED:
                self.keep_down(ended.node)
                continue
            raise Fatal(Exit.NOT_READY, f"{ended.node} ended: {ended.last_line}")
        return self.leader()

    def _open(self, size: int | None, port: int | None, secure: bool) -> LocalClusterState:
        state = self.file.read()
        if state is None:
            state = new_state(self.folder, size or 3, FIRST_PORT if port is None else port, secure=secure)
            self.file.create(state)
            return state
        first = local_ports.of(state.nodes[0].api_url)
        if size not in (None, len(state.nodes)):
            raise Fatal(Exit.CONFIG, f"the cluster in {self.folder} has {len(state.nodes)} nodes: leave out --nodes")
        if port not in (None, first):
            raise Fatal(Exit.CONFIG, f"the cluster in {self.folder} has its ports from {first}: leave out --port")
        if secure and not state.secure:
            raise Fatal(Exit.CONFIG, f"the cluster in {self.folder} is not secure: make another, with a new --data")
        with self.file.change() as state:
            for node in state.nodes:  # the folder may have been moved since
                node.pid, node.kept_down = None, False
                node.data, node.log = (str(self.folder / Path(path).name) for path in (node.data, node.log))
        return state

    def _state(self) -> LocalClusterState:
        state = self.file.read()
        assert state is not None, f"{self.file.path} is gone"
        return state

    def _wait_for_folder(self, node: LocalNode, seconds: float) -> None:
        """A supervisor that was killed leaves nodes that are about to end."""
        wait_until(lambda: not folder_lock.is_held(Path(node.data)), seconds, f"{node.id} of an earlier run to end")

    def _terminate(self, node_id: str) -> None:
        process = self._processes[node_id]
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)  # one that was paused could not end

    def _await_end(self, node_id: str, seconds: float) -> bool:
        """Whether it had to be killed."""
        try:
            self._processes[node_id].wait(max(0.0, seconds))
            late = False
        except subprocess.TimeoutExpired:
            self._processes[node_id].kill()
            late = True
        self._reap(node_id)
        return late

    def _reap(self, node_id: str) -> int:
        process = self._processes.pop(node_id)
        code = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        self._record(node_id, None)
        return code

    def _record(self, node_id: str, pid: int | None) -> None:
        with self.file.change() as state:
            if (node := state.find(node_id)) is not None:
                node.pid = pid


def _take(folder: Path) -> FolderLock:
    try:
        return FolderLock(folder)
    except FolderInUse as error:
        raise Fatal(
            Exit.FOLDER_IN_USE, f"another raftq up runs a cluster on {folder}: stop it, or use another --data"
        ) from error
    except OSError as error:
        raise Fatal(Exit.CONFIG, f"cannot use the folder {folder}: {error.strerror}") from error


def _prepared(folder: Path) -> SecureFolder:
    secure = SecureFolder(folder)
    try:
        folder.chmod(0o700)
        secure.prepare()
    except OSError as error:
        raise Fatal(Exit.CONFIG, f"cannot write {error.filename or secure.path}: {error.strerror}") from error
    return secure


def new_state(folder: Path, size: int, port: int, *, secure: bool = False) -> LocalClusterState:
    """Of a cluster of `size` nodes in `folder`, their API ports from `port` on."""
    nodes = [_node(folder, f"n{number + 1}", port + number, secure=secure) for number in range(size)]
    return LocalClusterState(new_cluster_id(), nodes, secure)


def new_cluster_id() -> str:
    return f"local-{uuid.uuid4().hex[:8]}"


def joining(folder: Path, state: LocalClusterState, node_id: str) -> LocalNode:
    """A node beside those of `state` that waits to be added, with a new data folder. Under the name of one of them it
    has the ports of that one, else ports of its own."""
    before = state.find(node_id)
    port = _free_port(state) if before is None else local_ports.of(before.api_url)
    node = _node(folder, node_id, port, secure=state.secure)
    names = itertools.chain([node_id], (f"{node_id}-{number}" for number in itertools.count(2)))
    node.data = str(next(path for path in map(folder.joinpath, names) if not path.exists()))
    node.joins = True
    return node


def _free_port(state: LocalClusterState) -> int:
    """Above those of the API that are in use, which lie beside each other."""
    port = max(local_ports.of(node.api_url) for node in state.nodes) + 1
    while local_ports.is_taken(port) or local_ports.is_taken(port + PEER_PORTS):
        port += 1
    return port


def _node(folder: Path, name: str, port: int, *, secure: bool) -> LocalNode:
    scheme = "https" if secure else "http"
    api, peer = f"{scheme}://{local_ports.HOST}:{port}", f"{local_ports.HOST}:{port + PEER_PORTS}"
    return LocalNode(name, api, peer, None, str(folder / name), str(folder / f"{name}.log"))


def _check_ports(node: LocalNode) -> None:
    for address, what in ((node.api_url, "its API"), (node.peer_address, "its peers")):
        if local_ports.is_taken(port := local_ports.of(address)):
            hint = "stop that, or make a cluster with other ports: raftq up or restore with a new --data, and --port"
            raise Fatal(
                Exit.PORT_TAKEN, f"port {port}, which {node.id} needs for {what}, is taken by another program: {hint}"
            )
