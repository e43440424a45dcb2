"""The parts of an enqueue: its messages grouped by priority and delay, in blobs of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from raftq.api import names
from raftq.api.schemas import MessageGiven, milliseconds
from raftq.storage.machine import packing
from raftq.storage.machine.commands import Part

#: Bytes that a message takes in a blob beside itself, and a blob for itself.
_MESSAGE_BYTES = 4
_BLOB_BYTES = 4


def parts_of(given: Sequence[MessageGiven], packed: Sequence[bytes]) -> list[Part]:
    """`given[i]` was packed as `packed[i]`. Raises Problem 422 for a bad dedup id."""
    if len(given) == 1 or _fits(packed):
        priority, delay = given[0].priority, given[0].delay_seconds
        if all(one.priority == priority and one.delay_seconds == delay and one.dedup_id is None for one in given):
            return [Part(priority, _delay_ms(delay), packing.pack(packed))]
    dedup_ids = _dedup_ids(given)
    runs = [run for places in _groups(given) for run in _split(places, packed)]
    return [_part(run, given[run[0]], packed, dedup_ids, whole=len(runs) == 1) for run in runs]


def _fits(packed: Sequence[bytes]) -> bool:
    return _BLOB_BYTES + _MESSAGE_BYTES * len(packed) + sum(map(len, packed)) <= packing.BLOB_BYTES_MAX


def _groups(given: Sequence[MessageGiven]) -> list[list[int]]:
    """The places of the messages of each priority and delay, in order."""
    groups: dict[tuple[int, float | None], list[int]] = {}
    for place, message in enumerate(given):
        groups.setdefault((message.priority, message.delay_seconds), []).append(place)
    return list(groups.values())


def _split(places: list[int], packed: Sequence[bytes]) -> list[list[int]]:
    """Runs of places whose blobs are at most BLOB_BYTES_MAX, or one message."""
    runs: list[list[int]] = [[]]
    size = _BLOB_BYTES
    for place in places:
        more = _MESSAGE_BYTES + len(packed[place])
        if runs[-1] and size + more > packing.BLOB_BYTES_MAX:
            runs.append([])
            size = _BLOB_BYTES
        runs[-1].append(place)
        size += more
    return runs


def _part(
    run: list[int], alike: MessageGiven, packed: Sequence[bytes], dedup_ids: list[str | None] | None, *, whole: bool
) -> Part:
    ids = [dedup_ids[place] for place in run] if dedup_ids else None
    return Part(
        alike.priority,
        _delay_ms(alike.delay_seconds),
        packing.pack([packed[place] for place in run]),
        None if whole else run,
        ids if ids and any(ids) else None,
    )


def _dedup_ids(given: Sequence[MessageGiven]) -> list[str | None] | None:
    ids = [
        None if message.dedup_id is None else names.checked_id(_field(place, given), message.dedup_id)
        for place, message in enumerate(given)
    ]
    return ids if any(ids) else None


def _field(place: int, given: Sequence[MessageGiven]) -> str:
    return "dedup_id" if len(given) == 1 else f"messages[{place}].dedup_id"


def _delay_ms(delay_seconds: float | None) -> int | None:
    return None if delay_seconds is None else milliseconds(delay_seconds)
