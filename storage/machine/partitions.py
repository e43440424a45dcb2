"""Partitioned queues: a name that stands for N queues `name.0`, `name.1`, ... with the same settings.

Owns the table PARTITIONED, all of which is kept in memory. A command on the name becomes commands on its partitions,
and their replies become one: messages go by the checksum of their group key (else replace key, else dedup id), so that
a key stays within one partition; those of one enqueue that have none go to one partition, in turn. A lease takes from
one partition, the next in turn that has something. Whatever holds for a queue holds for each partition by itself.

Invariant: of a partitioned name there are all partitions, and no queue of that very name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from msgspec.structs import replace

from raftq.storage.machine import keys, leases, messages, packing, purges, queues, records, transactions
from raftq.storage.machine.commands import (
    Ack,
    CancelRedrive,
    Command,
    DefineQueue,
    DeleteMessage,
    DeleteQueue,
    Enqueue,
    Extend,
    Lease,
    Nack,
    Operation,
    Part,
    PurgeQueue,
    Redrive,
    Reject,
    Release,
    Transact,
)
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.records import PartitionedRecord, QueueRecord
from raftq.storage.machine.replies import (
    Effect,
    Enqueued,
    Leased,
    Obstacle,
    Purged,
    QueueDefined,
    QueueDeleted,
    Refused,
    Reply,
    Settled,
    Transacted,
)

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Of one queue.
PARTITIONS_MAX = 64

Handler = Callable[["State", Meta, Any], tuple[Reply, list[Effect]]]
#: The number of a partition, what it gets, and the place of each of these messages among all.
Share = tuple[int, list[Part], list[int]]


class Partitions:
    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        found = txn.scan(keys.PARTITIONED, keys.PARTITIONED + b"\xff")
        self._by_key = {record.key: record for record in (records.decode_partitioned(value) for _, value in found)}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def get(self, key: str) -> PartitionedRecord | None:
        """To be put back when it was changed."""
        return self._by_key.get(key)

    def put(self, record: PartitionedRecord) -> None:
        self._by_key[record.key] = record
        self._txn.put(keys.partitioned(record.key), records.encode(record))

    def delete(self, record: PartitionedRecord) -> None:
        del self._by_key[record.key]
        self._txn.delete(keys.partitioned(record.key))

    def of(self, key: str) -> PartitionedRecord | None:
        """That which the queue is a partition of."""
        record = self._by_key.get(key.rpartition(".")[0])
        return record if record is not None and key in record.partitions else None

    def first(self, key: str) -> str:
        """The queue of that key, or the first partition of it."""
        record = self._by_key.get(key)
        return key if record is None else record.partitions[0]


def handler(state: State, command: Command) -> Handler | None:
    """For a command that is about a partitioned name or a partition; None for the others."""
    if isinstance(command, Transact):
        return transact
    key = getattr(command, "queue", None)
    if key is None:
        return None
    if state.partitions.get(key) is not None:
        return _HANDLERS.get(type(command))
    if isinstance(command, DefineQueue | DeleteQueue) and state.partitions.of(key) is not None:
        return _refuse_partition
    return None


def define(state: State, meta: Meta, command: DefineQueue) -> tuple[QueueDefined | Refused, list[Effect]]:
    """Create all partitions, or change the settings of all; a queue without partitions as `queues` has it."""
    record = state.partitions.get(command.queue)
    count = command.partitions
    if record is None and count is None:
        return queues.define(state, meta, command)
    if record is None:
        assert count is not None
        if not command.create and state.queues.find(command.queue) is None:
            return Refused("unknown_queue", f"there is no queue {command.queue}"), []
        return _create(state, meta, command, count), []
    if count not in (None, record.count):
        detail = f"it has {record.count} partitions, and their number is fixed: delete it to have another"
        return Refused("partitions_fixed", detail), []
    of_each = [replace(command, queue=key, partitions=None) for key in record.partitions]
    refused = _check(state, of_each)
    if refused is not None:
        return refused, []
    effects: list[Effect] = []
    settings = None
    for one in of_each:
        reply, more = queues.define(state, meta, one, record.count)
        if isinstance(reply, Refused):  # what is refused once more is alike for all, so nothing was done
            return reply, []
        settings = reply.settings
        effects += more
    return QueueDefined(record.number, created=False, settings=settings), effects


def _create(state: State, meta: Meta, command: DefineQueue, count: int) -> QueueDefined | Refused:
    if not 1 <= count <= PARTITIONS_MAX:
        return Refused("invalid", f"partitions: is a number from 1 to {PARTITIONS_MAX}")
    cluster, settings = state.cluster, command.settings
    record = PartitionedRecord(command.queue, cluster.last_queue + 1, count, meta.index)
    for key in (record.key, *record.partitions):
        if state.queues.find(key) is not None or (key != record.key and state.partitions.get(key) is not None):
            return Refused("partitions_fixed", f"there is a queue {key} already: delete it, or choose another name")
    if settings.dead_letter_queue in (record.key, *record.partitions):
        return Refused("invalid", "dead_letter_queue: a queue cannot be its own")
    refused = queues.invalid(settings)
    if refused is not None:
        return refused
    if cluster.queues + count > queues.QUEUES_MAX:
        return queues.too_many()[0]
    cluster.last_queue += 1
    for key in record.partitions:
        state.queues.create(key, settings, meta.index)
    state.partitions.put(record)
    return QueueDefined(record.number, created=True, settings=settings)


def _check(state: State, of_each: list[DefineQueue]) -> Refused | None:
    """What one of the partitions would refuse, and another not."""
    own = {key for one in of_each for key in (one.queue, one.queue.rpartition(".")[0])}
    for one in of_each:
        queue = _find(state, one.queue)
        settings = queues.merged(queue.settings, one)
        if settings.dead_letter_queue in own:
            return Refused("invalid", "dead_letter_queue: a queue cannot be its own")
        grouped = (queue.settings.max_leased_per_group is None, settings.max_leased_per_group is None)
        if grouped[0] != grouped[1] and queue.ready + queue.leased + queue.delayed:
            return Refused("not_empty", queues.NOT_EMPTY)
    return None


def _find(state: State, key: str) -> QueueRecord:
    queue = state.queues.find(key)
    assert queue is not None, key
    return queue


def _refuse_partition(_state: State, _meta: Meta, command: DefineQueue | DeleteQueue) -> tuple[Refused, list[Effect]]:
    name = command.queue.rpartition(".")[0].partition("/")[2]
    return Refused("partition", f"it is a partition: change or delete {name}, and all of its partitions with it"), []


def _refuse_name(state: State, _meta: Meta, command: Redrive | CancelRedrive) -> tuple[Refused, list[Effect]]:
    record = state.partitions.get(command.queue)
    assert record is not None, command
    first, last = (key.partition("/")[2] for key in (record.partitions[0], record.partitions[-1]))
    return Refused("partitioned", f"it has partitions: name one of them, {first} to {last}"), []


def delete(state: State, meta: Meta, command: DeleteQueue) -> tuple[QueueDeleted, list[Effect]]:
    record = state.partitions.get(command.queue)
    assert record is not None, command
    count = 0
    for key in record.partitions:
        reply, _ = queues.delete(state, meta, DeleteQueue(key))
        assert isinstance(reply, QueueDeleted), reply
        count += reply.messages
    state.topics.queue_deleted(record.key)
    state.partitions.delete(record)
    state.queues.abandon(record.number, records.NOTHING)
    return QueueDeleted(count), []


def purge(state: State, meta: Meta, command: PurgeQueue) -> tuple[Purged, list[Effect]]:
    record = state.partitions.get(command.queue)
    assert record is not None, command
    count = 0
    for key in record.partitions:
        reply, _ = purges.purge(state, meta, PurgeQueue(key))
        assert isinstance(reply, Purged), reply
        count += reply.messages
    return Purged(count), []


def lease(state: State, meta: Meta, command: Lease) -> tuple[Leased | Refused, list[Effect]]:
    """From the first partition, in turn, that has anything."""
    record = state.partitions.get(command.queue)
    assert record is not None, command
    reply: Leased | Refused = Leased(record.number, 0, [], 0)
    effects: list[Effect] = []
    for at in range(record.turn, record.turn + record.count):
        reply, effects = leases.lease(state, meta, replace(command, queue=record.partitions[at % record.count]))
        if isinstance(reply, Refused) or reply.ranges:
            if isinstance(reply, Leased):
                record.turn = (at + 1) % record.count
                state.partitions.put(record)
            return reply, effects
    return Leased(record.number, 0, [], 0), effects


def _settle(state: State, meta: Meta, command: Any) -> tuple[Settled | Refused, list[Effect]]:
    """Receipts say by their queue number which partition they are of; so do ids of messages."""
    record = state.partitions.get(command.queue)
    assert record is not None, command
    key = record.partition(state.queues.numbered(command.queue_number))
    done: tuple[Settled | Refused, list[Effect]] = _OF_ONE[type(command)](state, meta, replace(command, queue=key))
    return done


_OF_ONE: dict[type[Command], Callable[..., Any]] = {
    Ack: leases.ack,
    Nack: leases.nack,
    Release: leases.release,
    Reject: leases.reject,
    Extend: leases.extend,
    DeleteMessage: purges.delete,
}


def shares(record: PartitionedRecord, parts: list[Part], turn: int) -> tuple[list[Share], bool]:
    """What each partition gets of the messages, by partition; and whether some go by the turn."""
    found: dict[int, tuple[list[Part], list[int]]] = {}
    before, by_turn = 0, False
    for part in parts:
        places: dict[int, list[int]] = {}
        stored = packing.unpack(part.blob)
        for at, message in enumerate(stored):
            key = _key(part, at, message)
            by_turn = by_turn or key is None
            places.setdefault((turn if key is None else crc32(key)) % record.count, []).append(at)
        for partition, kept in places.items():
            of_partition, taken = found.setdefault(partition, ([], []))
            of_partition.append(replace(messages.only(part, kept, len(stored)), positions=None))
            taken += [before + at for at in kept]
        before += len(stored)
    return [(partition, *found[partition]) for partition in sorted(found)], by_turn


def _key(part: Part, at: int, message: bytes) -> bytes | None:
    """What the message's partition is found by; None: any will do."""
    if message[1]:
        return message[4 : 4 + message[1]]
    for ids in (part.replace_keys, part.dedup_ids):
        named = ids[at] if ids else None
        if named is not None:
            return named.encode()
    return None


