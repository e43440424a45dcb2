"""What clients wait for: proposals and linearizable reads.

Invariant: each future given here ends, once. A proposal that never reached the log is turned away as certainly not
applied; one that did, and whose commit this node did not see while it led, ends as unknown (fault 26).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from raftq.replication.shard import Committed, NotLeader, OutcomeUnknown, Overloaded
from raftq.replication.shard_config import ShardConfig
from raftq.replication.stages import Stages
from raftq.storage.machine.commands import weight
from raftq.storage.machine.views import View

#: None for what the shard itself proposes.
Waiter = asyncio.Future[Committed] | None


class Proposals:
    """First in a queue, for the next entry; then in an entry, for its commit."""

    def __init__(self, config: ShardConfig, clock: Callable[[], float], stages: Stages) -> None:
        """`clock` gives monotonic seconds."""
        self._config, self._clock, self._stages = config, clock, stages
        #: (command, its weight, who waits for it, when it came)
        self._queue: deque[tuple[bytes, int, Waiter, float]] = deque()
        self._queued_bytes = 0
        self._entered: dict[int, list[Waiter]] = {}
        #: (index, bytes, when its first command came, when it was made) of the entries that are not committed.
        self._uncommitted: deque[tuple[int, int, float, float]] = deque()
        self._uncommitted_bytes = 0

    @property
    def queued(self) -> bool:
        return bool(self._queue)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._entered

    def check_room(self, size: int) -> None:
        """Raises Overloaded. One of any size is taken when nothing waits."""
        config = self._config
        full = self._queued_bytes + size > config.waiting_bytes or len(self._queue) >= config.waiting_commands
        if full and self._queue:
            raise Overloaded(f"{len(self._queue)} operations of {self._queued_bytes} bytes are waiting")

    def add(self, command: bytes, waiter: Waiter) -> None:
        self._queue.append((command, weight(command), waiter, self._clock()))
        self._queued_bytes += len(command)

    def enter(self, index: int) -> list[bytes]:
        """The commands for an entry at `index`: as many as it may gather, none when too much is uncommitted. From here
        on they are in the log, whatever fails."""
        queue = self._queue
        if not queue or self._uncommitted_bytes > self._config.uncommitted_bytes:
            return []
        size = weighs = 0
        came, now = queue[0][3], self._clock()
        batch: list[bytes] = []
        waiters: list[Waiter] = []
        while queue:
            command, more, waiter, _ = queue[0]
            full = size + len(command) > self._config.entry_bytes or weighs + more > self._config.entry_weight
            if batch and full:
                break
            queue.popleft()
            batch.append(command)
            waiters.append(waiter)
            size += len(command)
            weighs += more
        self._queued_bytes -= size
        self._entered[index] = waiters
        self._uncommitted.append((index, size, came, now))
        self._uncommitted_bytes += size
        self._stages.waited.observe(now - came)
        return batch

    def waiters(self, index: int) -> list[Waiter] | None:
        """Of each command of the entry at `index`; None when it is not of this node's leadership."""
        return self._entered.get(index)

    def applied(self, index: int) -> None:
        self._entered.pop(index, None)

    def committed(self, index: int) -> None:
        while self._uncommitted and self._uncommitted[0][0] <= index:
            _, size, came, made = self._uncommitted.popleft()
            self._uncommitted_bytes -= size
            now = self._clock()
            self._stages.replicated.observe(now - made)
            self._stages.latency.observe(now - came)

    def give_up(self) -> None:
        """Leadership is lost: what is in the log may yet be committed, by another leader."""
        entered, self._entered = self._entered, {}
        self._uncommitted.clear()
        self._uncommitted_bytes = 0
        waiters = [waiter for waiters in entered.values() for waiter in waiters if waiter is not None]
        _end(waiters, lambda: OutcomeUnknown("leadership was lost before a majority confirmed"))

    def turn_away(self, leader: str | None) -> None:
        """What never reached the log certainly was not applied."""
        queue, self._queue = self._queue, deque()
        self._queued_bytes = 0
        _end((waiter for _, _, waiter, _ in queue if waiter is not None), lambda: NotLeader(leader))


class Reads:
    """Linearizable reads: only rounds begun after a read count for it (Ongaro's thesis, 6.4)."""

    def __init__(self) -> None:
        self._new: list[asyncio.Future[View]] = []
        #: (commit index at its begin, round, who waits), both growing.
        self.begun: deque[tuple[int, int, asyncio.Future[View]]] = deque()

    @property
    def waiting(self) -> bool:
        """Some have no round yet."""
        return bool(self._new)

    def add(self, future: asyncio.Future[View]) -> None:
        self._new.append(future)

    def begin(self, commit_index: int, number: int) -> None:
        """Round `number`, none of whose messages has left yet, is the one of all that have none."""
        self.begun.extend((commit_index, number, future) for future in self._new)
        self._new = []

    def end(self, confirmed_round: int, applied_index: int, view: Callable[[], View]) -> None:
        """Answer those whose round a majority has echoed, and whose index is applied."""
        while self.begun and self.begun[0][1] <= confirmed_round and self.begun[0][0] <= applied_index:
            future = self.begun.popleft()[2]
            if not future.done():
                future.set_result(view())

    def turn_away(self, leader: str | None) -> None:
        futures = [future for _, _, future in self.begun] + self._new
        self.begun.clear()
        self._new = []
        _end(futures, lambda: NotLeader(leader))


def _end(futures: Iterable[asyncio.Future[Any]], error: Callable[[], Exception]) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error())
