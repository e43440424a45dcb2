"""Who the peers are: the identity of each node as this one has met it.

A node is a name, a uuid made with its data folder, and a boot counter. Invariant: a name never changes its uuid, and
neither its boot counter nor its log goes back; a folder for which that is not so was emptied or restored from an old
copy, has forgotten promises, and must not take part under its old name.
"""

from __future__ import annotations

import msgspec

from raftq.replication.peers import Hello

META = "roster"


class Known(msgspec.Struct, array_like=True):
    uuid: str
    boot: int
    #: Committed entries that the node has acknowledged to this one as durable.
    match: int = 0


class Roster:
    def __init__(self, cluster_id: str, voters: dict[str, str], stored: bytes | None) -> None:
        self._cluster_id, self._voters = cluster_id, voters
        self._known = msgspec.msgpack.decode(stored, type=dict[str, Known]) if stored else {}
        #: To be written now, and whenever something is.
        self.dirty = self.changed = False

    def admit(self, hello: Hello) -> str | None:
        """Why `hello` may not take part, or None."""
        if hello.cluster_id != self._cluster_id:
            return f"this node belongs to cluster {self._cluster_id}, not {hello.cluster_id}"
        if hello.node_id not in self._voters:
            return f"node {hello.node_id} is not a member of this cluster ({', '.join(sorted(self._voters))})"
        known = self._known.get(hello.node_id)
        if known is None:
            return None
        return self._fenced(hello, known)

    @staticmethod
    def _fenced(hello: Hello, known: Known) -> str | None:
        name = f"node {hello.node_id}"
        if hello.node_uuid != known.uuid:
            return (
                f"{name} comes with another data folder (uuid {hello.node_uuid}, known as {known.uuid}): what it had "
                "promised is not in it. Bring back its folder, or add it as a new node"
            )
        if hello.boot < known.boot:
            return (
                f"{name} comes with an old copy of its data folder (start {hello.boot}, seen {known.boot}). "
                "Bring back its newest folder, or add it as a new node"
            )
        if hello.last_index < known.match:
            return (
                f"the log of {name} ends at {hello.last_index}, but it had acknowledged {known.match}. "
                "Bring back its newest folder, or add it as a new node"
            )
        return None

    def met(self, hello: Hello) -> None:
        known = self._known.get(hello.node_id)
        if known is None or (known.uuid, known.boot) != (hello.node_uuid, hello.boot):
            self._known[hello.node_id] = Known(hello.node_uuid, hello.boot, known.match if known else 0)
            self.dirty = True

    def matched(self, node: str, index: int) -> None:
        """`node` has acknowledged the committed entries up to `index`. Kept with a write that happens anyway."""
        known = self._known.get(node)
        if known is not None and index > known.match:
            known.match = index
            self.changed = True

    def match(self, node: str) -> int:
        return self._known[node].match if node in self._known else 0

    def encode(self) -> bytes:
        self.dirty = self.changed = False
        return msgspec.msgpack.encode(self._known)