def enqueue(state: State, meta: Meta, command: Enqueue) -> tuple[Enqueued | Refused, list[Effect]]:
    """All or nothing, whatever the partitions."""
    namespace = command.queue.partition("/")[0]
    reply, effects = transact(state, meta, Transact(namespace, [command]))
    if isinstance(reply, Refused):
        return reply, []
    if reply.obstacles:
        return Refused(reply.obstacles[0].reason, reply.obstacles[0].detail), []
    return reply.enqueued[0], effects


def transact(state: State, meta: Meta, command: Transact) -> tuple[Transacted | Refused, list[Effect]]:
    """With each operation on a partitioned name done on its partitions."""
    plan = _Plan(state, command.operations)
    reply, effects = transactions.transact(state, meta, replace(command, operations=plan.operations))
    if isinstance(reply, Refused):
        return reply, effects
    if reply.obstacles:
        of_given: dict[int, Obstacle] = {}
        for obstacle in reply.obstacles:
            given = plan.given[obstacle.operation]
            of_given.setdefault(given, replace(obstacle, operation=given))
        return Transacted([], list(of_given.values())), effects
    for record, turn in plan.turns.values():
        record.turn_in = turn
        state.partitions.put(record)
    return Transacted(plan.enqueued(reply.enqueued)), effects


