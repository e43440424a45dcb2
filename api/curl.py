"""Queues for curl: one raw body in, one raw body out. Always proxied to the leader, as curl does not follow a redirect
unless it is told to."""

from __future__ import annotations

from raftq.api import bodies, messages, names
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.leases import take
from raftq.api.proposals import propose
from raftq.api.reads import seconds
from raftq.api.schemas import LEASE_SECONDS_MAX, milliseconds
from raftq.api.settlements import settle_one
from raftq.storage.machine import commands, packing, replies
from raftq.storage.machine.commands import Part

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"


async def put(call: Call) -> Answer:
    """POST /q/{queue}: Put the body as it is. Sent as application/json it must be JSON, and is read as JSON
    elsewhere."""
    queue = call.queue
    body = await call.read(call.node.limits.body_bytes)
    kind = packing.BINARY
    if call.request.content_type == JSON:
        bodies.check_json(body)
        kind = packing.JSON
    parts = [Part(0, None, packing.pack([packing.pack_message(body, kind=kind)]))]
    reply, _ = await propose(call, commands.Enqueue(queue, parts), replies.Enqueued, queue)
    priority, number, _ = messages.places(reply)[0]
    queue_number = next(iter(messages.numbers(reply)))
    return Answer(names.message_id(queue_number, priority, number).encode() + b"\n", 201, TEXT)


async def take_one(call: Call) -> Answer:
    """GET /q/{queue}?wait=&lease=: Take one message. With `lease` the message is leased and its receipt is a header;
    without, it is acked in the same step, so that it is lost when this answer is: at most once."""
    queue = call.queue
    wait = seconds(call, "wait", least=0, most=call.node.limits.wait_seconds)
    lease = seconds(call, "lease", least=0.001, most=LEASE_SECONDS_MAX)
    command = commands.Lease(queue, 1, None if lease is None else milliseconds(lease), settle=lease is None)
    committed = await take(call, command, wait or 0.0)
    if committed is None or not committed.messages:
        return Answer(status=204, content_type="")
    reply, [one] = committed.reply, committed.messages
    headers = [
        ("Raftq-Id", names.message_id(reply.queue_number, one.priority, one.number)),
        ("Raftq-Deliveries", str(one.deliveries)),
    ]
    if lease is not None:
        headers += [("Raftq-Receipt", names.receipt(reply, 0)), ("Raftq-Fence", str(reply.lease_id))]
    message = packing.unpack_message(one.data)
    return Answer(message.body, 200, JSON if message.kind == packing.JSON else BINARY, headers)


async def ack(call: Call) -> Answer:
    """POST /q/{queue}/ack/{receipt}: Ack a message that was taken with `lease`."""
    await settle_one(call, call.parameters[1])
    return Answer(b"done\n", content_type=TEXT)
