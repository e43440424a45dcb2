"""Queues: define, read, change, remove, list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from raftq.api import auth, names, problems, schemas, stats
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.proposals import propose
from raftq.api.reads import PAGE_MAX, name_text, queue_of, view_of, whole_number
from raftq.api.schemas import BackoffGiven, QueueGiven, milliseconds
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import Backoff, QueueSettings


async def define(call: Call) -> Answer:
    """PUT /v1/queues/{queue}: Define a queue. What is not given takes its default."""
    queue = call.queue
    given = await call.decode(schemas.QUEUE)
    settings, _ = _settings(call, given)
    command = commands.DefineQueue(queue, settings, partitions=_partitions(queue, given))
    reply, _ = await propose(call, command, replies.QueueDefined, queue)
    partitions = call.node.shard.stale().partitions(queue)
    return call.answer(_described(queue, settings, partitions), 201 if reply.created else 200)


def _partitions(queue: str, given: QueueGiven) -> int | None:
    """Raises Problem 422."""
    if isinstance(given.partitions, int) and len(f"{names.queue_name(queue)}.63") > names.NAME_CHARACTERS_MAX:
        raise problems.invalid("queue", "the names of partitions are longer by three characters: choose a shorter one")
    return given.partitions if isinstance(given.partitions, int) else None


async def change(call: Call) -> Answer:
    """PATCH /v1/queues/{queue}: Change the settings that are given. The others stay."""
    queue = call.queue
    given = await call.decode(schemas.QUEUE)
    settings, only = _settings(call, given)
    return await put(call, settings, only, _partitions(queue, given))


async def put(call: Call, settings: QueueSettings, only: list[str], partitions: int | None = None) -> Answer:
    """Change the settings named `only`, and answer with all."""
    queue = call.queue
    command = commands.DefineQueue(queue, settings, False, only, partitions)
    reply, _ = await propose(call, command, replies.QueueDefined, queue)
    return call.answer(_described(queue, reply.settings or settings, call.node.shard.stale().partitions(queue)))


def _settings(call: Call, given: QueueGiven) -> tuple[QueueSettings, list[str]]:
    """The settings, with the defaults of those not given, and the names of those that are. Raises Problem 403, 422."""
    values: dict[str, Any] = {}
    for name in given.__struct_fields__:
        value = getattr(given, name)
        if value is not UNSET and name != "partitions":
            field, read = _READ.get(name, (name, _same))
            values[field] = None if value is None else read(value)
    if isinstance(given.dead_letter_queue, str):
        # Its letters are put there in the name of who says so.
        auth.require(call, "produce", given.dead_letter_queue)
    if values.get("dead_letter_queue") == call.queue:
        raise problems.invalid("dead_letter_queue", "name another queue: this one cannot be its own")
    given_ones = {field: value for field, value in values.items() if value is not None}
    return QueueSettings(**given_ones), list(values)


def _same(value: Any) -> Any:
    return value


def _dead_letter_queue(name: str) -> str:
    return names.queue_key(name, "dead_letter_queue")


def _backoff(given: BackoffGiven) -> Backoff:
    if given.max_seconds < given.initial_seconds:
        raise problems.invalid("backoff.max_seconds", "is at least initial_seconds")
    factor_milli = milliseconds(given.factor)
    return Backoff(milliseconds(given.initial_seconds), factor_milli, milliseconds(given.max_seconds))


#: Name of a setting -> field of `QueueSettings`, and how its value is read; the others are the same.
_READ: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "lease_seconds": ("lease_ms", milliseconds),
    "delay_seconds": ("delay_ms", milliseconds),
    "dedup_window_seconds": ("dedup_window_ms", milliseconds),
    "retention_seconds": ("retention_ms", milliseconds),
    "dead_letter_queue": ("dead_letter_queue", _dead_letter_queue),
    "backoff": ("backoff", _backoff),
}


def _described(queue: str, settings: QueueSettings, partitions: int | None = None) -> dict[str, Any]:
    target, backoff = settings.dead_letter_queue, settings.backoff
    return {
        "name": names.queue_name(queue),
        "lease_seconds": settings.lease_ms / 1000,
        "delay_seconds": settings.delay_ms / 1000,
        "dedup_window_seconds": settings.dedup_window_ms / 1000,
        "paused": settings.paused,
        "retention_seconds": None if settings.retention_ms is None else settings.retention_ms / 1000,
        "dead_letter_queue": None if target is None else names.queue_name(target),
        "max_failures": settings.failures_max(),
        "backoff": backoff
        and {
            "initial_seconds": backoff.initial_ms / 1000,
            "factor": backoff.factor_milli / 1000,
            "max_seconds": backoff.max_ms / 1000,
        },
        "max_messages": settings.max_messages,
        "max_bytes": settings.max_bytes,
        "max_leased_per_group": settings.max_leased_per_group,
        "partitions": partitions,
    }


async def read(call: Call) -> Answer:
    """GET /v1/queues/{queue}: Read the settings."""
    queue = call.queue
    info = queue_of(await view_of(call), queue)
    return call.answer(_described(queue, info.settings, info.partitions))


async def remove(call: Call) -> Answer:
    """DELETE /v1/queues/{queue}: Remove a queue with its messages."""
    queue = call.queue
    reply, _ = await propose(call, commands.DeleteQueue(queue), replies.QueueDeleted, queue)
    return call.answer({"messages": reply.messages})


async def list_all(call: Call) -> Answer:
    """GET /v1/queues?prefix=&limit=&cursor=&stats=: List the queues by name."""
    prefix, cursor = name_text(call, "prefix"), name_text(call, "cursor")
    limit = whole_number(call, "limit", 100, least=1, most=PAGE_MAX)
    wanted = call.query.get("stats", "false")
    if wanted not in ("true", "false"):
        raise problems.invalid("query.stats", "is true or false")
    view = await view_of(call)
    now_ms = call.node.shard.wall_ms()
    found, cursor = view.queues(names.namespace(), prefix or "", limit, cursor)
    queues = [
        _described(info.key, info.settings) | ({"stats": stats.counted(view, info, now_ms)} if wanted == "true" else {})
        for info in found
    ]
    return call.answer({"queues": queues, "cursor": cursor})
