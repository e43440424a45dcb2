"""What the unit tests of the state machine share: one machine in memory, and hands to work it."""

from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine import audit, packing
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.commands import Ack, Command, Enqueue, Lease, Part, Slots
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Effect, Leased, Reply

QUEUE = "default/jobs"


def blob(*bodies: bytes) -> bytes:
    return packing.pack([packing.pack_message(body) for body in bodies])


class Hands:
    """Each command is an entry of its own, unless `together`. After each entry the tables are audited."""

    def __init__(self) -> None:
        self.txn = MemoryTxn()
        self.machine = Machine(self.txn)
        self.index = 0
        self.lease_ms = 1_000
        self.wall_ms = 1_700_000_000_000
        self.effects: list[Effect] = []

    def do(self, command: Command) -> Any:
        return self.together(command)[0]

    def together(self, *commands: Command) -> list[Reply]:
        self.index += 1
        replies = []
        for position, command in enumerate(commands):
            meta = Meta(self.index, position, 1, self.lease_ms, self.wall_ms)
            reply, self.effects = self.machine.apply(meta, command)
            replies.append(reply)
        self.machine.end_entry(Meta(self.index, 0, 1, self.lease_ms, self.wall_ms))
        audit.check(self.txn)
        return replies

    def restart(self) -> None:
        self.machine = Machine(self.txn)

    def enqueue(self, *bodies: bytes, priority: int = 0, delay_ms: int | None = None) -> Any:
        return self.do(Enqueue(QUEUE, [Part(priority, delay_ms, blob(*bodies))]))

    def lease(self, count: int = 1_000, lease_ms: int | None = None, **options: Any) -> Leased:
        reply = self.do(Lease(QUEUE, count, lease_ms, **options))
        assert isinstance(reply, Leased)
        return reply

    def settle(self, leased: Leased, *slots: int, kind: type = Ack, **options: Any) -> list[int]:
        reply = self.do(kind(QUEUE, leased.queue_number, [Slots(leased.lease_id, list(slots))], **options))
        return list(reply.results[0])

    def bodies(self, leased: Leased) -> list[bytes]:
        return [packing.unpack_message(got.data).body for got in self.machine.deliveries(leased) if got is not None]

    def info(self, key: str = QUEUE) -> Any:
        return self.machine.view().queue(key)

    def keys(self, table: bytes) -> list[bytes]:
        return [key for key in self.txn.values if key[:1] == table]


@pytest.fixture
def hands() -> Hands:
    return Hands()
