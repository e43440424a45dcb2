"""After faults: within ten election timeouts a write succeeds, and all live members agree.

Judged apart from safety, as TigerBeetle does: while faults run nothing need get on, once they are over all must. The
world says when they are over and which nodes count (not those that were turned away or removed), then asks until it is
told that all is well.
"""

from __future__ import annotations

from typing import Final

from raftq.chaos.simulation.history import NodeView, Op, Violation

ELECTION_TIMEOUTS: Final = 10


class Liveness:
    def __init__(self, now: float, election_timeout: float) -> None:
        """Faults are over `now`."""
        self._since = now
        self._until = now + ELECTION_TIMEOUTS * election_timeout
        self._written: Op | None = None

    def returned(self, op: Op) -> None:
        """Of all operations: one that was begun after the faults counts."""
        if op.kind == "write" and op.outcome == "ok" and op.invoked_at >= self._since:
            self._written = self._written or op

    def reached(self, now: float, nodes: list[NodeView], *, idle: bool) -> bool:
        """A write has succeeded, clients are `idle`, and the nodes agree. Raises Violation when the time is over."""
        if self._written is not None and idle and converged(nodes):
            return True
        if now < self._until:
            return False
        state = ", ".join(described(node) for node in nodes)
        if self._written is None:
            raise Violation("liveness", f"no write succeeded from {self._since:.3f} to {now:.3f}: {state}")
        raise Violation("liveness", f"the nodes did not converge from {self._since:.3f} to {now:.3f}: {state}")


def converged(nodes: list[NodeView]) -> bool:
    """One leader; the same end of the log, commit index and applied index everywhere. Tables are compared at rest."""
    if sum(node.role == "leader" for node in nodes) != 1:
        return False
    ends = {(node.last_index, node.term_at(node.last_index), node.commit_index, node.applied_index) for node in nodes}
    return len(ends) == 1


def described(node: NodeView) -> str:
    return (
        f"{node.id} {node.role} of term {node.term}, log to {node.last_index}, commit {node.commit_index}, "
        f"applied {node.applied_index}"
    )
