"""What answers hold: the structs that the OpenAPI document shows, and that the tests decode every answer with.

The handlers need none of them: most write a dict, the hot ones bytes. A field that an answer has and its struct lacks,
or the other way round, fails the tests of the handler. A new route names its struct in the table of routes (`app.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from raftq.api.schemas import AttributeValue, Condition
from raftq.replication.shard import Peer
from raftq.storage.machine.commands import Scope

Count = Annotated[int, Meta(ge=0)]
#: Of cluster time, since 1970.
Milliseconds = Annotated[int, Meta(ge=0)]


class Media(NamedTuple):
    """A body that is neither JSON nor msgpack."""

    #: The media types that it may have.
    types: tuple[str, ...]
    about: str
    #: Name -> what it says; of an answer.
    headers: Mapping[str, str] = {}


class Answered(msgspec.Struct, forbid_unknown_fields=True):
    """Of each answer in JSON or msgpack."""


class Backoff(Answered):
    """How long a nack without a delay keeps a message back."""

    initial_seconds: float
    factor: float
    max_seconds: float


class Queue(Answered):
    """A queue and its settings."""

    name: str
    lease_seconds: float
    delay_seconds: float
    dedup_window_seconds: float
    paused: bool
    #: null is no limit, here and below.
    retention_seconds: float | None
    dead_letter_queue: str | None
    #: 20 where there is a dead-letter queue and none was given.
    max_failures: Count | None
    backoff: Backoff | None
    max_messages: Count | None
    max_bytes: Count | None
    max_leased_per_group: Count | None
    #: How many queues the name stands for; null is one, of that name.
    partitions: Count | None


class Totals(Answered):
    """Since the queue was created."""

    enqueued: Count
    delivered: Count
    acked: Count
    nacked: Count
    released: Count
    expired: Count
    duplicates: Count
    rejected: Count
    dead_lettered: Count
    discarded: Count
    #: By a purge, by their id, or replaced.
    removed: Count
    redriven: Count


class Rate(Answered):
    """Messages a second, of each of the totals."""

    #: What the rates are over in truth: up to 5 more, or fewer soon after the start of the node.
    seconds: float
    enqueued: float
    delivered: float
    acked: float
    nacked: float
    released: float
    expired: float
    duplicates: float
    rejected: float
    dead_lettered: float
    discarded: float
    removed: float
    redriven: float


class Rates(Answered):
    """How fast the totals grow, as the node that answers has seen it."""

    last_10_seconds: Rate
    last_60_seconds: Rate


class Counts(Answered):
    """Messages by state, and their bytes."""

    #: Those that have to wait for others of their group included.
    ready: Count
    leased: Count
    delayed: Count
    bytes: Count
    #: None when no message is ready.
    oldest_ready_seconds: float | None
    totals: Totals
    rates: Rates


class QueueStats(Counts):
    """Counts of one queue."""

    name: str


class AllStats(Counts):
    """Counts of all queues together."""

    queues: Count


class QueueListed(Queue):
    """A queue, with its counts when `stats=true`."""

    stats: Counts | UnsetType = UNSET


class QueuePage(Answered):
    """Queues by name."""

    queues: list[QueueListed]
    #: Of the next page; null when this is the last.
    cursor: str | None


class QueueRemoved(Answered):
    """The queue is gone."""

    #: Messages that went with it.
    messages: Count


class Purged(Answered):
    """The queue holds none of them any more."""

    messages: Count


class Redrive(Answered):
    """A redrive: what was asked for, and how it stands."""

    state: Literal["running", "done", "cancelled"]
    #: null: each dead letter goes to the queue that it comes from.
    to: str | None
    filter: dict[str, list[AttributeValue | Condition]]
    messages_per_second: int | None
    max_redrives: int | None
    limit: int | None
    #: Messages so far.
    moved: Count
    #: Looked at and left where they are: not taken by the filter, redriven too often, or without a queue to go to.
    skipped: Count
    #: About as many are still to be looked at.
    left: Count
    begun_at_ms: Milliseconds
    ended_at_ms: Milliseconds | None


class EnqueuedOne(Answered):
    """Where one message stands."""

    id: str
    #: Its `dedup_id` was enqueued before: the id is of the message of then.
    duplicate: bool


class Enqueued(Answered):
    """The messages, durable on a majority, in the order of the request."""

    messages: list[EnqueuedOne]
    #: Of the log.
    index: Count


class Topic(Answered):
    """A topic."""

    name: str
    #: Messages so far, whatever came of them.
    published: Count
    #: Of each queue that a subscription creates; null: it has none.
    partitions: int | None


class TopicPage(Answered):
    """Topics by name."""

    topics: list[Topic]
    #: Of the next page; null when this is the last.
    cursor: str | None


class TopicRemoved(Answered):
    """The topic is gone."""

    #: That went with it.
    subscriptions: Count


class Subscription(Answered):
    """A queue that gets what its filter takes."""

    queue: str
    #: As it was given; empty takes all.
    filter: dict[str, list[AttributeValue | Condition]]


class SubscriptionList(Answered):
    """The subscriptions of a topic, by queue."""

    subscriptions: list[Subscription]


class PublishedOne(Answered):
    """Where one message went."""

    #: It was enqueued into.
    queues: Count
    #: That had its `dedup_id` before.
    duplicates: Count


class Published(Answered):
    """The messages, durable on a majority in all queues that got them, in the order of the request."""

    messages: list[PublishedOne]
    #: Of the log.
    index: Count


class OperationDone(Answered):
    """Of an enqueue its messages, of the others the results."""

    messages: list[EnqueuedOne] | UnsetType = UNSET
    results: list[SettledOne] | UnsetType = UNSET


class Transacted(Answered):
    """All of it was done, and is durable on a majority."""

    #: In the order of the request.
    operations: list[OperationDone]
    #: Of the log.
    index: Count


class DeadLetter(Answered):
    """Where a dead-lettered message comes from, and why."""

    queue: str
    #: Of the message that it was there.
    id: str
    #: max_failures, rejected (with ": " and the reason given, if one was), or retention.
    reason: str
    #: Counted in that queue.
    failures: Count
    deliveries: Count
    enqueued_at_ms: Milliseconds
    dead_at_ms: Milliseconds
    #: How often it went back from a dead-letter queue.
    redriven: Count


class MessageShown(Answered):
    """A message."""

    id: str
    #: Any JSON value; of a binary body the base64 text in JSON, raw bytes in msgpack.
    body: msgspec.Raw
    attributes: dict[str, AttributeValue]
    group: str | None
    priority: Annotated[int, Meta(ge=0, le=9)]
    #: Leases of it so far.
    deliveries: Count
    #: Of those, how many were nacked or passed.
    failures: Count
    enqueued_at_ms: Milliseconds
    #: null where it did not come from another queue as a dead letter.
    dead_letter: DeadLetter | None
    #: base64: the body is a text that stands for bytes. json: it is JSON text that msgpack cannot hold as a value.
    encoding: Literal["base64", "json"] | UnsetType = UNSET


class ScheduledMessage(Answered):
    """The message of a schedule."""

    #: As of a message.
    body: msgspec.Raw
    attributes: dict[str, AttributeValue]
    group: str | None
    priority: Annotated[int, Meta(ge=0, le=9)]
    #: null: the queue's.
    delay_seconds: float | None
    replace_key: str | None
    #: As of a message.
    encoding: Literal["base64", "json"] | UnsetType = UNSET


class Schedule(Answered):
    """A schedule, and what became of its ticks."""

    name: str
    #: Either this and a time zone, or an interval.
    cron: str | None
    time_zone: str | None
    interval_seconds: float | None
    #: Where the message goes: one of them.
    queue: str | None
    topic: str | None
    message: ScheduledMessage
    missed: Literal["skip", "one"]
    paused: bool
    #: null: it is paused.
    next_at_ms: Milliseconds | None
    #: For when the last tick was due that was not skipped.
    last_at_ms: Milliseconds | None
    #: Whose message was enqueued or published.
    ticks: Count
    #: Missed, and not done.
    skipped: Count
    #: Refused: the queue was full, or there was no such topic.
    failed: Count
    #: Why the last tick failed; null when it did not.
    failure: str | None


class SchedulePage(Answered):
    """Schedules by name."""

    schedules: list[Schedule]
    #: Of the next page; null when this is the last.
    cursor: str | None


class MessageLeased(MessageShown, kw_only=True):
    """A message that is yours until its deadline."""

    #: Ack, nack, release, extend or reject it with this.
    receipt: str
    #: Grows with every lease: for a store of your own that must refuse late writers.
    fence: Count
    deadline_ms: Milliseconds


class MessagePeeked(MessageShown, kw_only=True):
    """A message as it lies in its queue."""

    state: Literal["ready", "delayed", "leased"]
    #: When a delayed one becomes ready.
    due_ms: Milliseconds | None
    #: When the lease of a leased one ends.
    deadline_ms: Milliseconds | None


class Leased(Answered):
    """The messages that are leased; none when none was ready."""

    messages: list[MessageLeased]


class MessagePage(Answered):
    """Messages in the order of delivery."""

    messages: list[MessagePeeked]
    #: Of the next page; null when this is the last.
    cursor: str | None


class SettledOne(Answered):
    """What became of one receipt."""

    receipt: str
    #: gone: the lease has passed, or the message was settled otherwise.
    status: Literal["done", "gone"]


class Settled(Answered):
    """Of each receipt, in the order of the request."""

    results: list[SettledOne]


class Extended(Settled):
    """Of each receipt, in the order of the request."""

    #: Of those that are done; left out when none is.
    deadline_ms: Milliseconds | UnsetType = UNSET


class Cluster(Answered):
    """The cluster as this node sees it."""

    cluster_id: str
    #: A node id, or null when none is known.
    leader: str | None
    term: Count
    nodes: list[Peer]


class Transferred(Answered):
    """Who leads now."""

    leader: str


class Learner(Answered):
    """A node that learns, and becomes a voter by itself."""

    id: str
    peer_address: str
    role: Literal["learner"]
    voter: bool
    replaces: str | None


class NodeAdded(Answered):
    """The change is in the log."""

    index: Count
    node: Learner


class NodeRemoved(Answered):
    """The change is in the log."""

    index: Count


class Digests(Answered):
    """Digests of all tables at one index of the log: equal digests, equal tables."""

    index: Count
    #: By node id; null for one that did not answer.
    nodes: dict[str, str | None]


class GrantShown(Answered):
    scope: Scope
    #: A name, or what names begin with and `*`.
    names: str


class TokenShown(Answered):
    """Never with what proves it."""

    id: str
    #: For people.
    name: str
    #: `*` is all.
    namespace: str
    grants: list[GrantShown]
    created_at_ms: Milliseconds
    #: null: until it is revoked.
    expires_at_ms: Milliseconds | None


class TokenMade(TokenShown, kw_only=True):
    #: The token itself, told this once: `Authorization: Bearer` and this.
    token: str


class TokenPage(Answered):
    tokens: list[TokenShown]
    #: Of the next page; null on the last.
    cursor: str | None


class ProblemShown(msgspec.Struct):
    """RFC 9457. `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    #: no: it certainly did not happen. unknown: it may have: repeat it with the same request_id or dedup_id.
    applied: Literal["no", "unknown"]
    #: Names what is wrong, as in `messages[3].priority`.
    field: str | UnsetType = UNSET


TEXT = "text/plain"
BINARY = "application/octet-stream"

PLAIN = Media((TEXT,), "A line of text.")
HEALTH = Media(
    (TEXT, "application/json", "application/msgpack"),
    'A line of text; with queues=true {"status": "ok", "queues": {name: {"messages", "ready", "leased", "delayed"}}, '
    '"cursor"}.',
)
PUT_ONE = Media((TEXT,), "The message id.")
TAKEN_ONE = Media(
    (BINARY, "application/json"),
    "The body of the message.",
    {
        "Raftq-Id": "Of the message.",
        "Raftq-Deliveries": "Leases of it so far.",
        "Raftq-Receipt": "With `lease`: ack it with this.",
        "Raftq-Fence": "With `lease`: grows with every lease.",
    },
)
ANY_BODY = Media((BINARY, TEXT, "application/json"), "Any bytes. Sent as application/json they must be JSON.")
SNAPSHOT = Media((BINARY,), "All tables, as `raftq restore` takes them.", {"Raftq-Index": "Of the last entry in it."})
METRICS = Media((TEXT,), "Prometheus metrics.")
DOCUMENT = Media(("application/json",), "An OpenAPI 3.1 document.")
PAGE = Media(("text/html",), "A page for people.")
ASSET = Media(("text/css", "text/javascript", "image/png"), "A file.")
