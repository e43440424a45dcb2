from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raftq.storage.machine import keys, packing, schedules
from raftq.storage.machine.commands import (
    DefineQueue,
    DefineSchedule,
    DefineTopic,
    DeleteQueue,
    DeleteSchedule,
    DeleteTopic,
    Part,
    QueueSettings,
    Schedule,
    Subscribe,
    Tick,
    decode,
    encode,
)
from raftq.storage.machine.replies import QueueReady, ScheduleDefined, ScheduleState, Ticked
from tests.storage.conftest import QUEUE, Hands, blob

NAME = "default/minutely"
TOPIC = "default/news"
#: When the first tick is due, and how long to the next.
FIRST, STEP = 1_700_000_001_000, 60_000


def given(**fields: Any) -> Schedule:
    part = Part(3, None, blob(b'"report"'))
    return msgspec.structs.replace(Schedule(None, "UTC", STEP, QUEUE, None, part), **fields)


@pytest.fixture
def minutely(hands: Hands) -> Hands:
    assert hands.do(DefineSchedule(NAME, given(), FIRST)) == ScheduleDefined(True, ScheduleState(FIRST))
    return hands


def state(hands: Hands) -> ScheduleState:
    schedule = hands.machine.view().schedule(NAME)
    assert schedule is not None
    return schedule.state


def tick(hands: Hands, at_ms: int = FIRST) -> Any:
    return hands.do(Tick(NAME, at_ms, at_ms + STEP, at_ms))


def attributes(hands: Hands, queue: str = QUEUE) -> list[Any]:
    return [
        msgspec.json.decode(packing.unpack_message(message.data).attributes)
        for message in hands.machine.view().peek(queue, "ready", 1_000)[0]
    ]


def test_a_tick_enqueues_the_message_once(minutely: Hands) -> None:
    """However often, and by however many leaders, it is proposed."""
    assert tick(minutely) == Ticked(1)
    assert minutely.effects == [QueueReady(QUEUE, 1)]
    minutely.restart()
    assert tick(minutely) == Ticked(0)
    assert state(minutely) == ScheduleState(FIRST + STEP, FIRST, ticks=1)
    assert tick(minutely, FIRST + STEP) == Ticked(2)
    [first, second] = minutely.machine.view().peek(QUEUE, "ready", 9)[0]
    assert (first.priority, packing.unpack_message(second.data).body) == (3, b'"report"')
    assert attributes(minutely) == [
        {"schedule": "minutely", "tick": number, "tick_at_ms": FIRST + at} for number, at in ((1, 0), (2, STEP))
    ]


def test_the_message_keeps_what_it_has(hands: Hands) -> None:
    message = packing.pack_message(b"\0", kind=packing.BINARY, group=b"g", attributes=b'{"color":"red"}')
    part = Part(0, None, packing.pack([message]), None, None, ["newest"])
    hands.do(DefineSchedule(NAME, given(part=part), FIRST))
    tick(hands)
    tick(hands, FIRST + STEP)
    [one] = hands.machine.view().peek(QUEUE, "ready", 9)[0]
    unpacked = packing.unpack_message(one.data)
    assert (unpacked.kind, unpacked.group, unpacked.body) == (packing.BINARY, "g", b"\0")
    assert attributes(hands) == [{"color": "red", "schedule": "minutely", "tick": 2, "tick_at_ms": FIRST + STEP}]


def test_what_was_missed_is_counted(minutely: Hands) -> None:
    """None is done of three; then one for three."""
    assert minutely.do(Tick(NAME, FIRST, FIRST + 3 * STEP, None, 3)) == Ticked(3)
    assert state(minutely) == ScheduleState(FIRST + 3 * STEP, skipped=3)
    assert minutely.do(Tick(NAME, FIRST + 3 * STEP, FIRST + 6 * STEP, FIRST + 5 * STEP, 2)) == Ticked(6)
    assert state(minutely) == ScheduleState(FIRST + 6 * STEP, FIRST + 5 * STEP, ticks=1, skipped=5)
    assert attributes(minutely)[0]["tick"] == 6


def test_a_deleted_queue_is_created_again(minutely: Hands) -> None:
    tick(minutely)
    minutely.do(DeleteQueue(QUEUE))
    assert tick(minutely, FIRST + STEP) == Ticked(2)
    assert minutely.info().ready == 1


def test_what_is_refused_is_counted_as_failed(minutely: Hands) -> None:
    minutely.do(DefineQueue(QUEUE, QueueSettings(max_messages=1)))
    tick(minutely)
    assert tick(minutely, FIRST + STEP) == Ticked(2)
    assert state(minutely).failure == "full: max_messages is 1, the queue has 1, and 1 more would come"
    minutely.do(DefineQueue(QUEUE, QueueSettings()))
    tick(minutely, FIRST + 2 * STEP)
    assert state(minutely) == ScheduleState(FIRST + 3 * STEP, FIRST + 2 * STEP, ticks=2, failed=1)


def test_a_topic(hands: Hands) -> None:
    to_topic = DefineSchedule(NAME, given(queue=None, topic=TOPIC), FIRST)
    assert hands.do(to_topic).reason == "unknown_topic"
    hands.do(DefineTopic(TOPIC))
    hands.do(Subscribe(TOPIC, "default/a"))
    hands.do(Subscribe(TOPIC, "default/b", b'{"schedule":["another"]}'))
    hands.do(to_topic)
    assert tick(hands) == Ticked(1)
    assert [len(attributes(hands, queue)) for queue in ("default/a", "default/b")] == [1, 0]
    hands.do(DeleteTopic(TOPIC))
    assert tick(hands, FIRST + STEP) == Ticked(2)
    assert (state(hands).failed, state(hands).failure) == (1, "unknown_topic: there is no topic default/news")


