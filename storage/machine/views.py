"""What may be read of the state machine: queues, their counts, and their messages without leasing them.

Owns the shapes of what is read, and changes nothing. Counts come from the queue's record; a page of messages reads what
it shows and little more. Invariant: a view shows the state after the last entry, never one within an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice, repeat
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
from msgspec.structs import astuple

from raftq.storage.machine import keys, leases, packing, records
from raftq.storage.machine.commands import QueueSettings
from raftq.storage.machine.records import (
    BLOB_OFFSET,
    Batch,
    Head,
    LeaseRecord,
    Piece,
    QueueRecord,
    ScheduleRecord,
    SubscriptionRecord,
    TokenRecord,
    TopicRecord,
)
from raftq.storage.machine.replies import Leased, Redriving
from raftq.storage.machine.tallies import COUNTS, TOTALS, counted

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Leases that one page, or the search for one message, looks through, and bytes of their records: most may be settled,
#: and the loop must go on.
LEASES_SEEN_MAX = 5_000
LEASES_BYTES_MAX = 1024 * 1024

MessageState = Literal["ready", "delayed", "leased"]
#: (priority, number)
Place = tuple[int, int]

_COUNTED = COUNTS + TOTALS


class Delivery(msgspec.Struct, gc=False, frozen=True):
    priority: int
    number: int
    #: So far, this one included.
    deliveries: int
    failures: int
    enqueued_at_ms: int
    #: A packed message (`packing.unpack_message`).
    data: bytes


class Peeked(NamedTuple):
    priority: int
    number: int
    #: 0 for a leased message whose lease was not found among the last ones, see `LEASES_SEEN_MAX`.
    deliveries: int
    failures: int
    enqueued_at_ms: int
    data: bytes
    state: MessageState
    #: Of a delayed message: wall time at which it is ready.
    due_ms: int | None = None
    #: Of a leased message: about when its lease passes, in wall time.
    deadline_ms: int | None = None


class QueueInfo(msgspec.Struct):
    key: str
    number: int
    settings: QueueSettings
    created_index: int
    #: Those that have to wait for another of their group key included.
    ready: int
    leased: int
    delayed: int
    #: Of live messages as packed: attributes and group keys included.
    bytes: int
    enqueued: int
    delivered: int
    acked: int
    nacked: int
    released: int
    expired: int
    duplicates: int
    dead_lettered: int
    discarded: int
    rejected: int
    removed: int
    redriven: int
    #: When the oldest ready message was enqueued, wall time.
    oldest_ready_ms: int | None
    #: The name stands for so many queues, all of which are counted here.
    partitions: int | None = None


class Tally(NamedTuple):
    """What is counted of one queue."""

    key: str
    #: COUNTS and TOTALS of `tallies`.
    values: tuple[int, ...]
    #: As in `QueueInfo`.
    oldest_ready_ms: int | None


def deliveries(state: State, leased: Leased) -> list[Delivery | None]:
    """See `Machine.deliveries`."""
    lease_id, pieces, batches = state.leased
    if leased.lease_id == lease_id and not leased.repeated:
        if batches is None:
            batches = [state.batches.of(leased.queue_number, piece) for piece in pieces]
        found: list[Delivery | None] = []
        for piece, batch in zip(pieces, batches, strict=True):
            found += _deliveries(piece, batch)
        return found
    return _still_held(state, leased)


def _still_held(state: State, leased: Leased) -> list[Delivery | None]:
    found: list[Delivery | None] = [None] * sum(taken.count for taken in leased.ranges)
    value = state.txn.get(keys.lease(leased.queue_number, leased.lease_id))
    # Of a queue that was purged since, the lease may still be among the remains.
    if value is not None and state.queues.numbered(leased.queue_number) is not None:
        for slot, piece, number in _held(records.decode_lease(value)):
            found[slot] = _delivery(state.batches.of(leased.queue_number, piece), piece, number)
    return found


def _held(lease: LeaseRecord) -> Iterator[tuple[int, Piece, int]]:
    """(slot, its piece, its message's number) of each slot that the lease holds."""
    held = (1 << lease.count) - 1 & ~records.bits_of(lease.settled)
    first = 0
    for piece in lease.pieces:
        for start, count in leases.runs(held & ((1 << piece.count) - 1)):
            for at in range(start, start + count):
                yield first + at, piece, piece.first + at
        held >>= piece.count
        first += piece.count


def _slot(lease: LeaseRecord, priority: int, number: int) -> tuple[int, Piece] | None:
    """The slot that holds the message, and its piece."""
    first = 0
    for piece in lease.pieces:
        if piece.first <= number < piece.first + piece.count and piece.priority == priority:
            slot = first + number - piece.first
            return None if records.bits_of(lease.settled) >> slot & 1 else (slot, piece)
        first += piece.count
    return None


def _deliveries(piece: Piece, batch: Batch) -> list[Delivery]:
    data = packing.unpack(batch.value, piece.first - piece.batch, piece.count, BLOB_OFFSET)
    numbers = range(piece.first, piece.first + piece.count)
    alike = repeat(piece.deliveries), repeat(piece.failures), repeat(batch.enqueued_at_ms)
    return list(map(Delivery, repeat(piece.priority), numbers, *alike, data))


def _delivery(batch: Batch, piece: Piece, number: int) -> Delivery:
    data = packing.unpack(batch.value, number - piece.batch, 1, BLOB_OFFSET)[0]
    return Delivery(piece.priority, number, piece.deliveries, piece.failures, batch.enqueued_at_ms, data)


def _found(
    delivery: Delivery, state: MessageState, due_ms: int | None = None, deadline_ms: int | None = None
) -> Peeked:
    return Peeked._make((*astuple(delivery), state, due_ms, deadline_ms))


class View:
    """What was applied. Valid until the next await; to be read between entries."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def lease_ms(self) -> int:
        """Lease time of the last entry that held a command."""
        return self._state.cluster.lease_ms

    @property
    def wall_ms(self) -> int:
        """Wall time of the last entry that held a command."""
        return self._state.cluster.wall_ms

    def queue(self, key: str) -> QueueInfo | None:
        found = [self._info(queue) for queue in self._of(key)]
        record = self._state.partitions.get(key)
        if not found or record is None:
            return found[0] if found else None
        sums = {name: sum(getattr(info, name) for info in found) for name in _COUNTED}
        oldest_ms = min((info.oldest_ready_ms for info in found if info.oldest_ready_ms is not None), default=None)
        return msgspec.structs.replace(
            found[0],
            key=key,
            number=record.number,
            created_index=record.created_index,
            oldest_ready_ms=oldest_ms,
            partitions=record.count,
            **sums,
        )

    def _of(self, key: str) -> list[QueueRecord]:
        """The queue, or all partitions of that name; none when there is neither."""
        record = self._state.partitions.get(key)
        found = [self._state.queues.get(one) for one in ([key] if record is None else record.partitions)]
        return [queue for queue in found if queue is not None]

    def partitions(self, key: str) -> int | None:
        """How many queues the name stands for; None for a plain queue, and for none."""
        record = self._state.partitions.get(key)
        return None if record is None else record.count

    def partition(self, key: str, number: int) -> str:
        """The queue that has that number, when it is a partition of the name; else the name, or its first partition."""
        record = self._state.partitions.get(key)
        return key if record is None else record.partition(self._state.queues.numbered(number))

    def queues(
        self, namespace: str | None, prefix: str = "", limit: int = 100, cursor: str | None = None
    ) -> tuple[list[QueueInfo], str | None]:
        """Queues of the namespace (None: of all, by their keys) whose names begin with `prefix`, by name; and the
        cursor of the next page."""
        found, cursor = self._queues(namespace, prefix, limit, cursor)
        return [self._info(queue) for queue in found], cursor

    def tallies(
        self,
        namespace: str | None,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
        *,
        oldest: bool = True,
    ) -> tuple[list[Tally], str | None]:
        """What is counted of the same queues, for who goes over many. Without `oldest`, which takes longer than all
        else, no message is looked at."""
        found, cursor = self._queues(namespace, prefix, limit, cursor)
        return [Tally(q.key, counted(q), self._oldest_ready_ms(q) if oldest else None) for q in found], cursor

    def _queues(
        self, namespace: str | None, prefix: str, limit: int, cursor: str | None
    ) -> tuple[list[QueueRecord], str | None]:
        inside = "" if namespace is None else f"{namespace}/"
        low = keys.name(f"{inside}{prefix}")
        high = low + b"\xff"
        if cursor is not None:
            low = max(low, keys.name(f"{inside}{cursor}") + b"\0")
        found: list[QueueRecord] = []
        for _, value in self._state.txn.scan(low, high):
            if len(found) >= limit:
                return found, found[-1].key.removeprefix(inside) if found else cursor
            queue = self._state.queues.seen(records.decode_name(value))
            assert queue is not None, value
            found.append(queue)
        return found, None

    def counted(self, key: str) -> dict[str, int]:
        """COUNTS and TOTALS of `tallies`. Raises KeyError for an unknown queue."""
        found = self._of(key)
        if not found:
            raise KeyError(key)
        return dict(zip(_COUNTED, map(sum, zip(*map(counted, found), strict=True)), strict=True))

    def sums(self) -> dict[str, int]:
        """`queues`, and the same over all of them. From version 2 on the totals of deleted queues stay."""
        cluster = self._state.cluster
        return {"queues": cluster.queues} | dict(zip(_COUNTED, cluster.sums, strict=True))

    def growth(self, key: str | None, window_ms: int, now_ms: int) -> tuple[dict[str, int], int]:
        """What the TOTALS of a queue (None: of all) have grown by in about the last `window_ms`, and in how many ms
        exactly. Raises KeyError."""
        queues: list[QueueRecord] | list[None] = [None] if key is None else self._of(key)
        if not queues:
            raise KeyError(key)
        found = [self._state.queues.tallies.growth(queue, window_ms, now_ms) for queue in queues]
        grown = map(sum, zip(*(one for one, _ in found), strict=True))
        return dict(zip(TOTALS, grown, strict=True)), max(took_ms for _, took_ms in found)

    def topic(self, key: str) -> TopicRecord | None:
        return self._state.topics.find(key)

    def topics(
        self, namespace: str, prefix: str = "", limit: int = 100, cursor: str | None = None
    ) -> tuple[list[TopicRecord], str | None]:
        """As `queues`."""
        low = keys.topic(f"{namespace}/{prefix}")
        high = low + b"\xff"
        if cursor is not None:
            low = max(low, keys.topic(f"{namespace}/{cursor}") + b"\0")
        found = [records.decode_topic(value) for _, value in islice(self._state.txn.scan(low, high), limit + 1)]
        if len(found) <= limit:
            return found, None
        return found[:limit], found[limit - 1].key.partition("/")[2]

    def schedule(self, key: str) -> ScheduleRecord | None:
        return self._state.schedules.find(key)

    def schedules(
        self, namespace: str, prefix: str = "", limit: int = 100, cursor: str | None = None
    ) -> tuple[list[ScheduleRecord], str | None]:
        """As `queues`."""
        low = keys.schedule(f"{namespace}/{prefix}")
        high = low + b"\xff"
        if cursor is not None:
            low = max(low, keys.schedule(f"{namespace}/{cursor}") + b"\0")
        found = [records.decode_schedule(value) for _, value in islice(self._state.txn.scan(low, high), limit + 1)]
        if len(found) <= limit:
            return found, None
        return found[:limit], found[limit - 1].key.partition("/")[2]

    @property
    def version(self) -> int:
        """Of the machine's rules."""
        return self._state.cluster.version

    def token(self, token_id: str) -> TokenRecord | None:
        """Expired or not. The same object each time, until the token is revoked."""
        return self._state.tokens.find(token_id)

    def tokens(self, limit: int = 100, after: str | None = None) -> tuple[list[TokenRecord], str | None]:
        """A page by id, expired ones too, and what the next page comes after."""
        found = list(islice(self._state.tokens.after(after), limit + 1))
        if len(found) <= limit:
            return found, None
        return found[:limit], found[limit - 1].id

    def subscriptions(self, topic: str) -> list[tuple[str, SubscriptionRecord]]:
        """(queue key, subscription) of a topic, by the queues' names."""
        return list(self._state.topics.subscriptions(topic))

    def subscription(self, topic: str, queue: str) -> SubscriptionRecord | None:
        return self._state.topics.subscription(topic, queue)

    def redrive(self, key: str) -> Redriving | None:
        """The last redrive of the queue, None when there was none. Raises KeyError for an unknown queue."""
        queue = self._state.queues.get(key)
        if queue is None:
            raise KeyError(key)
        value = self._state.txn.get(keys.of_queue(keys.REDRIVE, queue.number))
        return None if value is None else records.decode_redrive(value).progress()

    def ready(self, key: str, groups: list[str] | None = None) -> int:
        """How many messages a lease, of these group keys alone if some are given, could get now: none of a paused or an
        unknown queue, and none that has to wait for another of its group key."""
        queue = self._state.queues.get(key)
        if queue is None:
            record = self._state.partitions.get(key)
            return 0 if record is None else sum(self.ready(one, groups) for one in record.partitions)
        if queue.settings.paused:
            return 0
        return queue.leasable if groups is None else self._state.places.groups.ready(queue, groups)

    def peek(
        self, key: str, state: MessageState, limit: int, cursor: str | None = None
    ) -> tuple[list[Peeked], str | None]:
        """Messages in that state without leasing them, and the cursor of the next page: ready and delayed ones by
        place, leased ones by lease. A page of leased ones may be short, or empty, and have a next one.
        Raises KeyError for an unknown queue, ValueError for a bad cursor."""
        queue = self._state.queues.get(key)
        if queue is None:
            raise KeyError(key)
        if state == "leased":
            return self._leased_page(queue, limit, *_parsed(cursor, (0, 0)))
        priority, number = _parsed(cursor, (keys.PRIORITY_MAX, 0))
        if priority > keys.PRIORITY_MAX:
            raise ValueError(f"no such cursor: {cursor}")
        messages = self._delayed if state == "delayed" else self._ready
        found = list(islice(messages(queue, priority, number), limit + 1))
        if len(found) <= limit:
            return found, None
        return found[:limit], f"{found[limit].priority}-{found[limit].number}"

    def message(self, key: str, priority: int, number: int) -> Peeked | None:
        """One live message, None when there is none."""
        queue = self._state.queues.get(key)
        if queue is None or not 0 <= priority <= keys.PRIORITY_MAX or not 0 < number < keys.NUMBER_MAX:
            return None
        for messages in (self._ready(queue, priority, number), self._delayed(queue, priority, number)):
            found = next(messages, None)
            if found is not None and (found.priority, found.number) == (priority, number):
                return found
        return self._leased_message(queue, priority, number)

    def _info(self, queue: QueueRecord) -> QueueInfo:
        return QueueInfo(
            key=queue.key,
            number=queue.number,
            settings=queue.settings,
            created_index=queue.created_index,
            ready=queue.ready,
            leased=queue.leased,
            delayed=queue.delayed,
            bytes=queue.bytes,
            enqueued=queue.enqueued,
            delivered=queue.delivered,
            acked=queue.acked,
            nacked=queue.nacked,
            released=queue.released,
            expired=queue.expired,
            duplicates=queue.duplicates,
            dead_lettered=queue.dead_lettered,
            discarded=queue.discarded,
            rejected=queue.rejected,
            removed=queue.removed,
            redriven=queue.redriven,
            oldest_ready_ms=self._oldest_ready_ms(queue),
        )

    def _oldest_ready_ms(self, queue: QueueRecord) -> int | None:
        """Numbers grow with time over all priorities: the oldest is the lowest of each priority's first."""
        if not queue.ready:
            return None
        grouped = queue.settings.max_leased_per_group is not None
        heads = [head for head in queue.heads if head.returned or head.beyond or grouped]
        firsts = (next(self._ready_of(queue, head, 0), None) for head in heads)
        return min((first.number, first.enqueued_at_ms) for first in firsts if first is not None)[1]

    def _ready(self, queue: QueueRecord, priority: int, number: int) -> Iterator[Peeked]:
        """From the place on, in order of delivery."""
        for head in queue.heads:
            if head.priority <= priority:
                yield from self._ready_of(queue, head, number if head.priority == priority else 0)

    def ready_below(self, queue: QueueRecord, priority: int, number: int, number_max: int) -> Iterator[Peeked]:
        """Ready messages with numbers below `number_max`, from the place on, in order of delivery."""
        for head in queue.heads:
            if head.priority <= priority:
                for message in self._ready_of(queue, head, number if head.priority == priority else 0):
                    if message.number >= number_max:
                        break
                    yield message

    def _ready_of(self, queue: QueueRecord, head: Head, number: int) -> Iterator[Peeked]:
        found = [self._returned(queue, head, number), self._beyond(queue, head, number)]
        if queue.settings.max_leased_per_group is not None:
            found.append(self._members(queue, head, number))
        return merge(*found, key=lambda message: message.number)

    def _returned(self, queue: QueueRecord, head: Head, number: int) -> Iterator[Peeked]:
        low, high = keys.line(keys.RETURNED, queue.number, head.priority)
        for _, value in self._state.txn.scan(self._floor(low, number), high):
            yield from self._peeked(queue, records.decode_piece(value), number, "ready")

    def _members(self, queue: QueueRecord, head: Head, number: int) -> Iterator[Peeked]:
        low, high = keys.line(keys.MEMBER, queue.number, head.priority)
        for _, value in self._state.txn.scan(low[:-8] + number.to_bytes(8, "big"), high):
            yield from self._peeked(queue, records.decode_piece(value), number, "ready")

    def _beyond(self, queue: QueueRecord, head: Head, number: int) -> Iterator[Peeked]:
        low, high = keys.line(keys.BATCH, queue.number, head.priority)
        number = max(number, head.number)
        for key, value in self._state.txn.scan(self._floor(low, number), high):
            first, batch = keys.place_of(key)[1], Batch(value)
            piece = Piece(head.priority, first, False, batch.count, first, batch.count, batch.bytes, 0, 0)
            yield from self._peeked(queue, piece, number, "ready", batch=batch)

    def _delayed(self, queue: QueueRecord, priority: int, number: int) -> Iterator[Peeked]:
        """From the place on, by place."""
        low, _ = keys.line(keys.DUE, queue.number, priority)
        for key, value in self._state.txn.scan(self._floor(low, number), keys.of_queue(keys.DUE, queue.number + 1)):
            due = records.decode_due(value)
            low_number = number if keys.place_of(key)[0] == priority else 0
            yield from self._peeked(queue, due.piece, low_number, "delayed", due_ms=due.due_ms)

    def _floor(self, low: bytes, number: int) -> bytes:
        """Where to begin in the line that begins at `low`, for the piece or batch that holds `number` to be seen."""
        place = low[:-8] + number.to_bytes(8, "big")
        for key, _ in self._state.txn.scan(low, place, reverse=True):
            return key
        return place

    def _peeked(
        self,
        queue: QueueRecord,
        piece: Piece,
        low_number: int,
        state: MessageState,
        *,
        batch: Batch | None = None,
        due_ms: int | None = None,
    ) -> Iterator[Peeked]:
        """The messages of the piece with numbers from `low_number` on."""
        for number in range(max(piece.first, low_number), piece.first + piece.count):
            if batch is None:
                batch = self._state.batches.of(queue.number, piece)
            yield _found(_delivery(batch, piece, number), state, due_ms)

    def _leased_page(
        self, queue: QueueRecord, limit: int, first_lease: int, first_slot: int
    ) -> tuple[list[Peeked], str | None]:
        found: list[Peeked] = []
        low, high = keys.lease(queue.number, first_lease), keys.of_queue(keys.LEASE, queue.number + 1)
        seen = size = 0
        for key, value in self._state.txn.scan(low, high):
            lease_id = keys.lease_of(key)
            if seen >= LEASES_SEEN_MAX or size > LEASES_BYTES_MAX:
                return found, f"{lease_id}-0"
            seen += 1
            size += len(value)
            lease = records.decode_lease(value)
            for slot, piece, number in _held(lease):
                if lease_id == first_lease and slot < first_slot:
                    continue
                if len(found) >= limit:
                    return found, f"{lease_id}-{slot}"
                found.append(self._leased(queue, lease, slot, piece, number))
        return found, None

    def _leased_message(self, queue: QueueRecord, priority: int, number: int) -> Peeked | None:
        """A message that is neither ready nor delayed: leased, or gone."""
        piece = self._state.batches.live(queue.number, priority, number)
        if piece is None:
            return None
        low, high = keys.of_queue(keys.LEASE, queue.number), keys.of_queue(keys.LEASE, queue.number + 1)
        # The newest first: a message is most likely held by one of the last leases.
        size = 0
        for _, value in islice(self._state.txn.scan(low, high, reverse=True), LEASES_SEEN_MAX):
            lease = records.decode_lease(value)
            found = _slot(lease, priority, number)
            if found is not None:
                return self._leased(queue, lease, *found, number)
            size += len(value)
            if size > LEASES_BYTES_MAX:
                break
        batch = self._state.batches.of(queue.number, piece)
        return _found(_delivery(batch, piece, number), "leased")

    def _leased(self, queue: QueueRecord, lease: LeaseRecord, slot: int, piece: Piece, number: int) -> Peeked:
        passes_ms = next(ms for ms, bits in leases.deadlines(lease) if bits >> slot & 1)
        deadline_ms = self.wall_ms + passes_ms - self.lease_ms
        batch = self._state.batches.of(queue.number, piece)
        return _found(_delivery(batch, piece, number), "leased", None, deadline_ms)


def _parsed(cursor: str | None, start: tuple[int, int]) -> tuple[int, int]:
    """The two numbers of a cursor, the place to begin the page at. Raises ValueError."""
    if cursor is None:
        return start
    first, dash, second = cursor.partition("-")
    if not (dash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
        raise ValueError(f"no such cursor: {cursor}")
    place = int(first), int(second)
    if max(place) >= keys.NUMBER_MAX:
        raise ValueError(f"no such cursor: {cursor}")
    return place
