"""Simulated time: asyncio runs on it unchanged, in an order that is always the same, and ends with its process."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from raftq.chaos.simulation.loop import Clock, Crashed, NodeLoop, Scheduler


class World:
    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        self.clock = Clock(self.scheduler, monotonic=500.0, wall=1_000.0)
        self.errors: list[BaseException] = []
        self.seen: list[tuple[float, str]] = []
        self.loop = self.process()

    def process(self) -> NodeLoop:
        return NodeLoop(self.scheduler, self.clock, self.scheduler.dice_for("a"), self.errors.append)  # type: ignore[abstract]

    def note(self, what: str) -> None:
        self.seen.append((round(self.scheduler.now, 3), what))


@pytest.fixture
def world() -> World:
    return World()


def test_sleeps_timeouts_and_threads_take_simulated_time(world: World) -> None:
    async def work() -> None:
        await asyncio.sleep(1.5)
        world.note("slept")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.Event().wait()
        world.note("timed out")
        world.note(await asyncio.to_thread(lambda: "thread"))

    world.loop.create_task(work())
    world.scheduler.run(60.0)
    assert [what for _, what in world.seen] == ["slept", "timed out", "thread"]
    assert [at for at, _ in world.seen] == pytest.approx([1.5, 3.5, 3.5], abs=0.01)
    assert world.scheduler.now == 60.0


def test_two_runs_of_a_seed_are_one_and_of_another_seed_another() -> None:
    def trace(seed: int) -> str:
        world = World(seed)

        async def work(name: str) -> None:
            for _ in range(20):
                await asyncio.sleep(world.scheduler.dice_for(name).random())
                world.loop.call_soon(world.note, name)

        for name in ("x", "y"):
            world.loop.create_task(work(name))
        world.scheduler.run(100.0)
        return world.scheduler.trace.hexdigest()

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_what_is_called_soon_keeps_its_order(world: World) -> None:
    for number in range(20):
        world.loop.call_soon(world.note, str(number))
    world.scheduler.run(1.0)
    assert [what for _, what in world.seen] == [str(number) for number in range(20)]


def test_a_held_process_does_nothing_and_then_all_of_it(world: World) -> None:
    world.loop.call_later(1.0, world.note, "timer")
    world.scheduler.at(0.5, world.loop.hold)
    world.scheduler.at(3.0, world.loop.resume)
    world.scheduler.run(10.0)
    assert world.seen == [(3.0, "timer")]


def test_a_fast_clock_ends_its_timers_early_and_its_steps_move_none(world: World) -> None:
    world.clock.drift(2.0)
    world.clock.step(-100.0)
    world.loop.call_later(1.0, world.note, "timer")
    world.scheduler.run(10.0)
    assert world.seen == [(0.5, "timer")]
    assert world.clock.monotonic() == pytest.approx(520.0)
    assert world.clock.wall() == pytest.approx(920.0)


def test_of_a_closed_process_nothing_runs_and_nothing_complains(world: World) -> None:
    ended: list[str] = []

    async def inner() -> None:
        try:
            await asyncio.sleep(5.0)
        finally:
            ended.append("inner")
            await asyncio.sleep(1.0)  # a dead process waits for nothing

    async def outer() -> None:
        try:
            await asyncio.gather(inner(), asyncio.to_thread(world.note, "thread"))
        finally:
            ended.append("outer")
            world.loop.create_task(inner())

    world.loop.create_task(outer())
    world.loop.call_later(3.0, world.note, "timer")
    world.scheduler.at(2.0, world.loop.close)
    world.scheduler.run(10.0)
    world.loop.call_soon(world.note, "late")
    world.scheduler.run(20.0)
    gc.collect()
    assert [what for _, what in world.seen] == ["thread"]
    assert sorted(ended) == ["inner", "outer"]
    assert world.errors == []


def test_a_crash_is_not_caught_by_what_it_ends(world: World) -> None:
    closed: list[float] = []
    world.loop.on_closed = lambda: closed.append(world.scheduler.now)

    def crash() -> None:
        try:
            raise Crashed
        except Exception:
            world.note("survived")

    world.loop.call_later(1.0, crash)
    world.loop.call_later(1.0, world.note, "after")
    world.scheduler.run(10.0)
    assert world.seen == []
    assert closed == [pytest.approx(1.0)]


def test_what_nobody_caught_is_told(world: World) -> None:
    def fail() -> None:
        raise ValueError("from a callback")

    async def work() -> Any:
        raise ValueError("from a task")

    world.loop.call_soon(fail)
    world.loop.create_task(work())
    world.scheduler.run(1.0)
    world.loop.close()
    assert [str(error) for error in world.errors] == ["from a callback", "from a task"]