def test_a_change_keeps_counts_and_the_next_tick_unless_the_times_change(minutely: Hands) -> None:
    tick(minutely)
    reply = minutely.do(DefineSchedule(NAME, given(missed="skip"), FIRST + 5))
    assert reply == ScheduleDefined(False, ScheduleState(FIRST + STEP, FIRST, ticks=1))
    for fields in ({"interval_ms": 7_000}, {"interval_ms": None, "cron": "* * * * *"}):
        later = state(minutely).next_ms + 5  # type: ignore[operator]
        assert minutely.do(DefineSchedule(NAME, given(**fields), later)).state.next_ms == later
    zoned = given(interval_ms=None, cron="* * * * *", time_zone="Europe/Berlin")
    assert minutely.do(DefineSchedule(NAME, zoned, FIRST + 9)).state == ScheduleState(FIRST + 9, FIRST, ticks=1)


def test_a_paused_schedule_has_no_tick(minutely: Hands) -> None:
    minutely.do(DefineSchedule(NAME, given(paused=True), FIRST))
    assert minutely.machine.schedules_due(FIRST, 9) == []
    assert tick(minutely) == Ticked(0)
    minutely.do(DefineSchedule(NAME, given(), FIRST + 5))
    assert state(minutely) == ScheduleState(FIRST + 5)


def test_the_last_tick(minutely: Hands) -> None:
    assert minutely.do(Tick(NAME, FIRST, None, FIRST)) == Ticked(1)
    assert state(minutely).next_ms is None
    assert minutely.keys(keys.TICK) == []


def test_a_deleted_schedule_ticks_no_more_and_begins_anew(minutely: Hands) -> None:
    tick(minutely)
    reply = minutely.do(DeleteSchedule(NAME))
    assert reply == ScheduleDefined(False, ScheduleState(FIRST + STEP, FIRST, ticks=1))
    assert tick(minutely, FIRST + STEP) == Ticked(0)
    assert minutely.do(DeleteSchedule(NAME)).reason == "unknown_schedule"
    assert minutely.keys(keys.TICK) + minutely.keys(keys.SCHEDULE) == []
    minutely.do(DefineSchedule(NAME, given(), FIRST))
    assert tick(minutely) == Ticked(1)


def test_the_earliest_are_due_first_and_so_many(hands: Hands) -> None:
    for at, name in ((3, "c"), (1, "b"), (2, "a"), (9, "d")):
        hands.do(DefineSchedule(f"default/{name}", given(), FIRST + at))
    due = hands.machine.schedules_due
    assert [one.key for one in due(FIRST + 3, 9)] == ["default/b", "default/a", "default/c"]
    assert [one.key for one in due(FIRST + 9, 2)] == ["default/b", "default/a"]
    assert due(FIRST, 9) == []
    assert len(due(1 << 64, 9)) == 4


def test_the_list(hands: Hands) -> None:
    for name in ("default/b", "default/a1", "default/a2", "other/a3"):
        target = f"{name.partition('/')[0]}/jobs"
        hands.do(DefineSchedule(name, given(queue=target), FIRST))
    view = hands.machine.view()
    assert [one.key for one in view.schedules("default", "a")[0]] == ["default/a1", "default/a2"]
    found, cursor = view.schedules("default", limit=2)
    assert ([one.key for one in found], cursor) == (["default/a1", "default/a2"], "a2")
    assert [one.key for one in view.schedules("default", cursor="a2")[0]] == ["default/b"]


def test_what_is_no_schedule_is_refused(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    for fields in (
        {"queue": None},
        {"topic": TOPIC},
        {"queue": "other/jobs"},
        {"cron": "* * * * *"},
        {"interval_ms": None},
        {"part": Part(0, None, blob(b"1", b"2"))},
        {"part": Part(11, None, blob(b"1"))},
        {"part": Part(0, None, blob(b"x" * schedules.BYTES_MAX))},
    ):
        assert hands.do(DefineSchedule(NAME, given(**fields), FIRST)).reason == "invalid", fields
    for next_ms in (-1, 0, 1 << 63):
        assert hands.do(DefineSchedule(NAME, given(), next_ms)).reason == "invalid"
    monkeypatch.setattr(schedules, "SCHEDULES_MAX", 1)
    hands.do(DefineSchedule(NAME, given(), FIRST))
    assert hands.do(DefineSchedule("default/more", given(), FIRST)).reason == "too_many_schedules"


@pytest.mark.parametrize("bad", [(FIRST, 0), (FIRST - 1, 0), (1 << 63, 0), (FIRST + 1, -1)])
def test_a_tick_leads_to_a_later_one(minutely: Hands, bad: tuple[int, int]) -> None:
    next_ms, skipped = bad
    assert minutely.do(Tick(NAME, FIRST, next_ms, FIRST, skipped)).reason == "invalid"
    assert state(minutely) == ScheduleState(FIRST)


def test_the_commands_are_what_they_were() -> None:
    for command in (DefineSchedule(NAME, given(), FIRST), DeleteSchedule(NAME), Tick(NAME, FIRST, None, FIRST, 2)):
        assert decode(encode(command)) == command
