"""Schedules: define, read, remove, list. When they are due is worked out here for the first tick, and then by the
leader's loop."""

from __future__ import annotations

from typing import Any

import msgspec

from raftq.api import auth, bodies, names, problems, schemas
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.parts import parts_of
from raftq.api.proposals import propose
from raftq.api.reads import PAGE_MAX, name_text, view_of, whole_number
from raftq.api.schemas import ScheduleGiven, milliseconds
from raftq.replication import cron
from raftq.storage.machine import commands, packing, replies
from raftq.storage.machine.commands import Part, Schedule, ScheduleKey
from raftq.storage.machine.replies import ScheduleState
from raftq.storage.machine.schedules import ATTRIBUTES, BYTES_MAX


def _key(call: Call) -> ScheduleKey:
    """Of the path. Raises Problem 422."""
    return names.queue_key(call.parameters[0], "schedule")


async def define(call: Call) -> Answer:
    """PUT /v1/schedules/{schedule}: Define a schedule, or change the one that is there, whose counts stay.
    The next tick stays too, unless the times are others."""
    key = _key(call)
    given = _schedule(call, await call.decode(schemas.SCHEDULE))
    next_ms = cron.next_after(given, call.node.shard.wall_ms())
    if next_ms is None:
        raise problems.invalid("cron", f"{given.cron!r} never comes: give a day that there is")
    command = commands.DefineSchedule(key, given, next_ms)
    reply, _ = await propose(call, command, replies.ScheduleDefined, given.topic or key)
    return call.answer(_described(call, key, given, reply.state), 201 if reply.created else 200)


def _schedule(call: Call, given: ScheduleGiven) -> Schedule:
    """Raises Problem 403, 413 or 422."""
    if (given.cron is None) == (given.interval_seconds is None):
        raise problems.invalid("cron", "give either cron or interval_seconds")
    if (given.queue is None) == (given.topic is None):
        raise problems.invalid("queue", "give either queue or topic: where the message goes")
    auth.require(call, "produce", given.queue or given.topic or "")
    try:
        field = "cron"
        if given.cron is not None:
            cron.check_cron(given.cron)
        elif given.time_zone is not None:
            raise problems.invalid("time_zone", "goes with cron: an interval has none")
        field = "time_zone"
        cron.zone(given.time_zone or "UTC")
    except ValueError as error:
        raise problems.invalid(field, str(error)) from None
    return Schedule(
        given.cron,
        given.time_zone or "UTC",
        None if given.interval_seconds is None else milliseconds(given.interval_seconds),
        None if given.queue is None else names.queue_key(given.queue),
        None if given.topic is None else names.queue_key(given.topic, "topic"),
        _part(call, given),
        given.missed,
        given.paused,
    )


def _part(call: Call, given: ScheduleGiven) -> Part:
    message = given.message
    if message.dedup_id is not None:
        raise problems.invalid("message.dedup_id", "each tick is a message of its own: leave it out")
    for name in ATTRIBUTES:
        if name in (message.attributes or {}):
            raise problems.invalid("message.attributes", f"{name} is what a tick sets: choose another name")
    [part] = parts_of([message], [bodies.packed(message, call.content_type, "message.", call.node.limits)])
    if len(part.blob) > BYTES_MAX:
        raise problems.too_large("message", f"The message of a schedule takes at most {BYTES_MAX:,} bytes.")
    return part


def _described(call: Call, key: ScheduleKey, given: Schedule, state: ScheduleState) -> dict[str, Any]:
    return {
        "name": names.queue_name(key),
        "cron": given.cron,
        "time_zone": None if given.cron is None else given.time_zone,
        "interval_seconds": None if given.interval_ms is None else given.interval_ms / 1000,
        "queue": given.queue and names.queue_name(given.queue),
        "topic": given.topic and names.queue_name(given.topic),
        "message": _message(call, given.part),
        "missed": given.missed,
        "paused": given.paused,
        "next_at_ms": state.next_ms,
        "last_at_ms": state.last_ms,
        "ticks": state.ticks,
        "skipped": state.skipped,
        "failed": state.failed,
        "failure": state.failure or None,
    }


def _message(call: Call, part: Part) -> dict[str, Any]:
    [data] = packing.unpack(part.blob)
    fields: dict[str, Any]
    if call.answer_type is JSON:
        fields = msgspec.json.decode(b"{%b}" % bodies.json_fields(data), type=dict[str, msgspec.Raw])
    else:
        fields = bodies.msgpack_fields(data)
    del fields["dead_letter"]
    fields["priority"] = part.priority
    fields["delay_seconds"] = None if part.delay_ms is None else part.delay_ms / 1000
    fields["replace_key"] = part.replace_keys[0] if part.replace_keys else None
    return fields


async def read(call: Call) -> Answer:
    """GET /v1/schedules/{schedule}: Read a schedule, when it ticks next, and what became of its ticks."""
    key = _key(call)
    found = (await view_of(call)).schedule(key)
    if found is None:
        raise problems.unknown_schedule(key)
    return call.answer(_described(call, key, found.given, found.state))


async def remove(call: Call) -> Answer:
    """DELETE /v1/schedules/{schedule}: Remove a schedule. What it enqueued stays."""
    key = _key(call)
    await propose(call, commands.DeleteSchedule(key), replies.ScheduleDefined, key)
    return Answer(status=204, content_type="")


async def list_all(call: Call) -> Answer:
    """GET /v1/schedules?prefix=&limit=&cursor=: List the schedules by name."""
    prefix, cursor = name_text(call, "prefix"), name_text(call, "cursor")
    limit = whole_number(call, "limit", 100, least=1, most=PAGE_MAX)
    view = await view_of(call)
    found, cursor = view.schedules(names.namespace(), prefix or "", limit, cursor)
    described = [_described(call, one.key, one.given, one.state) for one in found]
    return call.answer({"schedules": described, "cursor": cursor})
