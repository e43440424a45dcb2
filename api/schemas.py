"""What requests hold: the structs that decode them, and nothing else does.

A field that is not here is refused by name, so that none is ever silently ignored. Numbers and sizes that msgspec can
state are checked while decoding; limits of the configuration, and what depends on two fields, by the handlers.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

DAY_SECONDS = 86_400
#: Delays, dedup windows and the keeping of first answers.
PERIOD_SECONDS_MAX = 30 * DAY_SECONDS
LEASE_SECONDS_MAX = DAY_SECONDS // 2

Period = Annotated[float, Meta(ge=0, le=PERIOD_SECONDS_MAX)]
#: At least 1 ms, so that it never rounds to none.
LeaseSeconds = Annotated[float, Meta(ge=0.001, le=LEASE_SECONDS_MAX)]
Priority = Annotated[int, Meta(ge=0, le=9)]
AttributeValue = bool | int | float | str


class MessageGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message to enqueue."""

    #: Any JSON value, kept as the bytes that came; in msgpack raw bytes as well. Empty: not given.
    body: msgspec.Raw = msgspec.Raw()
    #: base64: the body is a text that stands for bytes.
    encoding: Literal["base64"] | None = None
    attributes: dict[str, AttributeValue] | None = None
    priority: Priority = 0
    delay_seconds: Period | None = None
    dedup_id: str | None = None


class EnqueueGiven(MessageGiven, forbid_unknown_fields=True, gc=False):
    """One message, or `messages`."""

    messages: list[MessageGiven] | None = None
    request_id: str | None = None
    request_seconds: Period | None = None
    auto_create: bool = True


class LeaseGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    max: int = 1
    lease_seconds: LeaseSeconds | None = None
    wait_seconds: float = 0.0
    request_id: str | None = None
    request_seconds: Period | None = None


class ReceiptsGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Of ack and release, and the beginning of the others."""

    receipts: list[str]
    request_id: str | None = None
    request_seconds: Period | None = None


class NackGiven(ReceiptsGiven, forbid_unknown_fields=True, gc=False):
    delay_seconds: Period | None = None


class ExtendGiven(ReceiptsGiven, forbid_unknown_fields=True, gc=False):
    lease_seconds: LeaseSeconds | None = None


class QueueGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Settings of a queue. Those not given take their default (PUT) or stay (PATCH)."""

    lease_seconds: LeaseSeconds | None = None
    delay_seconds: Period | None = None
    dedup_window_seconds: Period | None = None
    paused: bool | None = None


class TransferGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    #: A node id; none lets the leader choose.
    node: str | None = None


class NodeGiven(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    #: Where the other nodes reach it.
    peer_address: str
    #: The node that goes when this one votes; its own id: it comes back with a new, empty folder.
    replaces: str | None = None


class Schema(Generic[T]):
    """The decoders of one struct, built once."""

    def __init__(self, struct: type[T]) -> None:
        self.json = msgspec.json.Decoder(struct)
        self.msgpack = msgspec.msgpack.Decoder(struct)


ENQUEUE = Schema(EnqueueGiven)
LEASE = Schema(LeaseGiven)
RECEIPTS = Schema(ReceiptsGiven)
NACK = Schema(NackGiven)
EXTEND = Schema(ExtendGiven)
QUEUE = Schema(QueueGiven)
TRANSFER = Schema(TransferGiven)
NODE = Schema(NodeGiven)


def milliseconds(seconds: float) -> int:
    """To the nearest millisecond."""
    return round(seconds * 1000)
