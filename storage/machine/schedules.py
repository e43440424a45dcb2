"""Schedules: the commands that define and delete them, and tick, by which a schedule's message is enqueued.

Owns the tables SCHEDULE and TICK. The machine knows neither cron nor time zones: the leader says when the first tick is
due, and with each tick when the next one is. A tick names the moment that it is for and is done only while that is the
schedule's next one; so whoever proposes it, and how often, it is done once. Invariant: a schedule has a moment in TICK
exactly while it has a next tick.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from raftq.storage.machine import keys, messages, packing, partitions, publishing, records, topics
from raftq.storage.machine.commands import DefineSchedule, DeleteSchedule, Enqueue, Part, Publish, Tick
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.records import Cluster, ScheduleRecord
from raftq.storage.machine.replies import Effect, Enqueued, Published, Refused, ScheduleDefined, ScheduleState, Ticked
from raftq.storage.machine.timetable import Timetable

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: More schedules are refused: the leader has to be able to tick all of them at midnight.
SCHEDULES_MAX = 10_000
#: Of a schedule's message, packed.
BYTES_MAX = packing.BLOB_BYTES_MAX
#: Attributes that a tick gives to its message.
ATTRIBUTES = ("schedule", "tick", "tick_at_ms")


class Schedules:
    def __init__(self, txn: Txn, cluster: Cluster) -> None:
        self._txn = txn
        self._cluster = cluster
        self._ticks = Timetable(txn, keys.TICK)

    def find(self, key: str) -> ScheduleRecord | None:
        value = self._txn.get(keys.schedule(key))
        return None if value is None else records.decode_schedule(value)

    def add(self) -> bool:
        """Count one that is to be put; whether there is room for it."""
        if self._cluster.schedules >= SCHEDULES_MAX:
            return False
        self._cluster.schedules += 1
        return True

    def put(self, schedule: ScheduleRecord, next_ms: int | None) -> None:
        """With its next tick."""
        key = keys.schedule(schedule.key)
        self._forget(key, schedule)
        schedule.state.next_ms = next_ms
        if next_ms is not None:
            self._ticks.add(next_ms, key)
        self._txn.put(key, records.encode(schedule))

    def delete(self, schedule: ScheduleRecord) -> None:
        key = keys.schedule(schedule.key)
        self._forget(key, schedule)
        self._txn.delete(key)
        self._cluster.schedules -= 1

    def _forget(self, key: bytes, schedule: ScheduleRecord) -> None:
        if schedule.state.next_ms is not None:
            self._ticks.remove(schedule.state.next_ms, key)

    def due(self, now_ms: int, limit: int) -> list[ScheduleRecord]:
        """Those with a tick at or before that wall time, the earliest first."""
        earliest = self._ticks.earliest()
        if earliest is None or earliest > now_ms:
            return []
        end = keys.moment(keys.TICK, min(now_ms, keys.MS_MAX) + 1)
        found = [keys.moment_of(key)[1] for key, _ in islice(self._txn.scan(keys.moment(keys.TICK, 0), end), limit)]
        return [records.decode_schedule(value) for value in map(self._txn.get, found) if value is not None]


def unknown(key: str) -> Refused:
    return Refused("unknown_schedule", f"there is no schedule {key}")


def define(state: State, meta: Meta, command: DefineSchedule) -> tuple[ScheduleDefined | Refused, list[Effect]]:
    """Of a schedule whose times stay as they were, the next tick stays too."""
    given, next_ms = command.given, command.next_ms
    refusal = _check(state, command)
    if refusal is not None:
        return refusal, []
    schedule = state.schedules.find(command.schedule)
    created = schedule is None
    if schedule is None:
        schedule = ScheduleRecord(command.schedule, given, meta.index, ScheduleState())
        if not state.schedules.add():
            return Refused("too_many_schedules", f"there are {SCHEDULES_MAX} schedules already: delete some"), []
    before = schedule.given
    times_stay = (before.cron, before.time_zone, before.interval_ms) == (given.cron, given.time_zone, given.interval_ms)
    if times_stay and schedule.state.next_ms is not None:
        next_ms = schedule.state.next_ms
    schedule.given = given
    state.schedules.put(schedule, None if given.paused else next_ms)
    return ScheduleDefined(created, schedule.state), []


def _check(state: State, command: DefineSchedule) -> Refused | None:
    given = command.given
    targets = [key for key in (given.queue, given.topic) if key is not None]
    if len(targets) != 1 or targets[0].partition("/")[0] != command.schedule.partition("/")[0]:
        return Refused("invalid", "a schedule has one queue or topic, of its namespace")
    if (given.cron is None) == (given.interval_ms is None) or not _can_be(command.next_ms, 0):
        return Refused("invalid", "a schedule has either cron or an interval, and a time for its next tick")
    if messages.counted([given.part]) != [1] or len(given.part.blob) > BYTES_MAX:
        return Refused("invalid", f"a schedule has one message of at most {BYTES_MAX} bytes")
    if given.topic is not None and state.topics.find(given.topic) is None:
        return topics.unknown(given.topic)
    return None


def _can_be(next_ms: int | None, after_ms: int) -> bool:
    return next_ms is None or after_ms < next_ms <= keys.MS_MAX


def delete(state: State, _meta: Meta, command: DeleteSchedule) -> tuple[ScheduleDefined | Refused, list[Effect]]:
    schedule = state.schedules.find(command.schedule)
    if schedule is None:
        return unknown(command.schedule), []
    state.schedules.delete(schedule)
    return ScheduleDefined(created=False, state=schedule.state), []


def tick(state: State, meta: Meta, command: Tick) -> tuple[Ticked | Refused, list[Effect]]:
    schedule = state.schedules.find(command.schedule)
    if schedule is None or schedule.state.next_ms != command.due_ms:
        return Ticked(0), []
    if not _can_be(command.next_ms, command.due_ms) or command.skipped < 0:
        return Refused("invalid", "a tick leads to a later one"), []
    now = schedule.state
    now.skipped += command.skipped
    number, effects = now.passed, list[Effect]()
    if command.at_ms is not None:
        number += 1
        now.last_ms = command.at_ms
        reply, effects = _enqueue(state, meta, schedule, number, command.at_ms)
        if isinstance(reply, Refused):
            now.failed += 1
            now.failure = f"{reply.reason}: {reply.detail}"
        else:
            now.ticks += 1
            now.failure = ""
    state.schedules.put(schedule, command.next_ms)
    return Ticked(number), effects


def _enqueue(
    state: State, meta: Meta, schedule: ScheduleRecord, number: int, at_ms: int
) -> tuple[Enqueued | Published | Refused, list[Effect]]:
    given = schedule.given
    parts = [_numbered(given.part, schedule.key, number, at_ms)]
    if given.topic is not None:
        return publishing.publish(state, meta, Publish(given.topic, parts))
    assert given.queue is not None, schedule
    enqueue = messages.enqueue if state.partitions.get(given.queue) is None else partitions.enqueue
    return enqueue(state, meta, Enqueue(given.queue, parts))


def _numbered(part: Part, key: str, number: int, at_ms: int) -> Part:
    """Whose message says which tick it is of."""
    message = packing.unpack_message(packing.unpack(part.blob)[0])
    # A name needs no escapes, and attributes are a JSON object.
    own = b'"schedule":"%b","tick":%d,"tick_at_ms":%d}' % (key.partition("/")[2].encode(), number, at_ms)
    given = message.attributes[:-1] + b"," if len(message.attributes) > len(b"{}") else b"{"
    packed = packing.pack_message(
        message.body,
        kind=message.kind,
        group=message.group.encode(),
        attributes=given + own,
        extension=message.extension,
    )
    return msgspec.structs.replace(part, blob=packing.pack([packed]))
