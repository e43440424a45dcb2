"""Ack, nack, release, reject and extend: many receipts, an answer for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from raftq.api import names, problems, schemas
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.problems import Problem
from raftq.api.proposals import propose, request_of
from raftq.api.schemas import ExtendGiven, NackGiven, ReceiptsGiven, RejectGiven, milliseconds
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import REASON_BYTES_MAX, Slots

Settlement = commands.Ack | commands.Nack | commands.Release | commands.Reject | commands.Extend
#: (queue number, leases) -> the command that settles them.
Make = Callable[[int, list[Slots]], Settlement]

_STATUS = ("done", "gone")


async def ack(call: Call) -> Answer:
    """POST /v1/queues/{queue}/ack: Ack: the messages are done, and gone for good."""
    given = await call.decode(schemas.RECEIPTS)
    return await _settle(call, given, to_ack(call.queue, given))


async def nack(call: Call) -> Answer:
    """POST /v1/queues/{queue}/nack: Hand messages back as failed. They are ready again, after a delay if you say so."""
    given = await call.decode(schemas.NACK)
    return await _settle(call, given, to_nack(call.queue, given))


async def release(call: Call) -> Answer:
    """POST /v1/queues/{queue}/release: Hand messages back unharmed."""
    given = await call.decode(schemas.RECEIPTS)
    return await _settle(call, given, to_release(call.queue, given))


async def reject(call: Call) -> Answer:
    """POST /v1/queues/{queue}/reject: Dead-letter messages at once: they are hopeless, or no longer wanted."""
    given = await call.decode(schemas.REJECT)
    return await _settle(call, given, to_reject(call.queue, given))


async def extend(call: Call) -> Answer:
    """POST /v1/queues/{queue}/extend: Give leases a new deadline."""
    given = await call.decode(schemas.EXTEND)
    return await _settle(call, given, to_extend(call.queue, given))


# What makes the command of each. All raise Problem 422.


def to_ack(queue: str, given: ReceiptsGiven) -> Make:
    request = _request_of(given)
    return lambda number, leases: commands.Ack(queue, number, leases, request)


def to_nack(queue: str, given: NackGiven) -> Make:
    request = _request_of(given)
    delay_ms = None if given.delay_seconds is None else milliseconds(given.delay_seconds)
    return lambda number, leases: commands.Nack(queue, number, leases, delay_ms, request)


def to_release(queue: str, given: ReceiptsGiven) -> Make:
    request = _request_of(given)
    return lambda number, leases: commands.Release(queue, number, leases, request)


def to_reject(queue: str, given: RejectGiven) -> Make:
    request = _request_of(given)
    reason = given.reason or ""
    if len(reason.encode()) > REASON_BYTES_MAX:
        raise problems.invalid("reason", f"give at most {REASON_BYTES_MAX:,} bytes of text")
    return lambda number, leases: commands.Reject(queue, number, leases, reason, request)


def to_extend(queue: str, given: ExtendGiven) -> Make:
    request = _request_of(given)
    lease_ms = None if given.lease_seconds is None else milliseconds(given.lease_seconds)
    return lambda number, leases: commands.Extend(queue, number, leases, lease_ms, request)


def _request_of(given: ReceiptsGiven) -> commands.Request | None:
    return request_of(given.request_id, given.request_seconds)


async def _settle(call: Call, given: ReceiptsGiven, make: Make) -> Answer:
    receipts, most = given.receipts, call.node.limits.lease_messages
    if len(receipts) > most:
        raise problems.too_large("receipts", f"A request takes at most {most:,} receipts, this has {len(receipts):,}.")
    if not receipts:
        raise problems.invalid("receipts", "give at least one")
    distinct = list(dict.fromkeys(receipts))
    results, deadline_ms = await settle(call, distinct, make, retryable=given.request_id is not None)
    if len(distinct) < len(receipts):
        found = dict(zip(distinct, results, strict=True))
        results = [found[receipt] for receipt in receipts]
    return settled(call, receipts, results, deadline_ms)


async def settle(call: Call, receipts: list[str], make: Make, *, retryable: bool = False) -> tuple[Sequence[int], int]:
    """`replies.DONE` or `GONE` of each of the distinct receipts, and the new deadline. Raises ShardError or Problem."""
    queues = names.parse_receipts(receipts)
    if len(queues) == 1:
        [(number, leases)] = queues.items()
        reply, _ = await propose(call, make(number, leases), replies.Settled, call.queue)
        _check(leases, reply)
        if len(leases) == 1:
            return reply.results[0], reply.deadline_ms
        return in_order(receipts, {number: (leases, reply)}), reply.deadline_ms
    if retryable and call.node.shard.stale().partitions(call.queue) is None:
        raise problems.invalid("receipts", "are of several queues: with a request_id give those of this queue alone")
    # Of partitions; or of another queue, or an earlier one of this name: all but this queue's will be gone.
    answers = await asyncio.gather(
        *(propose(call, make(number, leases), replies.Settled, call.queue) for number, leases in queues.items())
    )
    for leases, (reply, _) in zip(queues.values(), answers, strict=True):
        _check(leases, reply)
    found = {number: (leases, reply) for (number, leases), (reply, _) in zip(queues.items(), answers, strict=True)}
    return in_order(receipts, found), max(reply.deadline_ms for reply, _ in answers)


def _check(leases: list[Slots], reply: replies.Settled) -> None:
    """Raises Problem 409 for the first reply to other receipts."""
    if [len(lease.slots) for lease in leases] != [len(statuses) for statuses in reply.results]:
        raise Problem("conflict", "This request_id was used before, with other receipts: choose another.")


def in_order(receipts: list[str], found: dict[int, tuple[list[Slots], replies.Settled]]) -> list[int]:
    """The status of each receipt; `found`: queue number -> what was asked, and the reply."""
    results = {
        f"{number}.{lease.lease_id}": iter(statuses)
        for number, (leases, reply) in found.items()
        for lease, statuses in zip(leases, reply.results, strict=True)
    }
    return [next(results[receipt.rpartition(".")[0]]) for receipt in receipts]


def settled(call: Call, receipts: list[str], results: Sequence[int], deadline_ms: int) -> Answer:
    """The answer to a settlement; a deadline of 0 is none."""
    if call.answer_type is not JSON:
        items = [{"receipt": one, "status": _STATUS[result]} for one, result in zip(receipts, results, strict=True)]
        return call.answer({"results": items} | ({"deadline_ms": deadline_ms} if deadline_ms else {}))
    # Receipts were checked: digits and dots, nothing to escape.
    if not any(results):
        text = '","status":"done"},{"receipt":"'.join(receipts) + '","status":"done"}]'
    else:
        pairs = zip(receipts, results, strict=True)
        text = '"},{"receipt":"'.join([f'{one}","status":"{_STATUS[result]}' for one, result in pairs]) + '"}]'
    extended = f',"deadline_ms":{deadline_ms}' if deadline_ms else ""
    return Answer(f'{{"results":[{{"receipt":"{text}{extended}}}'.encode())


async def settle_one(call: Call, receipt: str) -> None:
    """Ack one receipt, for curl. Raises Problem 410 when it is gone."""
    queue = call.queue
    results, _ = await settle(call, [receipt], lambda number, leases: commands.Ack(queue, number, leases))
    if results[0] == replies.GONE:
        raise Problem("gone", "The lease has passed, or the message was settled: it may be delivered again.")
