"""What passes with time, in bounded steps: the command expire.

Order of a step: leases past their deadline, then by wall time delays, dedup ids, requests, tokens and retention, then
the remains of deleted queues, then sparse batches. Each message returned, made ready or dead-lettered, and each record
removed, costs one of the step's limit; a long record, and a batch rewritten, more; and the bytes of messages past
retention and of dead letters are limited. So a step takes a bounded time however much is due; what is left over is the
next step's, and depends on nothing but the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raftq.storage.machine import deadletters, keys, leases, queues, records, redrives, retention
from raftq.storage.machine.commands import Expire
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import LeaseRecord, Piece, QueueRecord
from raftq.storage.machine.replies import Effect, Expired

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Of a record: reading as many costs a step as much as the removal of another; and of a lease that passes.
READ_BYTES = 2048
LEASE_BYTES = 1024
#: Why a message is dead-lettered. All of it is read even when there is no dead-letter queue: to see how old it is.
_RETENTION = "retention"


class _Step:
    """What one step did so far, and what it may still do."""

    def __init__(self, state: State, meta: Meta, limit: int) -> None:
        self.state = state
        self.meta = meta
        self.left = limit
        #: Of messages that are dead-lettered or past retention.
        self.bytes_left = deadletters.MOVED_BYTES_MAX
        self.done = Expired(0, 0, 0, more=False)
        #: Queues that were changed, in that order, and what could be leased before.
        self._before: dict[int, tuple[QueueRecord, int]] = {}

    @property
    def over(self) -> bool:
        """It has done what it may."""
        return self.left <= 0 or self.bytes_left <= 0

    def queue(self, record: bytes) -> QueueRecord | None:
        return self.state.queues.numbered(keys.queue_of(record))

    def changes(self, queue: QueueRecord) -> None:
        """To be said before the queue is changed."""
        self.state.queues.changed(queue)
        self._before.setdefault(queue.number, (queue, queue.leasable))

    def tells(self, queue: QueueRecord) -> None:
        """What may be leased of it is told even if it is no more than before."""
        self._before[queue.number] = queue, 0

    def effects(self) -> list[Effect]:
        return [effect for queue, ready in self._before.values() for effect in queues.became_ready(queue, ready)]

    def bury(self, queue: QueueRecord, dead: list[Piece], reason: str) -> None:
        """Dead-letter what nobody holds any more."""
        target = deadletters.target(self.state, self.meta, queue)
        if target is not None:
            self.changes(target)
        if target is not None or reason == _RETENTION:
            self.bytes_left -= sum(piece.bytes for piece in dead)
        deadletters.move(self.state, self.meta, queue, dead, reason, target)
        self.done.dead += sum(piece.count for piece in dead)


def expire(state: State, meta: Meta, command: Expire) -> tuple[Expired, list[Effect]]:
    step = _Step(state, meta, command.limit)
    _pass_leases(step)
    _pass_wall_time(step)
    _remove_remains(step)
    state.places.groups.settle()
    state.batches.rewrite_sparse(meta.lease_ms, step.left)
    lease_ms, wall_ms = next_due(state)
    step.done.more = (lease_ms is not None and lease_ms <= meta.lease_ms) or (
        wall_ms is not None and wall_ms <= meta.wall_ms
    )
    return step.done, step.effects()


def next_due(state: State) -> tuple[int | None, int | None]:
    """(lease time, wall time) at which there is something to do; 0 for at once."""
    lease_ms, sparse_ms = state.deadlines.earliest(), state.sparse.earliest()
    if sparse_ms is not None and (lease_ms is None or sparse_ms < lease_ms):
        lease_ms = sparse_ms
    return lease_ms, 0 if state.queues.deleted.get() is not None else state.wall.earliest()


def _pass_leases(step: _Step) -> None:
    for ms, key in step.state.deadlines.due(step.meta.lease_ms):
        if step.over:
            return
        queue = step.queue(key)
        value = step.state.txn.get(key)
        assert value is not None, key
        if queue is None:
            _forget(step, ms, key)
        else:
            _pass_lease(step, queue, key, records.decode_lease(value))
            step.left -= len(value) // LEASE_BYTES


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
        _return(step, queue, leases.returned_pieces(step.state, queue, lease, slots))
        queue.expired += leases.let_go(queue, lease, slots)
        step.done.leases += count
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


def _return(step: _Step, queue: QueueRecord, pieces: list[Piece]) -> None:
    """Each with a failure: ready again, or dead."""
    step.changes(queue)
    dies = deadletters.dies(queue)
    dead: list[Piece] = []
    for piece in pieces:
        if step.state.places.drop(queue, piece):
            continue
        last = dies is not None and dies(piece)
        piece.failures += 1
        if last:
            dead.append(piece)
        else:
            step.state.places.give_back(queue, piece)
    if dead:
        step.bury(queue, dead, "max_failures")


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
        if step.over:
            return
        queue = step.queue(key) if key[:1] in (keys.DUE, keys.QUEUE, keys.REDRIVE, keys.GROUP) else None
        if queue is None and key[:1] == keys.TOKENS:
            _remove_token(step, key)
        elif queue is None:
            _forget(step, ms, key)
        elif key[:1] == keys.QUEUE:
            _pass_retention(step, queue)
        elif key[:1] == keys.REDRIVE:
            _pass_redrive(step, queue)
        elif key[:1] == keys.GROUP:
            _pass_regrouping(step, queue)
        else:
            value = step.state.txn.get(key)
            assert value is not None, key
            step.changes(queue)
            count = step.state.places.ripen(queue, key, records.decode_due(value), step.left)
            step.left -= count
            step.done.delays += count


def _remove_token(step: _Step, key: bytes) -> None:
    """That expired long ago."""
    token = step.state.tokens.find(keys.token_of(key))
    assert token is not None, key
    step.state.tokens.delete(token)
    step.left -= 1
    step.done.forgotten += 1


def _pass_regrouping(step: _Step, queue: QueueRecord) -> None:
    """In the end all are told who wait for a message: a lease may have ended before it came to one."""
    step.changes(queue)
    step.left -= max(step.state.places.groups.regroup(queue, step.left), 1)
    if queue.regroup_due_ms is None:
        step.tells(queue)


def _pass_retention(step: _Step, queue: QueueRecord) -> None:
    """A look costs one even when it finds nothing: the message that it was for may be leased, or gone."""
    step.changes(queue)
    pieces = retention.take(step.state, step.meta, queue, step.left, step.bytes_left)
    if pieces:
        step.bury(queue, pieces, _RETENTION)
    step.left -= max(sum(piece.count for piece in pieces), 1)
    retention.look_again(step.state, queue)


def _pass_redrive(step: _Step, queue: QueueRecord) -> None:
    """Its next moment is later, unless it is behind its pace."""
    one = redrives.Step(step.state, step.meta, queue, step.left)
    for changed in (queue, *one.targets):
        step.changes(changed)
    one.apply()
    step.left -= max(one.looked, 1)
    step.bytes_left -= one.bytes


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
        for key, value in _remains(state, deleted):
            moment_ms = _moment(key, value)
            if moment_ms is None:
                state.txn.delete(key)
                step.left -= 1
                step.done.forgotten += 1
            else:
                _forget(step, moment_ms, key)
            step.left -= len(value) // READ_BYTES
            if step.left <= 0:
                return
        state.txn.delete(deleted)
        state.queues.deleted.removed(deleted)


def _remains(state: State, deleted: bytes) -> Iterator[tuple[bytes, bytes]]:
    queue = keys.queue_of(deleted)
    stay = (keys.DEDUP, keys.REQUEST) if state.txn.get(deleted) == records.IDS_STAY else ()
    for table in keys.OF_A_QUEUE:
        if table in stay:
            continue
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
    if table == keys.REDRIVE:
        return records.decode_redrive(value).due_ms
    return None
