"""Who belongs to the cluster, as each node has it (Ongaro's thesis, 4.1): judged at every step of every node.

Invariant: the configuration in force on a node is the newest one in its own log, committed or not, or the one that the
log goes on from; so one that is cut off the log is in force no more. A leader makes the next change only when its last
one is committed, and its first only when an entry of its term is: else two majorities need not overlap.
"""

from __future__ import annotations

from raftq.chaos.simulation.checkers.raft import Raft
from raftq.chaos.simulation.history import History, NodeView, Violation
from raftq.replication import membership
from raftq.replication.engine import CONFIGURATION
from raftq.replication.membership import Configuration


class Members:
    """To be told after `raft`."""

    def __init__(self, raft: Raft, history: History) -> None:
        self._raft, self._history = raft, history
        #: The newest configuration of each log (index, term), and the one in force that was compared with it.
        self._compared: dict[str, tuple[tuple[int, int], Configuration]] = {}
        #: Indexes of committed configurations, of all entries up to `_scanned`.
        self._committed: list[int] = []
        self._scanned = 1

    def stepped(self, view: NodeView) -> None:
        if view.role == "leader":
            self._check_changes(view)
        newest = self._newest(view)
        if newest is None:
            return
        index, term, command = newest
        now, compared = view.configuration, self._compared.get(view.id)
        if compared is not None and compared[0] == (index, term) and compared[1] is now:
            return
        if membership.decode(memoryview(command)[1:]) != now:
            raise Violation(
                "the configuration in force",
                f"on {view.id} {now} is in force, but the newest of its log is entry {index} of term {term}: "
                f"{membership.decode(memoryview(command)[1:])}",
            )
        self._compared[view.id] = (index, term), now

    def _newest(self, view: NodeView) -> tuple[int, int, bytes] | None:
        """(index, term, command). None: the one that the cluster began with, or one that nobody knows yet."""
        found, first = self._raft.configurations(view.id), view.first_index
        index = max(found, default=0)
        if index > first:
            return index, *found[index]
        history = self._history
        if first > history.known:
            return None
        while self._scanned < history.known:
            self._scanned += 1
            if history.log[self._scanned].command[:1] == CONFIGURATION:
                self._committed.append(self._scanned)
        index = max((at for at in self._committed if at <= first), default=0)
        return (index, history.log[index].term, history.log[index].command) if index else None

    def _check_changes(self, view: NodeView) -> None:
        """Its commit index only grows: what is beyond it now was beyond it when the next was made."""
        term, commit = view.term, view.commit_index
        own = [at for at, found in self._raft.configurations(view.id).items() if at > commit and found[0] == term]
        if not own:
            return
        what = f"{view.id}, leader of term {term}, changed the members with entries {own}"
        if len(own) > 1:
            raise Violation("one change at a time", f"{what}, but only {commit} is committed")
        if view.term_at(commit) != term:
            raise Violation("the first change of a term", f"{what}, but no entry of the term is committed ({commit})")
