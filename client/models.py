"""What travels between the client and a node, as typed values. The node's own types are not imported: fields that a
newer node adds are ignored, and those that an older one leaves out have defaults."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Attribute = str | int | float | bool


class NewMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A message to enqueue. `body` is bytes, or any value that JSON can hold."""

    # Without a default, so that an empty body is sent as well.
    body: Any
    attributes: dict[str, Attribute] = {}
    group: str | None = None
    priority: int = 0
    delay_seconds: float | None = None
    dedup_id: str | None = None
    replace_key: str | None = None


class EnqueuedMessage(msgspec.Struct, kw_only=True):
    id: str
    #: The dedup id was known: `id` names the message of then.
    duplicate: bool = False


class Enqueued(msgspec.Struct, kw_only=True):
    #: In the order of the request.
    messages: list[EnqueuedMessage]
    index: int


class DeadLetter(msgspec.Struct, kw_only=True):
    """Where a dead-lettered message comes from, and why."""

    queue: str
    #: Of the message that it was there.
    id: str
    #: max_failures, rejected (with ": " and the reason that was given), or retention.
    reason: str
    failures: int = 0
    deliveries: int = 0
    enqueued_at_ms: int = 0
    dead_at_ms: int = 0
    #: How often it went back from a dead-letter queue.
    redriven: int = 0


class Message(msgspec.Struct, kw_only=True):
    """A message as it is peeked at."""

    id: str
    body: Any
    attributes: dict[str, Attribute] = {}
    group: str | None = None
    priority: int = 0
    deliveries: int = 0
    failures: int = 0
    enqueued_at_ms: int = 0
    state: str | None = None
    #: None unless it came from another queue as a dead letter.
    dead_letter: DeadLetter | None = None


class LeasedMessage(Message, kw_only=True):
    receipt: str
    #: Grows with every lease: a store that remembers the highest one refuses late workers.
    fence: int
    #: Wall time at which the lease passes, an estimate.
    deadline_ms: int = 0


class Leased(msgspec.Struct, kw_only=True):
    messages: list[LeasedMessage]


class Settled(msgspec.Struct, kw_only=True):
    """The answer for one receipt of an ack, nack, release, reject or extend."""

    receipt: str
    #: `gone`: the lease has passed, or the message was settled otherwise.
    status: Literal["done", "gone"] | str
    detail: str | None = None


class Results(msgspec.Struct, kw_only=True):
    results: list[Settled]


class PublishedMessage(msgspec.Struct, kw_only=True):
    #: It was enqueued into so many queues.
    queues: int
    #: So many had its dedup id before.
    duplicates: int = 0


class Published(msgspec.Struct, kw_only=True):
    #: In the order of the request.
    messages: list[PublishedMessage]
    index: int


class OperationDone(msgspec.Struct, kw_only=True):
    """Of an enqueue its messages, of the other operations the results."""

    messages: list[EnqueuedMessage] = []
    results: list[Settled] = []


class Transacted(msgspec.Struct, kw_only=True):
    #: In the order of the request.
    operations: list[OperationDone]
    index: int


class Page(msgspec.Struct, kw_only=True):
    """One page of a peek; `cursor` is None on the last."""

    messages: list[Message]
    cursor: str | None = None


class Purged(msgspec.Struct, kw_only=True):
    messages: int


class Redrive(msgspec.Struct, kw_only=True):
    """A redrive: what was asked for, and how it stands."""

    #: running, done or cancelled.
    state: str
    to: str | None = None
    filter: dict[str, list[Any]] = {}
    messages_per_second: int | None = None
    max_redrives: int | None = None
    limit: int | None = None
    #: Messages so far; looked at and left where they are; and about as many still to be looked at.
    moved: int = 0
    skipped: int = 0
    left: int = 0
    #: Wall time.
    begun_at_ms: int = 0
    ended_at_ms: int | None = None


class ClusterNode(msgspec.Struct, kw_only=True):
    id: str
    api_url: str
    peer_address: str = ""
    #: leader, follower, candidate, learner (it catches up, and does not vote yet), or unknown.
    role: str = "unknown"
    voter: bool = True
    reachable: bool = False
    match_index: int | None = None
    applied_index: int | None = None
    version: str | None = None


class Cluster(msgspec.Struct, kw_only=True):
    cluster_id: str
    #: Node id, None while there is none.
    leader: str | None = None
    term: int = 0
    nodes: list[ClusterNode] = []


class Changed(msgspec.Struct, kw_only=True):
    """The members are others since the entry at `index` of the log."""

    index: int


class Led(msgspec.Struct, kw_only=True):
    leader: str


class BackedUp(msgspec.Struct, kw_only=True):
    """A backup as it was saved."""

    #: Of the last entry of the log that is in it.
    index: int
    bytes: int
    #: The node that made it.
    url: str


class Grant(msgspec.Struct, kw_only=True, frozen=True):
    """What a token may do. `names` is the name of a queue, topic or schedule, or a prefix that ends in `*`."""

    scope: Literal["produce", "consume", "admin"] | str
    names: str


class Token(msgspec.Struct, kw_only=True):
    """What is known of a token: all but the token."""

    id: str
    name: str
    #: `*`: all.
    namespace: str
    grants: list[Grant]
    created_at_ms: int = 0
    #: None: until it is revoked.
    expires_at_ms: int | None = None


class MadeToken(Token, kw_only=True):
    """A token that was just made. Its text is told this once; it is not in the repr."""

    token: str

    def __repr__(self) -> str:
        return f"MadeToken(id={self.id!r}, name={self.name!r})"


class TokenPage(msgspec.Struct, kw_only=True):
    tokens: list[Token]
    cursor: str | None = None
