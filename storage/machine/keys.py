"""The keys of the tables: one letter for the table, then the parts in the order in which they are scanned.

Integers are big-endian, so that the order of the bytes is the order of the numbers. A priority is stored as
`9 - priority`, so that the message to be delivered first comes first. All tables of a queue are keyed by its number,
new with every creation: what a deleted queue left behind can never meet its namesake.

    a                               Cluster            counters and clocks of the whole machine
    n key                           Name               queue key -> queue number
    q queue                         QueueRecord        settings, heads, counters
    z queue                         (empty)            a deleted queue, or the number of one before a purge, whose
                                                       remains are being removed
    b queue priority first          batch              messages in line: the head walks over these
    c queue priority first          batch              messages held aside: the head never sees these (delayed ones)
    g queue priority first          bitmap             messages of the batch that are gone
    r queue priority first          Piece              returned messages, ready
    u queue priority first          Due                delayed messages
    l queue lease                   LeaseRecord
    i queue dedup id                DedupRecord
    x queue command request id      RequestRecord
    f queue                         RedriveRecord      the last one of the queue
    o queue priority number         replace key        of a live message that has one; empty: a newer one has it too
    k queue replace key             key in o           the newest message with that replace key
    m queue priority number         Piece              a ready message with a group key, where groups have a limit
    e queue priority number         group key          the same, of those that may be leased
    j queue length group key        GroupRecord
    j queue length group key priority number (empty)   the ready messages of a group key in their order
    d lease_ms record key           (empty)            when each lease passes, in lease time
    w wall_ms record key            (empty)            when each delay, dedup id and request passes, and
                                                       retention of a queue (key in q), in wall time; and when
                                                       to go on after a change of its groups' limit (key j queue);
                                                       and when an expired token is removed
    t topic key                     TopicRecord
    v topic key \\0 queue name      SubscriptionRecord
    v \\0 queue key \\0 topic name   (empty)            the same, by queue
    y schedule key                  ScheduleRecord
    Y wall_ms key in y              (empty)            when the next tick of each schedule is due, in wall time
    p queue key                     PartitionedRecord  of a name that stands for several queues
    T                               TokensRecord       of all tokens together
    T token id                      TokenRecord
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
REDRIVE = b"f"
KEYED = b"o"
NEWEST = b"k"
MEMBER = b"m"
ELIGIBLE = b"e"
GROUP = b"j"
#: After a group key in GROUP: beyond all its messages.
GROUP_END = b"\xff"
TOPIC = b"t"
SUBSCRIPTION = b"v"
SCHEDULE = b"y"
TICK = b"Y"
PARTITIONED = b"p"
TOKENS = b"T"

#: Every table whose keys begin with a queue number: what remains of a deleted queue.
OF_A_QUEUE = (BATCH, ASIDE, GONE, RETURNED, DUE, LEASE, DEDUP, REQUEST, KEYED, NEWEST, REDRIVE, MEMBER, ELIGIBLE, GROUP)

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


def newest(queue: int, replace_key: str) -> bytes:
    return of_queue(NEWEST, queue) + replace_key.encode()


def group(queue: int, group_key: bytes) -> bytes:
    """The key of the record of a group key, at most 255 bytes; with `in_group` behind it, of one of its messages."""
    return b"%b%c%b" % (of_queue(GROUP, queue), len(group_key), group_key)


def group_of(key: bytes) -> bytes:
    """The group key in a key made by `group`."""
    return key[_OF_QUEUE.size + 1 :]


def in_group(place: bytes) -> bytes:
    """What stands for the place in the order of its group: the end of a key made by `place`."""
    return place[_OF_QUEUE.size :]


def line_of(place: bytes) -> tuple[int, int]:
    """(queue, priority) of a key made by `place`."""
    _, queue, inverted, _ = _PLACE.unpack(place)
    return queue, PRIORITY_MAX - inverted


def topic(key: str) -> bytes:
    return TOPIC + key.encode()


def partitioned(key: str) -> bytes:
    return PARTITIONED + key.encode()


def token(token_id: str) -> bytes:
    return TOKENS + token_id.encode()


def token_of(key: bytes) -> str:
    return key[1:].decode()


def schedule(key: str) -> bytes:
    return SCHEDULE + key.encode()


def subscription(topic: str, queue: str) -> bytes:
    """Two whole keys would be longer than a key may be; the namespace is the same."""
    return b"%b%b\0%b" % (SUBSCRIPTION, topic.encode(), queue.partition("/")[2].encode())


def subscription_of_queue(queue: str, topic: str) -> bytes:
    return b"%b\0%b\0%b" % (SUBSCRIPTION, queue.encode(), topic.partition("/")[2].encode())


def subscriptions(topic: str) -> tuple[bytes, bytes]:
    """The bounds of the topic's subscriptions."""
    low = b"%b%b\0" % (SUBSCRIPTION, topic.encode())
    return low, low[:-1] + b"\1"


def subscriptions_of_queue(queue: str) -> tuple[bytes, bytes]:
    low = b"%b\0%b\0" % (SUBSCRIPTION, queue.encode())
    return low, low[:-1] + b"\1"


def subscribed_of(key: bytes) -> str:
    """The key of the queue in a key made by `subscription`; of the topic in one of `subscription_of_queue`, without
    its first byte."""
    owner, _, name = key[1:].decode().partition("\0")
    return f"{owner.partition('/')[0]}/{name}"


def moment(table: bytes, ms: int, record: bytes = b"") -> bytes:
    """The key in `DEADLINE`, `WALL`, `SPARSE` or `TICK` that says when the record at key `record` passes."""
    return _MOMENT.pack(table, ms) + record


def moment_of(key: bytes) -> tuple[int, bytes]:
    """(ms, record key) of a key made by `moment`."""
    return int(_MOMENT.unpack_from(key)[1]), key[_MOMENT.size :]


def after(now_ms: int, ms: int) -> int:
    """The moment `ms` after now: never before now, never beyond what a key can hold."""
    return min(now_ms + max(ms, 0), MS_MAX)
