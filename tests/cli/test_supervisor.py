"""What the supervisor does about a node that ends, step by step, on a cluster without processes."""

from __future__ import annotations

import pytest

from raftq.cli import supervisor
from raftq.cli.supervisor import RESTART_SECONDS_MAX, RESTART_SECONDS_MIN, Supervisor
from raftq.node.cluster_file import LocalNode
from raftq.node.exits import Exit
from raftq.node.local_cluster import Ended
from raftq.node.probe import NO_ACCESS


class Cluster:
    """The part of `LocalCluster` that a supervisor uses."""

    def __init__(self) -> None:
        self.nodes = [LocalNode(f"n{k}", f"http://127.0.0.1:{k}", f"127.0.0.1:{k}", 1, "d", "l") for k in (1, 2, 3)]
        self.running = [node.id for node in self.nodes]
        self.started: list[str] = []
        self.stray: list[str] = []
        self.left: list[LocalNode] = []
        self._ended: list[Ended] = []

    def end(self, node: str, code: int) -> None:
        self.running.remove(node)
        self._ended.append(Ended(node, code, "its last line"))

    def ended(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def strays(self) -> list[str]:
        return self.stray

    def stop_one(self, node: str) -> None:
        self.stray.remove(node)
        self.running.remove(node)

    def drop_those_that_left(self) -> list[LocalNode]:
        left, self.left = self.left, []
        self.nodes = [node for node in self.nodes if node not in left]
        self.running = [node.id for node in self.nodes]
        return left

    def start(self, node: str) -> None:
        self.started.append(node)
        self.running.append(node)

    def keep_down(self, node: str) -> None:
        next(each for each in self.nodes if each.id == node).kept_down = True

    access = NO_ACCESS

    def pid(self, node: str) -> int:
        return 7

    def url(self, node: str) -> str:
        return next(each for each in self.nodes if each.id == node).api_url


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Scene:
    def __init__(self, restart: bool) -> None:
        self.cluster, self.clock = Cluster(), Clock()
        self.answer: dict[str, object] | None = {"leader": "n1", "term": 1}
        self.said: list[str] = []
        self.supervisor: Supervisor
        self.restart = restart

    def step(self, seconds: float = 0.0) -> list[str]:
        """What is said in a step, `seconds` later."""
        self.clock.now += seconds
        self.said.clear()
        self.supervisor.step()
        return self.said[:]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Scene:
    made = Scene(restart=getattr(request, "param", True))
    monkeypatch.setattr(supervisor.time, "monotonic", made.clock.monotonic)
    monkeypatch.setattr(supervisor, "say", made.said.append)
    monkeypatch.setattr(supervisor.probe, "cluster", lambda _url, **_how: made.answer)
    made.supervisor = Supervisor(made.cluster, restart=made.restart, leader="n1")  # type: ignore[arg-type]
    assert made.step() == []
    return made


def test_it_waits_before_it_starts_a_node_again_and_longer_each_time(scene: Scene) -> None:
    delays = []
    for _ in range(8):
        scene.cluster.end("n2", -9)
        [line] = scene.step()
        assert line.startswith("n2 was killed by SIGKILL; it is started again in ")
        delay = float(line.split(" in ")[1].removesuffix(" s"))
        assert scene.step(delay - 0.01) == []
        assert scene.step(0.02) == ["n2 is started (process 7)"]
        delays.append(delay)
    assert delays[:3] == [RESTART_SECONDS_MIN, 2 * RESTART_SECONDS_MIN, 4 * RESTART_SECONDS_MIN]
    assert delays[-1] == RESTART_SECONDS_MAX


def test_a_node_that_has_lived_is_started_soon(scene: Scene) -> None:
    for _ in range(4):
        scene.step(supervisor.LIVED_SECONDS + 1)
        scene.cluster.end("n2", 1)
        assert scene.step()[0].endswith(f"its last line; it is started again in {RESTART_SECONDS_MIN:g} s")
        scene.step(RESTART_SECONDS_MIN)
    assert scene.cluster.started == ["n2"] * 4


@pytest.mark.parametrize("code", [Exit.CONFIG, Exit.DAMAGED, Exit.DISK_FULL, Exit.FOREIGN_DATA, Exit.PORT_TAKEN])
def test_a_node_that_needs_a_person_stays_down_until_it_is_asked_for(scene: Scene, code: Exit) -> None:
    scene.cluster.end("n2", code)
    [line] = scene.step()
    assert f"exit code {code:d}, {code.meaning}: its last line" in line
    assert scene.step(3600) == []
    scene.cluster.nodes[1].kept_down = False
    assert scene.step() == ["n2 is started (process 7)"]


def test_a_node_kept_down_is_left_alone(scene: Scene) -> None:
    scene.cluster.nodes[1].kept_down = True
    scene.cluster.end("n2", -9)
    assert scene.step() == ["n2 is killed, and kept down until: raftq start n2"]
    assert scene.step(3600) == []


@pytest.mark.parametrize("scene", [False], indirect=True)
def test_without_restart_whatever_dies_stays_down(scene: Scene) -> None:
    scene.cluster.end("n2", -9)
    assert scene.step() == ["n2 was killed by SIGKILL; it stays down until: raftq start n2"]
    assert scene.step(3600) == []


def test_a_node_that_runs_on_another_folder_than_the_file_says_is_started_anew(scene: Scene) -> None:
    scene.cluster.stray.append("n2")
    assert scene.step() == ["n2 is stopped", "n2 is started (process 7)"]


def test_a_node_that_has_left_is_forgotten(scene: Scene) -> None:
    scene.cluster.nodes[1].leaves = True
    scene.cluster.end("n2", Exit.FENCED)
    [line] = scene.step()
    assert line == f"n2 ended with exit code 21, {Exit.FENCED.meaning}: its last line"
    scene.cluster.left.append(scene.cluster.nodes[1])
    assert scene.step() == ["n2 has left the cluster; its data stays in d"]
    assert scene.step(3600) == []


def test_a_node_that_is_to_leave_and_dies_before_is_started_again(scene: Scene) -> None:
    """Until it has left, the cluster may need it."""
    scene.cluster.nodes[1].leaves = True
    scene.cluster.end("n2", -9)
    assert "it is started again in" in scene.step()[0]


def test_a_new_leader_is_told_once_and_one_of_an_older_term_never(scene: Scene) -> None:
    scene.answer = {"leader": "n3", "term": 2}
    assert scene.step() == ["n3 leads (term 2)"]
    assert scene.step() == []
    scene.answer = {"leader": "n1", "term": 1}
    assert scene.step() == []


def test_no_leader_is_told_when_it_lasts(scene: Scene) -> None:
    scene.answer = {"leader": None, "term": 3}
    assert scene.step(1) == []
    assert scene.step(2) == ["no leader, though 3 of 3 nodes run"]
    assert scene.step(2) == []
    scene.answer = {"leader": "n1", "term": 4}
    assert scene.step() == ["n1 leads (term 4)"]
