"""Simulated time: one heap of what is to happen, and an event loop for each process that lives in it.

`Scheduler` owns the time, the order of everything and the trace's hash. `NodeLoop` is what a process sees of it: an
asyncio event loop with a clock of its own, which can be held (SIGSTOP), can drift, and dies with its process. It never
reads a clock or dice of the machine, never waits, and starts no thread.

Invariant: what happens, and in what order, is a function of the calls made here. Of two things due at one moment the
one asked for first comes first.
"""

from __future__ import annotations

import asyncio
import contextvars
import struct
from asyncio.events import _set_running_loop  # typeshed knows it as private; it is how a loop says that it runs
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, TypeVar

from xxhash import xxh3_64

_STAMP = struct.Struct("<dQ")
_FOREVER: Final = float("inf")

T = TypeVar("T")


class Crashed(BaseException):
    """The process that runs ends here and now. Not an Exception, so that nothing of the process catches it."""


class Event(asyncio.TimerHandle):
    """Something that is to happen once. Has asyncio's shape, since tasks and timeouts hold and cancel it."""

    __slots__ = ("arguments", "at", "call", "context", "dropped", "loop")

    def __init__(  # asyncio's own takes longer than all else here
        self,
        at: float,
        loop: NodeLoop | None,
        call: Callable[..., object],
        arguments: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> None:
        self.at, self.loop, self.call, self.arguments, self.context = at, loop, call, arguments, context
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.at

    def __repr__(self) -> str:
        return f"<Event at {self.at:.6f} {self.call}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Scheduler:
    """Everything that happens, in order. `seed` decides what is left to chance; each part takes dice of its own from
    `dice_for`, so that a fault that is left out changes as little of the rest as can be."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.steps = 0
        self.trace = xxh3_64()
        #: Ends `run` after the step in which it was set.
        self.stopped = False
        self._heap: list[tuple[float, int, Event]] = []
        self._sequence = 0

    def dice_for(self, part: str) -> Random:
        return Random(f"{self.seed}/{part}")  # noqa: S311 - chance that can be repeated is the point

    def note(self, content: bytes) -> None:
        """Something that is part of the run's identity."""
        self.trace.update(content)

    def at(self, when: float, call: Callable[..., object], *arguments: Any) -> Event:
        """Of the world: no process has to be there for it."""
        return self.push(max(when, self.now), Event(when, None, call, arguments, None))

    def after(self, seconds: float, call: Callable[..., object], *arguments: Any) -> Event:
        return self.at(self.now + seconds, call, *arguments)

    def push(self, when: float, event: Event) -> Event:
        self._sequence += 1
        heappush(self._heap, (when, self._sequence, event))
        return event

    def run(self, until: float) -> None:
        """Let time pass up to `until`."""
        heap = self._heap
        while heap and not self.stopped:
            if heap[0][0] > until:
                break
            when, sequence, event = heappop(heap)
            if event.dropped:
                continue
            self.now = when
            loop = event.loop
            if loop is not None and not loop.takes(event):
                continue
            self.steps += 1
            self.trace.update(_STAMP.pack(when, sequence))
            if loop is None:
                with suppress(Crashed):  # that process has been closed by now
                    event.call(*event.arguments)
            else:
                loop.execute(event)
        if not self.stopped:
            self.now = until


class Clock:
    """The clocks of one machine: they outlive its processes."""

    def __init__(self, scheduler: Scheduler, *, monotonic: float, wall: float) -> None:
        self._scheduler = scheduler
        self._since = scheduler.now
        self._monotonic = monotonic
        #: What the wall clock is ahead of the monotonic one.
        self._offset = wall - monotonic
        self.rate = 1.0

    def monotonic(self) -> float:
        return self._monotonic + (self._scheduler.now - self._since) * self.rate

    def wall(self) -> float:
        return self.monotonic() + self._offset

    def drift(self, rate: float) -> None:
        """From now on `rate` seconds here are one second."""
        self._monotonic, self._since = self.monotonic(), self._scheduler.now
        self.rate = rate

    def step(self, seconds: float) -> None:
        """The wall clock jumps."""
        self._offset += seconds

    def set_wall(self, wall: float) -> None:
        self._offset = wall - self.monotonic()

    def moment(self, monotonic: float) -> float:
        """The simulated time at which this clock will show `monotonic`."""
        return self._scheduler.now + (monotonic - self.monotonic()) / self.rate


class NodeLoop(asyncio.AbstractEventLoop):
    """The event loop of one process, from its start to its end. `on_error` hears of exceptions that nothing caught."""

    def __init__(
        self, scheduler: Scheduler, clock: Clock, dice: Random, on_error: Callable[[BaseException], None]
    ) -> None:
        self._scheduler, self._clock, self._dice, self._on_error = scheduler, clock, dice, on_error
        self._closed = False
        #: What waits for the process to go on, while it is held.
        self._held: list[Event] | None = None
        self._soon = 0.0
        self._tasks: list[asyncio.Task[Any]] = []
        #: Called once, after the step in which the process ended.
        self.on_closed: Callable[[], None] = lambda: None

    # What the scheduler calls

    def takes(self, event: Event) -> bool:
        """Whether `event` happens now."""
        if self._closed:
            return False
        if self._held is not None:
            self._held.append(event)
            return False
        return True

    def execute(self, event: Event) -> None:
        _set_running_loop(self)
        try:
            if event.context is None:
                event.call(*event.arguments)
            else:
                event.context.run(event.call, *event.arguments)
        except Crashed:
            self._closed = True
        except Exception as error:
            self._on_error(error)
        finally:
            _set_running_loop(None)
        if self._closed:
            self.bury()

    # What the world does to the process

    def hold(self) -> None:
        if self._held is None:
            self._held = []

    def resume(self) -> None:
        held, self._held = self._held or [], None
        for event in held:
            self._scheduler.push(self._scheduler.now, event)

    def close(self) -> None:
        """The process is gone: nothing of it ever runs again."""
        self._closed = True
        if asyncio._get_running_loop() is not self:
            self.bury()

    def bury(self) -> None:
        """Close what the process was in the midst of, so that no object of it complains when it goes."""
        self._look_through_tasks()
        tasks, self._tasks = self._tasks, []
        _set_running_loop(self)
        try:
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close(task.get_coro())
        finally:
            _set_running_loop(None)
        on_closed, self.on_closed = self.on_closed, lambda: None
        on_closed()

    # What asyncio and the process call

    def time(self) -> float:
        return self._clock.monotonic()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        """After a moment that a processor takes, so that processes interleave, and a crash can come between."""
        scheduler = self._scheduler
        self._soon = max(self._soon, scheduler.now) + self._dice.random() * 2e-5
        event = Event(self._soon, self, callback, args, context)
        return event if self._closed else scheduler.push(self._soon, event)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        return self.call_at(self._clock.monotonic() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        event = Event(when, self, callback, args, context)
        if self._closed or when == _FOREVER:
            return event
        return self._scheduler.push(max(self._clock.moment(when), self._scheduler.now), event)

    def deliver(self, at: float, call: Callable[..., object], *arguments: Any) -> None:
        """Something comes to the process from outside, at simulated time `at`."""
        self._scheduler.push(at, Event(at, self, call, arguments, None))

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        if self._closed:
            coro.close()
            raise RuntimeError("the process is gone")
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        if len(self._tasks) > 64:
            self._look_through_tasks()
        self._tasks.append(task)
        return task

    def _look_through_tasks(self) -> None:
        """Forget those that ended, and report what ended one and nobody asked for."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task._log_traceback:
                error = task.exception()
                if isinstance(error, Exception):
                    self._on_error(error)
        self._tasks = [task for task in self._tasks if not task.done()]

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run whole, at one later moment: a thread that this process waits for."""
        assert executor is None
        future: asyncio.Future[T] = self.create_future()
        self.call_later(0.0002 + self._dice.random() * 0.004, self._thread, future, func, args)
        return future

    @staticmethod
    def _thread(future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            result = func(*args)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Of a future whose exception nobody asked for: when that is found depends on the garbage collector."""


def _close(coroutine: Any) -> None:
    for _ in range(100):  # one that awaits in its `finally` has to be told again
        try:
            coroutine.close()
        except (Exception, Crashed):  # noqa: S112 - what a dead process still has to say is not heard
            continue
        return
