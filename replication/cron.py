"""When a schedule is due: cron expressions and intervals, evaluated by the leader alone.

The state machine never does this: two nodes may have different time zone databases, so what one of them found goes into
the log. Cron is Debian's, with its rule for daylight saving time (cronsim): a schedule whose minute and hour both name
times (`30 2 * * *`) ticks once a day that has them, a time that the clocks skip right after they did, and a time that
comes twice at the first; one whose minute or hour begins with `*` goes by elapsed time and takes no notice.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from raftq.storage.machine.commands import Schedule

#: Of a cron expression.
CHARACTERS_MAX = 200
_FIELDS = "minute, hour, day of month, month and day of week"


def check_cron(cron: str) -> None:
    """Raises ValueError, which says what is wrong, unless it is five fields of cron."""
    if len(cron) > CHARACTERS_MAX or len(cron.split()) != 5:
        raise ValueError(f"is {_FIELDS}, five fields with spaces between, in at most {CHARACTERS_MAX} characters")
    _parsed(cron, datetime.now(UTC))


def _parsed(cron: str, after: datetime) -> CronSim:
    try:
        return CronSim(cron, after)
    except CronSimError as error:
        raise ValueError(f"{cron!r} has a {str(error)[:1].lower()}{str(error)[1:]}: give {_FIELDS}") from None


@lru_cache(1024)
def zone(name: str) -> tzinfo:
    """Of the IANA database. Raises ValueError."""
    if name == "UTC":
        return UTC  # cronsim is several times as fast with it
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name[:60]!r}: give one such as Europe/Berlin, or UTC") from None


def next_after(schedule: Schedule, after_ms: int) -> int | None:
    """Wall time of the first tick after that of cron, or one interval later; None when cron finds none in 50 years.
    Raises ValueError for a time zone, or a cron expression, that this node does not know."""
    if schedule.cron is None:
        assert schedule.interval_ms is not None, schedule
        return after_ms + schedule.interval_ms
    at = datetime.fromtimestamp(after_ms // 1000, zone(schedule.time_zone))
    for found in _parsed(schedule.cron, at):
        found_ms = int(found.timestamp()) * 1000
        # In the second of two equal hours the first one's times are found again.
        if found_ms > after_ms:
            return found_ms
    return None
