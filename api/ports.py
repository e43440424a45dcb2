"""What the front end needs of the node that it stands on. `node/` implements `Node`; the tests do with a fake."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

import msgspec

from raftq.replication.shard import Shard


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may ask for. Each is stated in the problem that a larger one is answered with."""

    #: Of one message as it is stored: JSON text, or raw bytes.
    body_bytes: int = 1024 * 1024
    #: Messages of one enqueue, and bytes of its whole request.
    batch_messages: int = 1000
    batch_bytes: int = 8 * 1024 * 1024
    #: Bytes of any other request.
    request_bytes: int = 256 * 1024
    #: Messages of one lease, receipts of one ack, nack, release or extend.
    lease_messages: int = 1000
    wait_seconds: float = 60.0
    #: How long a request's body may take to arrive.
    read_seconds: float = 60.0
    #: How long what is left of a refused body is taken in, so that its sender reads the answer.
    linger_seconds: float = 2.0
    #: How long a connection may stay idle.
    keepalive_seconds: float = 300.0


class Measure(NamedTuple):
    """One value that the node adds to `/metrics`, for example commits and the seconds they took."""

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    value: float


class BackupRefused(Exception):
    """No backup can be made now. Says why, and what to do."""


class Backup(Protocol):
    """A snapshot of one node's tables, in a file that is there until the end of it."""

    #: Of the last entry that is in it.
    @property
    def index(self) -> int: ...

    @property
    def cluster_id(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    async def read(self) -> bytes:
        """The next piece; empty after the last."""
        ...


class Node(Protocol):
    @property
    def shard(self) -> Shard: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def version(self) -> str: ...

    @property
    def stopping(self) -> bool:
        """New work is refused with 503; what is in flight is answered."""
        ...

    @property
    def tokens_required(self) -> bool:
        """Every request needs a token. The same for the life of the node."""
        ...

    def leads(self) -> bool:
        """This node believes that it leads. Cheap, asked for every write: others are sent on before they are decoded.
        It may be wrong: the shard decides."""
        ...

    def leader_url(self) -> str | None:
        """The advertised API URL of the leader, no slash at its end; None when there is none, or it is not known."""
        ...

    def backup(self) -> AbstractAsyncContextManager[Backup]:
        """Make one, of what this node has applied; it is gone at the end of the block. Raises BackupRefused."""
        ...

    def measures(self) -> Iterable[Measure]:
        """Called once a scrape of `/metrics`."""
        ...
