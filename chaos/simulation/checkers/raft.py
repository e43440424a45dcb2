"""The properties of Raft (Ongaro's thesis, figure 3.2), judged at every step of every node.

Each step looks at what is new or changed since the node was last looked at: the end of its log, its commit index, its
applied index. The whole log is read when a folder is met for the first time, and at rest.

Invariant: a run that passes had one leader a term, one entry per (index, term) with one history before it, one command
per applied index, leaders that held all that was committed, and nodes that took nothing back.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from raftq.chaos.simulation.history import History, NodeView, Violation, described
from raftq.replication.engine import CONFIGURATION

#: Entries before the changed end of a log that are looked at again.
_LOOK_BACK: Final = 3


class _Known(NamedTuple):
    """The first that was seen of an entry (index, term)."""

    previous_term: int
    command: bytes
    node: str


class _Seen:
    """A node as it was when last looked at."""

    def __init__(self, view: NodeView) -> None:
        self.view = view
        self.disk = view.disk
        self.incarnation = view.incarnation
        self.term = self.commit = self.applied = 0
        self.first = view.first_index
        #: Entries up to here were compared with the canonical log.
        self.compared = 0
        #: (last index, its term), and the term of each entry seen.
        self.end = (0, 0)
        self.terms: dict[int, int] = {}
        #: (term, command) of each configuration seen in its log, by index.
        self.configurations: dict[int, tuple[int, bytes]] = {}
        self.votes: dict[int, str] = {}
        #: The highest term that it has told another node of.
        self.told = 0
        #: (term, index): what it told the leader of that term that it has.
        self.acknowledged = (0, 0)
        #: The term that it led when last looked at.
        self.led = 0


class Raft:
    def __init__(self, history: History) -> None:
        self._history = history
        self._nodes: dict[str, _Seen] = {}
        #: Term -> (node, incarnation) that led it.
        self._leaders: dict[int, tuple[str, int]] = {}
        self._entries: dict[tuple[int, int], _Known] = {}

    def started(self, view: NodeView) -> None:
        seen = self._nodes.get(view.id)
        if seen is None or seen.disk != view.disk:
            seen = self._nodes[view.id] = _Seen(view)
        elif view.applied_index > seen.applied and not self._installed(view, seen):
            raise Violation(
                "applied once",
                f"{view.id} starts with applied index {view.applied_index}, but had only applied {seen.applied}",
            )
        seen.view, seen.incarnation = view, view.incarnation
        seen.term, seen.commit, seen.applied = view.term, view.commit_index, view.applied_index
        if view.term < seen.told:
            raise Violation("term", f"{view.id} starts in term {view.term}, but had told of term {seen.told}")
        seen.led = 0
        seen.compared = min(seen.compared, view.commit_index)
        self.stepped(view)

    def stepped(self, view: NodeView) -> None:
        seen = self._nodes[view.id]
        term, commit = view.term, view.commit_index
        if term < seen.term:
            raise Violation("term", f"{view.id} is in term {term}, but was in term {seen.term}")
        seen.term = term
        self._check_vote(view, seen)
        self._check_log(view, seen)
        self._check_acknowledged(view, seen)
        if commit < seen.commit:
            raise Violation("commit index", f"the commit index of {view.id} went from {seen.commit} to {commit}")
        if commit > seen.end[0]:
            raise Violation("commit index", f"{view.id} committed {commit}, but its log ends at {seen.end[0]}")
        if commit > seen.commit and view.role == "leader" and seen.led == term and view.term_at(commit) != term:
            raise Violation(
                "commit of the own term",
                f"{view.id} leads term {term} and committed entry {commit} of term {view.term_at(commit)} by counting",
            )
        seen.commit, seen.led = commit, term if view.role == "leader" else 0
        if commit > seen.compared:
            self._compare(view, seen, commit)
        self._check_applied(view, seen)
        seen.first = view.first_index
        if view.role == "leader":
            self._check_leader(view)

    def sent(self, node: str, target: str, message: dict[str, object]) -> None:
        """A message of the engine left the node: what it promises binds it from here on, whatever it forgets."""
        seen, kind = self._nodes[node], message["type"]
        term = message.get("term")
        if kind == "snapshot_offer":
            self._check_offer(seen.view, message["index"], target)
        if kind not in ("vote", "vote_answer", "append", "append_answer") or not isinstance(term, int):
            return
        seen.told = max(seen.told, term)
        commit = message.get("commit")
        if isinstance(commit, int) and commit > seen.view.commit_index:
            raise Violation(
                "commit index",
                f"{node} told {target} that {commit} is committed, but knows of {seen.view.commit_index}",
            )
        if kind == "vote":
            self._vote(seen, node, term, node)
        elif kind == "vote_answer" and message.get("granted"):
            asked = message.get("asked")
            assert isinstance(asked, int)
            self._vote(seen, node, asked, target)
        elif kind == "append_answer" and message.get("ok"):
            match = message.get("match")
            assert isinstance(match, int)
            seen.acknowledged = max(seen.acknowledged, (term, match))

    @staticmethod
    def _check_offer(view: NodeView, index: object, target: str) -> None:
        assert isinstance(index, int)
        if index < view.first_index:
            raise Violation(
                "an offered snapshot is gone on from",
                f"{view.id} offers {target} a snapshot at {index}, but its log begins at {view.first_index}",
            )

    def _vote(self, seen: _Seen, node: str, term: int, candidate: str) -> None:
        first = seen.votes.setdefault(term, candidate)
        if first != candidate:
            raise Violation("one vote a term", f"{node} voted for {first} and for {candidate} in term {term}")

    def _check_vote(self, view: NodeView, seen: _Seen) -> None:
        """What it told binds it over restarts; what it only noted may be lost in a crash, and binds nothing."""
        told, vote = seen.votes.get(seen.term), view.vote
        if told is not None and vote != told:
            raise Violation("one vote a term", f"{view.id} votes for {vote} in term {seen.term}, but told {told} so")

    @staticmethod
    def _check_acknowledged(view: NodeView, seen: _Seen) -> None:
        """What it told the leader of its term that it has, it has in that term, also after a restart."""
        term, index = seen.acknowledged
        if term == view.term and index > view.last_index:
            raise Violation(
                "acknowledged entries stay",
                f"{view.id} told the leader of term {term} of entry {index}, but its log ends at {view.last_index}",
            )

    def view(self, node: str) -> NodeView:
        return self._nodes[node].view

    def terms(self, node: str) -> dict[int, int]:
        """Of the entries of its log, as far as that goes."""
        return self._nodes[node].terms

    def configurations(self, node: str) -> dict[int, tuple[int, bytes]]:
        """(term, command) of those in its log, by index: also of some that it was compacted below."""
        return self._nodes[node].configurations

    def at_rest(self, views: list[NodeView]) -> None:
        """Read all of every log."""
        for view in views:
            seen = self._nodes[view.id]
            self.stepped(view)
            self._look(view, seen, view.first_index + 1)
            seen.compared = 0
            self._compare(view, seen, view.commit_index)

    # Log matching

    def _check_log(self, view: NodeView, seen: _Seen) -> None:
        last = view.last_index
        end = (last, view.term_at(last) or 0)
        if end == seen.end:
            return
        same = min(last, seen.end[0])
        terms = seen.terms
        first = view.first_index
        while same > first and terms.get(same) != view.term_at(same):
            same -= 1
        seen.compared = min(seen.compared, same)
        for cut in [at for at in seen.configurations if at > same]:
            del seen.configurations[cut]
        self._look(view, seen, max(same - _LOOK_BACK, first) + 1)
        seen.end = end

    def _look(self, view: NodeView, seen: _Seen, index: int) -> None:
        """Compare entries from `index` on with all that was seen of any node's entries with their index and term."""
        known, terms, node = self._entries, seen.terms, view.id
        previous = view.term_at(index - 1)
        for at in range(index, view.last_index + 1):
            entry = view.entry(at)
            if entry is None or previous is None:
                raise Violation("log matching", f"the log of {node} ends at {view.last_index}, but lacks entry {at}")
            term, command = entry
            if term < previous:
                raise Violation("log matching", f"{node} has entry {at} of term {term} after one of term {previous}")
            found = known.get((at, term))
            if found is None:
                known[at, term] = _Known(previous, command, node)
            elif found.command != command or found.previous_term != previous:
                raise Violation(
                    "log matching",
                    f"{node} has {described(at, term, command)} after one of term {previous}, but {found.node} had "
                    f"{described(at, term, found.command)} after one of term {found.previous_term}",
                )
            terms[at] = previous = term
            if command[:1] == CONFIGURATION:
                seen.configurations[at] = (term, command)

    # What is committed

    def _compare(self, view: NodeView, seen: _Seen, commit: int) -> None:
        first, history = view.first_index, self._history
        boundary = history.log.get(first)
        if boundary is not None and view.term_at(first) != boundary.term:
            raise Violation(
                "state machine safety",
                f"the log of {view.id} begins with entry {first} of term {view.term_at(first)}, but {boundary.node} "
                f"committed {described(first, boundary.term, boundary.command)}",
            )
        for index in range(max(seen.compared, first) + 1, commit + 1):
            entry = view.entry(index)
            if entry is None:
                raise Violation("commit index", f"{view.id} committed entry {index}, which is not in its log")
            history.commit(index, *entry, view.id, seen.term)
        seen.compared = commit

    def _check_leader(self, view: NodeView) -> None:
        who = view.id, view.incarnation
        first = self._leaders.get(view.term)
        if first is None:
            self._leaders[view.term] = who
            self._check_complete(view)
        elif first != who:
            raise Violation(
                "election safety",
                f"{view.id} (start {view.incarnation}) leads term {view.term}, as {first[0]} (start {first[1]}) did",
            )

    def _check_complete(self, view: NodeView) -> None:
        """A new leader has all that was committed before it was elected. What was committed in a later term than its
        own need not be there: it was elected late, by votes of before."""
        for index in range(max(self._nodes[view.id].compared, view.first_index) + 1, self._history.last + 1):
            entry = self._history.log.get(index)
            if entry is not None and entry.known_in <= view.term and view.term_at(index) != entry.term:
                raise Violation(
                    "leader completeness",
                    f"{view.id} leads term {view.term} with a log that ends at {view.last_index} and without "
                    f"{described(index, entry.term, entry.command)}, which {entry.node} knew to be committed",
                )

    # What is applied

    def entry_applied(self, node: str, index: int, term: int, command: bytes) -> None:
        seen = self._nodes[node]
        if index != seen.applied + 1 and not (
            index > seen.applied and self._installed(seen.view, seen) and index - 1 - seen.view.first_index < 2
        ):
            raise Violation("applied once", f"{node} applied entry {index} after entry {seen.applied}")
        seen.applied = index
        self._history.commit(index, term, command, node, seen.view.term)

    @staticmethod
    def _installed(view: NodeView, seen: _Seen) -> bool:
        """A snapshot took the place of the log: nothing else cuts it so near to what was applied."""
        first = view.first_index
        return first > seen.applied or (first == seen.applied and first != seen.first)

    def _check_applied(self, view: NodeView, seen: _Seen) -> None:
        applied = view.applied_index
        if applied > seen.commit:
            raise Violation("applied once", f"{view.id} applied {applied}, beyond its commit index {seen.commit}")
        if applied == seen.applied:
            return
        if applied < seen.applied or not self._installed(view, seen):
            raise Violation(
                "applied once", f"the applied index of {view.id} went from {seen.applied} to {applied} without applying"
            )
        seen.applied = applied
