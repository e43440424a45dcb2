"""Leases: a time-limited claim on messages, and what becomes of it: ack, nack, release, reject, extend, its deadline.

Owns the table LEASE and its moments in the table of deadlines. A receipt is (queue number, lease id, slot), and only
the lease that holds a message can settle it: a late worker finds its slot settled or its lease passed, and is told
GONE. A lease stays until its deadline even when nothing is left in it, so that a repeated ack is told DONE. A lease
ends when the log says so (`expiry`), not when a clock does: until then its worker may settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from raftq.storage.machine import deadletters, keys, queues, records
from raftq.storage.machine.commands import (
    REASON_BYTES_MAX,
    WITHOUT_GROUPS,
    Ack,
    Extend,
    Lease,
    Nack,
    Reject,
    Release,
    Slots,
)
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import LeaseRecord, Piece, QueueRecord, bits_of, encode_bits
from raftq.storage.machine.replies import DONE, GONE, Effect, Leased, Range, Refused, Settled

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Does with the slots (bits, held by the lease) what the command is for.
Settle = Callable[["State", QueueRecord, LeaseRecord, int], None]

_DONE = bytes((DONE,))
_GONE = bytes((GONE,))
_SLOTS = list(range(1024))


def lease(state: State, meta: Meta, command: Lease) -> tuple[Leased | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    if command.groups is not None and queue.settings.max_leased_per_group is None:
        return Refused("invalid", f"groups: {WITHOUT_GROUPS}"), []
    if queue.settings.paused or not queue.leasable or command.max <= 0 or command.only_again:
        return Leased(queue.number, 0, [], 0), []
    if command.groups is None:
        pieces = state.places.take(queue, command.max, command.max_bytes)
    else:
        pieces = state.places.take_of_groups(queue, command.groups, command.max, command.max_bytes)
    if not pieces:
        state.places.groups.settle()
        state.queues.changed(queue)
        return Leased(queue.number, 0, [], 0), []
    count = sum([piece.count for piece in pieces])
    queue.ready -= count
    queue.delivered += count
    state.queues.changed(queue)
    state.cluster.last_lease += 1
    lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
    if command.settle:
        _settle_at_once(state, queue, pieces, count)
    else:
        _hold(state, queue, pieces, count, keys.after(meta.lease_ms, lease_ms))
    state.places.groups.settle()
    deadline_ms = keys.after(meta.wall_ms, lease_ms)
    return Leased(queue.number, state.cluster.last_lease, ranges(pieces), deadline_ms), []


def _hold(state: State, queue: QueueRecord, pieces: list[Piece], count: int, deadline_ms: int) -> None:
    lease_id = state.cluster.last_lease
    key = keys.lease(queue.number, lease_id)
    state.txn.put(key, records.encode(LeaseRecord(count, pieces, [(deadline_ms, b"")])))
    state.deadlines.add(deadline_ms, key)
    queue.leased += count
    state.leased = (lease_id, pieces, None)


def _settle_at_once(state: State, queue: QueueRecord, pieces: list[Piece], count: int) -> None:
    """Ack without a lease. The batches are kept for whoever reads the deliveries of this very command."""
    state.leased = (state.cluster.last_lease, pieces, [state.batches.of(queue.number, piece) for piece in pieces])
    state.places.groups.let_go(queue, pieces)
    _free(state, queue, pieces)
    queue.acked += count


def _free(state: State, queue: QueueRecord, pieces: list[Piece]) -> None:
    for piece in pieces:
        state.places.free(queue, piece)


def ranges(pieces: list[Piece]) -> list[Range]:
    """The pieces as the client sees them: batches do not show."""
    merged: list[Range] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.first + last.count == piece.first
            and last.priority == piece.priority
            and last.deliveries == piece.deliveries
            and last.failures == piece.failures
        ):
            last.count += piece.count
        else:
            merged.append(Range(piece.priority, piece.first, piece.count, piece.deliveries, piece.failures))
    return merged


def ack(state: State, _meta: Meta, command: Ack) -> tuple[Settled | Refused, list[Effect]]:
    def settle(state: State, queue: QueueRecord, lease: LeaseRecord, slots: int) -> None:
        _free(state, queue, returned_pieces(state, queue, lease, slots))
        lease.acked = encode_bits(bits_of(lease.acked) | slots)
        queue.acked += let_go(queue, lease, slots)

    return _settle(state, command, settle, repeatable=True)


def nack(state: State, meta: Meta, command: Nack) -> tuple[Settled | Refused, list[Effect]]:
    dead: list[Piece] = []

    def settle(state: State, queue: QueueRecord, lease: LeaseRecord, slots: int) -> None:
        dies = deadletters.dies(queue)
        for piece in returned_pieces(state, queue, lease, slots):
            last = dies is not None and dies(piece)
            piece.failures += 1
            if state.places.drop(queue, piece):
                continue
            if last:
                dead.append(piece)
                continue
            due_ms = keys.after(meta.wall_ms, _delay_ms(command, queue, piece.failures))
            if due_ms > meta.wall_ms:
                state.places.delay(queue, piece, due_ms)
            else:
                state.places.give_back(queue, piece)
        queue.nacked += let_go(queue, lease, slots)

    refusal = too_large(state, command)
    if refusal is not None:
        return refusal, []
    reply, effects = _settle(state, command, settle)
    return reply, effects + _bury(state, meta, command, dead, "max_failures")


def _delay_ms(command: Nack, queue: QueueRecord, failures: int) -> int:
    backoff = queue.settings.backoff
    if command.delay_ms is None and backoff is not None:
        return deadletters.delay_ms(backoff, failures)
    return command.delay_ms or 0


def reject(state: State, meta: Meta, command: Reject) -> tuple[Settled | Refused, list[Effect]]:
    dead: list[Piece] = []

    def settle(state: State, queue: QueueRecord, lease: LeaseRecord, slots: int) -> None:
        pieces = returned_pieces(state, queue, lease, slots)
        dead.extend([piece for piece in pieces if not state.places.drop(queue, piece)])
        queue.rejected += let_go(queue, lease, slots)

    if len(command.reason.encode()) > REASON_BYTES_MAX:
        return Refused("invalid", f"reason: give at most {REASON_BYTES_MAX:,} bytes"), []
    refusal = too_large(state, command)
    if refusal is not None:
        return refusal, []
    reply, effects = _settle(state, command, settle)
    reason = f"rejected: {command.reason}" if command.reason else "rejected"
    return reply, effects + _bury(state, meta, command, dead, reason)


def _bury(state: State, meta: Meta, command: Nack | Reject, dead: list[Piece], reason: str) -> list[Effect]:
    """Dead-letter what the command let go."""
    queue = state.queues.find(command.queue)
    if queue is None or not dead:
        return []
    target = deadletters.target(state, meta, queue)
    ready = 0 if target is None else target.leasable
    deadletters.move(state, meta, queue, dead, reason, target)
    return [] if target is None else queues.became_ready(target, ready)


def too_large(state: State, command: Nack | Reject) -> Refused | None:
    """What says no to more dead letters than one command may move. Nearly never looks at any lease."""
    queue = state.queues.find(command.queue)
    if queue is None or queue.bytes <= deadletters.MOVED_BYTES_MAX:
        return None
    size = dead_bytes(state, queue, command)
    return deadletters.too_large(queue.settings) if size > deadletters.MOVED_BYTES_MAX else None


def dead_bytes(state: State, queue: QueueRecord, command: Nack | Reject) -> int:
    """Of the messages that the command makes go to the dead-letter queue."""
    if queue.settings.dead_letter_queue is None:
        return 0
    dies = deadletters.dies(queue) if isinstance(command, Nack) else None
    held: dict[int, tuple[LeaseRecord, int]] = {}
    for named in command.leases:
        lease = find(state, queue, command.queue_number, named.lease_id)
        if lease is not None:
            bits = _bits(named.slots, lease.count) & ~bits_of(lease.settled)
            held[named.lease_id] = lease, bits | held.get(named.lease_id, (lease, 0))[1]
    size = 0
    for lease, bits in held.values():
        pieces = held_pieces(state, queue.number, lease, bits)
        size += sum(piece.bytes for piece in pieces if dies is None or dies(piece))
    return size


def release(state: State, _meta: Meta, command: Release) -> tuple[Settled | Refused, list[Effect]]:
    def settle(state: State, queue: QueueRecord, lease: LeaseRecord, slots: int) -> None:
        for piece in returned_pieces(state, queue, lease, slots):
            state.places.give_back(queue, piece)
        queue.released += let_go(queue, lease, slots)

    return _settle(state, command, settle)


def _settle(
    state: State, command: Ack | Nack | Release | Reject, settle: Settle, *, repeatable: bool = False
) -> tuple[Settled | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    ready = queue.leasable
    results = [_settle_slots(state, queue, command.queue_number, named, settle, repeatable) for named in command.leases]
    state.places.groups.settle()
    state.queues.changed(queue)
    return Settled(results), queues.became_ready(queue, ready)


def _settle_slots(
    state: State, queue: QueueRecord, queue_number: int, named: Slots, settle: Settle, repeatable: bool
) -> bytes:
    """One byte a slot. A slot named twice is answered twice alike."""
    lease = find(state, queue, queue_number, named.lease_id)
    if lease is None:
        return _GONE * len(named.slots)
    slots = _bits(named.slots, lease.count)
    held = slots & ~bits_of(lease.settled)
    done = held | bits_of(lease.acked) if repeatable else held
    if held:
        settle(state, queue, lease, held)
        state.txn.put(keys.lease(queue.number, named.lease_id), records.encode(lease))
    return _results(named.slots, lease.count, slots, done)


def find(state: State, queue: QueueRecord, queue_number: int, lease_id: int) -> LeaseRecord | None:
    """The lease that a receipt names. A receipt may say anything."""
    if queue_number != queue.number or not 0 < lease_id <= state.cluster.last_lease:
        return None
    value = state.txn.get(keys.lease(queue.number, lease_id))
    return None if value is None else records.decode_lease(value)


def _bits(slots: list[int], count: int) -> int:
    """Those of the slots that the lease has."""
    if slots == _SLOTS[:count]:
        return (1 << count) - 1
    bits = 0
    for slot in slots:
        if 0 <= slot < count:
            bits |= 1 << slot
    return bits


def _results(slots: list[int], count: int, known: int, done: int) -> bytes:
    if done & known == known and known.bit_count() == len(slots):
        return _DONE * len(slots)
    return bytes([DONE if 0 <= slot < count and done >> slot & 1 else GONE for slot in slots])


def held_pieces(state: State, queue_number: int, lease: LeaseRecord, slots: int) -> list[Piece]:
    """The messages of these slots, all held by the lease; slots in a row share a piece."""
    if slots == (1 << lease.count) - 1:
        return lease.pieces
    pieces: list[Piece] = []
    before = 0
    for piece in lease.pieces:
        found = slots >> before & ((1 << piece.count) - 1)
        before += piece.count
        if found:
            for start, count in runs(found):
                pieces.append(state.batches.cut(queue_number, piece, start, count))
            slots >>= before
            before = 0
            if not slots:
                break
    return pieces


def returned_pieces(state: State, queue: QueueRecord, lease: LeaseRecord, slots: int) -> list[Piece]:
    """The same, for whoever ends the lease of these slots."""
    pieces = held_pieces(state, queue.number, lease, slots)
    state.places.groups.let_go(queue, pieces)
    return pieces


def runs(bits: int) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of ones."""
    base = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield base + zeros, ones
        bits >>= ones
        base += zeros + ones


