"""Who judges a run: told of every step of every node and every operation of every client.

Safety is judged while faults run, as each thing is seen; what needs the whole log or all tables, at rest. `Checkers`
only hands on: `raft`, `majority` and `members` judge nodes, `linearizable` clients, `queue` what a queue promises,
`liveness` what comes after.
"""

from __future__ import annotations

from typing import Any, Final

from raftq.chaos.simulation.checkers import queue
from raftq.chaos.simulation.checkers.linearizable import Linearizable
from raftq.chaos.simulation.checkers.liveness import Liveness, converged, described
from raftq.chaos.simulation.checkers.majority import Majorities
from raftq.chaos.simulation.checkers.members import Members
from raftq.chaos.simulation.checkers.raft import Raft
from raftq.chaos.simulation.history import History, NodeView, Op, Violation

__all__ = ["Checkers", "Liveness", "Violation"]

#: A node's digest is asked for once in so many entries.
_DIGEST_EVERY: Final = 128


class Checkers:
    """Implements `history.Observer`."""

    def __init__(self, history: History | None = None) -> None:
        self.history = history or History()
        #: Set by the world when faults are over.
        self.liveness: Liveness | None = None
        self._raft = Raft(self.history)
        self._majorities = Majorities(self._raft, self.history)
        self._members = Members(self._raft, self.history)
        self._linearizable = Linearizable(self.history)
        self._digests = queue.Digests()
        self._digested: dict[str, int] = {}

    def started(self, node: NodeView) -> None:
        self._raft.started(node)
        self._majorities.started(node)
        self._members.stepped(node)

    def stepped(self, node: NodeView) -> None:
        known = self.history.known
        self._raft.stepped(node)
        self._majorities.stepped(node)
        self._members.stepped(node)
        if self.history.known != known:
            self._linearizable.follow()
        if self._digested.get(node.id) != node.applied_index // _DIGEST_EVERY:
            self._digested[node.id] = node.applied_index // _DIGEST_EVERY
            self._digests.told(node.id, *node.digest())

    def sent(self, node: str, target: str, message: dict[str, Any]) -> None:
        """A message of our engine leaves a node."""
        self._raft.sent(node, target, message)
        self._majorities.sent(node, target, message)

    def entry_applied(self, node: str, index: int, term: int, command: bytes) -> None:
        self._raft.entry_applied(node, index, term, command)

    def invoked(self, op: Op) -> None:
        self._linearizable.invoked(op)
        self._majorities.invoked(op)

    def returned(self, op: Op) -> None:
        self._linearizable.returned(op)
        self._majorities.returned(op)
        if self.liveness is not None:
            self.liveness.returned(op)

    def at_rest(self, nodes: list[NodeView]) -> None:
        if not converged(nodes):
            raise Violation("convergence", ", ".join(described(node) for node in nodes))
        self._raft.at_rest(nodes)
        self._linearizable.at_rest()
        queue.at_rest(self.history, self._digests, nodes)
