"""When schedules tick: cron and daylight saving time, what is missed, and how the leader proposes it."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from raftq.replication import cron, ticks
from raftq.storage.machine.commands import Part, Schedule, Tick
from raftq.storage.machine.records import ScheduleRecord
from raftq.storage.machine.replies import ScheduleState

HOUR = 3_600_000
MISSED = ticks.MISSED_MS


def schedule(expression: str | None = None, zone: str = "UTC", **fields: Any) -> Schedule:
    made = Schedule(expression, zone, None if expression else 1_000, "default/jobs", None, Part(0, None, b""))
    return msgspec.structs.replace(made, **fields)


def ms(text: str, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()) * 1000


def after(expression: str, zone: str, start: str, count: int) -> list[str]:
    """The next ticks, as clocks there show them, with the offset from UTC in hours."""
    found, at_ms = [], ms(start, zone)
    for _ in range(count):
        next_ms = cron.next_after(schedule(expression, zone), at_ms)
        assert next_ms is not None
        at_ms = next_ms
        shown = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone))
        found.append(f"{shown:%m-%d %H:%M} {(shown.utcoffset() or timedelta()) // timedelta(hours=1):+d}")
    return found


def test_plain_times() -> None:
    assert after("*/5 * * * *", "UTC", "2026-05-01 00:03", 2) == ["05-01 00:05 +0", "05-01 00:10 +0"]
    assert after("0 9 * * MON-FRI", "Europe/Berlin", "2026-05-01 09:00", 1) == ["05-04 09:00 +2"]
    assert after("0 0 29 2 *", "UTC", "2026-05-01", 1) == ["02-29 00:00 +0"]
    assert cron.next_after(schedule("* * * * *"), 60_000) == 120_000
    assert cron.next_after(schedule("* * * * *"), 59_999) == 60_000


def test_a_time_that_the_clocks_skip_is_right_after_they_did() -> None:
    """In Berlin 02:00 to 03:00 of 29 March 2026 is not."""
    assert after("30 2 * * *", "Europe/Berlin", "2026-03-28 02:30", 2) == ["03-29 03:00 +2", "03-30 02:30 +2"]
    assert after("15,45 2 * * *", "Europe/Berlin", "2026-03-28 02:45", 2) == ["03-29 03:00 +2", "03-30 02:15 +2"]


def test_a_time_that_comes_twice_is_the_first() -> None:
    """In Berlin 02:00 to 03:00 of 25 October 2026 comes twice."""
    assert after("30 2 * * *", "Europe/Berlin", "2026-10-24 02:30", 2) == ["10-25 02:30 +2", "10-26 02:30 +1"]


def test_a_schedule_that_begins_in_the_second_of_two_equal_hours() -> None:
    start = ms("2026-10-25 02:10", "Europe/Berlin", fold=1)
    assert cron.next_after(schedule("30 2 * * *", "Europe/Berlin"), start) == ms("2026-10-26 02:30", "Europe/Berlin")


@pytest.mark.parametrize("expression", ["*/5 * * * *", "*/20 2-4 * * *", "0 * * * *"])
@pytest.mark.parametrize("day", ["2026-03-28 22:00", "2026-10-24 22:00"])
def test_stars_go_by_elapsed_time(expression: str, day: str) -> None:
    """In the hour that comes twice they tick twice, in that which does not come not at all."""
    start = at = ms(day, "Europe/Berlin")
    found = []
    while at < start + 12 * HOUR:
        at = cron.next_after(schedule(expression, "Europe/Berlin"), at) or 0
        found.append(at)
    steps = {later - earlier for earlier, later in pairwise(found)}
    assert len(found) == len(set(found))
    if "2-4" not in expression:
        assert len(steps) == 1


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "UTC"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "0 0 * * *", "5 0,1,2,3 * * *", "*/7 * * * *", "59 23 31 12 *"])
def test_ticks_always_go_on(zone: str, expression: str) -> None:
    at = ms("2026-01-01", zone)
    for _ in range(400):
        later = cron.next_after(schedule(expression, zone), at)
        assert later is not None
        assert later > at
        at = later


@pytest.mark.parametrize(
    "bad",
    [
        *("", "* * * *", "* * * * * *", "60 * * * *", "@daily", "*/0 * * * *", "0 0 31 2 *", "0 0 * * X", "* " * 200),
        *("MON#1/2 * * * *", "0 0 * * MON#1/2", "0 0 * * 5L/2", f"{'9' * 190} * * * *", "1-² * * * *", ", , , , ,"),
    ],
)
def test_bad_cron_says_what_is_wrong(bad: str) -> None:
    with pytest.raises(ValueError, match="minute, hour, day of month, month and day of week"):
        cron.check_cron(bad)


@pytest.mark.parametrize("bad", ["", "Mars/Base", "../etc/passwd", "/etc/passwd", "Europe", "x" * 300, "a\0b"])
def test_a_bad_time_zone(bad: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        cron.zone(bad)


def record(given: Schedule, next_ms: int, key: str = "default/s") -> ScheduleRecord:
    return ScheduleRecord(key, given, 1, ScheduleState(next_ms))


def test_a_tick_is_on_time_for_a_minute() -> None:
    """Each is done, one after the other, though the next ones are due already."""
    assert ticks.tick(record(schedule(), 5_000), 5_000) == Tick("default/s", 5_000, 6_000, 5_000)
    assert ticks.tick(record(schedule(), 5_000), 5_000 + MISSED) == Tick("default/s", 5_000, 6_000, 5_000)


@pytest.mark.parametrize("missed", ["skip", "one"])
@pytest.mark.parametrize("expression", [None, "* * * * *"])
def test_missed_ticks(expression: str | None, missed: Any) -> None:
    step = 60_000 if expression else 1_000
    given = schedule(expression, missed=missed)
    now, due = 10 * step + MISSED, 6 * step
    proposed = ticks.tick(record(given, due), now + 1)
    if missed == "skip":
        assert proposed == Tick("default/s", due, 11 * step, None, 5)
    else:
        assert proposed == Tick("default/s", due, 11 * step, 10 * step, 4)


def test_a_long_downtime_is_passed_over_in_steps() -> None:
    given, start = schedule("* * * * *"), ms("2026-01-01")
    now = start + 1_000 * 60_000 + MISSED
    due: int | None = start
    found = []
    while due is not None and due < now - MISSED:
        found.append(ticks.tick(record(given, due), now))
        due = found[-1].next_ms
    assert [tick.at_ms for tick in found if tick.at_ms is not None] == [now - MISSED - 60_000]
    assert sum(tick.skipped for tick in found) == 999
    assert max(tick.skipped for tick in found) <= ticks.STEPS_MAX
    assert ticks.tick(record(schedule(), 1), 1 << 62).skipped > 1 << 50, "an interval takes no steps"


def test_the_next_ticks_are_proposed_once_these_are_applied() -> None:
    ticker = ticks.Ticker(lambda: 0.0)
    due = [record(schedule(), 5_000, f"default/{at}") for at in range(30)]
    first = ticker.propose(lambda _now, limit: due[:limit], 6_000)
    assert [tick.schedule for tick in first] == [f"default/{at}" for at in range(ticks.TICKS_MAX)]
    assert ticker.propose(lambda _now, limit: due[:limit], 6_000) == []
    for _ in first:
        ticker.applied()
    assert len(ticker.propose(lambda _now, limit: due[20:][:limit], 6_000)) == 10
    ticker.give_up()
    assert len(ticker.propose(lambda _now, limit: due[20:][:limit], 6_000)) == 10


def test_a_time_zone_that_this_node_does_not_know_stops_no_other_schedule() -> None:
    now = [0.0]
    ticker = ticks.Ticker(lambda: now[0])
    due = [record(schedule("* * * * *", "Mars/Base"), 60_000, "default/bad"), record(schedule(), 60_000)]
    for _ in range(2):
        assert [tick.schedule for tick in ticker.propose(lambda _now, _limit: due, 60_000)] == ["default/s"]
        ticker.applied()
    now[0] = 61.0
    due[0] = record(schedule(), 60_000, "default/bad")
    assert len(ticker.propose(lambda _now, _limit: due, 60_000)) == 2
