"""Who the peers are: the identity of each node, and whether it may take part.

A node is a name, a uuid made with its data folder, and a boot counter. Invariant: while a name is a member it never
changes its uuid, and neither its boot counter nor its log goes back; a folder for which that is not so was emptied or
restored from an old copy, has forgotten promises, and must not take part under its old name. The leader spreads what
it knows, so that the others know it when it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from raftq.replication.membership import Configuration, Member
from raftq.replication.wire import Hello, Refusal

META = "roster"

#: `Refusal.config_index` of what no later configuration can heal.
FOR_EVER = 1 << 62

_HELP = "Bring back its newest folder, or replace it: raftq cluster replace"


class Known(msgspec.Struct, array_like=True):
    uuid: str
    boot: int
    #: Committed entries that the node has acknowledged as durable.
    match: int = 0


class Roster:
    """`membership` gives the index of the configuration in force, the configuration, and whether it is committed."""

    def __init__(
        self, cluster_id: str, stored: bytes | None, membership: Callable[[], tuple[int, Configuration, bool]]
    ) -> None:
        self._cluster_id, self._membership = cluster_id, membership
        self._known = msgspec.msgpack.decode(stored, type=dict[str, Known]) if stored else {}
        #: To be written now, and whenever something is.
        self.dirty = self.changed = False

    def admit(self, hello: Hello) -> Refusal | None:
        """Why `hello` may not take part, or None."""
        if hello.cluster_id != self._cluster_id:
            return Refusal(f"this node belongs to cluster {self._cluster_id}, not {hello.cluster_id}")
        index, configuration, committed = self._membership()
        member = configuration.members.get(hello.node_id)
        named = member is not None and member.uuid in (None, hello.node_uuid)
        if not named and ((hello.member and hello.config_index > index) or not configuration.members):
            return None  # a guest: it is a member by a configuration that this node has not seen yet
        name = f"node {hello.node_id}"
        if member is None:
            members = ", ".join(configuration.members)
            was_member = hello.member or hello.config_index > 0  # its own removal may be in its log, uncommitted
            if was_member and committed and 0 < index >= hello.config_index:
                return Refusal(f"{name} was removed from this cluster ({members})", final=True, config_index=index)
            return Refusal(f"{name} is not a member of this cluster ({members}): raftq cluster add")
        return self._fenced(name, hello, member, index, committed)

    def _fenced(self, name: str, hello: Hello, member: Member, index: int, committed: bool) -> Refusal | None:
        known = self._known.get(hello.node_id)
        # A learner that is not named yet comes with a new folder; what is known of its name is of the old one.
        uuid = member.uuid or (known.uuid if known and member.voter else hello.node_uuid)
        if hello.node_uuid != uuid or hello.node_uuid == member.void:
            return Refusal(
                f"{name} comes with another data folder than the one that is its own ({hello.node_uuid}): what it had "
                f"promised is not in it. {_HELP}",
                final=committed or (member.uuid is None and member.void is None),
                config_index=index,
            )
        if member.uuid is None and not member.voter and _took_part(hello, index):
            return Refusal(f"{name} comes with a folder that took part before this: empty it, and start it with join")
        if known is None or known.uuid != hello.node_uuid:
            return None
        if hello.boot < known.boot:
            return Refusal(
                f"{name} comes with an old copy of its data folder (start {hello.boot}, seen {known.boot}). {_HELP}",
                final=True,
                config_index=FOR_EVER,
            )
        if hello.last_index < known.match:
            return Refusal(
                f"the log of {name} ends at {hello.last_index}, but it had acknowledged {known.match}. {_HELP}",
                final=True,
                config_index=FOR_EVER,
                acknowledged=known.match,
            )
        return None

    def met(self, hello: Hello) -> None:
        known = self._known.get(hello.node_id)
        if known is None or (known.uuid, known.boot) != (hello.node_uuid, hello.boot):
            match = known.match if known is not None and known.uuid == hello.node_uuid else 0
            self._known[hello.node_id] = Known(hello.node_uuid, hello.boot, match)
            self.dirty = True

    def matched(self, node: str, index: int) -> None:
        """`node` has acknowledged the committed entries up to `index`. Kept with a write that happens anyway."""
        known = self._known.get(node)
        if known is not None and index > known.match:
            known.match = index
            self.changed = True

    def told(self, others: dict[str, Any]) -> None:
        """What the leader knows of the nodes. Of another folder than the one met here nothing is taken over."""
        for node, (uuid, boot, match) in others.items():
            known = self._known.setdefault(node, Known(uuid, 0))
            if known.uuid == uuid and (boot > known.boot or match > known.match):
                known.boot, known.match = max(boot, known.boot), max(match, known.match)
                self.changed = True

    def forget(self, nodes: Iterable[str]) -> None:
        """They are members no more, or come with new folders: written with the configuration that says so."""
        for node in nodes:
            self.dirty |= self._known.pop(node, None) is not None

    def known(self) -> dict[str, tuple[str, int, int]]:
        return {node: (known.uuid, known.boot, known.match) for node, known in self._known.items()}

    def match(self, node: str) -> int:
        return self._known[node].match if node in self._known else 0

    def encode(self) -> bytes:
        self.dirty = self.changed = False
        return msgspec.msgpack.encode(self._known)


def _took_part(hello: Hello, index: int) -> bool:
    """Of a learner that nobody has met, by the configuration at `index`: its log is not one that it got from here. A
    folder that waits to be added has no configuration, then earlier ones, which may have its name and not its uuid."""
    return hello.member and (hello.config_index == 0 or (hello.named and hello.config_index <= index))
