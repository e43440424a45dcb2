"""Several operations as one: the command transact.

All of it is checked before anything is done, against the tables as they were before it, and nothing that was checked is
refused later: so there is nothing to undo. Stricter than the operations alone: a receipt has to hold its message now
and is named once, so that what was done with a message is never done again by a transaction that comes twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raftq.storage.machine import deadletters, leases, messages, queues, records
from raftq.storage.machine.commands import (
    Ack,
    Enqueue,
    Nack,
    Operation,
    Part,
    QueueSettings,
    Reject,
    Release,
    Slots,
    Transact,
)
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import (
    DONE,
    GONE,
    Effect,
    Enqueued,
    Obstacle,
    QueueReady,
    Refused,
    Settled,
    Transacted,
)

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

_DEFAULTS = QueueSettings()

_SETTLE: dict[type[Operation], Callable[[State, Meta, Any], tuple[Settled | Refused, list[Effect]]]] = {
    Ack: leases.ack,
    Nack: leases.nack,
    Release: leases.release,
    Reject: leases.reject,
}


def transact(state: State, meta: Meta, command: Transact) -> tuple[Transacted | Refused, list[Effect]]:
    if any(operation.queue.partition("/")[0] != command.namespace for operation in command.operations):
        return Refused("invalid", "the queues of a transaction are of its namespace"), []
    check = _Check(state, meta)
    obstacles = check.all(command.operations)
    if obstacles:
        return Transacted([], obstacles), []
    # First of all, so that the dead-letter queue of another operation cannot take the last place.
    for key in check.created:
        if state.queues.create(key, _DEFAULTS, meta.index) is None:
            broken(f"no place for queue {key} in a transaction that was checked")
    ready = {operation.queue: check.ready.get(operation.queue, 0) for operation in command.operations}
    done = Transacted([], [])
    effects: dict[str, QueueReady] = {}
    for operation in command.operations:
        if isinstance(operation, Enqueue):
            done.enqueued.append(_enqueue(state, meta, operation))
        else:
            reply, more = _SETTLE[type(operation)](state, meta, operation)
            if not isinstance(reply, Settled) or any(map(any, reply.results)):
                broken(f"{operation} of a transaction that was checked: {reply}")
            # Of dead-letter queues; those of the queues that are named are told in the end.
            effects.update({effect.queue: effect for effect in more if effect.queue not in ready})
    return done, [*_became_ready(state, ready), *effects.values()]


def _enqueue(state: State, meta: Meta, operation: Enqueue) -> Enqueued:
    queue = state.queues.get(operation.queue)
    assert queue is not None, operation.queue
    return messages.store(state, meta, queue, operation.parts, messages.counted(operation.parts))


def _became_ready(state: State, ready: dict[str, int]) -> list[Effect]:
    effects: list[Effect] = []
    for key, before in ready.items():
        queue = state.queues.get(key)
        assert queue is not None, key
        effects += queues.became_ready(queue, before)
    return effects


class _Check:
    """What stands in the way of the operations."""

    def __init__(self, state: State, meta: Meta) -> None:
        self._state = state
        self._meta = meta
        #: Slots named so far: (queue number, lease id) -> bits.
        self._named: dict[tuple[int, int], int] = {}
        #: Of the messages that go to dead-letter queues.
        self._dead_bytes = 0
        #: Queues to be created, in the order of the operations.
        self.created: list[str] = []
        #: Messages ready before, by queue.
        self.ready: dict[str, int] = {}

    def all(self, operations: list[Operation]) -> list[Obstacle]:
        """By the operations' positions."""
        found = [self._one(at, operation) for at, operation in enumerate(operations)]
        found += self._full(operations) if not any(found) else []
        return sorted((one for one in found if one is not None), key=lambda one: one.operation)

    def _one(self, at: int, operation: Operation) -> Obstacle | None:
        queue = self._state.queues.find(operation.queue)
        if queue is not None:
            self.ready[queue.key] = queue.leasable
        if isinstance(operation, Enqueue):
            refused = self._enqueue(operation, known=queue is not None)
            return None if refused is None else Obstacle(at, refused.reason, refused.detail)
        if queue is None:
            return Obstacle(at, "unknown_queue", f"there is no queue {operation.queue}")
        results = [self._held(operation, named) for named in operation.leases]
        if any(map(any, results)):
            return Obstacle(at, "gone", "", results)
        if isinstance(operation, Nack | Reject):
            self._dead_bytes += leases.dead_bytes(self._state, queue, operation)
            if self._dead_bytes > deadletters.MOVED_BYTES_MAX:
                refused = deadletters.too_large(queue.settings)
                return Obstacle(at, refused.reason, refused.detail)
        return None

    def _enqueue(self, operation: Enqueue, *, known: bool) -> Refused | None:
        counts = messages.counted(operation.parts)
        if 0 in counts:
            return messages.malformed(counts)
        if known or operation.queue in self.created:
            return None
        if not operation.auto_create:
            return Refused("unknown_queue", f"there is no queue {operation.queue}")
        if self._state.cluster.queues + len(self.created) >= queues.QUEUES_MAX:
            return queues.too_many()[0]
        self.created.append(operation.queue)
        return None

    def _held(self, operation: Ack | Nack | Release | Reject, named: Slots) -> bytes:
        """GONE of the slots that hold no message, or were named before."""
        queue = self._state.queues.find(operation.queue)
        assert queue is not None, operation.queue
        lease = leases.find(self._state, queue, operation.queue_number, named.lease_id)
        if lease is None:
            return bytes((GONE,)) * len(named.slots)
        key = (queue.number, named.lease_id)
        taken = records.bits_of(lease.settled) | self._named.get(key, 0)
        results = bytearray()
        for slot in named.slots:
            held = 0 <= slot < lease.count and not taken >> slot & 1
            results.append(DONE if held else GONE)
            taken |= 1 << slot if held else 0
        self._named[key] = taken
        return bytes(results)

    def _full(self, operations: list[Operation]) -> list[Obstacle | None]:
        """All that a queue would get together; nothing that the transaction takes out of it makes room."""
        parts: dict[str, tuple[list[Part], list[int]]] = {}
        for at, operation in enumerate(operations):
            if isinstance(operation, Enqueue):
                of_queue, places = parts.setdefault(operation.queue, ([], []))
                of_queue += operation.parts
                places.append(at)
        found: list[Obstacle | None] = []
        for key, (of_queue, places) in parts.items():
            queue = self._state.queues.get(key)
            refused = None
            if queue is not None:
                refused = messages.full(self._state, self._meta, queue, of_queue, messages.counted(of_queue))
            if refused is not None:
                found += [Obstacle(at, refused.reason, refused.detail) for at in places]
        return found
