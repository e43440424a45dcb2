"""Redrives: begin one, see how it stands, cancel it."""

from __future__ import annotations

from typing import Any

import msgspec

from raftq.api import auth, names, problems, schemas, topics
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.proposals import propose, request_of
from raftq.api.reads import plain_queue_of, view_of
from raftq.storage.machine import commands, replies


async def begin(call: Call) -> Answer:
    """POST /v1/queues/{queue}/redrive: Move dead letters back to the queues that they come from, or to another.
    It goes on by itself."""
    queue = call.queue
    given = await call.decode(schemas.REDRIVE)
    if given.to is not None:
        auth.require(call, "produce", given.to)
    command = commands.Redrive(
        queue,
        None if given.to is None else names.queue_key(given.to, "to"),
        topics.filter_text(given.filter),
        given.messages_per_second,
        given.max_redrives,
        given.limit,
        request_of(given.request_id, given.request_seconds),
    )
    reply, _ = await propose(call, command, replies.Redriving, queue)
    return call.answer(_described(reply), 202)


async def read(call: Call) -> Answer:
    """GET /v1/queues/{queue}/redrive: How the last redrive stands."""
    queue = call.queue
    view = await view_of(call)
    plain_queue_of(view, queue)
    found = view.redrive(queue)
    if found is None:
        raise problems.unknown_redrive()
    return call.answer(_described(found))


async def cancel(call: Call) -> Answer:
    """DELETE /v1/queues/{queue}/redrive: Cancel the redrive. What was moved stays moved."""
    queue = call.queue
    reply, _ = await propose(call, commands.CancelRedrive(queue), replies.Redriving, queue)
    return call.answer(_described(reply))


def _described(redrive: replies.Redriving) -> dict[str, Any]:
    return {
        "state": redrive.state,
        "to": None if redrive.target is None else names.queue_name(redrive.target),
        "filter": msgspec.json.decode(redrive.filter),
        "messages_per_second": redrive.per_second,
        "max_redrives": redrive.redrives_max,
        "limit": redrive.limit,
        "moved": redrive.moved,
        "skipped": redrive.skipped,
        "left": redrive.left,
        "begun_at_ms": redrive.begun_ms,
        "ended_at_ms": redrive.ended_ms,
    }
