"""The parts of an enqueue: its messages grouped by priority and delay, in blobs of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from raftq.api import names
from raftq.api.schemas import MessageGiven, milliseconds
from raftq.storage.machine import packing
from raftq.storage.machine.commands import Part

#: Bytes that a message takes in a blob beside itself, and a blob for itself.
_MESSAGE_BYTES = 4
_BLOB_BYTES = 4


def parts_of(given: Sequence[MessageGiven], packed: Sequence[bytes]) -> list[Part]:
    """`given[i]` was packed as `packed[i]`. Raises Problem 422 for a bad dedup id or replace key."""
    if len(given) == 1 or _fits(packed):
        priority, delay = given[0].priority, given[0].delay_seconds
        # A list, since a generator takes twice the time.
        alike = [
            one.priority == priority and one.delay_seconds == delay and one.dedup_id is None and one.replace_key is None
            for one in given
        ]
        if all(alike):
            return [Part(priority, _delay_ms(delay), packing.pack(packed))]
    dedup_ids, replace_keys = _ids(given, "dedup_id"), _ids(given, "replace_key")
    runs = [run for places in _groups(given) for run in _split(places, packed)]
    return [_part(run, given[run[0]], packed, dedup_ids, replace_keys, whole=len(runs) == 1) for run in runs]


def _fits(packed: Sequence[bytes]) -> bool:
    return _BLOB_BYTES + _MESSAGE_BYTES * len(packed) + sum(map(len, packed)) <= packing.BLOB_BYTES_MAX


def _groups(given: Sequence[MessageGiven]) -> list[list[int]]:
    """The places of the messages of each priority, in their order, and anew where the delay changes: so messages of one
    priority are numbered in the order of the request."""
    groups: list[list[int]] = []
    of_priority: dict[int, list[int]] = {}
    for place, message in enumerate(given):
        group = of_priority.get(message.priority)
        if group is None or given[group[-1]].delay_seconds != message.delay_seconds:
            group = of_priority[message.priority] = []
            groups.append(group)
        group.append(place)
    return groups


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
    run: list[int],
    alike: MessageGiven,
    packed: Sequence[bytes],
    dedup_ids: list[str | None] | None,
    replace_keys: list[str | None] | None,
    *,
    whole: bool,
) -> Part:
    return Part(
        alike.priority,
        _delay_ms(alike.delay_seconds),
        packing.pack([packed[place] for place in run]),
        None if whole else run,
        _of(run, dedup_ids),
        _of(run, replace_keys),
    )


def _of(run: list[int], ids: list[str | None] | None) -> list[str | None] | None:
    """Those of the run, None when it has none."""
    found = [ids[place] for place in run] if ids else []
    return found if any(found) else None


def _ids(given: Sequence[MessageGiven], name: Literal["dedup_id", "replace_key"]) -> list[str | None] | None:
    ids: list[str | None] = []
    for place, message in enumerate(given):
        value = getattr(message, name)
        field = name if len(given) == 1 else f"messages[{place}].{name}"
        ids.append(None if value is None else names.checked_id(field, value))
    return ids if any(ids) else None


def _delay_ms(delay_seconds: float | None) -> int | None:
    return None if delay_seconds is None else milliseconds(delay_seconds)
