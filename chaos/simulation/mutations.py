"""Ways to break the engine, each of which the simulator must notice: the proof that its checkers bite.

A mutation replaces pieces of source that occur exactly once (a test holds that for all of them, so that none can rot in
silence) before the modules are imported (`rewriting`). What is broken is a rule that safety or progress rests on, not
something that costs speed alone. `teeth` runs them all.

Imports nothing of the cluster: a process decides here which source it runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple


class Edit(NamedTuple):
    """In a module of `raftq.replication`."""

    module: str
    old: str
    new: str


class Mutation(NamedTuple):
    name: str
    #: What is broken, in one line.
    breaks: str
    edits: tuple[Edit, ...]
    #: A seed that was seen to find it. A search begins anew where it does not any more.
    seed: int = 0
    #: Members at the beginning, where it takes so many. None: by the seed.
    nodes: int | None = None
    #: The storm that it takes (`faults.WEATHERS`). None: by the seed.
    weather: str | None = None


def transformers(name: str) -> dict[str, Callable[[str], str]]:
    """Of a mutation's name: module -> what its source becomes. Raises ValueError where the source has changed."""
    found: dict[str, Callable[[str], str]] = {}
    edits = MUTATIONS[name].edits
    for module in {edit.module for edit in edits}:
        found[f"raftq.replication.{module}"] = partial(_replaced, [edit for edit in edits if edit.module == module])
    return found


def _replaced(edits: list[Edit], source: str) -> str:
    for edit in edits:
        if source.count(edit.old) != 1:
            raise ValueError(f"{edit.module} holds {source.count(edit.old)} times, not once: {edit.old!r}")
        source = source.replace(edit.old, edit.new)
    return source


def _engine(old: str, new: str) -> Edit:
    return Edit("engine", old, new)


def _cycle(old: str, new: str) -> Edit:
    return Edit("cycle", old, new)


def _journal(old: str, new: str) -> Edit:
    return Edit("journal", old, new)


