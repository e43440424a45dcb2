"""What a majority decided, as one can only see who sees all nodes at once: who leads, and what is committed.

A leader has the votes of a majority of its voters, as these told it. It believes of a member only what that member told
in this term, and has on its disk. What it commits is on the disks of a majority. A vote or an acknowledgement once
given binds, so all of this holds exactly at every step of a leader; and each tells of a mistake long before the
accident that it takes to make something of it.

A read sees all that any node knew to be committed when it was invoked: ReadIndex promises that much, which is more than
linearizability asks for.

The voters of a leader may change in the step that is looked at: those before it will do as well.
"""

from __future__ import annotations

from raftq.chaos.simulation.checkers.raft import Raft
from raftq.chaos.simulation.history import History, NodeView, Op, Violation


class _Disk:
    """What is on the disk of a node, up or down; in which term it was last, and whom it would ask."""

    def __init__(self, view: NodeView) -> None:
        self.folder, self.first, self.durable = view.disk, view.first_index, view.durable_index
        self.term, self.voters = view.term, view.voters()


class Majorities:
    def __init__(self, raft: Raft, history: History) -> None:
        self._raft, self._history = raft, history
        #: Of each read under way: what was committed when it was invoked.
        self._committed: dict[int, int] = {}
        self._disks: dict[str, _Disk] = {}
        #: Nodes whose folder was wiped or exchanged, and has not answered a leader yet: what is believed of them was
        #: true of the folder before.
        self._void: set[str] = set()
        #: (term, member) -> up to where it told in that term that it has the leader's log.
        self._told: dict[tuple[int, str], int] = {}
        #: (term, candidate) -> who told it that it has its vote.
        self._votes: dict[tuple[int, str], set[str]] = {}
        #: Who leads a term, and up to where its commits were looked at.
        self._leading: dict[str, tuple[int, int]] = {}

    def started(self, view: NodeView) -> None:
        before = self._disks.get(view.id)
        if before is not None and before.folder != view.disk:
            self._void.add(view.id)
        self._disks[view.id] = _Disk(view)
        self._leading.pop(view.id, None)

    def stepped(self, view: NodeView) -> None:
        before, now = self._disks[view.id].voters, _Disk(view)
        self._disks[view.id] = now
        if view.role != "leader":
            self._leading.pop(view.id, None)
            return
        term, commit = view.term, view.commit_index
        led, looked = self._leading.get(view.id, (0, 0))
        if led != term:
            elected_by = self._votes.get((term, view.id), set()) | {view.id}
            self._check("elected by a majority", elected_by, now.voters, before, f"{view.id} leads term {term}")
        elif commit > looked:
            self._check_commit(view, now.voters, before)
        self._leading[view.id] = (term, commit)
        self._check_beliefs(view, now.voters)

    def _check_commit(self, view: NodeView, voters: tuple[str, ...], before: tuple[str, ...]) -> None:
        commit = view.commit_index
        entry = view.term_at(commit)
        held_by = {node for node in {*voters, *before} if self._holds(node, commit, entry)}
        what = f"{view.id}, leader of term {view.term}, committed entry {commit} of term {entry}"
        self._check("committed on a majority", held_by, voters, before, what)

    def _check_beliefs(self, view: NodeView, voters: tuple[str, ...]) -> None:
        """What a member told in this term it has, unless it has gone on to a later one, or forgot all."""
        term = view.term
        for node in voters:
            match = view.match(node)
            if node == view.id or match == 0:
                continue
            what = f"{view.id}, leader of term {term}, believes that {node} has its log up to {match}"
            told = self._told.get((term, node), 0)
            if match > told:
                raise Violation("a leader's beliefs", f"{what}, but in this term it told of {told}")
            disk = self._disks[node]
            if node in self._void or match < view.first_index or disk.term > term:
                continue
            if not self._holds(node, match, view.term_at(match)):
                raise Violation("a leader's beliefs", f"{what}, but its log there is another, or ends before")

    def sent(self, node: str, target: str, message: dict[str, object]) -> None:
        kind = message["type"]
        if kind == "append":
            self._told_commit(self._raft.view(node))
        if kind == "append_answer":  # it may crash before its step ends
            self._disks[node] = _Disk(self._raft.view(node))
            self._void.discard(node)
            term, match = message["term"], message["match"]
            assert isinstance(term, int)
            assert isinstance(match, int)
            if message["ok"]:
                self._told[term, node] = max(self._told.get((term, node), 0), match)
        elif kind == "vote":
            self._vote(message["term"], node, node)
        elif kind == "vote_answer" and message.get("granted"):
            self._vote(message["asked"], target, node)

    def _told_commit(self, view: NodeView) -> None:
        """A leader tells what is committed, within a step or between two."""
        led, looked = self._leading.get(view.id, (0, 0))
        if view.role == "leader" and led == view.term and view.commit_index > looked:
            before, now = self._disks[view.id].voters, _Disk(view)
            self._disks[view.id] = now
            self._check_commit(view, now.voters, before)
            self._leading[view.id] = (led, view.commit_index)

    def invoked(self, op: Op) -> None:
        if op.kind == "read":
            self._committed[op.id] = self._history.last

    def returned(self, op: Op) -> None:
        committed = self._committed.pop(op.id, 0)
        if op.view is not None and op.view.applied_index < committed:
            raise Violation(
                "reads see what was committed",
                f"read {op.id} of {op.client} at {op.node}, {op.invoked_at:.6f} to {op.returned_at:.6f}, saw index "
                f"{op.view.applied_index}, but {committed} was committed when it was invoked",
            )

    def _vote(self, term: object, candidate: str, voter: str) -> None:
        assert isinstance(term, int)
        self._votes.setdefault((term, candidate), set()).add(voter)

    def _holds(self, node: str, index: int, term: int | None) -> bool:
        disk = self._disks.get(node)
        if disk is None:
            return False
        return index <= disk.first or (index <= disk.durable and self._raft.terms(node).get(index) == term)

    @staticmethod
    def _check(invariant: str, found: set[str], voters: tuple[str, ...], before: tuple[str, ...], what: str) -> None:
        if not any(2 * len(found.intersection(each)) > len(each) for each in (voters, before)):
            raise Violation(invariant, f"{what}, by {sorted(found)} of {sorted(voters)}")
