"""What clients were told, against the canonical log run through the pure model: linearizability of every reply.

Each reply carries its place (index, position in the entry), and each read the index of its view, so the order to judge
is known and nothing is searched for (after Lowe, Testing for linearizability, and TigerBeetle's auditor). An operation
that returned before another was invoked must come before it. An acknowledged command stands in the log at its place; a
refused one (`no`) nowhere; each as often as it was sent, at most.

The model follows the log as it grows, but never beyond what a read, under way or yet to come, may still see.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from raftq.chaos.simulation import questions
from raftq.chaos.simulation.history import History, Op, Seen, Violation, decoded, described, shown
from raftq.storage.machine import commands
from raftq.storage.machine.commands import Command, Expire, Incarnate, SetVersion, TakeDigest, Tick
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.model import Model
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Leased, Reply
from raftq.storage.machine.views import Delivery

Place = tuple[int, int]

_AFTER_ALL: Final = 1 << 62
#: What nodes and operators propose.
_OF_NODES: Final = (Expire, Incarnate, SetVersion, TakeDigest, Tick)


class Answer(NamedTuple):
    """What the model did at a place of the log."""

    reply: Reply
    #: Of a lease.
    messages: list[Delivery | None] | None


class _Sent:
    """One command, byte for byte, over all attempts."""

    __slots__ = ("attempts", "places", "refused")

    def __init__(self) -> None:
        self.attempts = self.refused = 0
        self.places: list[Place] = []


class Linearizable:
    def __init__(self, history: History) -> None:
        self._history = history
        self._model = Model()
        self._clocks = Clocks(0, 0)
        #: The model is after this entry; the commands of entries were counted up to that one.
        self._at = self._counted = 1
        self._answers: dict[Place, Answer] = {}
        self._sent: dict[bytes, _Sent] = {}
        #: The last place that is known to any client by now, and by whom.
        self._floor: tuple[Place, Op | None] = ((0, 0), None)
        #: Of each operation under way: the floor when it was invoked.
        self._floors: dict[int, tuple[Place, Op | None]] = {}
        #: Reads under way: the least index that each may see.
        self._reading: dict[int, int] = {}
        #: Answered, but the model is not there yet.
        self._writes: dict[int, list[Op]] = {}
        self._reads: dict[int, list[Op]] = {}
        self._acknowledged: dict[Place, Op] = {}

    def invoked(self, op: Op) -> None:
        self._floors[op.id] = self._floor
        if op.kind == "read":
            self._reading[op.id] = self._floor[0][0]
        else:
            self._sent.setdefault(op.command, _Sent()).attempts += 1

    def returned(self, op: Op) -> None:
        floor = self._floors.pop(op.id)
        if op.kind == "read":
            if op.outcome == "ok":
                self._read(op, floor)
            self._reading.pop(op.id)
            self.follow()
        elif op.outcome == "ok":
            self._written(op, floor)
            self.follow()
        elif op.outcome == "no":
            sent = self._sent[op.command]
            sent.refused += 1
            self._check_count(op.command, sent)

    def follow(self) -> None:
        """Count what has been committed since, and run the model over what no read can see the state before of."""
        while self._counted < self._history.known:
            self._counted += 1
            self._count(self._counted)
        self._run(min(self._history.known, self._floor[0][0], *self._reading.values()))

    def _run(self, end: int) -> None:
        while self._at < end:
            self._at += 1
            self._apply(self._at)

    def at_rest(self) -> None:
        self.follow()
        self._run(self._history.known)
        history = self._history
        if history.known != history.last:
            raise Violation("canonical log", f"entry {history.known + 1} is missing, but {history.last} is committed")
        for ops in (*self._writes.values(), *self._reads.values()):
            raise Violation("no acknowledged operation lost", f"{_named(ops[0])} is beyond the log: {history.last}")

    # Order

    def _check_order(self, op: Op, place: Place, floor: tuple[Place, Op | None]) -> None:
        before, other = floor
        if place <= before and other is not None:
            raise Violation("real-time order", f"{_named(op)} was invoked after the return of {_named(other)}")

    def _known_by(self, place: Place, op: Op) -> None:
        if place > self._floor[0]:
            self._floor = place, op

    # Writes

    def _written(self, op: Op, floor: tuple[Place, Op | None]) -> None:
        place = op.place
        if place[0] <= self._counted:
            self._check_there(op)
        other = self._acknowledged.setdefault(place, op)
        if other is not op:
            raise Violation("one place a reply", f"{_named(op)} has the place of {_named(other)}")
        self._check_order(op, place, floor)
        self._known_by(place, op)
        if place[0] <= self._at:
            self._check_reply(op)
        else:
            self._writes.setdefault(place[0], []).append(op)

    def _check_there(self, op: Op) -> None:
        index, position = op.place
        entry = self._history.log.get(index)
        inside = None if entry is None else decoded(entry.command)
        if inside is None or position >= len(inside[1]) or inside[1][position] != op.command:
            there = (
                "nothing" if entry is None else f"{entry.node} committed {described(index, entry.term, entry.command)}"
            )
            raise Violation("no acknowledged operation lost", f"{_named(op)} is not there: {there}")

    def _check_reply(self, op: Op) -> None:
        answer = self._answers[op.place]
        if op.reply != answer.reply:
            raise Violation("linearizability", f"{_named(op)} was told {op.reply}, the model says {answer.reply}")
        if answer.messages is not None and list(op.messages or ()) != answer.messages:
            raise Violation("linearizability", f"{_named(op)} got {op.messages}, the model gives {answer.messages}")

    def _count(self, index: int) -> None:
        """Each command of an entry was sent, and is not there more often than it was."""
        inside = decoded(self._history.log[index].command)
        for position, data in enumerate(inside[1] if inside else ()):
            command = bytes(data)
            sent = self._sent.get(command)
            if sent is not None:
                sent.places.append((index, position))
                self._check_count(command, sent)
            elif not isinstance(commands.decode(command), _OF_NODES):
                raise Violation("applied at most once", f"nobody sent what entry {index} holds: {shown(command)}")
        for op in self._writes.get(index, ()):
            self._check_there(op)

    @staticmethod
    def _check_count(command: bytes, sent: _Sent) -> None:
        if len(sent.places) <= sent.attempts - sent.refused:
            return
        where = f"{shown(command)} is at {sent.places}; attempts: {sent.attempts}, refused for certain: {sent.refused}"
        many = len(sent.places) > sent.attempts
        raise Violation("applied at most once" if many else "refused is not applied", where)

    # The model

    def _apply(self, index: int) -> None:
        entry = self._history.log[index]
        inside = decoded(entry.command)
        if inside is not None:
            if inside[0] < self._clocks or inside[0].wall_ms < self._clocks.wall_ms:
                raise Violation("clocks only grow", f"entry {index} has {inside[0]}, one before it {self._clocks}")
            self._clocks = inside[0]
            meta = Meta(index, 0, entry.term, *self._clocks)
            for position, data in enumerate(inside[1]):
                meta.position = position
                self._answers[index, position] = self._do(meta, commands.decode(data))
        for op in self._writes.pop(index, ()):
            self._check_reply(op)
        for op in self._reads.pop(index, ()):
            self._check_read(op)

    def _do(self, meta: Meta, command: Command) -> Answer:
        reply = self._model.answer(meta, command)
        messages: list[Delivery | None] | None = None
        if isinstance(reply, Leased):
            messages = [
                None
                if m is None
                else Delivery(m.priority, m.number, m.deliveries, m.failures, m.enqueued_at_ms, m.data)
                for m in self._model.deliveries(reply)
            ]
        return Answer(reply, messages)

    # Reads

    def _read(self, op: Op, floor: tuple[Place, Op | None]) -> None:
        assert op.view is not None
        index = op.view.applied_index
        if index < floor[0][0]:
            raise Violation(
                "linearizable reads",
                f"{_named(op)} saw index {index}, but was invoked after the return of {floor[1] and _named(floor[1])}",
            )
        self._known_by((index, _AFTER_ALL), op)
        if index == self._at:
            self._check_read(op)
        else:  # later: the model waits for those under way
            self._reads.setdefault(index, []).append(op)

    def _check_read(self, op: Op) -> None:
        assert op.view is not None
        expected = questions.decode(op.command).of_model(self._model, self._clocks)
        if op.view.value != expected:
            raise Violation("linearizable reads", f"{_named(op)} saw {op.view.value}, the model has {expected}")


def _named(op: Op) -> str:
    seen: Any = op.view.applied_index if isinstance(op.view, Seen) else None
    where = f"index {seen}" if op.kind == "read" else f"({op.index}, {op.position})"
    asked: Any = questions.decode(op.command) if op.kind == "read" else shown(op.command)
    back = "never" if op.returned_at is None else f"{op.returned_at:.6f}"
    return f"{op.kind} {op.id} of {op.client} at {op.node} [{asked}], {op.invoked_at:.6f} to {back}, {where}"
