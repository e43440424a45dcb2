"""What a leader does about the members: the changes that an operator asks for, and the steps that follow by themselves.

Owns who waits for a change. Invariant: one change at a time, each at most one voter away from the last, and none that
would leave a cluster unable to go on without nodes that do not answer. What is asked for is kept in the configuration
itself (a learner to be promoted, a member to be replaced), so another leader goes on with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftq.replication import membership
from raftq.replication.engine import SyncObj
from raftq.replication.membership import Configuration
from raftq.replication.shard import ChangeUnderway, OutcomeUnknown

#: A learner that lacks at most this many of the committed entries has caught up: one round trip brings the rest.
LAG_ENTRIES_MAX = 64


class Changes:
    """`uuid_of` gives the uuid of this node, or of one that was met, else None."""

    def __init__(self, engine: SyncObj, uuid_of: Callable[[str], str | None]) -> None:
        self._engine, self._uuid_of = engine, uuid_of
        #: (index of the entry, who waits)
        self._waiting: list[tuple[int, asyncio.Future[int]]] = []

    def add(self, node: str, peer_address: str, replaces: str | None, future: asyncio.Future[int]) -> None:
        """Raises ChangeRefused."""
        live = self._live()
        self._make(membership.added(self._engine.configuration, node, peer_address, replaces, live), future)

    def remove(self, node: str, future: asyncio.Future[int]) -> None:
        """Raises ChangeRefused."""
        self._make(membership.removed(self._engine.configuration, node, self._live()), future)

    def _live(self) -> list[str]:
        if self._engine.unheard:
            raise ChangeUnderway("this node has just begun to lead: try again in a moment")
        return self._engine.answering()

    def _make(self, configuration: Configuration, future: asyncio.Future[int]) -> None:
        self._waiting.append((self._engine.change(configuration), future))

    def step(self) -> bool:
        """Leader: the next step that follows by itself, if there is one and none is on its way. Whether it was made."""
        engine = self._engine
        if not engine.own_term_committed or engine.memberships.index > engine.commit_index or engine.transferring:
            return False
        members = engine.configuration.members
        after = membership.next_step(
            engine.configuration,
            uuids={node: uuid for node in members if (uuid := self._uuid_of(node)) is not None},
            live=engine.answering(),
            caught_up=self._caught_up,
        )
        if after is None or engine.id not in after.members:
            return False
        engine.change(after)
        return True

    def _caught_up(self, node: str) -> bool:
        """It also has the configuration that makes it a learner, and so will vote when it is asked."""
        match = self._engine.match_index(node) or 0
        return match >= self._engine.memberships.index and match + LAG_ENTRIES_MAX >= self._engine.commit_index

    def leaves(self) -> bool:
        """Leader: it is replaced itself, so another must lead first."""
        return any(
            member.replaces == self._engine.id and member.voter
            for member in self._engine.configuration.members.values()
        )

    def applied(self, index: int) -> None:
        """Answer those whose change is committed."""
        while self._waiting and self._waiting[0][0] <= index:
            changed, future = self._waiting.pop(0)
            if not future.done():
                future.set_result(changed)

    def give_up(self) -> None:
        """Leadership is lost: what is in the log may yet be committed, by another leader."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(OutcomeUnknown("leadership was lost before a majority confirmed"))
