"""The commands of the queue state machine: what a log entry may ask for.

Each command is a msgspec struct encoded as a msgpack array whose first element is its tag. The tag is the version: once
a release has it, a command that changes its meaning or its fields gets a new tag, and leaders use that from the machine
version on that brought it (`SetVersion`). A node that meets a tag, or a field, that it does not know stops
(`UnknownCommand`) instead of skipping it.

Commands hold what the leader decided (sizes, limits and names were validated at the front end); nothing here is taken
from a clock or a random source while it is applied.
"""

from __future__ import annotations

from typing import Literal

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


class Part(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
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
    #: One replace key or None for each message of the blob; None when no message has one.
    replace_keys: list[str | None] | None = None


class Request(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The name of a retryable request. The first reply is kept for `keep_ms` of wall time and repeated to retries."""

    id: str
    keep_ms: int


class Enqueue(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=1, gc=False):
    queue: QueueKey
    parts: list[Part]
    request: Request | None = None
    #: Refuse (`Refused("unknown_queue")`) instead of creating the queue with its defaults.
    auto_create: bool = True


class Lease(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=2, gc=False):
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
    #: Messages with one of these group keys alone. Refused (`invalid`) where the queue has no `max_leased_per_group`.
    groups: list[str] | None = None
    #: Nothing but what the request was given before.
    only_again: bool = False


class Slots(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Receipts of one lease: `slots[i]` is the position of a message in the lease's order. At most once each."""

    lease_id: int
    slots: list[int]


class Ack(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=3, gc=False):
    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    request: Request | None = None


class Nack(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=4, gc=False):
    """Counts a failure, and returns the messages after `delay_ms`."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    #: None takes the queue's backoff, 0 where it has none.
    delay_ms: int | None = None
    request: Request | None = None


class Release(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=5, gc=False):
    """Returns the messages unharmed, ready at once: no failure is counted."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    request: Request | None = None


class Extend(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=6, gc=False):
    """Moves the messages' deadline to `lease_ms` from now."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    lease_ms: int | None = None
    request: Request | None = None


class Expire(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=7, gc=False):
    """One bounded step of everything that is due: leases past their deadline, delays, dedup ids and requests past
    their window, tokens that expired long ago, the remains of deleted queues, and sparse batches. Proposed by the
    leader when `Machine.next_due` says so."""

    #: At most this many leases, ranges, ids or batches in this step.
    limit: int = 1000


class Backoff(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, frozen=True):
    """How long a nack without a delay keeps a message back: `initial_ms` after its first failure, times
    `factor_milli / 1000` (1,000: always the same) after each further one, `max_ms` at most."""

    initial_ms: int
    factor_milli: int
    max_ms: int


#: Failures after which a message is dead-lettered, where a dead-letter queue is given and no limit.
MAX_FAILURES = 20


#: Why `groups` of a lease is refused.
WITHOUT_GROUPS = "the queue does not keep groups: set its max_leased_per_group while it is empty"


class QueueSettings(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, frozen=True):
    """What a queue was defined with. None is no limit. Fields are only ever added at the end."""

    lease_ms: int = 30_000
    delay_ms: int = 0
    dedup_window_ms: int = 300_000
    paused: bool = False
    #: From when it was enqueued on, a ready message is kept for so long; then it is dead-lettered.
    retention_ms: int | None = None
    #: Where dead letters go: another queue of the namespace. None: they are discarded.
    dead_letter_queue: QueueKey | None = None
    #: See `failures_max`. At least 1.
    max_failures: int | None = None
    backoff: Backoff | None = None
    #: Live messages, and their bytes as packed, that an enqueue may fill the queue to.
    max_messages: int | None = None
    max_bytes: int | None = None
    #: Messages of one group key that may be leased at once, at least 1; None: group keys mean nothing to the queue. Set
    #: or taken away while the queue is empty.
    max_leased_per_group: int | None = None

    def failures_max(self) -> int | None:
        """The failures at which a message is dead-lettered."""
        if self.max_failures is None and self.dead_letter_queue is not None:
            return MAX_FAILURES
        return self.max_failures


class DefineQueue(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=8, gc=False):
    """Creates the queue, or changes the settings of the one that is there. Idempotent."""

    queue: QueueKey
    settings: QueueSettings
    #: False: refuse (`Refused("unknown_queue")`) unless the queue exists (PATCH).
    create: bool = True
    #: Names of the settings that a queue which exists takes; None: all. The others stay as they are.
    only: list[str] | None = None
    #: The name stands for so many queues, 1 to 64; None: for a plain one, or for as many as it does.
    partitions: int | None = None


class DeleteQueue(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=9, gc=False):
    queue: QueueKey


class PurgeQueue(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=14, gc=False):
    """Removes all messages of the queue, delayed and leased ones too. Receipts and message ids of before are gone."""

    queue: QueueKey
    request: Request | None = None


class DeleteMessage(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=15, gc=False):
    """Removes one message that is ready or delayed; a leased one is refused (`Refused("leased")`)."""

    queue: QueueKey
    queue_number: int
    priority: int
    number: int


class Redrive(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=16, gc=False):
    """Begins to move the queue's ready messages, dead letters as a rule, to another queue. One at a time for a queue
    (`Refused("redrive_runs")`); limits are at least 1."""

    queue: QueueKey
    #: None: each dead letter goes back to the queue that it comes from.
    target: QueueKey | None = None
    #: JSON text, see `storage.machine.filters`.
    filter: bytes = b"{}"
    #: Messages a second; None: as fast as it goes.
    per_second: int | None = None
    #: What was redriven as often stays.
    redrives_max: int | None = None
    #: Messages moved at most.
    limit: int | None = None
    request: Request | None = None


class CancelRedrive(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=17, gc=False):
    """Ends the queue's redrive; what was moved stays moved."""

    queue: QueueKey


#: Of the text that says why a message is rejected.
REASON_BYTES_MAX = 1024


class Reject(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=13, gc=False):
    """Dead-letters the messages at once, without counting a failure."""

    queue: QueueKey
    queue_number: int
    leases: list[Slots]
    #: Why, for whoever reads the dead letter; "" says nothing. At most `REASON_BYTES_MAX`.
    reason: str = ""
    request: Request | None = None


#: What a transaction may hold.
Operation = Enqueue | Ack | Nack | Release | Reject


class Transact(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=18, gc=False):
    """All of the operations, in their order, or none of them when one cannot be done as a whole: a receipt that holds
    no message any more, an unknown or full queue. At most 1,000 messages and 1,000 receipts together."""

    #: All queues are of it.
    namespace: str
    #: Their own requests count for nothing.
    operations: list[Operation]
    request: Request | None = None


#: As a queue's: `default/prices`.
TopicKey = str


class DefineTopic(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=19, gc=False):
    """Creates the topic unless it exists."""

    topic: TopicKey
    #: What a queue that a subscription creates has from now on, 1 to 64; None leaves it as it is, at first without.
    partitions: int | None = None


class DeleteTopic(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=20, gc=False):
    """Removes the topic and its subscriptions. What was published stays in the queues."""

    topic: TopicKey


class Subscribe(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=21, gc=False):
    """Subscribes the queue, which is created if it does not exist, or changes the filter of its subscription."""

    topic: TopicKey
    #: Of the topic's namespace.
    queue: QueueKey
    #: JSON text, see `storage.machine.filters`.
    filter: bytes = b"{}"


class Unsubscribe(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=22, gc=False):
    topic: TopicKey
    queue: QueueKey


class Publish(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=23, gc=False):
    """Enqueues the messages into every subscribed queue whose filter takes them, into all or none. Bounded by messages
    and bytes times subscriptions, see `storage.machine.publishing`."""

    topic: TopicKey
    parts: list[Part]
    request: Request | None = None


#: As a queue's: `default/reports`.
ScheduleKey = str


class Schedule(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, frozen=True):
    """What a schedule was defined with."""

    #: Five fields of cron, as clocks in the time zone show (a name of the IANA database); None: an interval.
    cron: str | None
    time_zone: str
    #: At least 1.
    interval_ms: int | None
    #: Where the message goes: one of these, of the schedule's namespace.
    queue: QueueKey | None
    topic: TopicKey | None
    #: One message.
    part: Part
    #: What is done of ticks that were missed, in a downtime as a rule: nothing, or one for all of them.
    missed: Literal["skip", "one"] = "one"
    paused: bool = False


class DefineSchedule(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=24, gc=False):
    """Creates the schedule, or changes the one that is there, whose counts stay."""

    schedule: ScheduleKey
    given: Schedule
    #: Wall time of its first tick, unless its times stay as they were; None: never.
    next_ms: int | None


class DeleteSchedule(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=25, gc=False):
    schedule: ScheduleKey


class Tick(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=26, gc=False):
    """Enqueues the message of a schedule. Proposed by the leader when `Machine.schedules_due` says so; does nothing
    unless `due_ms` is when the schedule's next tick is due."""

    schedule: ScheduleKey
    #: Wall time, as the others.
    due_ms: int
    #: Of the tick after this one; None: never.
    next_ms: int | None
    #: The tick that is done; None: none is, all of those before `next_ms` were missed.
    at_ms: int | None
    #: Ticks from `due_ms` on that were missed, and are not done.
    skipped: int = 0


#: What a token may do: enqueue and publish; lease, settle and look at messages; define and remove.
Scope = Literal["produce", "consume", "admin"]


class Grant(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False, frozen=True):
    scope: Scope
    #: Of queues, topics and schedules: a name, or a prefix that ends in `*`.
    names: str


class CreateToken(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=27, gc=False):
    """The first time, or again with the same fields. Refused below machine version 3, see `storage.machine.tokens`."""

    #: 12 lowercase hex digits.
    id: str
    #: SHA-256 of the secret, which has 256 random bits: no slow hash would make it harder to find.
    digest: bytes
    #: For people.
    name: str
    #: A name, or `*` for all.
    namespace: str
    #: 1 to 32.
    grants: list[Grant]
    #: Wall time; None: never.
    expires_ms: int | None = None
    #: From the configuration of the leader: once for this id, ever.
    first: bool = False


class RevokeToken(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=28, gc=False):
    id: str


class TakeDigest(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=10, gc=False):
    """A mark in the log: every node states the digest of its tables as they are right after the mark's entry."""


class SetVersion(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=11, gc=False):
    """From this command on the rules of that machine version apply, on all nodes. Never goes back. A node that does not
    know the version stops (`UnknownCommand`): propose it when every member can run it."""

    version: int


class Incarnate(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag=12, gc=False):
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
    | Reject
    | PurgeQueue
    | DeleteMessage
    | Redrive
    | CancelRedrive
    | Transact
    | DefineTopic
    | DeleteTopic
    | Subscribe
    | Unsubscribe
    | Publish
    | DefineSchedule
    | DeleteSchedule
    | Tick
    | CreateToken
    | RevokeToken
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Command)

encode = _encoder.encode


def decode(data: bytes | memoryview) -> Command:
    """The command in `data`. Raises UnknownCommand."""
    try:
        command: Command = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UnknownCommand(f"{UnknownCommand.__doc__} ({error})") from error
    return command


def grows(command: bytes) -> bool:
    """Whether an encoded command adds messages: what a node short of disk refuses."""
    tag = command[1]  # an array of at most 15 elements, the tag first
    if tag != 18:
        return tag in (1, 23)  # Enqueue, Publish
    transact = decode(command)
    return isinstance(transact, Transact) and any(isinstance(one, Enqueue) for one in transact.operations)


def weight(command: bytes) -> int:
    """About how much there is to do for an encoded command, where 1 is a small enqueue or ack, some 15 us."""
    if command[1] == 1 and len(command) < _PLAIN_BYTES:
        return 1
    return _weight(decode(command))


#: An enqueue of fewer bytes cannot name many messages.
_PLAIN_BYTES = 256


def _weight(command: Command) -> int:
    """Messages count as if they had a group, slots as if each were of another batch: nothing here says whether."""
    match command:
        case Enqueue():
            return sum([_stored(part) + _named(part) for part in command.parts])
        case Publish():
            return sum([16 * _stored(part) + 32 * _named(part) for part in command.parts])
        case Lease():
            return 1 + command.max // 4
        case Ack():
            return 1 + len(command.leases) + _slots(command.leases) // 4
        case Nack() | Release() | Reject():
            return 1 + len(command.leases) + _slots(command.leases) // 2
        case Extend():
            return 1 + len(command.leases) + _slots(command.leases) // 50
        case Transact():
            return sum(map(_weight, command.operations))
        case DefineQueue() if command.settings.max_leased_per_group is not None:
            return 300
        case Expire():
            return 300
        case _:
            return 32


def _slots(leases: list[Slots]) -> int:
    return sum([len(named.slots) for named in leases])


def _stored(part: Part) -> int:
    """The blob begins with how many messages there are."""
    return 1 + int.from_bytes(part.blob[:4], "little") // 4


def _named(part: Part) -> int:
    """A replace key takes several times what a dedup id does."""
    return len(part.dedup_ids or ()) // 4 + 2 * len(part.replace_keys or ())
