"""Redrives: messages of a dead-letter queue go back where they came from, or to a queue that is named.

A redrive is begun by a command and goes on in steps of `expiry`, each at its moment of wall time: it looks at the ready
messages in order of delivery, at each once, and only at those that were there when it began. One that is taken leaves
its queue and becomes, in the same step, a new message at the end of the other: as ready as any, its failures and
deliveries counted from 0 again, its count of redrives one higher. Limits and the default delay of that queue do not
apply to it. The rest stays where it is: what the filter does not take, what was redriven too often, and what has
nowhere to go.

Owns the table REDRIVE: the last redrive of each queue, which stays to be read when it has ended. Invariant: one that
runs has one moment in WALL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from raftq.storage.machine import deadletters, keys, packing, queues, records, topics
from raftq.storage.machine.commands import CancelRedrive, Redrive
from raftq.storage.machine.packing import Extension
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import QueueRecord, RedriveRecord
from raftq.storage.machine.replies import Effect, Redriving, Refused
from raftq.storage.machine.views import Peeked, View

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Messages, and bytes of them but for the first, that one step of a redrive looks at.
LOOKED_MAX = 500
LOOKED_BYTES_MAX = 1024 * 1024
#: Between two steps at least, unless it is throttled.
STEP_MS = 1
#: A throttled one that was held up makes good for as much.
BEHIND_MS = 1000
#: Steps of a throttled one in a second.
_STEPS_PER_SECOND = 10


class _Move(NamedTuple):
    message: Peeked
    target: QueueRecord
    data: bytes


def redrive(state: State, meta: Meta, command: Redrive) -> tuple[Redriving | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    refused = _refused(state, queue, command)
    if refused is not None:
        return refused, []
    given = msgspec.structs.replace(command, filter=topics.filter_of(command.filter).text, request=None)
    record = RedriveRecord(given, meta.wall_ms, queue.next_number, queue.ready)
    _put(state, queue, record, meta.wall_ms)
    return record.progress(), []


def _refused(state: State, queue: QueueRecord, command: Redrive) -> Refused | None:
    running = find(state, queue)
    if running is not None and running.due_ms is not None:
        return Refused("redrive_runs", "a redrive of this queue is under way: wait until it has ended, or cancel it")
    try:
        topics.filter_of(command.filter)
    except ValueError as error:
        return Refused("invalid", f"filter: {error}")
    if command.target == queue.key:
        return Refused("invalid", "to: a queue cannot be redriven to itself")
    if command.target is not None and state.queues.get(command.target) is None:
        return Refused("invalid", f"to: there is no queue {command.target.partition('/')[2]}")
    for name in ("per_second", "redrives_max", "limit"):
        if (value := getattr(command, name)) is not None and value < 1:
            return Refused("invalid", f"{name}: is at least 1")
    return None


def cancel(state: State, meta: Meta, command: CancelRedrive) -> tuple[Redriving | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    record = find(state, queue)
    if record is None:
        return Refused("unknown_redrive", "there was no redrive of this queue"), []
    if record.due_ms is not None:
        record.state, record.ended_ms = "cancelled", meta.wall_ms
        _put(state, queue, record, None)
    return record.progress(), []


def find(state: State, queue: QueueRecord) -> RedriveRecord | None:
    value = state.txn.get(keys.of_queue(keys.REDRIVE, queue.number))
    return None if value is None else records.decode_redrive(value)


def _put(state: State, queue: QueueRecord, record: RedriveRecord, due_ms: int | None) -> None:
    """Store it, with its next step at `due_ms`; None: it has ended."""
    key = keys.of_queue(keys.REDRIVE, queue.number)
    if record.due_ms is not None:
        state.wall.remove(record.due_ms, key)
    if due_ms is not None:
        state.wall.add(due_ms, key)
    record.due_ms = due_ms
    state.txn.put(key, records.encode(record))


class Step:
    """One step of a redrive: what it looks at, and where that goes."""

    def __init__(self, state: State, meta: Meta, queue: QueueRecord, looked_max: int) -> None:
        self._state = state
        self._meta = meta
        self._queue = queue
        record = find(state, queue)
        assert record is not None, queue
        self._record = record
        state.batches.close(queue.number)
        #: Messages looked at, and their bytes.
        self.looked = 0
        self.bytes = 0
        self._moves: list[_Move] = []
        self._ended = self._look(min(looked_max, LOOKED_MAX))

    @property
    def targets(self) -> list[QueueRecord]:
        """The queues that get messages, in the order of the first."""
        return list({move.target.key: move.target for move in self._moves}.values())

    def _look(self, looked_max: int) -> bool:
        """Whether nothing is left to be looked at after this."""
        record = self._record
        moves_max = self._moves_max()
        ready = View(self._state).ready_below(self._queue, record.priority, record.number, record.number_max)
        for message in ready:
            size = len(message.data)
            if self.looked >= looked_max or len(self._moves) >= moves_max:
                return False
            if self.looked and self.bytes + size > LOOKED_BYTES_MAX:
                return False
            self.looked += 1
            self.bytes += size
            record.priority, record.number = message.priority, message.number + 1
            move = self._move(message)
            if move is not None:
                self._moves.append(move)
            if record.given.limit is not None and record.moved + len(self._moves) >= record.given.limit:
                return True
        return True

    def _moves_max(self) -> int:
        per_second = self._record.given.per_second
        return LOOKED_MAX if per_second is None else max(per_second // _STEPS_PER_SECOND, 1)

    def _move(self, message: Peeked) -> _Move | None:
        """None: it stays."""
        given = self._record.given
        unpacked = packing.unpack_message(message.data)
        extension = unpacked.extension or Extension()
        if given.redrives_max is not None and extension.redriven >= given.redrives_max:
            return None
        if not topics.filter_of(given.filter).matches(unpacked.attributes):
            return None
        origin = None if extension.dead is None else extension.dead.queue
        key = origin if given.target is None else given.target
        target = None if key is None else self._state.queues.get(key)
        if target is None or target is self._queue:
            return None
        data = packing.extended(message.data, Extension(redriven=extension.redriven + 1))
        return _Move(message, target, data)

    def apply(self) -> None:
        """Move them, and say when the next step is."""
        state, queue, record, meta = self._state, self._queue, self._record, self._meta
        moved = len(self._moves)
        for first, count in self._runs():
            self._free(first.priority, first.number, count)
        found: dict[str, list[tuple[int, bytes]]] = {}
        for message, target, data in self._moves:
            found.setdefault(target.key, []).append((message.priority, data))
        for target in self.targets:
            deadletters.write(state, meta, target, iter(found[target.key]))
        queue.redriven += moved
        state.queues.changed(queue)
        record.moved += moved
        record.skipped += self.looked - moved
        if self._ended:
            record.state, record.ended_ms = "done", meta.wall_ms
            _put(state, queue, record, None)
            return
        _put(state, queue, record, self._next_ms(moved))

    def _next_ms(self, moved: int) -> int:
        """A throttled one counts from the moment at which this step was due, so that it keeps its pace."""
        now_ms, due_ms, per_second = self._meta.wall_ms, self._record.due_ms, self._record.given.per_second
        if per_second is None or not moved or due_ms is None:
            return keys.after(now_ms, STEP_MS)
        return max(due_ms + moved * 1000 // per_second, now_ms - BEHIND_MS)

    def _runs(self) -> list[tuple[Peeked, int]]:
        """(first message, count) of what is moved, numbers in a row together."""
        runs: list[tuple[Peeked, int]] = []
        for message, _, _ in self._moves:
            if runs:
                first, count = runs[-1]
                if first.priority == message.priority and first.number + count == message.number:
                    runs[-1] = first, count + 1
                    continue
            runs.append((message, 1))
        return runs

    def _free(self, priority: int, number: int, count: int) -> None:
        while count:
            piece = self._state.places.pull(self._queue, priority, number, count)
            assert piece is not None, (self._queue, priority, number)
            self._state.places.free(self._queue, piece)
            number += piece.count
            count -= piece.count
