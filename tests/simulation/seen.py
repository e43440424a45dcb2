"""Nodes and operations made by hand, for checkers to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from raftq.chaos.simulation.history import Op, Seen
from raftq.replication import membership
from raftq.replication.engine import NO_OP, REGULAR
from raftq.storage.machine import commands, entries, packing
from raftq.storage.machine.commands import Command, Enqueue, Part
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.memory import MemoryTxn

WALL_MS = 1_700_000_000_000


def entry(*given: Command, lease_ms: int = 0, wall_ms: int = 0) -> bytes:
    """An entry of the log, so many milliseconds after the first."""
    clocks = Clocks(1_000 + lease_ms, WALL_MS + wall_ms)
    return entries.encode(clocks, [commands.encode(command) for command in given], REGULAR)


def put(body: str, *, priority: int = 0, queue: str = "default/q", count: int = 1) -> Enqueue:
    """Messages that are ready at once."""
    messages = [packing.pack_message(f'"{body}{at}"'.encode()) for at in range(count)]
    return Enqueue(queue, [Part(priority, 0, packing.pack(messages))])


class FakeNode:
    """Implements `history.NodeView`. The log is (term, command) from index 1 on, the first a no-op."""

    def __init__(self, name: str, log: Sequence[tuple[int, bytes]] = ()) -> None:
        self.id = name
        self.incarnation = self.disk = 1
        self.role = "follower"
        self.term = 0
        self.vote: str | None = None
        self.first_index = 1
        self.log: list[tuple[int, bytes]] = [(0, NO_OP), *log]
        self.commit_index = self.applied_index = 1
        self.received_bytes = 0
        self.digested: tuple[int, str] | None = None
        self.txn = MemoryTxn()
        self.members: tuple[str, ...] = ("n1", "n2", "n3")
        self.configuration = membership.bootstrap({name: name for name in self.members})

    @property
    def last_index(self) -> int:
        return len(self.log)

    @property
    def durable_index(self) -> int:
        return len(self.log)

    def term_at(self, index: int) -> int | None:
        return self.log[index - 1][0] if self.first_index <= index <= len(self.log) else None

    def entry(self, index: int) -> tuple[int, bytes] | None:
        return self.log[index - 1] if self.first_index <= index <= len(self.log) else None

    def match(self, node: str) -> int:
        return 0

    def voters(self) -> tuple[str, ...]:
        return self.members

    def digest(self) -> tuple[int, str]:
        return self.digested or (self.applied_index, "same")

    def tables(self) -> MemoryTxn:
        return self.txn

    def restarted(self) -> None:
        self.incarnation += 1
        self.role = "follower"


class Attempts:
    """Operations of clients: those of one run have different ids, and times that follow each other."""

    def __init__(self, checkers: Any) -> None:
        self._checkers = checkers
        self._now = 0.0
        self._count = 0

    def begin(self, command: Command | None, question: Any = None) -> Op:
        self._count += 1
        self._now += 1
        data = commands.encode(command) if command is not None else msgspec.msgpack.encode(question)
        op = Op(self._count, "c1", "read" if command is None else "write", data, "n1", self._now)
        self._checkers.invoked(op)
        return op

    def end(self, op: Op, outcome: Any, index: int = 0, position: int = 0, reply: Any = None, **more: Any) -> Op:
        self._now += 1
        op.returned_at, op.outcome = self._now, outcome
        if outcome == "ok" and op.kind == "write":
            op.index, op.position, op.reply = index, position, reply
            op.messages = more.get("messages")
        elif outcome == "ok":
            op.view = Seen(index, reply)
        self._checkers.returned(op)
        return op
