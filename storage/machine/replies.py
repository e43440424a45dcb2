"""What the state machine answers to each command, and the effects it asks the leader to realise.

Replies are plain values: a refused command is a reply (`Refused`), never an exception. Effects are data, realised on
the leader only, and may be lost or repeated (after rabbit_fifo: Kuo and others, ra's machine behaviour).
"""

from __future__ import annotations

import msgspec

from raftq.storage.machine.commands import QueueSettings


class Refused(msgspec.Struct, array_like=True, tag=0, gc=False):
    """The command did nothing. `reason` is a stable word: unknown_queue (topic, message, ...), too_many_queues
    (topics, subscriptions), full, too_large, leased, not_empty, invalid (what the front end should not have let
    through), ..."""

    reason: str
    detail: str = ""
    #: The queue that it is about, where it is not the command's own.
    queue: str = ""


class Enqueued(msgspec.Struct, array_like=True, tag=1, gc=False):
    queue_number: int
    #: (priority, first number, count) of each part in its order; no duplicates among them. None when `places` is given.
    spans: list[tuple[int, int, int]] | None
    #: In the request's order (priority, number, duplicate), when the request had several parts or any dedup id.
    places: list[tuple[int, int, bool]] | None = None
    #: The request id was known: nothing was enqueued, this is the first reply.
    repeated: bool = False
    #: Of each of the places the queue number, where they differ: among partitions, or before a purge and after it.
    numbers: list[int] | None = None


class Range(msgspec.Struct, array_like=True, gc=False):
    """Messages `first` to `first + count - 1` of a queue and priority, which share their counters."""

    priority: int
    first: int
    count: int
    #: Deliveries so far, this one included.
    deliveries: int
    failures: int


class Leased(msgspec.Struct, array_like=True, tag=2, gc=False):
    """`ranges` in delivery order; slot i of the lease is the i-th message of their concatenation. No ranges: nothing
    was ready."""

    queue_number: int
    lease_id: int
    ranges: list[Range]
    #: Wall time in milliseconds at which the lease passes (an estimate: lease time is elapsed time).
    deadline_ms: int
    repeated: bool = False


class Settled(msgspec.Struct, array_like=True, tag=3, gc=False):
    """The answer to ack, nack, release and extend: for each `Slots` of the command, in its order, one byte a slot."""

    results: list[bytes]
    #: Extend: the new deadline, wall time in milliseconds.
    deadline_ms: int = 0


#: Bytes of `Settled.results`. GONE: the lease has passed, or the message was settled otherwise.
DONE = 0
GONE = 1


class Expired(msgspec.Struct, array_like=True, tag=4, gc=False):
    """What one step did; `more` when something due is left for the next."""

    #: Messages whose lease passed: with a failure more, ready again or dead.
    leases: int
    #: Messages whose delay passed.
    delays: int
    #: Dedup ids, requests and records of deleted queues that were removed.
    forgotten: int
    more: bool
    #: Messages that were dead-lettered, or discarded.
    dead: int = 0


class QueueDefined(msgspec.Struct, array_like=True, tag=5, gc=False):
    queue_number: int
    created: bool
    #: That the queue has now.
    settings: QueueSettings | None = None


class QueueDeleted(msgspec.Struct, array_like=True, tag=6, gc=False):
    messages: int


class DigestTaken(msgspec.Struct, array_like=True, tag=7, gc=False):
    index: int


class VersionSet(msgspec.Struct, array_like=True, tag=8, gc=False):
    #: The machine's version now.
    version: int
    #: False: it was this one, or a higher one, before.
    changed: bool


class Incarnated(msgspec.Struct, array_like=True, tag=9, gc=False):
    #: How many there were, this one included.
    incarnation: int
    #: Messages that were leased and are ready again.
    released: int


class Purged(msgspec.Struct, array_like=True, tag=10, gc=False):
    messages: int


