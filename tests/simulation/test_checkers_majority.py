"""What a majority decided: each test makes a short run by hand, and then one thing in it wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftq.chaos.simulation.checkers.majority import Majorities
from raftq.chaos.simulation.checkers.raft import Raft
from raftq.chaos.simulation.history import History, Op, Seen, Violation
from raftq.storage.machine.commands import TakeDigest
from tests.simulation.seen import FakeNode, entry

A = entry(TakeDigest())


class Node(FakeNode):
    """`matches`: what it believes as a leader. `lost`: entries at the end of its log that are not on its disk."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.matches: dict[str, int] = {}
        self.lost = 0

    def match(self, node: str) -> int:
        return self.matches.get(node, 0)

    @property
    def durable_index(self) -> int:
        return len(self.log) - self.lost


class Run:
    """n1 leads term 1 by the vote of n2; n1 and n2 have entry 2."""

    def __init__(self) -> None:
        self.history = History()
        self.raft = Raft(self.history)
        self.majorities = Majorities(self.raft, self.history)
        self.one, self.two, self.three = self.nodes = [Node(name) for name in ("n1", "n2", "n3")]
        for node in self.nodes:
            self.start(node)
        self.say(self.two, self.one, type="vote_answer", term=1, asked=1, granted=True)

    def start(self, node: Node) -> None:
        self.raft.started(node)
        self.majorities.started(node)

    def step(self, node: Node) -> None:
        self.raft.stepped(node)
        self.majorities.stepped(node)

    def say(self, source: Node, target: Node, **message: object) -> None:
        self.raft.sent(source.id, target.id, message)
        self.majorities.sent(source.id, target.id, message)

    def led(self) -> Run:
        self.two.vote = "n1"
        for node in self.nodes:
            node.term = 1
            self.step(node)
        self.one.role = "leader"
        self.step(self.one)
        for node in (self.one, self.two):
            node.log.append((1, A))
            self.step(node)
        return self

    def acknowledged(self) -> Run:
        self.led()
        self.say(self.two, self.one, type="append_answer", term=1, ok=True, match=2)
        self.one.matches["n2"] = 2
        self.step(self.one)
        return self

    def breaks(self, invariant: str, act: Callable[[], object]) -> None:
        with pytest.raises(Violation) as caught:
            act()
        assert caught.value.invariant == invariant


@pytest.fixture
def run() -> Run:
    return Run()


def read(run: Run, applied: int) -> None:
    op = Op(1, "c1", "read", b"", "n1", 1.0)
    run.majorities.invoked(op)
    op.returned_at, op.outcome, op.view = 2.0, "ok", Seen(applied, None)
    run.majorities.returned(op)


def test_a_run_in_which_all_is_well(run: Run) -> None:
    run.acknowledged()
    run.one.commit_index = 2
    run.step(run.one)
    read(run, 2)


def test_a_leader_without_a_majority_of_votes(run: Run) -> None:
    run.three.term, run.three.role = 1, "leader"
    run.breaks("elected by a majority", lambda: run.step(run.three))


def test_a_vote_that_is_told_twice_counts_once(run: Run) -> None:
    for node in run.nodes:
        node.voters = lambda: ("n1", "n2", "n3", "n4", "n5")  # type: ignore[method-assign]
        run.majorities.started(node)
    run.say(run.two, run.one, type="vote_answer", term=1, asked=1, granted=True)
    run.one.term, run.one.role, run.two.vote = 1, "leader", "n1"
    run.breaks("elected by a majority", lambda: run.step(run.one))


def test_a_commit_of_what_one_alone_has(run: Run) -> None:
    run.led()
    run.two.log.pop()
    run.step(run.two)
    run.one.commit_index = 2
    run.breaks("committed on a majority", lambda: run.step(run.one))


def test_a_commit_of_what_is_not_on_the_disks(run: Run) -> None:
    run.led()
    run.one.lost, run.one.commit_index = 1, 2
    run.breaks("committed on a majority", lambda: run.step(run.one))


def test_a_commit_of_what_a_dead_node_has(run: Run) -> None:
    """It is on its disk."""
    run.acknowledged()
    run.two.log.clear()  # nobody looks at a node that is down
    run.one.commit_index = 2
    run.step(run.one)


def test_a_belief_that_nobody_told(run: Run) -> None:
    run.led().one.matches["n2"] = 2
    run.breaks("a leader's beliefs", lambda: run.step(run.one))


def test_a_belief_of_another_term(run: Run) -> None:
    run.acknowledged()
    run.say(run.two, run.one, type="vote_answer", term=3, asked=3, granted=True)
    run.one.term = 3
    run.breaks("a leader's beliefs", lambda: run.step(run.one))


def test_a_belief_in_another_entry(run: Run) -> None:
    run.acknowledged()
    run.one.log[-1] = (0, A)
    run.raft.terms("n1")[2] = 0
    run.breaks("a leader's beliefs", lambda: run.majorities.stepped(run.one))


def test_a_belief_in_a_folder_that_was_wiped_holds_until_it_answers(run: Run) -> None:
    run.acknowledged()
    run.two.disk += 1
    run.two.log.pop()
    run.start(run.two)
    run.step(run.one)
    run.say(run.two, run.one, type="append_answer", term=1, ok=False, match=0)
    run.breaks("a leader's beliefs", lambda: run.step(run.one))


def test_a_member_that_went_on_to_a_later_term(run: Run) -> None:
    run.acknowledged()
    run.two.term = 2
    run.two.log.pop()
    run.step(run.two)
    run.step(run.one)


def test_a_read_that_misses_what_was_committed(run: Run) -> None:
    run.acknowledged()
    run.one.commit_index = 2
    run.step(run.one)
    run.breaks("reads see what was committed", lambda: read(run, 1))


def test_a_commit_is_judged_when_it_is_told_too() -> None:
    """Between two steps of the leader: by the next one its entry would be on its disk."""
    run = Run().acknowledged()
    run.one.log.append((1, A))
    run.one.lost = 1
    run.step(run.one)
    run.two.log.append((1, A))
    run.step(run.two)
    run.say(run.two, run.one, type="append_answer", term=1, ok=True, match=3)
    run.one.matches["n2"] = run.one.commit_index = 3
    told = {"type": "append", "term": 1, "commit": 3}
    run.breaks("committed on a majority", lambda: run.say(run.one, run.two, **told))
    run.one.lost = 0
    run.say(run.one, run.two, **told)