def let_go(queue: QueueRecord, lease: LeaseRecord, slots: int) -> int:
    """The lease holds these slots no longer: how many they are."""
    settled = bits_of(lease.settled) | slots
    lease.settled = encode_bits(settled)
    if settled == (1 << lease.count) - 1:
        lease.pieces = []
    count = slots.bit_count()
    queue.leased -= count
    return count


def extend(state: State, meta: Meta, command: Extend) -> tuple[Settled | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
    deadline_ms = keys.after(meta.lease_ms, lease_ms)
    results = [_extend_slots(state, queue, command.queue_number, named, deadline_ms) for named in command.leases]
    return Settled(results, keys.after(meta.wall_ms, lease_ms)), []


def _extend_slots(state: State, queue: QueueRecord, queue_number: int, named: Slots, deadline_ms: int) -> bytes:
    lease = find(state, queue, queue_number, named.lease_id)
    if lease is None:
        return _GONE * len(named.slots)
    slots = _bits(named.slots, lease.count)
    settled = bits_of(lease.settled)
    held = slots & ~settled
    if held:
        # Settled slots need no deadline of their own; they move along, so that no group is left of them alone.
        groups = [(ms, bits & ~(held | settled)) for ms, bits in deadlines(lease) if ms != deadline_ms]
        moved = (1 << lease.count) - 1
        for _, bits in groups:
            moved &= ~bits
        put_deadlines(state, keys.lease(queue.number, named.lease_id), lease, [*groups, (deadline_ms, moved)])
    return _results(named.slots, lease.count, slots, held)


def deadlines(lease: LeaseRecord) -> list[tuple[int, int]]:
    """(deadline, slots), the earliest first; every slot is in one of them."""
    if len(lease.deadlines) == 1:
        return [(lease.deadlines[0][0], (1 << lease.count) - 1)]
    return [(ms, bits_of(bits)) for ms, bits in lease.deadlines]


def put_deadlines(state: State, key: bytes, lease: LeaseRecord, groups: list[tuple[int, int]]) -> None:
    """Store the lease with these deadlines."""
    kept = sorted((ms, encode_bits(bits)) for ms, bits in groups if bits)
    if len(kept) == 1:
        kept = [(kept[0][0], b"")]
    if kept[0][0] != lease.deadlines[0][0]:
        state.deadlines.remove(lease.deadlines[0][0], key)
        state.deadlines.add(kept[0][0], key)
    lease.deadlines = kept
    state.txn.put(key, records.encode(lease))
