"""Queues: their records, kept decoded and written once an entry; and the commands that define and delete them.

Owns the tables NAME, QUEUE and DELETED. A deleted queue is hidden at once; what it leaves behind is removed by steps of
`expiry`. Invariant: a record in memory equals the one in the tables at the end of every entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from raftq.storage.machine import keys, records, retention
from raftq.storage.machine.batches import Batches
from raftq.storage.machine.commands import DefineQueue, DeleteQueue, QueueSettings
from raftq.storage.machine.firstkey import FirstKey
from raftq.storage.machine.groups import LIMIT_MAX
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.records import Cluster, QueueRecord
from raftq.storage.machine.replies import Effect, QueueDefined, QueueDeleted, QueueReady, Refused
from raftq.storage.machine.tallies import Tallies

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: More queues are refused: a client that makes up names must not fill every node.
QUEUES_MAX = 100_000
#: Records kept decoded.
_CACHE_MAX = 10_000
#: Why a change of `max_leased_per_group` is refused.
NOT_EMPTY = "the queue holds messages: max_leased_per_group is set or taken away while it is empty, or was purged"


class Queues:
    def __init__(self, txn: Txn, cluster: Cluster, batches: Batches) -> None:
        self._txn = txn
        self._cluster = cluster
        self._batches = batches
        self._by_key: dict[str, QueueRecord] = {}
        self._by_number: dict[int, QueueRecord] = {}
        self._changed: dict[int, QueueRecord] = {}
        self.tallies = Tallies(txn, cluster)
        #: First of the deleted queues whose remains are still there.
        self.deleted = FirstKey(txn, keys.DELETED, keys.of_queue(keys.DELETED, keys.QUEUE_MAX))

    def get(self, key: str) -> QueueRecord | None:
        """For enqueue alone, which lets the open batch grow."""
        queue = self._by_key.get(key)
        return self._load(key) if queue is None else queue

    def find(self, key: str) -> QueueRecord | None:
        """With all its batches in the tables."""
        queue = self.get(key)
        if queue is not None:
            self._batches.close(queue.number)
        return queue

    def _load(self, key: str) -> QueueRecord | None:
        number = self._txn.get(keys.name(key))
        return None if number is None else self.numbered(records.decode_name(number))

    def numbered(self, number: int) -> QueueRecord | None:
        """The queue of that number, None when it was deleted."""
        queue = self._by_number.get(number)
        if queue is not None:
            return queue
        value = self._txn.get(keys.of_queue(keys.QUEUE, number))
        return None if value is None else self._keep(records.decode_queue(value))

    def seen(self, number: int) -> QueueRecord | None:
        """The same for who looks at many and changes none: it is not kept in memory."""
        queue = self._by_number.get(number)
        if queue is not None:
            return queue
        value = self._txn.get(keys.of_queue(keys.QUEUE, number))
        return None if value is None else records.decode_queue(value)

    def _keep(self, queue: QueueRecord) -> QueueRecord:
        self.tallies.known(queue)
        self._by_key[queue.key] = queue
        self._by_number[queue.number] = queue
        return queue

    def changed(self, queue: QueueRecord) -> None:
        """The record is to be written at the end of the entry."""
        self._changed[queue.number] = queue

    def create(self, key: str, settings: QueueSettings, index: int, *, limited: bool = True) -> QueueRecord | None:
        """None when there are too many."""
        cluster = self._cluster
        if limited and cluster.queues >= QUEUES_MAX:
            return None
        cluster.queues += 1
        cluster.last_queue += 1
        number = cluster.last_queue
        queue = self._keep(QueueRecord(key, number, settings, index, heads=[], ids=number))
        self._txn.put(keys.name(key), records.encode(queue.number))
        self.changed(queue)
        return queue

    def delete(self, queue: QueueRecord) -> None:
        self._cluster.queues -= 1
        self._drop(queue, records.NOTHING)
        self.tallies.deleted(queue)
        self._txn.delete(keys.name(queue.key))
        if queue.ids != queue.number:
            self.abandon(queue.ids, records.NOTHING)

    def renumber(self, queue: QueueRecord) -> None:
        """Give the queue a new number, and leave to its old one all but dedup ids and requests."""
        self._drop(queue, records.IDS_STAY if queue.ids == queue.number else records.NOTHING)
        self._cluster.last_queue += 1
        queue.number = self._cluster.last_queue
        self._keep(queue)
        self._txn.put(keys.name(queue.key), records.encode(queue.number))
        self.changed(queue)

    def _drop(self, queue: QueueRecord, remains: bytes) -> None:
        """There is no queue of that number any more."""
        self._batches.flush()
        self._changed.pop(queue.number, None)
        del self._by_key[queue.key], self._by_number[queue.number]
        self._txn.delete(keys.of_queue(keys.QUEUE, queue.number))
        self.abandon(queue.number, remains)

    def abandon(self, number: int, remains: bytes) -> None:
        """Have what lies under a number removed in steps."""
        key = keys.of_queue(keys.DELETED, number)
        self._txn.put(key, remains)
        self.deleted.added(key)

    def flush(self) -> None:
        """Write the records that changed."""
        for number, queue in self._changed.items():
            if min(queue.leasable, queue.blocked, queue.leased, queue.delayed, queue.bytes) < 0:
                broken(f"a counter is below zero in {queue}")
            self._txn.put(keys.of_queue(keys.QUEUE, number), records.encode(queue))
            self.tallies.changed(queue)
        self._changed.clear()
        if len(self._by_number) > _CACHE_MAX:
            self._by_key.clear()
            self._by_number.clear()
            self.tallies.forget()


def unknown(key: str) -> tuple[Refused, list[Effect]]:
    return Refused("unknown_queue", f"there is no queue {key}"), []


def too_many() -> tuple[Refused, list[Effect]]:
    return Refused("too_many_queues", f"there are {QUEUES_MAX} queues already: delete some"), []


def became_ready(queue: QueueRecord, before: int) -> list[Effect]:
    """The effect of an operation that found `before` messages that could be leased. A paused queue wakes nobody."""
    if queue.leasable > before and not queue.settings.paused:
        return [QueueReady(queue.key, queue.leasable)]
    return []


def invalid(settings: QueueSettings) -> Refused | None:
    """What no queue may be set to."""
    limit = settings.max_leased_per_group
    if limit is not None and not 1 <= limit <= LIMIT_MAX:
        return Refused("invalid", f"max_leased_per_group: is a number from 1 to {LIMIT_MAX:,}")
    return None


def define(
    state: State, meta: Meta, command: DefineQueue, of_queues: int = 1
) -> tuple[QueueDefined | Refused, list[Effect]]:
    """One of so many queues that are defined at once."""
    queue = state.queues.find(command.queue)
    if queue is None and not command.create:
        return unknown(command.queue)
    settings = command.settings if queue is None else merged(queue.settings, command)
    if settings.dead_letter_queue == command.queue:
        return Refused("invalid", "dead_letter_queue: a queue cannot be its own"), []
    refused = invalid(settings)
    if refused is not None:
        return refused, []
    if queue is None:
        queue = state.queues.create(command.queue, settings, meta.index)
        return too_many() if queue is None else (QueueDefined(queue.number, created=True, settings=settings), [])
    resumed = queue.settings.paused and not settings.paused
    kept_ms, limit, ready = queue.settings.retention_ms, queue.settings.max_leased_per_group, queue.leasable
    most = settings.max_leased_per_group
    if (limit is None) != (most is None) and queue.ready + queue.leased + queue.delayed:
        return Refused("not_empty", NOT_EMPTY), []
    queue.settings = settings
    if limit is not None and most is not None and most != limit:
        # Leases that ended short meanwhile are told of what is there.
        ready = ready if queue.regroup_due_ms is None else 0
        state.places.groups.begin_regrouping(queue, meta.wall_ms, of_queues)
    if settings.retention_ms != kept_ms:
        retention.look_again(state, queue)
    state.queues.changed(queue)
    effects = became_ready(queue, 0 if resumed else ready)
    return QueueDefined(queue.number, created=False, settings=settings), effects


def merged(before: QueueSettings, command: DefineQueue) -> QueueSettings:
    """Field by field, so that two changes at once of different fields both hold."""
    if command.only is None:
        return command.settings
    given = {name: getattr(command.settings, name) for name in QueueSettings.__struct_fields__ if name in command.only}
    return msgspec.structs.replace(before, **given)


def delete(state: State, _meta: Meta, command: DeleteQueue) -> tuple[QueueDeleted | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return unknown(command.queue)
    retention.forget(state, queue)
    state.places.groups.forget(queue)
    state.topics.queue_deleted(queue.key)
    state.queues.delete(queue)
    return QueueDeleted(queue.ready + queue.leased + queue.delayed), []
