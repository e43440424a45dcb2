"""After faults: within ten election timeouts a write succeeds, and all live members agree.

Judged apart from safety, as TigerBeetle does: while faults run nothing need get on, once they are over all must. Who
lacks much may take as long as it needs, within a minute, so long as it gets on: a seed may give it a slow network, and
a log that is sent entry by entry. The world says when faults are over and which nodes count (not those that were turned
away or removed), then asks until it is told that all is well.
"""

from __future__ import annotations

from typing import Final

from raftq.chaos.simulation.history import NodeView, Op, Violation

ELECTION_TIMEOUTS: Final = 10
#: What a node that gets on may take in all.
LONGEST_SECONDS: Final = 60.0


class Liveness:
    def __init__(self, now: float, election_timeout: float) -> None:
        """Faults are over `now`."""
        self._since = now
        self._patience = ELECTION_TIMEOUTS * election_timeout
        self._until = now + self._patience
        self._written: Op | None = None
        #: The most that each node ever had: (end of its log on disk, bytes of a snapshot).
        self._had: dict[str, tuple[int, int]] = {}
        #: The most that all of them had applied; None before the first look.
        self._applied: int | None = None

    def returned(self, op: Op) -> None:
        """Of all operations: one that was begun after the faults counts."""
        if op.kind == "write" and op.outcome == "ok" and op.invoked_at >= self._since:
            self._written = self._written or op

    def reached(self, now: float, nodes: list[NodeView], *, idle: bool) -> bool:
        """A write has succeeded, clients are `idle`, and the nodes agree. Raises Violation when the time is over."""
        if self._written is not None and idle and converged(nodes):
            return True
        if self._gets_on(nodes):
            self._until = min(now + self._patience, self._since + LONGEST_SECONDS)
        if now < self._until:
            return False
        state = ", ".join(described(node) for node in nodes)
        if self._written is None:
            raise Violation("liveness", f"no write succeeded from {self._since:.3f} to {now:.3f}: {state}")
        raise Violation("liveness", f"the nodes did not converge from {self._since:.3f} to {now:.3f}: {state}")

    def _gets_on(self, nodes: list[NodeView]) -> bool:
        """Some node that lacks a part of the log has more than it ever had; or all go on applying what a leader does by
        itself, a redrive with a pace as a rule, and each is an entry behind until the next one comes."""
        least = min((node.applied_index for node in nodes), default=0)
        goes_on = self._written is not None and self._applied is not None and least > self._applied
        self._applied = max(least, self._applied or 0)
        end = max((node.last_index for node in nodes), default=0)
        more = False
        for node in nodes:
            has = node.durable_index, node.received_bytes
            had = self._had.get(node.id, has)
            more |= node.last_index < end and has > had
            self._had[node.id] = max(has, had)
        return more or goes_on


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