class Redriving(msgspec.Struct, array_like=True, tag=12, gc=False):
    """A redrive, as it was given and as it stands."""

    #: running, done or cancelled.
    state: str
    target: str | None
    filter: bytes
    per_second: int | None
    redrives_max: int | None
    limit: int | None
    #: Messages.
    moved: int
    #: Looked at and left where they are.
    skipped: int
    #: About as many are still to be looked at.
    left: int
    #: Wall time.
    begun_ms: int
    ended_ms: int | None


class MessageDeleted(msgspec.Struct, array_like=True, tag=11, gc=False):
    """It was ready or delayed, and is gone."""


class Obstacle(msgspec.Struct, array_like=True, gc=False):
    """An operation that cannot be done."""

    #: Its position in the transaction.
    operation: int
    #: As in `Refused`, or "gone": some of its receipts hold no message, or an operation before names them too.
    reason: str
    detail: str = ""
    #: Of "gone": as `Settled.results`.
    results: list[bytes] = []


class Transacted(msgspec.Struct, array_like=True, tag=13, gc=False):
    """All was done, or nothing: because of the obstacles."""

    #: Of the enqueues among the operations, in their order.
    enqueued: list[Enqueued]
    obstacles: list[Obstacle] = []
    repeated: bool = False


class TopicDefined(msgspec.Struct, array_like=True, tag=14, gc=False):
    """Of a topic or a subscription."""

    created: bool
    #: Of a topic: messages so far.
    published: int = 0
    #: Of a topic: what the queues have that its subscriptions create.
    partitions: int | None = None


class Published(msgspec.Struct, array_like=True, tag=15, gc=False):
    #: Of each message, in the order of the request: the queues that it was enqueued into.
    queues: list[int]
    #: The queues that had its dedup id already; empty when none had any.
    duplicates: list[int]
    repeated: bool = False


class TopicDeleted(msgspec.Struct, array_like=True, tag=18, gc=False):
    #: Subscriptions that were removed; 1 for an unsubscribe.
    subscriptions: int


class ScheduleState(msgspec.Struct, array_like=True, gc=False):
    """How a schedule stands. Moments are wall time."""

    #: None: it is paused, or its times never come again.
    next_ms: int | None = None
    #: For when the last tick was due that was done, or failed.
    last_ms: int | None = None
    #: Of which a message was enqueued or published.
    ticks: int = 0
    #: Missed and not done.
    skipped: int = 0
    #: Refused: the queue was full, there was no such topic.
    failed: int = 0
    #: Why the last tick failed; "" when it did not.
    failure: str = ""

    @property
    def passed(self) -> int:
        """The number of the last tick."""
        return self.ticks + self.skipped + self.failed


class ScheduleDefined(msgspec.Struct, array_like=True, tag=16, gc=False):
    created: bool
    #: As it stands now, or stood when it was deleted.
    state: ScheduleState


class Ticked(msgspec.Struct, array_like=True, tag=17, gc=False):
    #: Of the tick, counted from 1 over all of the schedule; 0: it was done before, or there is no such schedule.
    number: int


class TokenCreated(msgspec.Struct, array_like=True, tag=19, gc=False):
    id: str
    #: False: it was there, or was a first token before and may be revoked since.
    created: bool = True


class TokenRevoked(msgspec.Struct, array_like=True, tag=20, gc=False):
    id: str


Reply = (
    Refused
    | Enqueued
    | Leased
    | Settled
    | Expired
    | QueueDefined
    | QueueDeleted
    | DigestTaken
    | VersionSet
    | Incarnated
    | Purged
    | MessageDeleted
    | Redriving
    | Transacted
    | TopicDefined
    | Published
    | TopicDeleted
    | ScheduleDefined
    | Ticked
    | TokenCreated
    | TokenRevoked
)


class QueueReady(msgspec.Struct, gc=False):
    """Effect: the queue has messages ready that it had not before."""

    queue: str
    ready: int


Effect = QueueReady
