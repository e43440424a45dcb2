"""What requests hold: the structs that decode them, and nothing else does.

A field that is not here is refused by name, so that none is ever silently ignored. Numbers and sizes that msgspec can
state are checked while decoding; limits of the configuration, and what depends on two fields, by the handlers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from raftq.api import names
from raftq.storage.machine.commands import REASON_BYTES_MAX, Scope
from raftq.storage.machine.tokens import GRANTS_MAX

T = TypeVar("T")

DAY_SECONDS = 86_400
#: Delays, dedup windows and the keeping of first answers.
PERIOD_SECONDS_MAX = 30 * DAY_SECONDS
LEASE_SECONDS_MAX = DAY_SECONDS // 2
RETENTION_SECONDS_MAX = 3650 * DAY_SECONDS
#: Group keys that one lease names.
GROUPS_MAX = 100
#: Exact in JSON.
NUMBER_MAX = (1 << 53) - 1

Period = Annotated[float, Meta(ge=0, le=PERIOD_SECONDS_MAX)]
#: At least 1 ms, so that it never rounds to none.
LeaseSeconds = Annotated[float, Meta(ge=0.001, le=LEASE_SECONDS_MAX)]
BackoffSeconds = Annotated[float, Meta(ge=0.001, le=PERIOD_SECONDS_MAX)]
#: Of a queue; the handlers check it.
Name = Annotated[str, Meta(extra_json_schema={"pattern": names.NAME_PATTERN})]
Priority = Annotated[int, Meta(ge=0, le=9)]
#: Lengths in bytes, which the handlers check.
Id = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": names.ID_BYTES_MAX})]
Receipt = Annotated[str, Meta(extra_json_schema={"pattern": names.RECEIPT_PATTERN})]
AttributeValue = bool | int | float | str


#: What the types cannot say, for the OpenAPI document.
_BASE64: dict[str, Any] = {
    "if": {"required": ["encoding"], "properties": {"encoding": {"const": "base64"}}},
    "then": {
        "properties": {
            "body": {
                "type": "string",
                "contentEncoding": "base64",
                "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            }
        }
    },
}


class MessageGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message to enqueue."""

    #: What the OpenAPI document says beside the types.
    BEYOND_TYPES: ClassVar[dict[str, Any]] = _BASE64 | {"required": ["body"]}

    #: Any JSON value, kept as the bytes that came; in msgpack raw bytes as well. Empty: not given.
    body: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    #: base64: the body is a text that stands for bytes.
    encoding: Literal["base64"] | None = None
    attributes: dict[str, AttributeValue] | None = None
    #: The group key, for queues with `max_leased_per_group`.
    group: Id | None = None
    priority: Priority = 0
    delay_seconds: Period | None = None
    dedup_id: Id | None = None
    #: Takes the place of the queue's message with the same key: one that waits goes, one that is leased is not
    #: delivered again.
    replace_key: Id | None = None


_BATCH = {"minItems": 1, "maxItems": "limits.batch_messages"}
#: Of one message, which has no place beside `messages`: field -> what it is when it is not given.
MESSAGE_DEFAULTS = {name: getattr(MessageGiven(), name) for name in MessageGiven.__struct_fields__ if name != "body"}


class PublishGiven(MessageGiven, forbid_unknown_fields=True, gc=False):
    """One message, or `messages`."""

    BEYOND_TYPES: ClassVar[dict[str, Any]] = {
        "allOf": [_BASE64],
        "anyOf": [
            {"required": ["body"], "properties": {"messages": {"type": "null"}}},
            {
                "required": ["messages"],
                "properties": {"messages": {"type": "array"}, "body": False}
                | {name: {"const": value} for name, value in MESSAGE_DEFAULTS.items()},
            },
        ],
    }

    messages: Annotated[list[MessageGiven], Meta(extra_json_schema=_BATCH)] | None = None
    request_id: Id | None = None
    request_seconds: Period | None = None


class EnqueueGiven(PublishGiven, forbid_unknown_fields=True, gc=False):
    """One message, or `messages`."""

    auto_create: bool = True


class LeaseGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """How many messages, for how long."""

    max: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": "limits.lease_messages"})] = 1
    lease_seconds: LeaseSeconds | None = None
    wait_seconds: Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": "limits.wait_seconds"})] = 0.0
    request_id: Id | None = None
    request_seconds: Period | None = None
    #: Messages with one of these group keys alone, of a queue with `max_leased_per_group`.
    groups: Annotated[list[Id], Meta(extra_json_schema={"minItems": 1, "maxItems": GROUPS_MAX})] | None = None


class ReceiptsGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Of ack and release, and the beginning of the others."""

    receipts: Annotated[list[Receipt], Meta(extra_json_schema={"minItems": 1, "maxItems": "limits.lease_messages"})]
    request_id: Id | None = None
    request_seconds: Period | None = None


class NackGiven(ReceiptsGiven, forbid_unknown_fields=True, gc=False):
    delay_seconds: Period | None = None


class ExtendGiven(ReceiptsGiven, forbid_unknown_fields=True, gc=False):
    lease_seconds: LeaseSeconds | None = None


class RejectGiven(ReceiptsGiven, forbid_unknown_fields=True, gc=False):
    #: For whoever reads the dead letters; its length is in bytes, which the handler checks.
    reason: Annotated[str, Meta(extra_json_schema={"maxLength": REASON_BYTES_MAX})] | None = None


class BackoffGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """How long a nack without a delay keeps a message back: `initial_seconds` after its first failure, `factor` times
    as long after each further one, `max_seconds` at most."""

    initial_seconds: BackoffSeconds
    factor: Annotated[float, Meta(ge=1, le=1000)] = 2.0
    max_seconds: BackoffSeconds = 3600.0


class QueueGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Settings of a queue. Those not given take their default (PUT) or stay (PATCH); null gives one its default."""

    lease_seconds: LeaseSeconds | None | UnsetType = UNSET
    delay_seconds: Period | None | UnsetType = UNSET
    dedup_window_seconds: Period | None | UnsetType = UNSET
    paused: bool | None | UnsetType = UNSET
    #: How long a ready message is kept; then it is dead-lettered, or discarded when there is no dead-letter queue.
    retention_seconds: Annotated[float, Meta(ge=1, le=RETENTION_SECONDS_MAX)] | None | UnsetType = UNSET
    #: The name of another queue.
    dead_letter_queue: Name | None | UnsetType = UNSET
    #: Failures at which a message is dead-lettered. By default 20 with a dead-letter queue, else none.
    max_failures: Annotated[int, Meta(ge=1, le=NUMBER_MAX)] | None | UnsetType = UNSET
    backoff: BackoffGiven | None | UnsetType = UNSET
    #: What an enqueue may fill the queue to; one that would exceed it is answered 429.
    max_messages: Annotated[int, Meta(ge=1, le=NUMBER_MAX)] | None | UnsetType = UNSET
    max_bytes: Annotated[int, Meta(ge=1, le=NUMBER_MAX)] | None | UnsetType = UNSET
    #: Messages of one group key that may be leased at once; 1 is strict order. Set or taken away while the queue is
    #: empty, changed at any time.
    max_leased_per_group: Annotated[int, Meta(ge=1, le=1_000)] | None | UnsetType = UNSET
    #: The name stands for so many queues, `name.0` and so on. Only where there is no queue yet; then it stays.
    partitions: Annotated[int, Meta(ge=1, le=64)] | None | UnsetType = UNSET


class NothingGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """There is nothing to say: no body, or an empty object."""


class TopicGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What subscriptions create."""

    #: Each queue that a subscription creates from now on has so many; left out: as before, at first none.
    partitions: Annotated[int, Meta(ge=1, le=64)] | None = None


class PurgeGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    request_id: Id | None = None
    request_seconds: Period | None = None


class Condition(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Of a filter, on one attribute. One of these."""

    BEYOND_TYPES: ClassVar[dict[str, Any]] = {"minProperties": 1, "maxProperties": 1}

    #: What a text begins with.
    prefix: str | UnsetType = UNSET
    exists: bool | UnsetType = UNSET
    #: It is there, and equal to none of these.
    anything_but: list[AttributeValue] | UnsetType = UNSET
    #: One or two bounds: an operator of < <= = >= > and a number, and again.
    numeric: list[str | int | float] | UnsetType = UNSET


Filter = dict[str, list[str | int | float | bool | Condition]]


class SubscriptionGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    #: By attribute: a message has to meet one condition, or be equal to one value, of each. Without any it takes all.
    filter: Filter = {}


class RedriveGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    #: A queue that there is. None: each dead letter goes to the queue that it comes from.
    to: Name | None = None
    #: As of a subscription: what it does not take stays.
    filter: Filter = {}
    #: None: as fast as it goes.
    messages_per_second: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: What was redriven as often stays.
    max_redrives: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: Messages moved at most.
    limit: Annotated[int, Meta(ge=1, le=1 << 53)] | None = None
    request_id: Id | None = None
    request_seconds: Period | None = None


class EnqueueOperation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    queue: Name
    messages: Annotated[list[MessageGiven], Meta(extra_json_schema=_BATCH)]
    auto_create: bool = True


