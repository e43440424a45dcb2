"""The keys of the tables: one letter for the table, then the parts in the order in which they are scanned.

Integers are big-endian, so that the order of the bytes is the order of the numbers. A priority is stored as
`9 - priority`, so that the message to be delivered first comes first. All tables of a queue are keyed by its number,
new with every creation: what a deleted queue left behind can never meet its namesake.

    a                               Cluster            counters and clocks of the whole machine
    n key                           Name               queue key -> queue number
    q queue                         QueueRecord        settings, heads, counters
    z queue                         (empty)            a deleted queue whose remains are being removed
    b queue priority first          batch              messages in line: the head walks over these
    c queue priority first          batch              messages held aside: the head never sees these (delayed ones)
    g queue priority first          bitmap             messages of the batch that are gone
    r queue priority first          Piece              returned messages, ready
    u queue priority first          Due                delayed messages
    l queue lease                   LeaseRecord
    i queue dedup id                DedupRecord
    x queue command request id      RequestRecord
    d lease_ms record key           (empty)            when each lease passes, in lease time
    w wall_ms record key            (empty)            when each delay, dedup id and request passes, in wall time
    s lease_ms key in g             (empty)            when to rewrite a sparse batch, in lease time; or a place in g
                                                       from which all bitmaps are to be looked at
"""

from __future__ import annotations

import struct

PRIORITY_MAX = 9
#: Queue numbers are below it.
QUEUE_MAX = (1 << 32) - 1
#: Message numbers are below it.
NUMBER_MAX = (1 << 64) - 1

CLUSTER = b"a"
NAME = b"n"
QUEUE = b"q"
DELETED = b"z"
BATCH = b"b"
ASIDE = b"c"
GONE = b"g"
GONE_END = b"h"
RETURNED = b"r"
DUE = b"u"
LEASE = b"l"
DEDUP = b"i"
REQUEST = b"x"
DEADLINE = b"d"
WALL = b"w"
SPARSE = b"s"

#: Every table whose keys begin with a queue number: what remains of a deleted queue.
OF_A_QUEUE = (BATCH, ASIDE, GONE, RETURNED, DUE, LEASE, DEDUP, REQUEST)

#: The greatest moment that a key can hold. 64 bits, less one so that the moment after it can be written too.
MS_MAX = (1 << 63) - 1

_OF_QUEUE = struct.Struct(">cI")
_PLACE = struct.Struct(">cIBQ")
#: Length of a key made by `place`.
PLACE_BYTES = _PLACE.size
_LEASE = struct.Struct(">cIQ")
_MOMENT = struct.Struct(">cQ")
_U32 = struct.Struct(">I")
_pack_place = _PLACE.pack


def name(key: str) -> bytes:
    return NAME + key.encode()


def of_queue(table: bytes, queue: int) -> bytes:
    """The key of the queue's record, or the low end of the queue's part of `table` (its high end is `queue + 1`)."""
    return _OF_QUEUE.pack(table, queue)


def queue_of(key: bytes) -> int:
    """The queue number in a key of one of the tables `OF_A_QUEUE`."""
    return int(_U32.unpack_from(key, 1)[0])


def place(table: bytes, queue: int, priority: int, number: int) -> bytes:
    return _pack_place(table, queue, PRIORITY_MAX - priority, number)


def place_of(key: bytes) -> tuple[int, int]:
    """(priority, number) of a key made by `place`."""
    _, _, inverted, number = _PLACE.unpack(key)
    return PRIORITY_MAX - inverted, number


def line(table: bytes, queue: int, priority: int) -> tuple[bytes, bytes]:
    """The bounds of the places of one priority, the high one beyond the last."""
    low = place(table, queue, priority, 0)
    return low, low[:-8] + b"\xff" * 9


def lease(queue: int, lease_id: int) -> bytes:
    return _LEASE.pack(LEASE, queue, lease_id)


def lease_of(key: bytes) -> int:
    return int(_LEASE.unpack(key)[2])


def dedup(queue: int, dedup_id: str) -> bytes:
    return of_queue(DEDUP, queue) + dedup_id.encode()


def request(queue: int, command: int, request_id: str) -> bytes:
    return of_queue(REQUEST, queue) + bytes((command,)) + request_id.encode()


def moment(table: bytes, ms: int, record: bytes = b"") -> bytes:
    """The key in `DEADLINE`, `WALL` or `SPARSE` that says when the record at key `record` passes."""
    return _MOMENT.pack(table, ms) + record


def moment_of(key: bytes) -> tuple[int, bytes]:
    """(ms, record key) of a key made by `moment`."""
    return int(_MOMENT.unpack_from(key)[1]), key[_MOMENT.size :]


def after(now_ms: int, ms: int) -> int:
    """The moment `ms` after now: never before now, never beyond what a key can hold."""
    return min(now_ms + max(ms, 0), MS_MAX)
