"""What passes with time, in bounded steps: the command expire.

Order of a step: leases past their deadline, then by wall time delays, dedup ids and requests, then the remains of
deleted queues, then sparse batches. Each message returned or made ready, and each record removed, costs one of the
step's limit, and a batch rewritten more, so that a step takes a bounded time however much is due; what is left over is
the next step's, and depends on nothing but the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raftq.storage.machine import keys, leases, records
from raftq.storage.machine.commands import Expire
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import LeaseRecord, QueueRecord
from raftq.storage.machine.replies import Effect, Expired, QueueReady

if TYPE_CHECKING:
    from raftq.storage.machine.state import State


class _Step:
    """What one step did so far, and what it may still do."""

    def __init__(self, state: State, meta: Meta, limit: int) -> None:
        self.state = state
        self.meta = meta
        self.left = limit
        self.done = Expired(0, 0, 0, more=False)
        #: Queues that got messages ready, in the order in which they did.
        self.ready: dict[int, QueueRecord] = {}

    def queue(self, record: bytes) -> QueueRecord | None:
        return self.state.queues.numbered(keys.queue_of(record))

    def returned(self, queue: QueueRecord) -> None:
        self.state.queues.changed(queue)
        self.ready[queue.number] = queue


def expire(state: State, meta: Meta, command: Expire) -> tuple[Expired, list[Effect]]:
    step = _Step(state, meta, command.limit)
    _pass_leases(step)
    _pass_wall_time(step)
    _remove_remains(step)
    state.batches.rewrite_sparse(meta.lease_ms, step.left)
    lease_ms, wall_ms = next_due(state)
    step.done.more = (lease_ms is not None and lease_ms <= meta.lease_ms) or (
        wall_ms is not None and wall_ms <= meta.wall_ms
    )
    effects = [QueueReady(queue.key, queue.ready) for queue in step.ready.values() if not queue.settings.paused]
    return step.done, list[Effect](effects)


def next_due(state: State) -> tuple[int | None, int | None]:
    """(lease time, wall time) at which there is something to do; 0 for at once."""
    lease_ms, sparse_ms = state.deadlines.earliest(), state.sparse.earliest()
    if sparse_ms is not None and (lease_ms is None or sparse_ms < lease_ms):
        lease_ms = sparse_ms
    return lease_ms, 0 if state.queues.deleted.get() is not None else state.wall.earliest()


def _pass_leases(step: _Step) -> None:
    for ms, key in step.state.deadlines.due(step.meta.lease_ms):
        if step.left <= 0:
            return
        queue = step.queue(key)
        value = step.state.txn.get(key)
        assert value is not None, key
        if queue is None:
            _forget(step, ms, key)
        else:
            _pass_lease(step, queue, key, records.decode_lease(value))


def _pass_lease(step: _Step, queue: QueueRecord, key: bytes, lease: LeaseRecord) -> None:
    """Return what is past its deadline, each with a failure, in slot order and no more than the step may."""
    groups = leases.deadlines(lease)
    passed = 0
    for ms, bits in groups:
        if ms <= step.meta.lease_ms:
            passed |= bits
    slots = _lowest(passed & ~records.bits_of(lease.settled), step.left)
    count = slots.bit_count()
    step.left -= max(count, 1)
    if slots:
        for piece in leases.held_pieces(step.state, queue.number, lease, slots):
            piece.failures += 1
            step.state.places.give_back(queue, piece)
        queue.expired += leases.let_go(queue, lease, slots)
        step.done.leases += count
        step.returned(queue)
    if passed & ~records.bits_of(lease.settled):
        step.state.txn.put(key, records.encode(lease))
        return
    later = [(ms, bits) for ms, bits in groups if ms > step.meta.lease_ms]
    if later:
        # What has passed goes with the next group, as settled slots do.
        later[0] = (later[0][0], later[0][1] | passed)
        leases.put_deadlines(step.state, key, lease, later)
    else:
        step.state.deadlines.remove(lease.deadlines[0][0], key)
        step.state.txn.delete(key)


def _lowest(bits: int, count: int) -> int:
    """The lowest `count` ones of the bits."""
    if bits.bit_count() <= count:
        return bits
    kept = 0
    for _ in range(count):
        low = bits & -bits
        kept |= low
        bits ^= low
    return kept


def _pass_wall_time(step: _Step) -> None:
    for ms, key in step.state.wall.due(step.meta.wall_ms):
        if step.left <= 0:
            return
        queue = step.queue(key) if key[:1] == keys.DUE else None
        if queue is None:
            _forget(step, ms, key)
            continue
        value = step.state.txn.get(key)
        assert value is not None, key
        count = step.state.places.ripen(queue, key, records.decode_due(value), step.left)
        step.left -= count
        step.done.delays += count
        step.returned(queue)


def _forget(step: _Step, ms: int, key: bytes) -> None:
    """Remove a record and its moment."""
    table = step.state.deadlines if key[:1] == keys.LEASE else step.state.wall
    table.remove(ms, key)
    step.state.txn.delete(key)
    step.left -= 1
    step.done.forgotten += 1


def _remove_remains(step: _Step) -> None:
    """Remove what deleted queues left, and last the mark that there is something."""
    state = step.state
    while step.left > 0 and (deleted := state.queues.deleted.get()) is not None:
        for key, value in _remains(state, keys.queue_of(deleted)):
            moment_ms = _moment(key, value)
            if moment_ms is None:
                state.txn.delete(key)
                step.left -= 1
                step.done.forgotten += 1
            else:
                _forget(step, moment_ms, key)
            if step.left <= 0:
                return
        state.txn.delete(deleted)
        state.queues.deleted.removed(deleted)


def _remains(state: State, queue: int) -> Iterator[tuple[bytes, bytes]]:
    for table in keys.OF_A_QUEUE:
        yield from state.txn.scan(keys.of_queue(table, queue), keys.of_queue(table, queue + 1))


def _moment(key: bytes, value: bytes) -> int | None:
    """When the record passes, None for one that does not."""
    table = key[:1]
    if table == keys.LEASE:
        return records.decode_lease(value).deadlines[0][0]
    if table == keys.DUE:
        return records.decode_due(value).due_ms
    if table == keys.DEDUP:
        return records.decode_dedup(value).expires_ms
    if table == keys.REQUEST:
        return records.decode_request(value).expires_ms
    return None
