"""Long polls: who waits for a message of which queue, in the order they came.

Woken by the effect `QueueReady`, never more of them than there are messages ready; one that finds nothing waits on, at
its old place. Who wants messages of some group keys alone stands beside the line, and is woken when there is one of
these. Invariant: while a queue has messages ready and somebody waits, a woken waiter is on its way.
Effects may be repeated or lost at a change of leader: then all are woken, and find out by a read who leads now.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from raftq.replication.shard import Stopping
from raftq.storage.machine.replies import Effect


class Waiter:
    """One long poll, from its first wait until it is answered."""

    __slots__ = ("abandoned", "future", "groups", "ticket", "woken")

    def __init__(self, groups: list[str] | None = None) -> None:
        #: It wants messages with these group keys alone.
        self.groups = groups
        self.ticket = next(_tickets)
        self.future: asyncio.Future[None] | None = None
        self.woken = False
        self.abandoned = False

    def wake(self) -> None:
        assert self.future is not None
        _resolve(self.future)

    def abandon(self) -> None:
        """Its client has gone: `wait` raises ConnectionResetError."""
        self.abandoned = True
        if self.future is not None and not self.future.done():
            self.future.set_exception(ConnectionResetError("the client closed the connection"))


_tickets = count()


class _Line:
    """The waiters of one queue."""

    __slots__ = ("beside", "waiting", "woken")

    def __init__(self) -> None:
        self.waiting: deque[Waiter] = deque()
        #: How many were woken and have neither come back nor left.
        self.woken = 0
        #: Those who want some group keys alone, in the order they came.
        self.beside: dict[Waiter, None] = {}


class Waiters:
    def __init__(self, ready: Callable[[str, list[str] | None], int]) -> None:
        #: Messages of a queue, and of some group keys alone, that can be leased now, as this node has applied them.
        self._ready = ready
        self._lines: dict[str, _Line] = {}
        self._closed = False
        #: From `begin` to `leave`.
        self.polls = 0

    def begin(self, groups: list[str] | None) -> Waiter:
        self.polls += 1
        return Waiter(groups)

    def on_effects(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            line = self._lines.get(effect.queue)
            if line is not None:
                self._wake(line, effect.ready)
                for waiter in line.beside:
                    if self._ready(effect.queue, waiter.groups):
                        waiter.wake()
            name = effect.queue.rpartition(".")[0]
            if name in self._lines:  # of which the queue may be a partition
                self._wake(self._lines[name], self._ready(name, None))
                for waiter in self._lines[name].beside:
                    if self._ready(name, waiter.groups):
                        waiter.wake()

    def wake_all(self) -> None:
        """Leadership was lost or won: each asks the shard anew, and is redirected or goes on waiting."""
        for line in self._lines.values():
            self._wake(line, len(line.waiting) + line.woken)
            for waiter in line.beside:
                waiter.wake()

    def close(self) -> None:
        """The node stops: all waiters, and who comes later, get `Stopping`."""
        self._closed = True
        self.wake_all()

    async def wait(self, queue: str, waiter: Waiter, until: float) -> None:
        """Return when `queue` may have something for `waiter`, or at loop time `until`. Raises Stopping,
        and ConnectionResetError for one that was abandoned."""
        if self._closed:
            raise Stopping
        if waiter.abandoned:
            raise ConnectionResetError("the client closed the connection")
        loop = asyncio.get_running_loop()
        waiter.future = loop.create_future()
        self._join(queue, waiter)
        timer = loop.call_at(until, _resolve, waiter.future)
        try:
            await waiter.future
        finally:
            timer.cancel()
            if waiter.groups is not None:
                del self._lines[queue].beside[waiter]
                self._drop_empty(queue)
            elif not waiter.woken:
                self._lines[queue].waiting.remove(waiter)
                self._drop_empty(queue)
        if self._closed:
            raise Stopping

    def leave(self, queue: str, waiter: Waiter) -> None:
        """`waiter` was answered. What it left ready wakes the next."""
        self.polls -= 1
        line = self._lines.get(queue)
        if line is None or not waiter.woken:
            return
        waiter.woken = False
        line.woken -= 1
        if line.waiting:
            self._wake(line, self._ready(queue, None))
        self._drop_empty(queue)

    def waiting(self) -> int:
        return sum(len(line.waiting) + len(line.beside) for line in self._lines.values())

    def _join(self, queue: str, waiter: Waiter) -> None:
        line = self._lines.setdefault(queue, _Line())
        if waiter.groups is not None:
            line.beside[waiter] = None
            return
        if not waiter.woken:
            line.waiting.append(waiter)
            return
        waiter.woken = False
        line.woken -= 1
        place = sum(1 for other in line.waiting if other.ticket < waiter.ticket)
        line.waiting.insert(place, waiter)

    def _wake(self, line: _Line, ready: int) -> None:
        while line.waiting and line.woken < ready:
            waiter = line.waiting.popleft()
            waiter.woken = True
            line.woken += 1
            waiter.wake()

    def _drop_empty(self, queue: str) -> None:
        line = self._lines[queue]
        if not line.waiting and not line.woken and not line.beside:
            del self._lines[queue]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
