"""The simulated disk: a commit takes time, a crash comes before or after it, and a disk that fails ends its node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftq.chaos.simulation.disk import Disk, Point, Process, SimEnvironment, SimWriter
from raftq.chaos.simulation.loop import Crashed, Scheduler
from raftq.storage.environment import WriteBatch
from raftq.storage.failures import StorageFailed


class Machine(Process):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scheduler = Scheduler(1)
        self.disk = Disk(seconds_min=0.01, seconds_max=0.02)
        self.crash_at: Point | None = None
        self.waiting: list[Callable[[], None]] = []
        self.paused = False
        self.done: list[BaseException | None] = []
        self.open()

    def open(self) -> None:
        self.environment = SimEnvironment(self.folder, self.disk, self)
        self.writer = SimWriter(self.environment, self.scheduler, self.scheduler.dice_for("disk"))

    def crash(self) -> None:
        self.crash_at = None
        self.writer.abandon()
        self.environment.close()

    def put(self, value: bytes) -> None:
        self.writer.commit(WriteBatch(meta={"x": value}), self.done.append)

    @property
    def value(self) -> bytes | None:
        return self.environment.meta("x")

    def reach(self, point: Point) -> None:
        if point == self.crash_at:
            self.crash()
            raise Crashed

    def sent(self, target: str, message: dict[str, Any]) -> None: ...

    def holds(self, again: Callable[[], None]) -> bool:
        if self.paused:
            self.waiting.append(again)
        return self.paused


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path / "data")
    yield found
    found.crash()


def test_a_commit_takes_its_time_and_is_then_durable(machine: Machine) -> None:
    machine.put(b"1")
    machine.scheduler.run(0.005)
    assert (machine.value, machine.done) == (None, [])
    machine.scheduler.run(0.05)
    assert (machine.value, machine.done) == (b"1", [None])


def test_a_crash_before_the_commit_leaves_what_was(machine: Machine) -> None:
    machine.put(b"1")
    machine.scheduler.run(0.05)
    machine.put(b"2")
    machine.crash()
    machine.open()
    machine.scheduler.run(0.1)
    assert (machine.value, machine.done) == (b"1", [None])


@pytest.mark.parametrize(("point", "value"), [("begin", None), ("filled", None), ("durable", b"1")])
def test_a_crash_at_a_point_of_a_commit(machine: Machine, point: Any, value: bytes | None) -> None:
    machine.crash_at = point
    try:
        machine.put(b"1")
    except Crashed:
        assert point != "durable"
    machine.scheduler.run(0.1)
    machine.open()
    assert (machine.value, machine.done) == (value, [])


@pytest.mark.parametrize(("failure", "value"), [("lost", None), ("written", b"1")])
def test_after_a_failure_nothing_is_written(machine: Machine, failure: Any, value: bytes | None) -> None:
    machine.disk.failure = failure
    machine.put(b"1")
    machine.scheduler.run(0.1)
    machine.put(b"2")
    machine.scheduler.run(0.2)
    assert machine.value == value
    assert [type(error) for error in machine.done] == [StorageFailed, StorageFailed]


def test_a_stopped_process_commits_when_it_goes_on(machine: Machine) -> None:
    machine.put(b"1")
    machine.paused = True
    machine.scheduler.run(1.0)
    assert machine.value is None
    machine.paused = False
    for again in machine.waiting:
        again()
    machine.scheduler.run(1.1)
    assert (machine.value, machine.done) == (b"1", [None])
