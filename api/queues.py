"""Queues: define, read, change, remove, list; and their stats."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from raftq.api import names, problems, schemas
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.proposals import propose
from raftq.api.reads import PAGE_MAX, queue_of, view_of, whole_number
from raftq.api.schemas import QueueGiven, milliseconds
from raftq.replication.shard import Shard
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import QueueSettings
from raftq.storage.machine.views import QueueInfo, View

#: Counters of a queue since it was created.
TOTALS = ("enqueued", "delivered", "acked", "nacked", "released", "expired", "duplicates")
#: Messages and bytes of a queue now.
COUNTS = ("ready", "leased", "delayed", "bytes")
#: Queues that are summed in one go.
_SUMMED = 100


async def define(call: Call) -> Answer:
    """PUT /v1/queues/{queue}: what is not given takes its default."""
    queue = call.queue
    settings = _settings(QueueSettings(), await call.decode(schemas.QUEUE))
    reply, _ = await propose(call, commands.DefineQueue(queue, settings), replies.QueueDefined, queue)
    return call.answer(_described(queue, settings), 201 if reply.created else 200)


async def change(call: Call) -> Answer:
    """PATCH /v1/queues/{queue}: what is not given stays."""
    queue = call.queue
    given = await call.decode(schemas.QUEUE)
    settings = _settings(queue_of(await call.node.shard.read(), queue).settings, given)
    await propose(call, commands.DefineQueue(queue, settings, create=False), replies.QueueDefined, queue)
    return call.answer(_described(queue, settings))


def _settings(before: QueueSettings, given: QueueGiven) -> QueueSettings:
    def ms(seconds: float | None, otherwise: int) -> int:
        return otherwise if seconds is None else milliseconds(seconds)

    return QueueSettings(
        lease_ms=ms(given.lease_seconds, before.lease_ms),
        delay_ms=ms(given.delay_seconds, before.delay_ms),
        dedup_window_ms=ms(given.dedup_window_seconds, before.dedup_window_ms),
        paused=before.paused if given.paused is None else given.paused,
    )


def _described(queue: str, settings: QueueSettings) -> dict[str, Any]:
    return {
        "name": names.queue_name(queue),
        "lease_seconds": settings.lease_ms / 1000,
        "delay_seconds": settings.delay_ms / 1000,
        "dedup_window_seconds": settings.dedup_window_ms / 1000,
        "paused": settings.paused,
    }


async def read(call: Call) -> Answer:
    """GET /v1/queues/{queue}"""
    queue = call.queue
    info = queue_of(await view_of(call), queue)
    return call.answer(_described(queue, info.settings))


async def remove(call: Call) -> Answer:
    """DELETE /v1/queues/{queue}, with its messages."""
    queue = call.queue
    reply, _ = await propose(call, commands.DeleteQueue(queue), replies.QueueDeleted, queue)
    return call.answer({"messages": reply.messages})


async def list_all(call: Call) -> Answer:
    """GET /v1/queues?prefix=&limit=&cursor=&stats="""
    prefix, cursor = _name_text(call, "prefix"), _name_text(call, "cursor")
    limit = whole_number(call, "limit", 100, least=1, most=PAGE_MAX)
    stats = call.query.get("stats", "false")
    if stats not in ("true", "false"):
        raise problems.invalid("query.stats", "is true or false")
    view = await view_of(call)
    found, cursor = view.queues(names.NAMESPACE, prefix or "", limit, cursor)
    queues = [
        _described(info.key, info.settings) | ({"stats": _stats(view, info)} if stats == "true" else {})
        for info in found
    ]
    return call.answer({"queues": queues, "cursor": cursor})


def _name_text(call: Call, parameter: str) -> str | None:
    """A parameter that is (the beginning of) a queue's name. Raises Problem 422."""
    text = call.query.get(parameter)
    if text:
        names.queue_key(text, f"query.{parameter}")
    return text or None


async def stats(call: Call) -> Answer:
    """GET /v1/queues/{queue}/stats"""
    queue = call.queue
    view = await view_of(call)
    return call.answer({"name": names.queue_name(queue)} | _stats(view, queue_of(view, queue)))


async def stats_of_all(call: Call) -> Answer:
    """GET /v1/stats: the sums over all queues."""
    await view_of(call)
    return call.answer(await sums(call.node.shard))


async def sums(shard: Shard) -> dict[str, Any]:
    """Over all queues, as this node has applied them. The loop gets a pass now and then: there may be many."""
    counts, totals = dict.fromkeys(COUNTS, 0), dict.fromkeys(TOTALS, 0)
    queues, oldest, cursor = 0, math.inf, None
    while True:
        view = shard.stale()
        page, cursor = view.queues(names.NAMESPACE, "", _SUMMED, cursor)
        for info in page:
            queues += 1
            for name in COUNTS:
                counts[name] += getattr(info, name)
            for name in TOTALS:
                totals[name] += getattr(info, name)
            oldest = min(oldest, info.oldest_ready_ms or math.inf)
        if cursor is None:
            age = _age(view, None if oldest is math.inf else int(oldest))
            return {"queues": queues} | counts | {"oldest_ready_seconds": age, "totals": totals}
        await asyncio.sleep(0)


def _stats(view: View, info: QueueInfo) -> dict[str, Any]:
    counts = {name: getattr(info, name) for name in COUNTS}
    totals = {name: getattr(info, name) for name in TOTALS}
    return counts | {"oldest_ready_seconds": _age(view, info.oldest_ready_ms), "totals": totals}


def _age(view: View, since_ms: int | None) -> float | None:
    """In the log's own time, so that all nodes say the same."""
    return None if since_ms is None else max(0, view.wall_ms - since_ms) / 1000