class _Plan:
    """Operations on queues, instead of those that were given."""

    def __init__(self, state: State, operations: list[Operation]) -> None:
        self.operations: list[Operation] = []
        #: Of each operation the place of the one that was given.
        self.given: list[int] = []
        #: Of each enqueue, None where it is as it was given: which one was given, for what name, and its share.
        self._shares: list[tuple[int, PartitionedRecord, Share] | None] = []
        self._parts = [operation.parts if isinstance(operation, Enqueue) else [] for operation in operations]
        #: Where the next enqueue without keys goes, of each name that had one.
        self.turns: dict[str, tuple[PartitionedRecord, int]] = {}
        for at, operation in enumerate(operations):
            record = state.partitions.get(operation.queue)
            before = len(self.operations)
            if record is None:
                self.operations.append(operation)
                self._shares += [None] if isinstance(operation, Enqueue) else []
            elif isinstance(operation, Enqueue):
                self._spread(at, record, operation)
            else:
                key = record.partition(state.queues.numbered(operation.queue_number))
                self.operations.append(replace(operation, queue=key))
            self.given += [at] * (len(self.operations) - before)

    def _spread(self, at: int, record: PartitionedRecord, operation: Enqueue) -> None:
        if 0 in messages.counted(operation.parts):
            self.operations.append(replace(operation, queue=record.partitions[0]))  # will be refused
            return
        _, turn = self.turns.get(record.key, (record, record.turn_in))
        found, by_turn = shares(record, operation.parts, turn)
        if by_turn:
            self.turns[record.key] = record, (turn + 1) % record.count
        for share in found:
            self.operations.append(Enqueue(record.partitions[share[0]], share[1], None, auto_create=False))
            self._shares.append((at, record, share))

    def enqueued(self, replies: list[Enqueued]) -> list[Enqueued]:
        """Those of the operations as they were given."""
        joined: list[Enqueued] = []
        of_given: dict[int, tuple[PartitionedRecord, list[tuple[Share, Enqueued]]]] = {}
        for own, reply in zip(self._shares, replies, strict=True):
            if own is None:
                joined.append(reply)
                continue
            at, record, share = own
            if at not in of_given:
                of_given[at] = record, []
                joined.append(reply)  # keeps the place
            of_given[at][1].append((share, reply))
        whole = {id(found[0][1]): _joined(record, self._parts[at], found) for at, (record, found) in of_given.items()}
        return [whole.get(id(reply), reply) for reply in joined]


