"""Messages come in: the command enqueue.

A part of an enqueue is one blob that the front end packed; it is put into the tables as it came, and never looked into
unless some of its messages are duplicates. All or nothing: a command is checked before anything is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from raftq.storage.machine import dedup, keys, packing, queues
from raftq.storage.machine.commands import Enqueue, Part, QueueSettings
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import Piece, QueueRecord
from raftq.storage.machine.replies import Effect, Enqueued, Refused

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: (priority, number, duplicate)
Place = tuple[int, int, bool]
Item = TypeVar("Item")

_DEFAULTS = QueueSettings()


def enqueue(state: State, meta: Meta, command: Enqueue) -> tuple[Enqueued | Refused, list[Effect]]:
    counts = counted(command.parts)
    if 0 in counts:
        return malformed(counts), []
    queue = state.queues.get(command.queue)
    if queue is None:
        if not command.auto_create:
            return queues.unknown(command.queue)
        queue = state.queues.create(command.queue, _DEFAULTS, meta.index)
        if queue is None:
            return queues.too_many()
    refusal = full(state, meta, queue, command.parts, counts)
    if refusal is not None:
        return refusal, []
    ready = queue.leasable
    reply = store(state, meta, queue, command.parts, counts)
    return reply, queues.became_ready(queue, ready)


def store(state: State, meta: Meta, queue: QueueRecord, parts: list[Part], counts: list[int]) -> Enqueued:
    """Put new messages into a queue, all of which was checked before."""
    state.queues.changed(queue)
    if len(counts) == 1 and parts[0].dedup_ids is None:
        part, count = parts[0], counts[0]
        first = _put_all(state, meta, queue, part, count)
        state.places.groups.settle()
        return Enqueued(queue.number, [(part.priority, first, count)])
    places, numbers = _put_parts(state, meta, queue, parts, counts)
    state.places.groups.settle()
    return Enqueued(queue.number, None, places, numbers=numbers)


def full(state: State, meta: Meta, queue: QueueRecord, parts: list[Part], counts: list[int]) -> Refused | None:
    """What says no to new messages: the queue's limits. Duplicates need no room."""
    settings = queue.settings
    if settings.max_messages is None and settings.max_bytes is None:
        return None
    count = queue.ready + queue.leased + queue.delayed
    more = more_bytes = 0
    seen: set[str] = set()
    for part, parts_count in zip(parts, counts, strict=True):
        if part.dedup_ids is None or settings.dedup_window_ms <= 0:
            more += parts_count
            more_bytes += len(part.blob) - 4 - 4 * parts_count
            continue
        for dedup_id, message in zip(part.dedup_ids, packing.unpack(part.blob), strict=True):
            if dedup_id is not None:
                if dedup_id in seen or dedup.first_message(state, meta, queue, dedup_id) is not None:
                    continue
                seen.add(dedup_id)
            more += 1
            more_bytes += len(message)
    for name, has, new, most in (
        ("max_messages", count, more, settings.max_messages),
        ("max_bytes", queue.bytes, more_bytes, settings.max_bytes),
    ):
        if new and most is not None and has + new > most:
            return Refused("full", f"{name} is {most}, the queue has {has}, and {new} more would come")
    return None


def counted(parts: list[Part]) -> list[int]:
    """Messages of each part, 0 for one that is malformed."""
    return [_count(part) for part in parts]


def malformed(counts: list[int]) -> Refused:
    return Refused("invalid", f"part {counts.index(0)} is not a blob of messages with a priority from 0 to 9")


def _count(part: Part) -> int:
    """Messages of the part, 0 when it is malformed."""
    count = packing.count_valid(part.blob)
    if not 0 <= part.priority <= keys.PRIORITY_MAX:
        return 0
    if part.dedup_ids is not None and len(part.dedup_ids) != count:
        return 0
    return 0 if part.replace_keys is not None and len(part.replace_keys) != count else count


def _put_all(state: State, meta: Meta, queue: QueueRecord, part: Part, count: int) -> int:
    """Store the new messages of a part, those with a replace key one by one: the number of the first."""
    first = queue.next_number
    grouped = queue.settings.max_leased_per_group is not None
    if part.replace_keys is None and not grouped:
        return _put(state, meta, queue, part, part.blob, count)
    messages = packing.unpack(part.blob)
    replace_keys = part.replace_keys or [None] * count
    start = 0
    while start < count:
        replace_key, of_group = replace_keys[start], grouped and packing.group_of(messages[start]) != b""
        end = start + 1
        if replace_key is None:
            while end < count and replace_keys[end] is None and _is_alike(messages[end], grouped, of_group):
                end += 1
        else:
            _replace(state, queue, replace_key)
        blob = part.blob if end - start == count else packing.pack(messages[start:end])
        number = _put(state, meta, queue, part, blob, end - start, aside=of_group or replace_key is not None)
        if replace_key is not None:
            state.places.replace_keys.add(queue, replace_key, part.priority, number)
        start = end
    return first