class SettleOperation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Of ack and release, and the beginning of the others."""

    queue: Name
    receipts: Annotated[list[Receipt], Meta(extra_json_schema={"minItems": 1, "maxItems": "limits.lease_messages"})]


class NackOperation(SettleOperation, forbid_unknown_fields=True, gc=False):
    delay_seconds: Period | None = None


class RejectOperation(SettleOperation, forbid_unknown_fields=True, gc=False):
    reason: Annotated[str, Meta(extra_json_schema={"maxLength": REASON_BYTES_MAX})] | None = None


#: What a transaction may do.
OPERATIONS = ("enqueue", "ack", "nack", "release", "reject")


class OperationGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One of these."""

    BEYOND_TYPES: ClassVar[dict[str, Any]] = {
        "oneOf": [{"required": [kind], "properties": {kind: {"type": "object"}}} for kind in OPERATIONS]
    }

    enqueue: EnqueueOperation | None = None
    ack: SettleOperation | None = None
    nack: NackOperation | None = None
    release: SettleOperation | None = None
    reject: RejectOperation | None = None


class TransactGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Operations in their order, with at most as many messages, and receipts, as a batch together."""

    operations: Annotated[list[OperationGiven], Meta(extra_json_schema={"minItems": 1})]
    request_id: Id | None = None
    request_seconds: Period | None = None


class ScheduleGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """When, what and where to: either `cron` or `interval_seconds`, and either `queue` or `topic`."""

    BEYOND_TYPES: ClassVar[dict[str, Any]] = {
        "allOf": [
            {"oneOf": [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in either]}
            for either in (("cron", "interval_seconds"), ("queue", "topic"))
        ]
    }

    message: MessageGiven
    #: Minute, hour, day of month, month and day of week, as Debian's cron has them.
    cron: Annotated[str, Meta(max_length=200)] | None = None
    #: That of cron: a name of the IANA database. By default UTC.
    time_zone: Annotated[str, Meta(max_length=100)] | None = None
    #: From one tick to the next; the first is one interval from now.
    interval_seconds: Annotated[float, Meta(ge=0.1, le=RETENTION_SECONDS_MAX)] | None = None
    queue: Name | None = None
    topic: Name | None = None
    #: What is done of ticks that come more than a minute late: nothing, or one for all of them.
    missed: Literal["skip", "one"] = "one"
    paused: bool = False


class TransferGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    #: A node id; none lets the leader choose.
    node: str | None = None


class NodeGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    #: Where the other nodes reach it.
    peer_address: str
    #: The node that goes when this one votes; its own id: it comes back with a new, empty folder.
    replaces: str | None = None


class GrantGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One scope on the queues, topics and schedules of some names."""

    scope: Scope
    #: A name, or what names begin with and `*`; `*` is all.
    names: Annotated[str, Meta(extra_json_schema={"pattern": names.NAMES_PATTERN})]


class TokenGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    #: For people.
    name: Name
    grants: Annotated[list[GrantGiven], Meta(extra_json_schema={"minItems": 1, "maxItems": GRANTS_MAX})]
    #: The one that it is good for; `*` is all.
    namespace: Annotated[str, Meta(extra_json_schema={"pattern": names.NAMESPACES_PATTERN})] = names.NAMESPACE
    #: From now on; by default it is good until it is revoked.
    expires_seconds: Annotated[float, Meta(ge=1, le=RETENTION_SECONDS_MAX)] | None = None


class Schema(Generic[T]):
    """The decoders of one struct, built once."""

    def __init__(self, struct: type[T]) -> None:
        self.struct = struct
        self.json = msgspec.json.Decoder(struct)
        self.msgpack = msgspec.msgpack.Decoder(struct)


ENQUEUE = Schema(EnqueueGiven)
LEASE = Schema(LeaseGiven)
RECEIPTS = Schema(ReceiptsGiven)
NACK = Schema(NackGiven)
REJECT = Schema(RejectGiven)
EXTEND = Schema(ExtendGiven)
QUEUE = Schema(QueueGiven)
NOTHING = Schema(NothingGiven)
TOPIC = Schema(TopicGiven)
PURGE = Schema(PurgeGiven)
REDRIVE = Schema(RedriveGiven)
PUBLISH = Schema(PublishGiven)
SUBSCRIPTION = Schema(SubscriptionGiven)
SCHEDULE = Schema(ScheduleGiven)
TRANSACT = Schema(TransactGiven)
TRANSFER = Schema(TransferGiven)
NODE = Schema(NodeGiven)
TOKEN = Schema(TokenGiven)


def milliseconds(seconds: float) -> int:
    """To the nearest millisecond."""
    return round(seconds * 1000)
