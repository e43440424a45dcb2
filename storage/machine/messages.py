"""Messages come in: the command enqueue.

A part of an enqueue is one blob that the front end packed; it is put into the tables as it came, and never looked into
unless some of its messages are duplicates. All or nothing: a command is checked before anything is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftq.storage.machine import dedup, keys, packing, queues
from raftq.storage.machine.commands import Enqueue, Part, QueueSettings
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import Piece, QueueRecord
from raftq.storage.machine.replies import Effect, Enqueued, QueueReady, Refused

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: (priority, number, duplicate)
Place = tuple[int, int, bool]

_DEFAULTS = QueueSettings()


def enqueue(state: State, meta: Meta, command: Enqueue) -> tuple[Enqueued | Refused, list[Effect]]:
    counts = [_count(part) for part in command.parts]
    if 0 in counts:
        return Refused("invalid", f"part {counts.index(0)} is not a blob of messages with a priority from 0 to 9"), []
    queue = state.queues.get(command.queue)
    if queue is None:
        if not command.auto_create:
            return queues.unknown(command.queue)
        queue = state.queues.create(command.queue, _DEFAULTS, meta.index)
        if queue is None:
            return queues.too_many()
    ready = queue.ready
    state.queues.changed(queue)
    if len(counts) == 1 and command.parts[0].dedup_ids is None:
        part, count = command.parts[0], counts[0]
        first = _put(state, meta, queue, part, part.blob, count)
        reply = Enqueued(queue.number, [(part.priority, first, count)])
    else:
        reply = Enqueued(queue.number, None, _put_parts(state, meta, queue, command.parts, counts))
    if queue.ready > ready and not queue.settings.paused:
        return reply, [QueueReady(queue.key, queue.ready)]
    return reply, []


def _count(part: Part) -> int:
    """Messages of the part, 0 when it is malformed."""
    count = packing.count_valid(part.blob)
    if not 0 <= part.priority <= keys.PRIORITY_MAX or (part.dedup_ids is not None and len(part.dedup_ids) != count):
        return 0
    return count


def _put(state: State, meta: Meta, queue: QueueRecord, part: Part, blob: bytes, count: int) -> int:
    """Store new messages: the number of the first."""
    first = queue.next_number
    size = len(blob) - 4 - 4 * count
    queue.next_number = first + count
    queue.enqueued += count
    queue.bytes += size
    delay_ms = queue.settings.delay_ms if part.delay_ms is None else part.delay_ms
    if delay_ms <= 0:
        state.batches.append(queue.number, part.priority, first, count, blob, meta.wall_ms)
        state.places.enqueued(queue, part.priority, first, count)
    else:
        state.batches.store(keys.ASIDE, queue.number, part.priority, first, blob, meta.wall_ms)
        piece = Piece(part.priority, first, True, count, first, count, size, 0, 0)
        state.places.delay(queue, piece, keys.after(meta.wall_ms, delay_ms))
    return first


def _put_parts(state: State, meta: Meta, queue: QueueRecord, parts: list[Part], counts: list[int]) -> list[Place]:
    """The places of the messages in the order of the request."""
    places: list[Place] = []
    positions: list[int] = []
    for part, count in zip(parts, counts, strict=True):
        if part.dedup_ids is not None and queue.settings.dedup_window_ms > 0:
            places += _put_new(state, meta, queue, part, part.dedup_ids)
        else:
            first = _put(state, meta, queue, part, part.blob, count)
            places += [(part.priority, number, False) for number in range(first, first + count)]
        positions += part.positions or ()
    if len(positions) != len(places):
        return places
    return [places[at] for at in sorted(range(len(places)), key=positions.__getitem__)]


def _put_new(state: State, meta: Meta, queue: QueueRecord, part: Part, dedup_ids: list[str | None]) -> list[Place]:
    """Store the messages whose ids are new, and say of the others where the first of their id is."""
    places: list[Place] = []
    new: list[int] = []
    for at, dedup_id in enumerate(dedup_ids):
        known = None if dedup_id is None else dedup.first_message(state, meta, queue, dedup_id)
        if known is not None:
            places.append((known.priority, known.number, True))
            continue
        number = queue.next_number + len(new)
        if dedup_id is not None:
            dedup.remember_message(state, meta, queue, dedup_id, part.priority, number)
        places.append((part.priority, number, False))
        new.append(at)
    queue.duplicates += len(dedup_ids) - len(new)
    if new:
        _put(state, meta, queue, part, _only(part.blob, new, len(dedup_ids)), len(new))
    return places


def _only(blob: bytes, kept: list[int], count: int) -> bytes:
    """The blob with some of its messages."""
    if len(kept) == count:
        return blob
    messages = packing.unpack(blob)
    return packing.pack([messages[at] for at in kept])
