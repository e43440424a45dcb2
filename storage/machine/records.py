"""The values of the tables, and nothing else: every byte that is put into a table is made here.

A value is a msgpack array of its struct's fields (fields are only ever added at the end); a batch is its time and its
blob; a bitmap is its bytes. A record read is a record of its own: whoever changes it puts it back.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right

import msgspec

from raftq.storage.machine import packing, replies
from raftq.storage.machine.commands import Grant, QueueSettings, Redrive, Schedule

#: A key of the tables, or the end of one; for structs that have a field named `bytes`.
Key = bytes


class Cluster(msgspec.Struct, array_like=True, gc=False):
    """The one record of the whole machine."""

    last_queue: int = 0
    #: The last lease id given: the fence.
    last_lease: int = 0
    queues: int = 0
    #: Of the last entry that held a command.
    index: int = 0
    lease_ms: int = 0
    wall_ms: int = 0
    #: Of the rules that apply (`SetVersion`).
    version: int = 1
    #: How often the command Incarnate was applied.
    incarnation: int = 0
    #: Of `tallies`: its COUNTS, then its TOTALS, over all queues.
    sums: list[int] = []
    topics: int = 0
    schedules: int = 0


class Head(msgspec.Struct, array_like=True, gc=False):
    """Where delivery stands in one priority of a queue. What lies in line at `number` or after it was never leased."""

    priority: int
    number: int
    #: First number of the batch that `number` stands in; equal to `number` when it stands before a batch.
    batch: int
    #: Messages in line beyond the head.
    beyond: int = 0
    #: Messages in the table of returned ones.
    returned: int = 0


class QueueRecord(msgspec.Struct, array_like=True, gc=False):
    key: str
    number: int
    settings: QueueSettings
    created_index: int
    #: Of the next message, over all priorities.
    next_number: int = 1
    #: Highest priority first; only priorities that were ever used.
    heads: list[Head] = []
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    #: Of live messages as packed: attributes and group keys included.
    bytes: int = 0
    enqueued: int = 0
    delivered: int = 0
    acked: int = 0
    nacked: int = 0
    released: int = 0
    expired: int = 0
    duplicates: int = 0
    #: Messages that went on to the dead-letter queue, and those that would have, but for there being none.
    dead_lettered: int = 0
    discarded: int = 0
    rejected: int = 0
    #: The moment in WALL at which to look for messages past retention: wall time, never after the first of them is.
    retention_due_ms: int | None = None
    #: The number that the queue's dedup ids and requests are kept under: its first one, whatever a purge made of it.
    ids: int = 0
    #: Messages that were purged, deleted or replaced.
    removed: int = 0
    #: Messages that went on by a redrive.
    redriven: int = 0
    #: Live messages that have a replace key.
    keyed: int = 0
    #: Ready messages that cannot be leased now: as many of their group key are as may be.
    blocked: int = 0
    #: A change of `max_leased_per_group` has still to be told to group keys from `regrouped` on (behind the queue in
    #: their keys); the moment in WALL at which steps do.
    regroup_due_ms: int | None = None
    regrouped: Key = b""

    def __post_init__(self) -> None:
        """A record from before there were purges says nothing of `ids`."""
        self.ids = self.ids or self.number

    @property
    def leasable(self) -> int:
        """Messages that a lease could get now."""
        return self.ready - self.blocked


class Piece(msgspec.Struct, array_like=True, gc=False):
    """Messages `first` to `first + count - 1`, all of ONE batch and live, which share a holder and their counters.

    It knows enough of its batch (its key, its count, the bytes of the piece) for the batch not to be read: a piece that
    is the whole batch is leased from `returned`, acked or nacked without touching it."""

    priority: int
    #: First number of the batch; it lies in the table ASIDE or BATCH.
    batch: int
    aside: bool
    batch_count: int
    first: int
    count: int
    bytes: int
    #: So far; of a leased piece this lease included.
    deliveries: int
    failures: int


class Due(msgspec.Struct, array_like=True, gc=False):
    #: Wall time.
    due_ms: int
    piece: Piece


class LeaseRecord(msgspec.Struct, array_like=True, gc=False):
    """Bits are little-endian, bit i for slot i, as short as they can be."""

    count: int
    #: In slot order; dropped when every slot is settled.
    pieces: list[Piece]
    #: (deadline in lease time, its slots), the earliest first: that one is in the table of deadlines. Every slot is in
    #: one. Several are only made by extending a part of the lease; a single one is of all slots, its bits empty.
    deadlines: list[tuple[int, bytes]]
    #: Slots that this lease no longer holds.
    settled: bytes = b""
    #: Those of the settled that this lease acked.
    acked: bytes = b""


class DedupRecord(msgspec.Struct, array_like=True, gc=False):
    priority: int
    number: int
    #: Wall time.
    expires_ms: int
    #: Of the queue when the message came; 0: as it is now.
    queue_number: int = 0


class RedriveRecord(msgspec.Struct, array_like=True, gc=False):
    #: What was asked for, without its request.
    given: Redrive
    #: Wall time.
    begun_ms: int
    #: Messages with lower numbers were there when it began.
    number_max: int
    #: Messages that were ready then.
    ready: int
    #: From where on nothing was looked at.
    priority: int = 9
    number: int = 0
    moved: int = 0
    skipped: int = 0
    #: See `replies.Redriving`.
    state: str = "running"
    #: Of the next step, wall time; None: it has ended, at `ended_ms`.
    due_ms: int | None = None
    ended_ms: int | None = None

    def progress(self) -> replies.Redriving:
        given = self.given
        left = 0 if self.due_ms is None else max(self.ready - self.moved - self.skipped, 0)
        return replies.Redriving(
            self.state,
            given.target,
            given.filter,
            given.per_second,
            given.redrives_max,
            given.limit,
            self.moved,
            self.skipped,
            left,
            self.begun_ms,
            self.ended_ms,
        )


class GroupRecord(msgspec.Struct, array_like=True, gc=False):
    """Of a group key with any message that counts here."""

    leased: int = 0
    #: Delayed by a nack.
    held_back: int = 0
    #: Ready messages that may be leased, and the others.
    eligible: int = 0
    blocked: int = 0
    #: The eligible ones have places before it (`keys.in_group`), the others do not.
    frontier: bytes = b"\0"


class RequestRecord(msgspec.Struct, array_like=True, gc=False):
    #: Wall time.
    expires_ms: int
    reply: replies.Reply


class TopicRecord(msgspec.Struct, array_like=True, gc=False):
    key: str
    #: From the count of queue numbers; its requests are kept under it.
    number: int
    created_index: int
    #: Messages, whatever came of them.
    published: int = 0
    #: Of a queue that a subscription creates; None: a plain one.
    partitions: int | None = None


class SubscriptionRecord(msgspec.Struct, array_like=True, gc=False):
    #: JSON text, see `filters`.
    filter: bytes
    created_index: int


class PartitionedRecord(msgspec.Struct, array_like=True, gc=False):
    key: str
    #: From the count of queue numbers; requests for the name are kept under it.
    number: int
    #: Of partitions.
    count: int
    created_index: int
    #: Where the next lease begins to look, and where the next enqueue without keys goes.
    turn: int = 0
    turn_in: int = 0

    @property
    def partitions(self) -> list[str]:
        """Their queue keys."""
        return [f"{self.key}.{at}" for at in range(self.count)]

    def partition(self, queue: QueueRecord | None) -> str:
        """Its key when it is one of them, else that of the first."""
        return queue.key if queue is not None and queue.key in self.partitions else self.partitions[0]


class ScheduleRecord(msgspec.Struct, array_like=True, gc=False):
    key: str
    given: Schedule
    created_index: int
    state: replies.ScheduleState


class TokensRecord(msgspec.Struct, array_like=True, gc=False):
    """Of all tokens together."""

    count: int = 0
    #: The ids of those that were ever made as first ones.
    firsts: list[str] = []


class TokenRecord(msgspec.Struct, array_like=True, gc=False, frozen=True):
    id: str
    #: SHA-256 of the secret.
    digest: bytes
    name: str
    namespace: str
    grants: list[Grant]
    #: Wall time.
    created_ms: int
    created_index: int
    expires_ms: int | None = None


encode = msgspec.msgpack.Encoder().encode
decode_cluster = msgspec.msgpack.Decoder(Cluster).decode
decode_queue = msgspec.msgpack.Decoder(QueueRecord).decode
decode_piece = msgspec.msgpack.Decoder(Piece).decode
decode_due = msgspec.msgpack.Decoder(Due).decode
decode_lease = msgspec.msgpack.Decoder(LeaseRecord).decode
decode_dedup = msgspec.msgpack.Decoder(DedupRecord).decode
decode_redrive = msgspec.msgpack.Decoder(RedriveRecord).decode
decode_group = msgspec.msgpack.Decoder(GroupRecord).decode
decode_request = msgspec.msgpack.Decoder(RequestRecord).decode
decode_topic = msgspec.msgpack.Decoder(TopicRecord).decode
decode_subscription = msgspec.msgpack.Decoder(SubscriptionRecord).decode
decode_partitioned = msgspec.msgpack.Decoder(PartitionedRecord).decode
decode_schedule = msgspec.msgpack.Decoder(ScheduleRecord).decode
decode_tokens = msgspec.msgpack.Decoder(TokensRecord).decode
decode_token = msgspec.msgpack.Decoder(TokenRecord).decode
decode_name = msgspec.msgpack.Decoder(int).decode

#: Value of the tables that are only keys.
NOTHING = b""
#: In DELETED: a queue keeps its dedup ids and requests under that number.
IDS_STAY = b"\1"


def encode_cluster(cluster: Cluster) -> bytes:
    """The fields that came later are left out as long as they say nothing, and the sums with them, which can be found
    anew: a node from before them, in a cluster that is being upgraded, has the same tables."""
    if cluster.version == 1 and not cluster.incarnation and not cluster.topics and not cluster.schedules:
        return encode(msgspec.structs.astuple(cluster)[:6])
    return encode(cluster)


def bits_of(data: bytes) -> int:
    return int.from_bytes(data, "little")


def encode_bits(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


_BATCH = struct.Struct("<QI")
#: Where the blob begins in a batch's value.
BLOB_OFFSET = 8
_U64 = struct.Struct("<Q")


def encode_batch(enqueued_at_ms: int, blob: bytes) -> bytes:
    return _U64.pack(enqueued_at_ms) + blob


class Batch:
    """A batch's value, decoded as far as it is asked for; never changed."""

    __slots__ = ("_ends", "bytes", "count", "enqueued_at_ms", "value")

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.enqueued_at_ms, self.count = _BATCH.unpack_from(value)
        self.bytes = len(value) - BLOB_OFFSET - 4 - 4 * self.count
        self._ends: array[int] | None = None

    def _offsets(self) -> array[int]:
        """Where each message ends. Cut from the value only when a part of the batch is asked for."""
        ends = self._ends
        if ends is None:
            ends = self._ends = array("I")
            ends.frombytes(self.value[BLOB_OFFSET + 4 : BLOB_OFFSET + 4 + 4 * self.count])
            if sys.byteorder == "big":
                ends.byteswap()
        return ends

    def size(self, start: int, count: int) -> int:
        """Bytes of `count` messages from the `start`-th on."""
        ends = self._offsets()
        return ends[start + count - 1] - (ends[start - 1] if start else 0)

    def group(self, at: int) -> bytes:
        """The group key of the `at`-th message."""
        start = BLOB_OFFSET + 4 + 4 * self.count + (self._offsets()[at - 1] if at else 0)
        return packing.group_of(self.value, start)

    def fit(self, start: int, count: int, bytes_max: int) -> int:
        """How many of the `count` messages from the `start`-th on have at most `bytes_max` bytes together."""
        ends = self._offsets()
        limit = bytes_max + (ends[start - 1] if start else 0)
        return bisect_right(ends, limit, start, start + count) - start