_ALL: Final = (
    # What is durable
    Mutation(
        "skip-the-commit",
        "Answers and votes leave before what they promise is on disk.",
        (
            _cycle(
                "            if self._must_commit():\n",
                "            self._send(self._engine.held)\n            if self._must_commit():\n",
            ),
        ),
    ),
    Mutation(
        "count-self-early",
        # Raft is not stepped while a commit runs: with more than one voter that has to be broken too.
        "A leader counts itself for entries that are not on its disk, and commits while its own commit runs.",
        (
            _engine("            return self.journal.durable_index\n", "            return self.journal.last_index\n"),
            _cycle(
                "        self._inbox.append((node, message))\n",
                '        if self._committing is not None and message["type"] == "append_answer":\n'
                "            self._engine.step(node, message)\n"
                "            self._engine.advance()\n"
                "            self._engine.broadcast() if self._engine.is_leader else None\n"
                "            self._send(self._engine.outbox)\n"
                "            return\n"
                "        self._inbox.append((node, message))\n",
            ),
        ),
    ),
    Mutation(
        "forget-the-vote",
        "A node that starts again does not know whom it voted for.",
        (_engine("self.__votedForNodeId = journal.getVotedForNodeId() if", "self.__votedForNodeId = None if"),),
    ),
    Mutation(
        "forget-the-term",
        "A term without a vote in it is not written.",
        (
            _journal(
                "            self._ballot_pending = True\n",
                "            self._ballot_pending = votedForNodeId is not None\n",
            ),
        ),
        seed=5,
    ),
    Mutation(
        "apply-twice-after-a-restart",
        "The applied index on disk is one behind the tables.",
        (_cycle("_U64.pack(self._applied_next)", "_U64.pack(self._applied_next - 1)"),),
    ),
    Mutation(
        "applied-index-without-its-tables",
        "The applied index is written, the tables that go with it are not.",
        (_cycle("        batch.tables = self._overlay.take()\n", "        self._overlay.take()\n"),),
    ),
    Mutation(
        "truncation-stays-in-memory",
        "What is cut off the log stays on disk, behind what comes in its place.",
        (
            _journal(
                "batch.truncate_from, self._truncate_from = self._truncate_from, None",
                "batch.truncate_from = self._truncate_from = None",
            ),
        ),
        seed=5,
    ),
    Mutation(
        "durable-index-not-lowered",
        "After a truncation the log counts as durable up to where it was before.",
        (_journal("            self.durable_index = index - 1\n", ""),),
        seed=5,
    ),
    # The log
    Mutation(
        "truncate-always",
        "A follower cuts its log behind every append, whether anything conflicts or not.",
        (
            _engine(
                "if index <= self.__raftCommitIndex or journal.term_at(index) == term:",
                "if index <= self.__raftCommitIndex:",
            ),
        ),
    ),
    Mutation(
        "skip-log-matching",
        "An append is taken in if there is an entry before it, whatever its term.",
        (
            _engine(
                "        return bool(self.journal.term_at(index) == term)\n",
                "        return self.journal.term_at(index) is not None\n",
            ),
        ),
        seed=1,
    ),
    Mutation(
        "commit-beyond-what-was-verified",
        "A follower commits to the end of its log, not of what the leader's append verified.",
        (
            _engine(
                'commit = min(message["commit"], verified)', 'commit = min(message["commit"], self.journal.last_index)'
            ),
        ),
        seed=2,
        weather="divergence",
    ),
    Mutation(
        "match-what-was-not-verified",
        "A follower answers an append with the end of its log.",
        (_engine("ok=True, match=verified, hint=0)", "ok=True, match=self.journal.last_index, hint=0)"),),
        seed=1,
        weather="divergence",
    ),
    Mutation(
        "ignore-the-term-in-an-answer",
        "An answer of an old term raises the match index in a new one.",
        (
            _engine(
                'message["term"] != self.__raftCurrentTerm or node not in self._progress', "node not in self._progress"
            ),
        ),
        weather="stalls",
    ),
    Mutation(
        "commit-an-older-term-by-counting",
        "A leader commits an entry of an earlier term as soon as a majority has it.",
        (
            _engine(
                "if index > self.__raftCommitIndex and self.journal.term_at(index) == self.__raftCurrentTerm:",
                "if index > self.__raftCommitIndex:",
            ),
        ),
        seed=2,
    ),
    Mutation(
        "commit-without-a-majority",
        "One node is enough to commit.",
        (_engine("        index = matches[self.majority() - 1]\n", "        index = matches[0]\n"),),
    ),
    Mutation(
        "tell-more-than-is-committed",
        "A leader tells followers that all of its log is committed.",
        (_engine('            "commit": self.__raftCommitIndex,\n', '            "commit": journal.last_index,\n'),),
    ),
    Mutation(
        "never-go-back",
        "A leader does not go back to where a follower's log agrees with its own.",
        (_engine('        wanted = min(refused, message["hint"] + 1)\n', "        wanted = refused + 1\n"),),
    ),
    # Elections
    Mutation(
        "votes-per-message",
        "Two copies of one vote count as two.",
        (
            _engine(
                "        self._votes.add(node)\n",
                '        self._votes.add(node if node == self.id else f"{node} {len(self._votes)}")\n',
            ),
        ),
        seed=1,
        nodes=5,
        weather="elections",
    ),
    Mutation(
        "vote-for-a-shorter-log",
        "A node votes for whoever asks, whatever its log lacks.",
        (
            _engine(
                '        return (message["last_term"], message["last_index"]) >= mine\n', "        return bool(mine)\n"
            ),
        ),
        seed=3,
    ),
    Mutation(
        "vote-twice-in-a-term",
        "A node votes for every candidate of a term.",
        (_engine("            and self.__votedForNodeId in (None, node)\n", ""),),
    ),
    Mutation(
        "vote-in-a-term-that-is-over",
        "A node votes in a term earlier than its own.",
        (
            _engine(
                "            term == self.__raftCurrentTerm\n            and self.__votedForNodeId",
                "            term <= self.__raftCurrentTerm\n            and self.__votedForNodeId",
            ),
        ),
        nodes=5,
        weather="elections",
    ),
    Mutation(
        "lead-on-in-a-higher-term",
        "A leader that hears of a higher term leads on, in its own.",
        (
            _engine(
                "        if term > self.__raftCurrentTerm and not asks_for_votes:\n",
                "        if term > self.__raftCurrentTerm and not asks_for_votes and not self.is_leader:\n",
            ),
        ),
        seed=4,
    ),
    Mutation(
        "lose-what-is-held",
        "Answers and votes that waited for a commit never leave.",
        (
            _cycle(
                "            self._engine.durable()\n            self._send(self._engine.held)\n",
                "            self._engine.durable()\n            self._engine.held.clear()\n",
            ),
        ),
    ),
    # Reads
    Mutation(
        "read-without-a-round",
        "A leader answers reads without asking whether it still leads.",
        (_cycle("self._reads.begin(engine.commit_index, engine.round)", "self._reads.begin(engine.commit_index, 0)"),),
        seed=7,
    ),
    Mutation(
        "count-stale-rounds",
        "Any answer confirms the newest round, whichever round it echoes.",
        (
            _engine(
                "        if sent is not None and number > progress.round:\n"
                "            progress.round, progress.confirmed = number, max(progress.confirmed, sent)",
                "        if sent is not None:\n"
                "            progress.round, progress.confirmed = self._round, self.clock()",
            ),
        ),
        weather="stalls",
        nodes=3,
        seed=25,
    ),
    Mutation(
        "read-before-the-own-term",
        "A new leader answers reads before it knows what is committed.",
        (
            _cycle(
                "if self._reads.waiting and engine.own_term_committed:", "if self._reads.waiting and engine.is_leader:"
            ),
        ),
        seed=2,
    ),
    Mutation(
        "read-before-applied",
        "A read is answered from tables that are behind the commit index.",
        (Edit("pending", " and self.begun[0][0] <= applied_index:", ":"),),
        seed=1,
    ),
    # What clients are told
    Mutation(
        "refuse-what-may-be-committed",
        "A deposed leader says of what is in its log that it certainly was not applied.",
        (
            Edit(
                "pending",
                '        _end(waiters, lambda: OutcomeUnknown("leadership was lost before a majority confirmed"))\n',
                "        _end(waiters, lambda: NotLeader(None))\n",
            ),
        ),
        seed=2,
    ),
    # Time
    Mutation(
        "wall-time-goes-back",
        "The wall time of entries follows the median also when that goes back.",
        (Edit("clock", "max(self._last.wall_ms, wall_ms))", "wall_ms)"),),
    ),
    Mutation(
        "lease-time-begins-anew",
        "A new leader goes on from the last applied entry's clocks, not from the last one's in its log.",
        (
            _cycle(
                "self._clock.lead(self._last_clocks(), engine.majority())",
                "self._clock.lead(self._clocks, engine.majority())",
            ),
            Edit("clock", "Clocks(max(last.lease_ms, self._told_lease_ms), last.wall_ms)", "last"),
        ),
        seed=1,
    ),
    # Members
    Mutation(
        "learners-count-as-voters",
        "A leader counts a learner's copy towards the majority.",
        (
            _engine(
                "matches = sorted((self.match_index(voter) or 0 for voter in self.voters), reverse=True)",
                "matches = sorted((self.match_index(each) or 0 for each in self.configuration.members), reverse=True)",
            ),
        ),
    ),
    Mutation(
        "two-changes-at-once",
        "A leader changes the members again before the last change is committed.",
        (
            _engine(
                "if not self.own_term_committed or self.memberships.index > self.__raftCommitIndex or self.transferring:",
                "if not self.own_term_committed or self.transferring:",
            ),
            Edit("changes", "engine.memberships.index > engine.commit_index or ", ""),
        ),
        seed=3,
    ),
    Mutation(
        "configuration-survives-truncation",
        "A configuration that is cut off the log stays in force.",
        (_engine("                self.memberships.truncate(index)\n", ""),),
        seed=7,
    ),
    Mutation(
        "a-new-folder-counts-as-the-old-one",
        "A node that was replaced by its own name is believed to have what its old folder had.",
        (_engine("(node not in self._progress or self._is_new(node))", "node not in self._progress"),),
        seed=3,
    ),
    Mutation(
        "admit-an-emptied-folder",
        "A node that comes with another folder under its name takes part.",
        (
            Edit(
                "roster",
                "        if hello.node_uuid != uuid or hello.node_uuid == member.void:\n",
                "        if not uuid:\n",
            ),
            _cycle(
                "        return member.uuid in (None, hello.node_uuid) and member.void != hello.node_uuid\n",
                "        return bool(hello.node_uuid)\n",
            ),
        ),
        seed=6,
    ),
    Mutation(
        "admit-an-old-copy",
        "A node that comes with an old copy of its folder takes part.",
        (
            Edit("roster", "        if hello.boot < known.boot:\n", "        if hello.boot < 0:\n"),
            Edit("roster", "        if hello.last_index < known.match:\n", "        if hello.last_index < 0:\n"),
        ),
        seed=3,
    ),
    # Snapshots
    Mutation(
        "install-an-old-snapshot",
        "A follower installs whatever snapshot it is offered, also one below its commit index.",
        (
            _cycle(
                "        return index <= self._engine.commit_index or self._journal.term_at(index) == term\n",
                "        return index < 0 < term\n",
            ),
            _engine(
                "        if applied <= self.__raftCommitIndex or self.is_leader:\n", "        if self.is_leader:\n"
            ),
        ),
        seed=2,
    ),
    Mutation(
        "take-the-senders-vote-from-a-snapshot",
        "A snapshot brings the term and the vote of the one who made it.",
        (
            _cycle(
                "meta = self.environment.metas() | head.meta()\n",
                'meta = self.environment.metas() | head.meta() | {"term": _U64.pack(head.term), "vote": (self._engine.leader or "").encode()}\n',
            ),
            _engine(
                "        if (term, vote) != (self.__raftCurrentTerm, self.__votedForNodeId):\n",
                "        if term < 0:\n",
            ),
        ),
        seed=5,
    ),
    Mutation(
        "compact-below-a-transfer",
        "A leader cuts the log after a snapshot that is on its way, and goes on offering that snapshot.",
        (
            _cycle(
                "engine.pinned = [] if self._sender.pinned_index is None else [self._sender.pinned_index]",
                "engine.pinned = []",
            ),
            Edit(
                "transfer",
                "        elif self._held.head.index < log_first:\n",
                "        elif self._held.head.index < 0:\n",
            ),
        ),
    ),
    # Digests
    Mutation(
        "digest-of-another-index",
        "Applying goes on while a digest is due, so that it is of a later state.",
        (
            _cycle(
                "while engine.applied_index < engine.commit_index and not self._digests.due:",
                "while engine.applied_index < engine.commit_index:",
            ),
            _cycle(
                "                if index > engine.commit_index or self._digests.due or budget < 0:\n",
                "                if index > engine.commit_index or budget < 0:\n",
            ),
        ),
        seed=1,
    ),
)

MUTATIONS: Final = {mutation.name: mutation for mutation in _ALL}
