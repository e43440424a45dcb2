"""The interface that replication shows to the rest of a node: one Raft group that runs one state machine.

Nothing outside `replication/` sees the engine behind it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from raftq.replication.stages import Stages

if TYPE_CHECKING:
    from raftq.storage.machine.views import View


class ShardError(Exception):
    """Base of what a shard refuses."""


class NotLeader(ShardError):
    """Not applied: this node does not lead. `leader` is the node id that it believes does, or None."""

    def __init__(self, leader: str | None) -> None:
        super().__init__(f"the leader is {leader}" if leader else "there is no leader now")
        self.leader = leader


class OutcomeUnknown(ShardError):
    """It may have been applied or not: leadership was lost before a majority confirmed."""


class Overloaded(ShardError):
    """Not applied: too many bytes or operations are waiting."""


class DiskReserve(ShardError):
    """Not applied: a node's free disk is below its reserve."""


class Stopping(ShardError):
    """Not applied: the node is shutting down."""


class ChangeRefused(ShardError):
    """Not applied: this change of the members may not be made now. Says why, and what to do."""


class ChangeUnderway(ChangeRefused):
    """Another change of the members is on its way: the same may be asked for again in a moment."""


class Fenced(ShardError):
    """This folder may not take part any more: it was removed, emptied, or is an old copy."""


class Committed(msgspec.Struct, gc=False):
    """The outcome of a proposed command, durable on a majority."""

    index: int
    position: int
    reply: Any
    #: Of a `Leased` reply: `storage.machine.views.Delivery` of each message, read at the moment it was applied.
    messages: list[Any] | None = None
    #: Wall time of the entry in milliseconds.
    wall_ms: int = 0


class Peer(msgspec.Struct):
    id: str
    api_url: str
    peer_address: str
    role: Literal["leader", "follower", "candidate", "learner", "unknown"]
    voter: bool
    reachable: bool
    match_index: int | None
    applied_index: int | None
    version: str | None


class Status(msgspec.Struct):
    node_id: str
    cluster_id: str
    role: Literal["leader", "follower", "candidate"]
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    first_index: int
    log_bytes: int
    #: This node leads, and a majority has confirmed it within the last election timeout; or it hears such a leader.
    ready: bool
    peers: list[Peer]
    #: Milliseconds that this node's clock is off the cluster's median, None before it is known.
    clock_offset_ms: float | None


class Shard(Protocol):
    def propose(self, command: bytes) -> asyncio.Future[Committed]:
        """Take an encoded command (`storage.machine.commands.encode`) into the next entry.

        Raises NotLeader, Overloaded, DiskReserve or Stopping at once: it certainly was not applied. The future ends
        with Committed, or raises OutcomeUnknown; it always ends."""
        ...

    def read(self) -> asyncio.Future[View]:
        """A linearizable view (ReadIndex: Ongaro's thesis, section 6.4). Use it before the next await.
        Raises NotLeader or Stopping, at once or through the future."""
        ...

    def stale(self) -> View:
        """A view of what this node has applied. Use it before the next await. Raises NotLeader while a snapshot takes
        the place of its tables."""
        ...

    def wall_ms(self) -> int:
        """The cluster's wall time now, as far as this node knows: never before that of what it has applied."""
        ...

    def status(self) -> Status: ...

    @property
    def stages(self) -> Stages:
        """How long what this node does takes."""
        ...

    async def transfer(self, target: str | None = None) -> str:
        """Hand leadership to `target`, or to the most advanced follower; the id of who leads then.
        Raises NotLeader, ChangeRefused, or OutcomeUnknown when nobody took over in time."""
        ...

    async def add(self, node: str, peer_address: str, *, replaces: str | None = None) -> int:
        """Make `node` a learner; once it has caught up it becomes a voter by itself, and then `replaces` is removed.
        With its own name in `replaces` it comes back with a new, empty folder. The index of the committed change.
        Raises NotLeader, Stopping, ChangeRefused (not applied), or OutcomeUnknown."""
        ...

    async def remove(self, node: str) -> int:
        """As `add`. A leader that is to be removed hands leadership over and raises NotLeader: ask the new one."""
        ...

    async def digest(self) -> tuple[int, dict[str, str | None]]:
        """(index, node id -> digest of its tables at that index, None for a node that did not answer in time)."""
        ...
