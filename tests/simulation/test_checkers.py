"""The front of the checkers: each judge is told what it has to know, and asked at rest.

Method: a short run of three nodes and one client, made by hand; then one thing in it is made wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftq.chaos.simulation.checkers import Checkers, Liveness
from raftq.chaos.simulation.checkers.queue import Replica, digest
from raftq.chaos.simulation.history import Op, Violation
from raftq.replication.engine import NO_OP
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.replies import Enqueued
from tests.simulation.seen import Attempts, FakeNode, entry, put

A = entry(put("a"))
TOLD = Enqueued(1, [(0, 1, 1)])


class Run:
    def __init__(self) -> None:
        self.checkers = Checkers()
        self.client = Attempts(self.checkers)
        self.replica = Replica()
        self.nodes = [FakeNode(name) for name in ("n1", "n2", "n3")]
        for node in self.nodes:
            node.term = 1
            node.txn = self.replica.tables
            node.digested = (1, digest(self.replica.tables))
            self.checkers.started(node)
        self.checkers.sent("n2", "n1", {"type": "vote_answer", "term": 1, "asked": 1, "granted": True})
        self.nodes[1].vote = "n1"
        self.checkers.sent("n2", "n1", {"type": "vote_answer", "term": 1, "asked": 1, "granted": True})
        self.nodes[0].role = "leader"

    def commit(self, command: bytes) -> int:
        """On all nodes; its index."""
        index = len(self.nodes[0].log) + 1
        self.replica.apply(index, 1, command)
        for node in self.nodes:
            node.log.append((1, command))
            self.checkers.stepped(node)
        for node in self.nodes:
            node.commit_index = index
            self.checkers.stepped(node)
            self.checkers.entry_applied(node.id, index, 1, command)
            node.applied_index, node.digested = index, (index, digest(self.replica.tables))
            self.checkers.stepped(node)
        return index

    def write(self) -> Op:
        op = self.client.begin(put("a"))
        return self.client.end(op, "ok", self.commit(A), 0, TOLD)

    def breaks(self, invariant: str, act: Callable[[], object]) -> None:
        with pytest.raises(Violation) as caught:
            act()
        assert caught.value.invariant == invariant


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_run_without_a_violation(run: Run) -> None:
    run.commit(NO_OP)
    liveness = run.checkers.liveness = Liveness(0.0, 0.5)
    run.write()
    assert liveness.reached(1.0, list(run.nodes), idle=True)
    run.checkers.at_rest(list(run.nodes))


def test_logs_are_read_whole_at_rest(run: Run) -> None:
    for _ in range(10):
        run.commit(NO_OP)
    run.nodes[1].log[1] = (1, A)
    run.breaks("log matching", lambda: run.checkers.at_rest(list(run.nodes)))


def test_messages_are_judged(run: Run) -> None:
    run.checkers.sent("n1", "n2", {"type": "vote_answer", "term": 1, "asked": 1, "granted": True})
    again = {"type": "vote_answer", "term": 1, "asked": 1, "granted": True}
    run.breaks("one vote a term", lambda: run.checkers.sent("n1", "n3", again))


def test_what_is_applied_is_judged(run: Run) -> None:
    run.commit(NO_OP)
    run.breaks("applied once", lambda: run.checkers.entry_applied("n1", 2, 1, NO_OP))


def test_operations_are_judged_as_the_log_grows(run: Run) -> None:
    run.client.end(run.client.begin(put("a")), "no")
    run.breaks("refused is not applied", lambda: run.commit(A))


def test_operations_are_judged_at_rest(run: Run) -> None:
    run.client.end(run.client.begin(put("a")), "ok", 2, 0, TOLD)
    run.breaks("no acknowledged operation lost", lambda: run.checkers.at_rest(list(run.nodes)))


def test_nodes_that_do_not_agree_are_not_at_rest(run: Run) -> None:
    run.nodes[1].role = "leader"
    run.breaks("convergence", lambda: run.checkers.at_rest(list(run.nodes)))


def test_digests_are_compared_with_the_log_at_rest(run: Run) -> None:
    run.write()
    for node in run.nodes:
        node.txn = MemoryTxn()
    run.breaks("equal digests", lambda: run.checkers.at_rest(list(run.nodes)))


def test_digests_are_compared_as_nodes_run(run: Run) -> None:
    for _ in range(126):
        run.commit(NO_OP)
    one, two, _ = run.nodes
    for node in (one, two):
        node.log.append((1, NO_OP))
        node.role = "follower"
        run.checkers.stepped(node)
    for node in (one, two):
        node.commit_index = 128
        run.checkers.entry_applied(node.id, 128, 1, NO_OP)
        node.applied_index, node.digested = 128, (128, f"of {node.id}")
    run.checkers.stepped(one)
    run.breaks("equal digests", lambda: run.checkers.stepped(two))


def test_tables_are_read_whole_at_rest(run: Run) -> None:
    run.write()
    tables = run.nodes[1].txn = MemoryTxn()
    for key, value in sorted(run.replica.tables.values.items())[1:]:
        tables.put(key, value)
    run.breaks("one holder a message", lambda: run.checkers.at_rest(list(run.nodes)))
