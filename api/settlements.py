"""Ack, nack, release and extend: many receipts, an answer for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from raftq.api import names, problems, schemas
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.problems import Problem
from raftq.api.proposals import propose, request_of
from raftq.api.schemas import ReceiptsGiven, milliseconds
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import Slots

Settlement = commands.Ack | commands.Nack | commands.Release | commands.Extend
#: (queue number, leases) -> the command that settles them.
Make = Callable[[int, list[Slots]], Settlement]

_STATUS = ("done", "gone")


async def ack(call: Call) -> Answer:
    """POST /v1/queues/{queue}/ack"""
    queue, given = call.queue, await call.decode(schemas.RECEIPTS)
    request = request_of(given.request_id, given.request_seconds)
    return await _settle(call, given, lambda number, leases: commands.Ack(queue, number, leases, request))


async def nack(call: Call) -> Answer:
    """POST /v1/queues/{queue}/nack"""
    queue, given = call.queue, await call.decode(schemas.NACK)
    request = request_of(given.request_id, given.request_seconds)
    delay_ms = None if given.delay_seconds is None else milliseconds(given.delay_seconds)
    return await _settle(call, given, lambda number, leases: commands.Nack(queue, number, leases, delay_ms, request))


async def release(call: Call) -> Answer:
    """POST /v1/queues/{queue}/release"""
    queue, given = call.queue, await call.decode(schemas.RECEIPTS)
    request = request_of(given.request_id, given.request_seconds)
    return await _settle(call, given, lambda number, leases: commands.Release(queue, number, leases, request))


async def extend(call: Call) -> Answer:
    """POST /v1/queues/{queue}/extend"""
    queue, given = call.queue, await call.decode(schemas.EXTEND)
    request = request_of(given.request_id, given.request_seconds)
    lease_ms = None if given.lease_seconds is None else milliseconds(given.lease_seconds)
    return await _settle(call, given, lambda number, leases: commands.Extend(queue, number, leases, lease_ms, request))


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
    return _settled(call, receipts, results, deadline_ms)


async def settle(call: Call, receipts: list[str], make: Make, *, retryable: bool = False) -> tuple[Sequence[int], int]:
    """`replies.DONE` or `GONE` of each of the distinct receipts, and the new deadline. Raises ShardError or Problem."""
    queues = names.parse_receipts(receipts)
    if len(queues) == 1:
        [(number, leases)] = queues.items()
        reply, _ = await propose(call, make(number, leases), replies.Settled, call.queue)
        if [len(lease.slots) for lease in leases] != [len(statuses) for statuses in reply.results]:
            raise Problem("conflict", "This request_id was used before, with other receipts: choose another.")
        if len(leases) == 1:
            return reply.results[0], reply.deadline_ms
        return _in_order(receipts, {number: (leases, reply)}), reply.deadline_ms
    if retryable:
        raise problems.invalid("receipts", "are of several queues: with a request_id give those of this queue alone")
    # Receipts of another queue, or of an earlier one of this name: all but this queue's will be gone.
    answers = await asyncio.gather(
        *(propose(call, make(number, leases), replies.Settled, call.queue) for number, leases in queues.items())
    )
    found = {number: (leases, reply) for (number, leases), (reply, _) in zip(queues.items(), answers, strict=True)}
    return _in_order(receipts, found), max(reply.deadline_ms for reply, _ in answers)


def _in_order(receipts: list[str], found: dict[int, tuple[list[Slots], replies.Settled]]) -> list[int]:
    results = {
        f"{number}.{lease.lease_id}": iter(statuses)
        for number, (leases, reply) in found.items()
        for lease, statuses in zip(leases, reply.results, strict=True)
    }
    return [next(results[receipt.rpartition(".")[0]]) for receipt in receipts]


def _settled(call: Call, receipts: list[str], results: Sequence[int], deadline_ms: int) -> Answer:
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
