"""Each promise to a client, once kept and once broken in one way.

Method: the log is committed by hand, and a client is told what a test wants it to be told. The right replies come from
the real machine, which shares nothing with the model that the checker asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raftq.chaos.simulation.checkers.linearizable import Linearizable
from raftq.chaos.simulation.history import History, Op, Violation, decoded
from raftq.chaos.simulation.questions import Find, Info, Names, Peek
from raftq.replication.engine import NO_OP
from raftq.storage.machine import commands
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.commands import Ack, Command, Enqueue, Expire, Lease, Nack, Request, Slots
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Leased
from tests.simulation.seen import Attempts, entry, put

Q = "default/q"


class Run:
    def __init__(self) -> None:
        self.history = History()
        self.judge = Linearizable(self.history)
        self.client = Attempts(self.judge)
        self.machine = Machine(MemoryTxn())
        self.index = 1
        #: (index, position) -> what the machine answered, and gave.
        self.replies: dict[tuple[int, int], tuple[Any, Any]] = {}

    def commit(self, *given: Command, **clocks: int) -> int:
        """One more entry; its index."""
        return self.commit_bytes(entry(*given, **clocks) if given else NO_OP)

    def commit_bytes(self, command: bytes) -> int:
        self.index += 1
        inside = decoded(command)
        if inside is not None:
            meta = Meta(self.index, 0, 1, *inside[0])
            for position, data in enumerate(inside[1]):
                meta.position = position
                reply, _ = self.machine.apply(meta, commands.decode(data))
                given = self.machine.deliveries(reply) if isinstance(reply, Leased) else None
                self.replies[self.index, position] = reply, given
            self.machine.end_entry(meta)
        self.history.commit(self.index, 1, command, "n1", 1)
        self.judge.follow()
        return self.index

    def end(self, op: Op, index: int, position: int = 0, **told: Any) -> Op:
        """Told as it was."""
        reply, messages = self.replies.get((index, position), (None, None))
        told = {"reply": reply, "messages": messages} | told
        return self.client.end(op, "ok", index, position, **told)

    def do(self, command: Command, **told: Any) -> Op:
        """An operation from begin to end, in an entry of its own."""
        op = self.client.begin(command)
        return self.end(op, self.commit(command), **told)

    def see(self, question: Any) -> Any:
        return question.of_view(self.machine.view())

    def breaks(self, invariant: str, act: Callable[[], object]) -> str:
        with pytest.raises(Violation) as caught:
            act()
        assert caught.value.invariant == invariant
        return caught.value.details


@pytest.fixture
def run() -> Run:
    return Run()


def test_an_ordinary_history_is_no_violation(run: Run) -> None:
    run.do(put("a", count=3))
    leased = run.do(Lease(Q, 2)).reply
    late = run.client.begin(put("b"))
    run.do(Ack(Q, leased.queue_number, [Slots(leased.lease_id, [0])]))
    run.do(Nack(Q, leased.queue_number, [Slots(leased.lease_id, [1])], 500))
    lost, refused, again = (run.client.begin(put(body)) for body in ("lost", "refused", "again"))
    read = run.client.begin(None, Info(Q))
    seen, at = run.see(Info(Q)), run.index
    run.end(late, run.commit(put("b")))
    run.client.end(read, "ok", at, reply=seen)
    run.client.end(refused, "no")
    run.commit()
    run.client.end(again, "unknown")
    run.commit(put("again"), Expire(), wall_ms=600)
    run.client.end(lost, "unknown")
    for question in (
        Info(Q),
        Info("default/none"),
        Peek(Q, "leased", 9),
        Peek(Q, "ready", 2),
        Find(Q, 0, 2),
        Names("default"),
    ):
        read = run.client.begin(None, question)
        run.client.end(read, "ok", run.index, reply=run.see(question))
    run.judge.at_rest()


def test_both_commands_of_an_entry_have_their_replies(run: Run) -> None:
    one, two = run.client.begin(put("a")), run.client.begin(put("b"))
    index = run.commit(put("a"), put("b"))
    run.end(two, index, 1)
    run.end(one, index, 0)
    run.judge.at_rest()


def test_another_reply_than_the_model_gives(run: Run) -> None:
    run.do(put("a"))
    op = run.client.begin(put("b"))
    index = run.commit(put("b"))
    reply, _ = run.replies[index, 0]
    wrong = msgspec.structs.replace(reply, spans=[(0, 1, 1)])
    details = run.breaks("linearizability", lambda: run.end(op, index, reply=wrong))
    assert "write 2 of c1 at n1" in details


def test_another_reply_than_the_model_gives_told_before_the_model_is_there(run: Run) -> None:
    """An answer may come before anyone was seen to know that the entry is committed."""
    op = run.client.begin(put("a"))
    run.client.end(op, "ok", 2, 0, reply=None)
    run.breaks("linearizability", lambda: run.commit(put("a")))


def test_other_messages_than_were_leased(run: Run) -> None:
    run.do(put("a", count=2))
    op = run.client.begin(Lease(Q, 2))
    index = run.commit(Lease(Q, 2))
    messages = list(run.replies[index, 0][1])
    messages[1] = msgspec.structs.replace(messages[1], data=messages[0].data)
    run.breaks("linearizability", lambda: run.end(op, index, messages=messages))


def test_an_acknowledged_operation_that_another_took_the_place_of(run: Run) -> None:
    op = run.client.begin(put("a"))
    run.client.begin(put("b"))
    index = run.commit(put("b"))
    details = run.breaks("no acknowledged operation lost", lambda: run.end(op, index))
    assert "n1 committed entry 2" in details


def test_an_acknowledged_operation_whose_entry_a_no_op_replaced(run: Run) -> None:
    op = run.client.begin(put("a"))
    run.client.end(op, "ok", 2, 0, reply=None)
    run.breaks("no acknowledged operation lost", run.commit)


def test_an_acknowledged_operation_that_never_was_committed(run: Run) -> None:
    op = run.client.begin(put("a"))
    run.client.end(op, "ok", 2, 0, reply=None)
    run.breaks("no acknowledged operation lost", run.judge.at_rest)


def test_an_entry_of_the_log_that_nobody_knows(run: Run) -> None:
    run.history.commit(3, 1, NO_OP, "n1", 1)
    run.breaks("canonical log", run.judge.at_rest)


def test_one_attempt_that_is_applied_twice(run: Run) -> None:
    run.do(put("a"))
    run.breaks("applied at most once", lambda: run.commit(put("a")))


def test_a_retry_may_be_applied_once_for_each_attempt(run: Run) -> None:
    command = Enqueue(Q, put("a").parts, Request("r", 60_000))
    first = run.client.begin(command)
    run.client.end(first, "unknown")
    run.commit(command)
    assert run.do(command).reply.repeated
    run.judge.at_rest()


def test_a_retry_that_enqueues_again(run: Run) -> None:
    command = Enqueue(Q, put("a").parts, Request("r", 60_000))
    first = run.do(command)
    again = run.client.begin(command)
    wrong = msgspec.structs.replace(first.reply, spans=[(0, 2, 1)])
    run.breaks("linearizability", lambda: run.end(again, run.commit(command), reply=wrong))


def test_a_retry_that_is_in_the_log_more_often_than_it_was_sent(run: Run) -> None:
    command = Ack(Q, 1, [Slots(1, [0])])
    run.client.end(run.client.begin(command), "no")
    run.do(command)
    run.client.end(run.client.begin(command), "unknown")
    run.commit(command)
    run.history.commit(4, 1, entry(command), "n1", 1)
    run.breaks("refused is not applied", run.judge.follow)
    run.history.commit(5, 1, entry(command), "n1", 1)
    run.breaks("applied at most once", run.judge.follow)


@pytest.mark.parametrize("clocks", [{"lease_ms": 4, "wall_ms": 9}, {"lease_ms": 5, "wall_ms": 8}])
def test_clocks_that_go_back(run: Run, clocks: dict[str, int]) -> None:
    run.commit(Expire(), lease_ms=5, wall_ms=9)
    run.history.commit(3, 1, entry(Expire(), **clocks), "n1", 1)
    run.breaks("clocks only grow", run.judge.at_rest)


def test_a_command_that_nobody_sent(run: Run) -> None:
    run.breaks("applied at most once", lambda: run.commit(put("a")))


def test_a_refused_operation_that_is_applied_later(run: Run) -> None:
    op = run.client.begin(put("a"))
    run.client.end(op, "no")
    run.breaks("refused is not applied", lambda: run.commit(put("a")))


def test_a_refused_operation_that_was_applied_before(run: Run) -> None:
    op = run.client.begin(put("a"))
    run.commit(put("a"))
    run.breaks("refused is not applied", lambda: run.client.end(op, "no"))


def test_a_refused_attempt_between_two_that_may_be_applied(run: Run) -> None:
    command = Ack(Q, 1, [Slots(1, [0])])
    run.client.end(run.client.begin(command), "unknown")
    run.client.end(run.client.begin(command), "no")
    run.do(command)
    run.commit(command)
    run.breaks("refused is not applied", lambda: run.commit(command))


def test_an_order_that_is_not_the_one_of_the_begins_or_the_ends(run: Run) -> None:
    one, two = run.client.begin(put("a")), run.client.begin(put("b"))
    second, first = run.commit(put("b")), run.commit(put("a"))
    run.end(one, first)
    run.end(two, second)
    run.judge.at_rest()


def test_an_order_that_contradicts_time(run: Run) -> None:
    lost = run.client.begin(put("a"))
    run.client.end(lost, "unknown")
    early = run.commit(put("a"))
    run.do(put("b"))
    again = run.client.begin(put("a"))
    details = run.breaks("real-time order", lambda: run.end(again, early))
    assert "write 2 of c1" in details
    assert "write 3 of c1" in details


def test_one_place_for_two_replies(run: Run) -> None:
    one, two = run.client.begin(put("a")), run.client.begin(put("a"))
    index = run.commit(put("a"))
    run.end(one, index)
    run.breaks("one place a reply", lambda: run.end(two, index))


def test_a_write_that_comes_before_a_read_that_had_returned(run: Run) -> None:
    write = run.client.begin(put("a"))
    index = run.commit(put("a"))
    read = run.client.begin(None, Names("default"))
    run.client.end(read, "ok", index, reply=["default/q"])
    run.client.end(write, "unknown")
    late = run.client.begin(put("a"))
    run.breaks("real-time order", lambda: run.end(late, index))


def test_a_read_that_is_too_old(run: Run) -> None:
    old = run.index
    run.do(put("a"))
    read = run.client.begin(None, Info(Q))
    run.breaks("linearizable reads", lambda: run.client.end(read, "ok", old, reply=run.see(Info("default/none"))))


def test_a_read_that_is_older_than_another(run: Run) -> None:
    run.do(put("a"))
    old = run.index
    run.commit()
    read = run.client.begin(None, Names("default"))
    run.client.end(read, "ok", run.index, reply=["default/q"])
    read = run.client.begin(None, Names("default"))
    run.breaks("linearizable reads", lambda: run.client.end(read, "ok", old, reply=["default/q"]))


def test_a_read_may_see_what_was_before_a_write_that_is_under_way(run: Run) -> None:
    run.do(put("a"))
    read = run.client.begin(None, Info(Q))
    seen, at = run.see(Info(Q)), run.index
    run.do(put("b"))
    run.client.end(read, "ok", at, reply=seen)
    run.judge.at_rest()


def test_a_read_may_see_less_than_is_committed_if_nobody_was_told(run: Run) -> None:
    run.do(put("a"))
    old, seen = run.index, run.see(Info(Q))
    untold = run.client.begin(put("b"))
    index = run.commit(put("b"))
    read = run.client.begin(None, Info(Q))
    run.client.end(read, "ok", old, reply=seen)
    run.end(untold, index)
    read = run.client.begin(None, Info(Q))
    run.breaks("linearizable reads", lambda: run.client.end(read, "ok", index, reply=seen))


@pytest.mark.parametrize(
    "question", [Info(Q), Peek(Q, "ready", 5), Peek(Q, "leased", 5), Find(Q, 0, 3), Names("default")]
)
def test_a_read_that_saw_another_state(run: Run, question: Any) -> None:
    run.do(put("a", count=4))
    run.do(Lease(Q, 2))
    before = run.see(question)
    run.do(Lease(Q, 1, max_bytes=9))
    run.do(put("b", queue="default/new"))
    read = run.client.begin(None, question)
    run.breaks("linearizable reads", lambda: run.client.end(read, "ok", run.index, reply=before))


def test_a_read_of_what_never_was_committed(run: Run) -> None:
    read = run.client.begin(None, Names("default"))
    run.client.end(read, "ok", 2, reply=["default/q"])
    run.breaks("no acknowledged operation lost", run.judge.at_rest)