def _joined(record: PartitionedRecord, parts: list[Part], of_one: list[tuple[Share, Enqueued]]) -> Enqueued:
    found: dict[int, tuple[int, tuple[int, int, bool]]] = {}
    for (_, _, taken), reply in of_one:
        numbers = reply.numbers or [reply.queue_number] * len(taken)
        for at, number, place in zip(taken, numbers, _places(reply), strict=True):
            found[at] = number, place
    ordered = messages.in_order(parts, [found[at] for at in range(len(found))])
    return Enqueued(record.number, None, [place for _, place in ordered], numbers=[number for number, _ in ordered])


def _places(reply: Enqueued) -> list[messages.Place]:
    if reply.places is not None:
        return reply.places
    return [
        (priority, number, False)
        for priority, first, count in reply.spans or ()
        for number in range(first, first + count)
    ]


_HANDLERS: dict[type[Command], Handler] = {
    Enqueue: enqueue,
    Lease: lease,
    Ack: _settle,
    Nack: _settle,
    Release: _settle,
    Reject: _settle,
    Extend: _settle,
    DeleteMessage: _settle,
    DefineQueue: define,
    DeleteQueue: delete,
    PurgeQueue: purge,
    Redrive: _refuse_name,
    CancelRedrive: _refuse_name,
}
