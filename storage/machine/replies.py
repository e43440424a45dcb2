"""What the state machine answers to each command, and the effects it asks the leader to realise.

Replies are plain values: a refused command is a reply (`Refused`), never an exception. Effects are data, realised on
the leader only, and may be lost or repeated (after rabbit_fifo: Kuo and others, ra's machine behaviour).
"""

from __future__ import annotations

import msgspec


class Refused(msgspec.Struct, array_like=True, tag=0, gc=False):
    """The command did nothing. `reason` is one of: unknown_queue, too_many_queues, invalid (a blob or a priority that
    the front end should not have let through)."""

    reason: str
    detail: str = ""


class Enqueued(msgspec.Struct, array_like=True, tag=1, gc=False):
    queue_number: int
    #: (priority, first number, count) of each part in its order; no duplicates among them. None when `places` is given.
    spans: list[tuple[int, int, int]] | None
    #: In the request's order (priority, number, duplicate), when the request had several parts or any dedup id.
    places: list[tuple[int, int, bool]] | None = None
    #: The request id was known: nothing was enqueued, this is the first reply.
    repeated: bool = False


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

    #: Messages whose lease passed: ready again, with a failure.
    leases: int
    #: Messages whose delay passed.
    delays: int
    #: Dedup ids, requests and records of deleted queues that were removed.
    forgotten: int
    more: bool


class QueueDefined(msgspec.Struct, array_like=True, tag=5, gc=False):
    queue_number: int
    created: bool


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
)


class QueueReady(msgspec.Struct, gc=False):
    """Effect: the queue has messages ready that it had not before."""

    queue: str
    ready: int


Effect = QueueReady