def _is_alike(message: bytes, grouped: bool, of_group: bool) -> bool:
    """Whether it may lie in one batch with others that are `of_group`: all of a batch have a group key, or none has."""
    return not grouped or (packing.group_of(message) != b"") == of_group


def _replace(state: State, queue: QueueRecord, replace_key: str) -> None:
    """Remove the message that has the key, or have it dropped when its lease returns it."""
    older = state.places.replace_keys.newest(queue, replace_key)
    if older is None:
        return
    piece = state.places.pull(queue, *older)
    if piece is None:
        state.places.replace_keys.supersede(queue, *older)
    else:
        state.places.free(queue, piece)
        queue.removed += 1


def _put(
    state: State, meta: Meta, queue: QueueRecord, part: Part, blob: bytes, count: int, *, aside: bool = False
) -> int:
    """Store new messages, in line unless they are delayed or to be put `aside`: the number of the first."""
    first = queue.next_number
    size = len(blob) - 4 - 4 * count
    queue.next_number = first + count
    queue.enqueued += count
    queue.bytes += size
    delay_ms = queue.settings.delay_ms if part.delay_ms is None else part.delay_ms
    if delay_ms <= 0 and not aside:
        state.batches.append(queue.number, part.priority, first, count, blob, meta.wall_ms)
        state.places.enqueued(queue, part.priority, first, count)
        if queue.settings.retention_ms is not None:
            state.places.aged(queue, meta.wall_ms)
    else:
        state.batches.store(keys.ASIDE, queue.number, part.priority, first, blob, meta.wall_ms)
        piece = Piece(part.priority, first, True, count, first, count, size, 0, 0)
        if delay_ms > 0:
            state.places.delay(queue, piece, keys.after(meta.wall_ms, delay_ms))
        else:
            state.places.give_back(queue, piece)
    return first


def _put_parts(
    state: State, meta: Meta, queue: QueueRecord, parts: list[Part], counts: list[int]
) -> tuple[list[Place], list[int] | None]:
    """The places of the messages in the order of the request, and the queue number of each when they differ: the first
    message of a dedup id may have come before a purge."""
    places: list[Place] = []
    numbers: list[int] = []
    for part, count in zip(parts, counts, strict=True):
        if part.dedup_ids is not None and queue.settings.dedup_window_ms > 0:
            _put_new(state, meta, queue, part, part.dedup_ids, places, numbers)
        else:
            first = _put_all(state, meta, queue, part, count)
            places += [(part.priority, number, False) for number in range(first, first + count)]
            numbers += [queue.number] * count
    differ = any(number != queue.number for number in numbers)
    return in_order(parts, places), in_order(parts, numbers) if differ else None


def in_order(parts: list[Part], items: list[Item]) -> list[Item]:
    """What there is of each message, part by part, in the order of the request."""
    positions = [position for part in parts for position in part.positions or ()]
    if len(positions) != len(items):
        return items
    return [items[at] for at in sorted(range(len(items)), key=positions.__getitem__)]


def _put_new(
    state: State,
    meta: Meta,
    queue: QueueRecord,
    part: Part,
    dedup_ids: list[str | None],
    places: list[Place],
    numbers: list[int],
) -> None:
    """Store the messages whose ids are new. Adds to `places` and `numbers` of the others where the first of their id
    is."""
    new: list[int] = []
    for at, dedup_id in enumerate(dedup_ids):
        number = queue.next_number + len(new)
        known = None if dedup_id is None else dedup.claim(state, meta, queue, dedup_id, part.priority, number)
        if known is not None:
            places.append((known.priority, known.number, True))
            numbers.append(known.queue_number or queue.number)
            continue
        places.append((part.priority, number, False))
        numbers.append(queue.number)
        new.append(at)
    queue.duplicates += len(dedup_ids) - len(new)
    if new:
        _put_all(state, meta, queue, only(part, new, len(dedup_ids)), len(new))


def only(part: Part, kept: list[int], count: int) -> Part:
    """Some of the `count` messages of the part, without their positions."""
    if len(kept) == count:
        return part
    messages = packing.unpack(part.blob)
    blob = packing.pack([messages[at] for at in kept])
    dedup_ids = part.dedup_ids and [part.dedup_ids[at] for at in kept]
    replace_keys = part.replace_keys and [part.replace_keys[at] for at in kept]
    return Part(part.priority, part.delay_ms, blob, None, dedup_ids, replace_keys)
