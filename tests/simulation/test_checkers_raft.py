"""Each property of Raft, once kept and once broken in one way.

Method: nodes made by hand are shown to the checker as a world would, step by step.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftq.chaos.simulation.checkers.raft import Raft
from raftq.chaos.simulation.history import History, Violation
from raftq.replication.engine import NO_OP
from tests.simulation.seen import FakeNode, entry, put

A, B, C = (entry(put(body)) for body in "abc")


class Run:
    """A checker and the nodes that it was shown."""

    def __init__(self) -> None:
        self.history = History()
        self.raft = Raft(self.history)

    def started(self, name: str, *log: tuple[int, bytes], term: int = 1, commit: int = 1) -> FakeNode:
        node = FakeNode(name, log)
        node.term, node.commit_index, node.applied_index = term, commit, commit
        self.raft.started(node)
        return node

    def step(self, node: FakeNode, *log: tuple[int, bytes], **changes: object) -> None:
        """The node appends `log` and is changed in other ways, in one cycle."""
        node.log += log
        for name, value in changes.items():
            setattr(node, name, value)
        self.raft.stepped(node)

    def apply(self, node: FakeNode, index: int) -> None:
        term, command = node.log[index - 1]
        self.raft.entry_applied(node.id, index, term, command)

    def restart(self, node: FakeNode, **changes: object) -> None:
        node.restarted()
        for name, value in changes.items():
            setattr(node, name, value)
        self.raft.started(node)

    def breaks(self, invariant: str, act: Callable[[], object]) -> str:
        with pytest.raises(Violation) as caught:
            act()
        assert caught.value.invariant == invariant
        return caught.value.details


@pytest.fixture
def run() -> Run:
    return Run()


def test_an_ordinary_life_is_no_violation(run: Run) -> None:
    """Elections, replication, truncation of what was not committed, crashes, a snapshot, compaction."""
    one, two, three = (run.started(name) for name in ("n1", "n2", "n3"))
    run.step(one, (1, NO_OP), (1, A), term=1, role="leader")
    for node in (two, three):
        run.step(node, (1, NO_OP), (1, A), term=1)
    run.step(one, commit_index=3)
    run.apply(one, 2)
    run.apply(one, 3)
    run.step(one, (1, B), applied_index=3)
    run.step(two, (2, NO_OP), term=2, role="leader")
    run.step(three, (2, NO_OP), term=2)
    run.step(two, commit_index=4)
    run.restart(one, commit_index=1, applied_index=1)
    del one.log[3:]
    run.step(one, (2, NO_OP), term=2, commit_index=4)
    for index in (2, 3, 4):
        run.apply(one, index)
    run.step(one, applied_index=4, first_index=3)
    run.step(three, first_index=4, commit_index=4, applied_index=4)  # a snapshot
    run.step(two, (2, C))
    run.step(three, (2, C), commit_index=5)
    run.apply(three, 5)
    run.step(three, applied_index=5)
    run.raft.at_rest([two, three])


def test_two_leaders_of_a_term(run: Run) -> None:
    one, two = run.started("n1"), run.started("n2")
    run.step(one, role="leader")
    run.step(one)
    run.breaks("election safety", lambda: run.step(two, role="leader"))


def test_a_leader_that_leads_its_term_again_after_a_restart(run: Run) -> None:
    one = run.started("n1")
    run.step(one, role="leader")
    run.restart(one)
    run.breaks("election safety", lambda: run.step(one, role="leader"))


def test_two_entries_of_one_index_and_term(run: Run) -> None:
    one, two = run.started("n1"), run.started("n2")
    run.step(one, (1, A))
    details = run.breaks("log matching", lambda: run.step(two, (1, B)))
    assert "n2 has entry 2 of term 1" in details
    assert "n1 had entry 2 of term 1" in details


def test_one_entry_with_two_pasts(run: Run) -> None:
    one, two = run.started("n1", term=3), run.started("n2", term=3)
    run.step(one, (1, A), (3, C))
    run.breaks("log matching", lambda: run.step(two, (2, B), (3, C)))


def test_an_entry_exchanged_behind_the_end_of_the_log(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B))
    one.log[1] = (1, C)
    run.breaks("log matching", lambda: run.step(one, (1, B)))


def test_an_entry_exchanged_far_behind_the_end_is_found_at_rest(run: Run) -> None:
    one = run.started("n1")
    run.step(one, *[(1, A)] * 20)
    one.log[1] = (1, C)
    run.step(one, (1, B))
    run.breaks("log matching", lambda: run.raft.at_rest([one]))


def test_terms_that_go_down_along_a_log(run: Run) -> None:
    one = run.started("n1", term=2)
    run.breaks("log matching", lambda: run.step(one, (2, A), (1, B)))


def test_a_leader_without_what_was_committed(run: Run) -> None:
    one, two = run.started("n1"), run.started("n2")
    run.step(one, (1, A), commit_index=2)
    run.breaks("leader completeness", lambda: run.step(two, role="leader", term=2))


def test_a_leader_with_another_entry_in_the_place_of_what_was_committed(run: Run) -> None:
    one, two = run.started("n1", term=2), run.started("n2", term=2)
    run.step(one, (2, A), (2, B), commit_index=3)
    run.step(two, (1, C))
    run.breaks("leader completeness", lambda: run.step(two, role="leader", term=3))


def test_a_late_leader_of_an_old_term_need_not_have_what_a_later_term_committed(run: Run) -> None:
    one, two = run.started("n1"), run.started("n2")
    run.step(one, (3, A), term=3, commit_index=2)
    run.step(two, role="leader", term=2)


def test_two_commands_committed_at_one_index(run: Run) -> None:
    one, two = run.started("n1", term=2), run.started("n2", term=2)
    run.step(one, (1, A), commit_index=2)
    run.breaks("state machine safety", lambda: run.step(two, (2, B), commit_index=2))


def test_two_commands_applied_at_one_index(run: Run) -> None:
    one, two = run.started("n1", term=2), run.started("n2", term=2)
    run.step(one, (1, A))
    run.step(two, (2, B))
    run.apply(one, 2)
    run.breaks("state machine safety", lambda: run.apply(two, 2))


def test_a_committed_entry_that_is_truncated_and_replaced(run: Run) -> None:
    one = run.started("n1", term=2)
    run.step(one, (1, A), (1, B), commit_index=3)
    one.log[2] = (2, C)
    run.breaks("state machine safety", lambda: run.step(one))


def test_a_committed_entry_that_is_truncated(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    del one.log[2:]
    run.breaks("commit index", lambda: run.step(one))


def test_a_snapshot_of_another_history(run: Run) -> None:
    one, two = run.started("n1", term=2), run.started("n2", term=2)
    run.step(one, (1, A), (1, B), commit_index=3)
    two.log += [(1, A), (2, NO_OP)]
    run.breaks("state machine safety", lambda: run.step(two, first_index=3, commit_index=3, applied_index=3))


def test_a_commit_index_that_goes_back(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    run.breaks("commit index", lambda: run.step(one, commit_index=2))


def test_a_commit_index_may_begin_lower_after_a_restart(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    run.restart(one, commit_index=1)
    run.step(one)


def test_a_commit_index_beyond_the_log(run: Run) -> None:
    one = run.started("n1")
    run.breaks("commit index", lambda: run.step(one, (1, A), commit_index=3))


def test_an_applied_index_beyond_the_commit_index(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A))
    run.apply(one, 2)
    run.breaks("applied once", lambda: run.step(one, applied_index=2))


def test_an_entry_applied_twice(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    run.apply(one, 2)
    run.breaks("applied once", lambda: run.apply(one, 2))


def test_an_entry_that_is_skipped(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    run.breaks("applied once", lambda: run.apply(one, 3))


def test_an_applied_index_that_moves_without_applying(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), commit_index=2)
    run.breaks("applied once", lambda: run.step(one, applied_index=2))


def test_an_older_snapshot_over_newer_tables(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    run.apply(one, 2)
    run.apply(one, 3)
    run.step(one, applied_index=3)
    run.breaks("applied once", lambda: run.step(one, first_index=2, applied_index=2))


def test_tables_that_come_back_newer_than_they_were(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B), commit_index=3)
    run.breaks("applied once", lambda: run.restart(one, applied_index=3))


def test_a_term_that_goes_back(run: Run) -> None:
    one = run.started("n1", term=2)
    run.breaks("term", lambda: run.step(one, term=1))


def test_a_term_that_was_told_is_kept_over_a_restart(run: Run) -> None:
    one = run.started("n1", term=1)
    run.step(one, term=3)
    run.restart(one, term=1)  # nobody was told
    run.step(one, term=3)
    run.raft.sent("n1", "n2", {"type": "append_answer", "term": 3})
    run.breaks("term", lambda: run.restart(one, term=1))


def test_an_empty_folder_remembers_no_term(run: Run) -> None:
    one = run.started("n1", term=3)
    run.raft.sent("n1", "n2", {"type": "append_answer", "term": 3})
    run.restart(one, term=0, disk=2)


def test_two_votes_in_a_term(run: Run) -> None:
    one = run.started("n1", term=2)
    run.step(one, vote="n2")
    run.step(one, vote="n2")
    run.raft.sent("n1", "n2", {"type": "vote_answer", "term": 2, "asked": 2, "granted": True})
    run.raft.sent("n1", "n2", {"type": "vote_answer", "term": 2, "asked": 2, "granted": True})
    run.raft.sent("n1", "n3", {"type": "vote_answer", "term": 2, "asked": 2, "granted": False})
    run.restart(one)
    run.breaks(
        "one vote a term",
        lambda: run.raft.sent("n1", "n3", {"type": "vote_answer", "term": 2, "asked": 2, "granted": True}),
    )


def test_a_vote_that_was_told_and_is_forgotten(run: Run) -> None:
    one = run.started("n1", term=2)
    run.step(one, vote="n2")
    run.restart(one, vote=None)  # nobody was told
    run.step(one, vote="n3")
    run.raft.sent("n1", "n3", {"type": "vote_answer", "term": 2, "asked": 2, "granted": True})
    run.breaks("one vote a term", lambda: run.restart(one, vote=None))


def test_an_acknowledged_entry_that_is_lost_in_its_term(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A), (1, B))
    run.raft.sent("n1", "n2", {"type": "append_answer", "term": 1, "ok": True, "match": 2})
    run.raft.sent("n1", "n2", {"type": "append_answer", "term": 1, "ok": False, "match": 9})
    del one.log[2:]
    run.restart(one)
    del one.log[1:]
    run.breaks("acknowledged entries stay", lambda: run.restart(one))


def test_an_acknowledged_entry_may_be_truncated_in_a_later_term(run: Run) -> None:
    one = run.started("n1")
    run.step(one, (1, A))
    run.raft.sent("n1", "n2", {"type": "append_answer", "term": 1, "ok": True, "match": 2})
    del one.log[1:]
    run.step(one, term=2)


def test_a_leader_that_commits_an_entry_of_an_old_term_by_counting(run: Run) -> None:
    one, two = run.started("n1", term=2), run.started("n2", term=2)
    run.step(one, (1, A), role="leader", term=3)
    run.step(two, (1, A), commit_index=2)  # as a follower it may have been told so
    run.breaks("commit of the own term", lambda: run.step(one, (3, NO_OP), commit_index=2))


def test_a_candidate_that_votes_for_another(run: Run) -> None:
    one = run.started("n1", term=2)
    run.step(one, vote="n1")
    run.raft.sent("n1", "n2", {"type": "vote", "term": 2})
    run.breaks("one vote a term", lambda: run.step(one, vote="n2"))


def test_a_folder_that_was_exchanged_is_read_whole(run: Run) -> None:
    one = run.started("n1")
    run.step(one, *[(1, A)] * 10)
    one.log[1] = (1, C)
    run.breaks("log matching", lambda: run.restart(one, disk=2))


def test_an_offered_snapshot_is_one_that_the_log_goes_on_from(run: Run) -> None:
    node = run.started("n1", (1, A), (1, B), commit=3)
    node.first_index = 2
    run.raft.sent("n1", "n2", {"type": "snapshot_offer", "index": 2})
    run.breaks(
        "an offered snapshot is gone on from",
        lambda: run.raft.sent("n1", "n2", {"type": "snapshot_offer", "index": 1}),
    )
