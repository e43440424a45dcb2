"""What the leader does for schedules: look which are due, and propose their ticks.

The rule for what is late: a tick that the cluster can take within `MISSED_MS` of its time is not missed, so that each
is done through a change of leaders, however short the interval. Those before are missed, by downtime as a rule: none of
them is done (`skip`), or the last of them for all (`one`). What is not done is counted.

Bounded: what a call works out, whatever was missed, takes the loop some milliseconds; the rest is the next call's.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from raftq.replication import cron
from raftq.storage.machine.commands import Tick
from raftq.storage.machine.records import ScheduleRecord

_log = structlog.get_logger("raftq.schedules")

#: Of wall time.
MISSED_MS = 60_000
#: Ticks proposed at once, and missed ones of one schedule passed over at once.
TICKS_MAX, STEPS_MAX = 20, 20
#: Seconds after which a schedule that cannot be worked out here is tried again.
_RETRY = 60.0


def tick(schedule: ScheduleRecord, now_ms: int) -> Tick:
    """The next tick of a schedule that is due. Raises ValueError for an unknown time zone."""
    given, due_ms = schedule.given, schedule.state.next_ms
    assert due_ms is not None, schedule
    first_ms = now_ms - MISSED_MS
    if due_ms >= first_ms:
        return Tick(schedule.key, due_ms, cron.next_after(given, due_ms), due_ms)
    if given.interval_ms is not None:
        passed = (first_ms - 1 - due_ms) // given.interval_ms
        last_ms, missed = due_ms + passed * given.interval_ms, 1 + passed
    else:
        last_ms, missed = due_ms, 1
    next_ms = cron.next_after(given, last_ms)
    while next_ms is not None and next_ms < first_ms and missed < STEPS_MAX:
        last_ms, missed, next_ms = next_ms, missed + 1, cron.next_after(given, next_ms)
    if given.missed == "skip" or (next_ms is not None and next_ms < first_ms):
        return Tick(schedule.key, due_ms, next_ms, None, missed)
    return Tick(schedule.key, due_ms, next_ms, last_ms, missed - 1)


class Ticker:
    """Of one leadership at a time: proposes the next ticks once those before are applied."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        #: On their way.
        self._proposed = 0
        #: Schedules that could not be worked out -> when to try again.
        self._failed: dict[str, float] = {}

    def propose(self, due: Callable[[int, int], list[ScheduleRecord]], now_ms: int) -> list[Tick]:
        """The ticks to be proposed now; `due` gives the schedules that are due at a wall time, so many at most."""
        if self._proposed:
            return []
        now = self._clock()
        self._failed = {key: until for key, until in self._failed.items() if until > now}
        found: list[Tick] = []
        for schedule in due(now_ms, TICKS_MAX + len(self._failed)):
            if schedule.key in self._failed or len(found) == TICKS_MAX:
                continue
            try:
                found.append(tick(schedule, now_ms))
            except ValueError as error:
                _log.error("schedule not understood", schedule=schedule.key, error=str(error))
                self._failed[schedule.key] = now + _RETRY
        self._proposed = len(found)
        return found

    def applied(self) -> None:
        self._proposed -= 1

    def give_up(self) -> None:
        """Leadership is lost."""
        self._proposed = 0
