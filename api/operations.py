"""What operators do to a queue: pause and resume it, purge it, and take out one message."""

from __future__ import annotations

from raftq.api import names, problems, queues, schemas
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.proposals import propose, request_of
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import QueueSettings


async def purge(call: Call) -> Answer:
    """POST /v1/queues/{queue}/purge: Remove all messages of a queue, delayed and leased ones too."""
    queue = call.queue
    given = await call.decode(schemas.PURGE)
    request = request_of(given.request_id, given.request_seconds)
    reply, _ = await propose(call, commands.PurgeQueue(queue, request), replies.Purged, queue)
    return call.answer({"messages": reply.messages})


async def pause(call: Call) -> Answer:
    """POST /v1/queues/{queue}/pause: Give out no messages until it is resumed. Leases that there are go on."""
    return await _set_paused(call, paused=True)


async def resume(call: Call) -> Answer:
    """POST /v1/queues/{queue}/resume: Give out messages again."""
    return await _set_paused(call, paused=False)


async def _set_paused(call: Call, *, paused: bool) -> Answer:
    await call.decode(schemas.NOTHING)
    return await queues.put(call, QueueSettings(paused=paused), ["paused"])


async def delete_message(call: Call) -> Answer:
    """DELETE /v1/queues/{queue}/messages/{id}: Remove a message that is ready, or cancel one that is delayed."""
    queue = call.queue
    parsed = names.parse_message_id(call.parameters[1])
    if parsed is None:
        raise problems.unknown_message()
    await propose(call, commands.DeleteMessage(queue, *parsed), replies.MessageDeleted, queue)
    return Answer(status=204, content_type="")
