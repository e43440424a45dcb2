"""The commands of the queue state machine: what a log entry may ask for.

Each command is a msgspec struct encoded as a msgpack array whose first element is its tag. The tag is the version: a
command that changes its meaning or its fields gets a new tag, and a node that meets a tag it does not know stops
(`UnknownCommand`) instead of skipping it. New optional fields may be added at the end.

Commands hold what the leader decided (sizes, limits and names were validated at the front end); nothing here is taken
from a clock or a random source while it is applied.
"""

from __future__ import annotations

import msgspec

#: Queue of the namespace `default` named `jobs` is `default/jobs` in commands and tables. Neither part holds a slash.
QueueKey = str


class UnknownCommand(Exception):
    """The log holds a command that this version does not know. Upgrade this node; nothing was skipped or lost."""


def unknown_version(version: int, version_max: int) -> UnknownCommand:
    return UnknownCommand(
        f"the cluster runs machine version {version}, this node knows {version_max} at most. Upgrade this node; "
        "nothing was skipped or lost"
    )


class Part(msgspec.Struct, array_like=True, gc=False):
    """Messages of one enqueue that share a priority and a delay, packed by `storage.machine.packing.pack`."""

    #: 0 to 9, higher is delivered first.
    priority: int
    #: Milliseconds until the messages are ready; None takes the queue's default, 0 is at once.
    delay_ms: int | None
    #: `storage.machine.packing` blob; at most 64 KiB, or one larger message.
    blob: bytes
    #: Where each message of the blob stood in the request, only when the request has several parts.
    positions: list[int] | None = None
    #: One dedup id or None for each message of the blob; None when no message has one.
    dedup_ids: list[str | None] | None = None


class Request(msgspec.Struct, array_like=True, gc=False):
    """The name of a retryable request. The first reply is kept for `keep_ms` of wall time and repeated to retries."""

    id: str
    keep_ms: int


class Enqueue(msgspec.Struct, array_like=True, tag=1, gc=False):
    queue: QueueKey
    parts: list[Part]
    request: Request | None = None
    #: Refuse (`Refused("unknown_queue")`) instead of creating the queue with its defaults.
    auto_create: bool = True


class Lease(msgspec.Struct, array_like=True, tag=2, gc=False):
    queue: QueueKey
    #: 1 to 1,000 messages at most.
    max: int
    #: None takes the queue's default.
    lease_ms: int | None = None
    request: Request | None = None
    #: Stop before the message that would make the bodies exceed this many bytes (but always give one).
    max_bytes: int = 8 * 1024 * 1024
    #: Ack what is leased in the same step: at most once.
    settle: bool = False


class Slots(msgspec.Struct, array_like=True, gc=False):
    """Receipts of one lease: `slots[i]` is the position of a message in the lease's order. At most once each."""

    lease_id: int
    slots: list[int]


class Ack(msgspec.Struct, array_like=True, tag=3, gc=False):
    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    request: Request | None = None


class Nack(msgspec.Struct, array_like=True, tag=4, gc=False):
    """Counts a failure, and returns the messages after `delay_ms`."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    #: None takes the queue's backoff (0 until a queue has one).
    delay_ms: int | None = None
    request: Request | None = None


class Release(msgspec.Struct, array_like=True, tag=5, gc=False):
    """Returns the messages unharmed, ready at once: no failure is counted."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    request: Request | None = None


class Extend(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Moves the messages' deadline to `lease_ms` from now."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    lease_ms: int | None = None
    request: Request | None = None


class Expire(msgspec.Struct, array_like=True, tag=7, gc=False):
    """One bounded step of everything that is due: leases past their deadline, delays, dedup ids and requests past
    their window, the remains of deleted queues, and sparse batches. Proposed by the leader when `Machine.next_due` says
    so."""

    #: At most this many leases, ranges, ids or batches in this step.
    limit: int = 1000


class QueueSettings(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a queue was defined with. Fields are only ever added at the end."""

    lease_ms: int = 30_000
    delay_ms: int = 0
    dedup_window_ms: int = 300_000
    paused: bool = False


class DefineQueue(msgspec.Struct, array_like=True, tag=8, gc=False):
    """Creates the queue, or changes the settings of the one that is there. Idempotent."""

    queue: QueueKey
    settings: QueueSettings
    #: False: refuse (`Refused("unknown_queue")`) unless the queue exists (PATCH).
    create: bool = True


class DeleteQueue(msgspec.Struct, array_like=True, tag=9, gc=False):
    queue: QueueKey


class TakeDigest(msgspec.Struct, array_like=True, tag=10, gc=False):
    """A mark in the log: every node states the digest of its tables as they are right after the mark's entry."""


class SetVersion(msgspec.Struct, array_like=True, tag=11, gc=False):
    """From this command on the rules of that machine version apply, on all nodes. Never goes back. A node that does not
    know the version stops (`UnknownCommand`): propose it when every member can run it."""

    version: int


class Incarnate(msgspec.Struct, array_like=True, tag=12, gc=False):
    """A new incarnation of the cluster, after a restore or a forced recovery: what was leased is ready again, and no
    receipt or fence that was given before, here or by the cluster that this one replaces, is ever given again."""


Command = (
    Enqueue
    | Lease
    | Ack
    | Nack
    | Release
    | Extend
    | Expire
    | DefineQueue
    | DeleteQueue
    | TakeDigest
    | SetVersion
    | Incarnate
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Command)

encode = _encoder.encode


def decode(data: bytes | memoryview) -> Command:
    """The command in `data`. Raises UnknownCommand."""
    try:
        command: Command = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise UnknownCommand(f"{UnknownCommand.__doc__} ({error})") from error
    return command


def grows(command: bytes) -> bool:
    """Whether an encoded command adds messages: what a node short of disk refuses."""
    return command[1] == 1  # an array of at most 15 elements, the tag of Enqueue first
