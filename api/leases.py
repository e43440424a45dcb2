"""Lease, with its long poll; ack, nack, release and extend."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import replace

from raftq.api import auth, bodies, names, problems, schemas
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.proposals import propose, request_of
from raftq.api.reads import queue_of
from raftq.api.schemas import milliseconds
from raftq.api.waiters import Waiter
from raftq.replication.shard import Committed, NotLeader, ShardError
from raftq.storage.machine import commands, packing, replies
from raftq.storage.machine.views import Delivery


async def lease(call: Call) -> Answer:
    """POST /v1/queues/{queue}/lease: Lease messages. It waits for one when there is none, as long as you say."""
    queue = call.queue
    given = await call.decode(schemas.LEASE)
    limits = call.node.limits
    if not 1 <= given.max <= limits.lease_messages:
        raise problems.invalid("max", f"is a whole number from 1 to {limits.lease_messages:,}")
    if not 0 <= given.wait_seconds <= limits.wait_seconds:
        raise problems.invalid("wait_seconds", f"is a number from 0 to {limits.wait_seconds:g}")
    lease_ms = None if given.lease_seconds is None else milliseconds(given.lease_seconds)
    request = request_of(given.request_id, given.request_seconds)
    command = commands.Lease(queue, given.max, lease_ms, request, groups=_groups(given.groups))
    committed = await take(call, command, given.wait_seconds)
    partitions = call.node.shard.stale().partitions(queue)
    if partitions is None or committed is None or not committed.reply.ranges:
        return leased(call, committed)
    return leased(call, *await _from_others(call, command, committed, partitions))


def _groups(given: list[str] | None) -> list[str] | None:
    """Raises Problem 422."""
    if given is None:
        return None
    if not 0 < len(given) <= schemas.GROUPS_MAX:
        raise problems.invalid("groups", f"give 1 to {schemas.GROUPS_MAX} group keys, or none at all")
    return [names.checked_id(f"groups[{place}]", group) for place, group in enumerate(given)]


async def take(call: Call, command: commands.Lease, wait_seconds: float) -> Committed | None:
    """The lease, or None when nothing was ready until `wait_seconds` had passed. Raises ShardError or Problem."""
    shard = call.node.shard
    if command.request is not None or shard.stale().ready(command.queue, command.groups):
        committed = await _grant(call, command)
        if committed.reply.ranges or not wait_seconds:
            return committed
    waiter, call.came = Waiter(command.groups), 0.0
    with call.watch(waiter.abandon):
        try:
            return await _poll(call, command, waiter, wait_seconds)
        finally:
            call.api.waiters.leave(command.queue, waiter)


async def _from_others(call: Call, command: commands.Lease, first: Committed, partitions: int) -> list[Committed]:
    """`first`, and what further partitions give until there are as many messages and bytes as one lease may have. With
    a request id each lease has one of its own, made of it: a retry gets all of them again, and no more."""
    granted, again = [first], first.reply.repeated
    for at in range(1, partitions):
        taken = [one for each in granted for one in each.messages or ()]
        left = command.max - len(taken)
        bytes_left = command.max_bytes - sum(len(one.data) for one in taken if one is not None)
        asked = command.request
        known = asked is not None or call.node.shard.stale().ready(command.queue, command.groups)
        if left <= 0 or bytes_left <= 0 or not known:
            break
        request = asked and commands.Request(f"{asked.id}\0{at}", asked.keep_ms)
        try:
            of_next = replace(command, max=left, max_bytes=bytes_left, request=request, only_again=again)
            more = await _grant(call, of_next)
        except (ShardError, problems.Problem):
            break  # what is leased already is given
        except ConnectionResetError:
            for each in granted:
                give_back(call, command, each.reply)
            raise
        if not more.reply.ranges:
            break
        granted.append(more)
    return granted


async def _poll(call: Call, command: commands.Lease, waiter: Waiter, wait_seconds: float) -> Committed | None:
    """Ask, and wait, until there is something. An empty answer comes from a linearizable read: it is not logged, and a
    node that was deposed in the meantime cannot give it."""
    queue, shard = command.queue, call.node.shard
    now = asyncio.get_running_loop().time
    until = now() + wait_seconds
    while True:
        auth.check_still(call)
        try:
            view = await shard.read()
        except NotLeader:
            if now() >= until or call.node.leader_url() is not None:
                raise
            # Between two leaders: woken when there is one, to be sent to it.
            await call.api.waiters.wait(queue, waiter, until)
            continue
        settings = queue_of(view, queue).settings
        if command.groups is not None and settings.max_leased_per_group is None:
            raise problems.invalid("groups", commands.WITHOUT_GROUPS)
        if view.ready(queue, command.groups):
            committed = await _grant(call, command)
            if committed.reply.ranges:
                return committed
        if now() >= until:
            return None
        # What became ready since then is seen here: no await lies between this look and joining the line.
        if not shard.stale().ready(queue, command.groups):
            await call.api.waiters.wait(queue, waiter, until)


async def _grant(call: Call, command: commands.Lease) -> Committed:
    _, committed = await propose(call, command, replies.Leased, command.queue)
    if call.gone:
        give_back(call, command, committed.reply)
        raise ConnectionResetError("the client closed the connection")
    return committed


def give_back(call: Call, command: commands.Lease, reply: replies.Leased) -> None:
    """The client of this lease has gone: hand the messages back unharmed, but for a lease with a request id, which its
    client will ask for again. It is a courtesy: if it fails, the lease expires."""
    count = sum(span.count for span in reply.ranges)
    if not count or command.request is not None or command.settle:
        return
    release = commands.Release(command.queue, reply.queue_number, [commands.Slots(reply.lease_id, list(range(count)))])
    try:
        future = call.node.shard.propose(commands.encode(release))
    except ShardError:
        return
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


def leased(call: Call, *granted: Committed | None) -> Answer:
    """The answer with the messages of leases; with none for None."""
    found = [one for one in granted if one is not None and one.messages]
    if call.answer_type is JSON:
        texts = [_leased_json(one.reply, one.messages or []) for one in found]
        return Answer(b'{"messages":[%b]}' % b",".join(filter(None, texts)))
    messages = [
        leased_fields(one.reply, slot, message)
        for one in found
        for slot, message in enumerate(one.messages or [])
        if message is not None
    ]
    return call.answer({"messages": messages})


def _leased_json(reply: replies.Leased, messages: list[Delivery | None]) -> bytes:
    """The messages of a lease, without those that it held no longer when its request was repeated. Most differ only in
    number, slot and body: the rest is written once for a run of them."""
    texts: list[bytes] = []
    alike = None
    plain = other = b""
    for slot, message in enumerate(messages):
        if message is None:
            continue
        shared = message.priority, message.deliveries, message.failures, message.enqueued_at_ms
        if alike != shared:
            alike = shared
            ids = reply.queue_number, message.priority, reply.queue_number, reply.lease_id, reply.lease_id
            before = b'{"id":"%d-%d-%%d","receipt":"%d.%d.%%d","fence":%d,' % ids
            after = b',"priority":%d,"deliveries":%d,"failures":%d,"enqueued_at_ms":%d' % alike
            after = b'%b,"deadline_ms":%d}' % (after, reply.deadline_ms)
            plain, other = before + bodies.PLAIN_FIELDS + after, before + b"%b" + after
        data = message.data
        if data.startswith(packing.PLAIN_JSON):
            texts.append(plain % (message.number, slot, data[bodies.PLAIN_HEAD :]))
        else:
            texts.append(other % (message.number, slot, bodies.json_fields(data)))
    return b",".join(texts)


def leased_fields(reply: replies.Leased, slot: int, one: Delivery) -> dict[str, Any]:
    """The same as a value."""
    return (
        {
            "id": names.message_id(reply.queue_number, one.priority, one.number),
            "receipt": names.receipt(reply, slot),
            "fence": reply.lease_id,
        }
        | bodies.msgpack_fields(one.data)
        | {
            "priority": one.priority,
            "deliveries": one.deliveries,
            "failures": one.failures,
            "enqueued_at_ms": one.enqueued_at_ms,
            "deadline_ms": reply.deadline_ms,
        }
    )
