"""Configurations: each test makes a short run by hand, and then one thing in it wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftq.chaos.simulation.checkers.members import Members
from raftq.chaos.simulation.checkers.raft import Raft
from raftq.chaos.simulation.history import History, Violation
from raftq.replication import membership
from raftq.replication.engine import CONFIGURATION, NO_OP
from raftq.replication.membership import Configuration
from tests.simulation.seen import FakeNode

THREE = membership.bootstrap({"n1": "n1", "n2": "n2", "n3": "n3"})
TWO = THREE.without("n3")
ONE = TWO.without("n2")


def change(configuration: Configuration, term: int = 1) -> tuple[int, bytes]:
    return term, CONFIGURATION + configuration.encode()


class Run:
    """n1 leads term 1, and has committed the no-op of its term."""

    def __init__(self) -> None:
        self.history = History()
        self.raft = Raft(self.history)
        self.members = Members(self.raft, self.history)
        self.one = FakeNode("n1", [(1, NO_OP)])
        self.one.term, self.one.commit_index, self.one.role = 1, 2, "leader"
        self.raft.started(self.one)
        self.step()

    def step(self, *log: tuple[int, bytes], **changes: object) -> None:
        self.one.log += log
        for name, value in changes.items():
            setattr(self.one, name, value)
        self.raft.stepped(self.one)
        self.members.stepped(self.one)

    def breaks(self, invariant: str, act: Callable[[], object]) -> None:
        with pytest.raises(Violation) as caught:
            act()
        assert caught.value.invariant == invariant


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_change_is_in_force_from_its_entry_on_and_the_next_follows_its_commit(run: Run) -> None:
    run.step(change(TWO), configuration=TWO)
    run.step(commit_index=3)
    run.step(change(ONE), configuration=ONE)


def test_a_configuration_that_is_not_acted_on(run: Run) -> None:
    run.breaks("the configuration in force", lambda: run.step(change(TWO)))


def test_a_configuration_that_is_cut_off_the_log_is_in_force_no_more(run: Run) -> None:
    run.step(change(TWO), configuration=TWO, commit_index=3)
    run.step(change(ONE), configuration=ONE)
    run.one.log = run.one.log[:3]
    run.breaks("the configuration in force", lambda: run.step((2, NO_OP), role="follower", term=2))
    run.step(configuration=TWO)


def test_of_a_log_that_holds_none_it_is_the_last_one_committed_before(run: Run) -> None:
    run.step(change(TWO), (1, NO_OP), configuration=TWO, commit_index=4)
    run.step(first_index=4)
    run.breaks("the configuration in force", lambda: run.step(configuration=THREE))


def test_a_second_change_before_the_first_is_committed(run: Run) -> None:
    run.step(change(TWO), configuration=TWO)
    run.breaks("one change at a time", lambda: run.step(change(ONE), configuration=ONE))


def test_a_change_before_an_entry_of_the_term_is_committed(run: Run) -> None:
    act = lambda: run.step((2, NO_OP), change(TWO, 2), term=2, configuration=TWO)  # noqa: E731
    run.breaks("the first change of a term", act)


def test_what_other_terms_left_in_the_log_is_not_its_own(run: Run) -> None:
    run.step(change(TWO), configuration=TWO, role="follower")
    run.step((3, NO_OP), role="leader", term=3)
