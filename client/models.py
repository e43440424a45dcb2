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


class LeasedMessage(Message, kw_only=True):
    receipt: str
    #: Grows with every lease: a store that remembers the highest one refuses late workers.
    fence: int
    #: Wall time at which the lease passes, an estimate.
    deadline_ms: int = 0


class Leased(msgspec.Struct, kw_only=True):
    messages: list[LeasedMessage]


class Settled(msgspec.Struct, kw_only=True):
    """The answer for one receipt of an ack, nack, release or extend."""

    receipt: str
    #: `gone`: the lease has passed, or the message was settled otherwise.
    status: Literal["done", "gone"] | str
    detail: str | None = None


class Results(msgspec.Struct, kw_only=True):
    results: list[Settled]


class Page(msgspec.Struct, kw_only=True):
    """One page of a peek; `cursor` is None on the last."""

    messages: list[Message]
    cursor: str | None = None


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
