"""Runs: neighbours among the operations of a stream that become one command, and their answers.

An enqueue joins the one before it when they are for the same queue with the same delay, a settlement when it does the
same to the same queue; one with a request id stays alone. Each is answered as if it had been alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import Any

from raftq.api import frames, messages, names, settlements
from raftq.api.frames import Bad, Enqueue, Format, Operation, Settlement
from raftq.api.parts import parts_of
from raftq.api.proposals import request_of
from raftq.api.settlements import Make
from raftq.api.stream_call import StreamCall
from raftq.replication.shard import Committed
from raftq.storage.machine import commands, replies

_MAKES: dict[type[Any], Callable[[str, Any], Make]] = {
    frames.Ack: settlements.to_ack,
    frames.Nack: settlements.to_nack,
    frames.Release: settlements.to_release,
    frames.Reject: settlements.to_reject,
    frames.Extend: settlements.to_extend,
}
#: The field beside the receipts, which neighbours must share.
_PARAMETERS: dict[type[Any], str] = {
    frames.Nack: "delay_seconds",
    frames.Reject: "reason",
    frames.Extend: "lease_seconds",
}


def likeness(operation: Operation | Bad) -> tuple[Hashable | None, int, int]:
    """What its neighbours must have in common with it, its messages or receipts, bytes of its bodies; a likeness of
    None: it is done for itself, by its handler."""
    match operation:
        case Enqueue():
            kind: Hashable = (Enqueue, operation.queue, operation.delay_seconds, operation.auto_create)
            if operation.request_id is not None or operation.request_seconds is not None:
                kind = object()
            if operation.messages is None:
                return kind, 1, len(operation.body)
            return kind, len(operation.messages), sum(len(one.body) for one in operation.messages)
        case frames.Ack() | frames.Nack() | frames.Release() | frames.Reject() | frames.Extend():
            receipts = operation.receipts
            if operation.request_id is not None or operation.request_seconds is not None or not receipts:
                return None, 0, 0
            parameter = getattr(operation, _PARAMETERS.get(type(operation), "queue"))
            return (type(operation), operation.queue, parameter), len(receipts), 0
        case _:
            return None, 0, 0


class Enqueues:
    def __init__(self, call: StreamCall, operations: Sequence[Enqueue]) -> None:
        """Raises Problem 413 or 422."""
        first = operations[0]
        given: list[Any] = []
        for one in operations:
            given += [one] if one.messages is None else messages.batch(call, one)
        call.take_body(b"".join([one.body for one in given]))
        parts = parts_of(given, messages.packed(call, given, first))
        request = request_of(first.request_id, first.request_seconds)
        self.command = commands.encode(commands.Enqueue(call.queue, parts, request, first.auto_create))
        self.operations = operations
        self._call = call

    def answers(self, committed: Committed, form: Format) -> list[bytes]:
        """One for each operation."""
        reply: replies.Enqueued = committed.reply
        places = zip(messages.numbers(reply), messages.places(reply), strict=False)
        enqueued, index = form.enqueued, committed.index
        items = []
        for operation in self.operations:
            if operation.messages is None:
                number, (priority, place, duplicate) = next(places)
                items.append(enqueued(operation.id, b"%d-%d-%d" % (number, priority, place), duplicate, index))
            else:
                found = list(islice(places, len(operation.messages)))
                its = replies.Enqueued(0, None, [place for _, place in found], numbers=[one for one, _ in found])
                items.append(form.item(operation.id, b"answer", messages.enqueued(self._call, its, index).body))
        return items


class Settlements:
    def __init__(self, call: StreamCall, operations: Sequence[Settlement], leases: dict[int, list[commands.Slots]]):
        """`leases`: of the distinct receipts, all of one queue number. Raises Problem 422."""
        [(self._number, self._slots)] = leases.items()
        make = _MAKES[type(operations[0])](call.queue, operations[0])
        self.command = commands.encode(make(self._number, self._slots))
        self.operations = operations
        self._call = call

    def answers(self, committed: Committed, form: Format) -> list[bytes]:
        """One for each operation."""
        reply: replies.Settled = committed.reply
        receipts = _distinct(self.operations)
        statuses = settlements.in_order(receipts, {self._number: (self._slots, reply)})
        found = dict(zip(receipts, statuses, strict=True))
        items = []
        for one in self.operations:
            results = [found[receipt] for receipt in one.receipts]
            answer = settlements.settled(self._call, one.receipts, results, reply.deadline_ms)
            items.append(form.item(one.id, b"answer", answer.body))
        return items


Run = Enqueues | Settlements


def of(call: StreamCall, operations: Sequence[Any]) -> Run | None:
    """The run of operations that are alike; None when it takes several commands. Raises Problem when it cannot be
    done as one: some of them may be good for themselves."""
    if type(operations[0]) is Enqueue:
        return Enqueues(call, operations)
    receipts = _distinct(operations)
    leases = names.parse_receipts(receipts)
    if len(leases) > 1 or len(receipts) > call.node.limits.lease_messages:
        return None
    return Settlements(call, operations, leases)


def _distinct(operations: Sequence[Settlement]) -> list[str]:
    return list(dict.fromkeys(receipt for one in operations for receipt in one.receipts))
