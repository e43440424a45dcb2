"""The queue as it should be, small and slow: what the state machine is tested against.

One object a message, one list a lease, nothing kept twice, every question answered by looking at all of it. It knows no
tables, batches, entries or restarts, so it cannot share a mistake with the machine about any of them. So the version
changes nothing here: what differs by it is how the tables are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from raftq.storage.machine import packing
from raftq.storage.machine.commands import (
    Ack,
    Command,
    DefineQueue,
    DeleteQueue,
    Enqueue,
    Expire,
    Extend,
    Incarnate,
    Lease,
    Nack,
    Part,
    QueueSettings,
    Release,
    SetVersion,
    TakeDigest,
)
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import (
    DONE,
    GONE,
    DigestTaken,
    Effect,
    Enqueued,
    Expired,
    Incarnated,
    Leased,
    QueueDefined,
    QueueDeleted,
    QueueReady,
    Range,
    Refused,
    Reply,
    Settled,
    VersionSet,
)


@dataclass(eq=False)
class Message:
    priority: int
    number: int
    data: bytes
    enqueued_at_ms: int
    state: str = "ready"
    due_ms: int | None = None
    deliveries: int = 0
    failures: int = 0

    @property
    def place(self) -> tuple[int, int]:
        return 9 - self.priority, self.number


@dataclass(eq=False)
class Slot:
    message: Message
    deadline_ms: int
    #: held, acked or gone
    state: str = "held"


@dataclass(eq=False)
class Queue:
    key: str
    number: int
    settings: QueueSettings
    created_index: int
    next_number: int = 1
    messages: list[Message] = field(default_factory=list)
    leases: dict[int, list[Slot]] = field(default_factory=dict)
    #: dedup id -> (expires, priority, number)
    dedup: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    #: (command, request id) -> (expires, reply)
    requests: dict[tuple[type, str], tuple[int, Reply]] = field(default_factory=dict)
    enqueued: int = 0
    delivered: int = 0
    acked: int = 0
    nacked: int = 0
    released: int = 0
    expired: int = 0
    duplicates: int = 0

    def of(self, state: str) -> list[Message]:
        """In order of delivery."""
        return sorted((m for m in self.messages if m.state == state), key=lambda m: m.place)


def ranges(messages: list[Message]) -> list[Range]:
    """Runs of messages that differ in nothing but their number."""
    found: list[Range] = []
    for m in messages:
        last = found[-1] if found else Range(-1, 0, 0, 0, 0)
        if last == Range(m.priority, m.number - last.count, last.count, m.deliveries, m.failures):
            last.count += 1
        else:
            found.append(Range(m.priority, m.number, 1, m.deliveries, m.failures))
    return found


class Model:
    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.last_queue = 0
        self.last_lease = 0
        self.version = 1
        self.incarnation = 0
        #: What the last lease took.
        self.taken: list[Message] = []

    def apply(self, meta: Meta, command: Command) -> tuple[Reply, list[Effect]]:
        before = {key: (queue.settings.paused, len(queue.of("ready"))) for key, queue in self.queues.items()}
        return self.answer(meta, command), self._effects(before)

    def answer(self, meta: Meta, command: Command) -> Reply:
        """Do the command. `apply` without the effects, for whoever has no use for them."""
        queue = self.queues.get(getattr(command, "queue", ""))
        request = getattr(command, "request", None)
        if request is not None and queue is not None:
            expires_ms, reply = queue.requests.get((type(command), request.id), (0, None))
            if reply is not None and expires_ms > meta.wall_ms:
                again = msgspec.structs.replace(reply)
                if isinstance(again, Enqueued | Leased):
                    again.repeated = True
                return again
        reply = self._do(meta, command, queue)
        queue = self.queues.get(getattr(command, "queue", ""))
        kept = not isinstance(reply, Refused) and not (isinstance(reply, Leased) and not reply.ranges)
        if request is not None and queue is not None and kept:
            queue.requests[type(command), request.id] = (meta.wall_ms + request.keep_ms, reply)
        return reply

    def _effects(self, before: dict[str, tuple[bool, int]]) -> list[Effect]:
        """By queue key. A paused queue has nothing to give, so it may get all it has when it is resumed."""
        found: list[Effect] = []
        for key, queue in sorted(self.queues.items()):
            was_paused, ready_before = before.get(key, (False, 0))
            ready = len(queue.of("ready"))
            if not queue.settings.paused and ready > (0 if was_paused else ready_before):
                found.append(QueueReady(key, ready))
        return found

    def _do(self, meta: Meta, command: Command, queue: Queue | None) -> Reply:
        if isinstance(command, TakeDigest):
            return DigestTaken(meta.index)
        if isinstance(command, Expire):
            return self._expire(meta, command.limit)
        if isinstance(command, SetVersion):
            before, self.version = self.version, max(self.version, command.version)
            return VersionSet(self.version, changed=self.version > before)
        if isinstance(command, Incarnate):
            return self._incarnate(meta)
        create = command.create if isinstance(command, DefineQueue) else getattr(command, "auto_create", False)
        if queue is None and not create:
            return Refused("unknown_queue", f"there is no queue {command.queue}")
        if queue is None:
            settings = command.settings if isinstance(command, DefineQueue) else QueueSettings()
            self.last_queue += 1
            queue = self.queues[command.queue] = Queue(command.queue, self.last_queue, settings, meta.index)
            if isinstance(command, DefineQueue):
                return QueueDefined(queue.number, created=True)
        handlers: dict[type, Callable[[Meta, Any, Queue], Reply]] = {
            Enqueue: self._enqueue,
            Lease: self._lease,
            Ack: self._settle,
            Nack: self._settle,
            Release: self._settle,
            Extend: self._extend,
            DefineQueue: self._define,
            DeleteQueue: self._delete,
        }
        return handlers[type(command)](meta, command, queue)

    def _define(self, _meta: Meta, command: DefineQueue, queue: Queue) -> Reply:
        queue.settings = command.settings
        return QueueDefined(queue.number, created=False)

    def _delete(self, _meta: Meta, command: DeleteQueue, queue: Queue) -> Reply:
        del self.queues[command.queue]
        return QueueDeleted(len(queue.messages))

    def _enqueue(self, meta: Meta, command: Enqueue, queue: Queue) -> Reply:
        placed: list[tuple[int, tuple[int, int, bool]]] = []
        for part in command.parts:
            for at, data in enumerate(packing.unpack(part.blob)):
                position = part.positions[at] if part.positions else at
                dedup_id = part.dedup_ids[at] if part.dedup_ids else None
                placed.append((position, self._enqueue_one(meta, queue, part, data, dedup_id)))
        if len(command.parts) == 1 and command.parts[0].dedup_ids is None:
            first = placed[0][1]
            return Enqueued(queue.number, [(first[0], first[1], len(placed))])
        if any(part.positions for part in command.parts):
            placed.sort()
        return Enqueued(queue.number, None, [place for _, place in placed])

    def _enqueue_one(
        self, meta: Meta, queue: Queue, part: Part, data: bytes, dedup_id: str | None
    ) -> tuple[int, int, bool]:
        window_ms = queue.settings.dedup_window_ms
        if dedup_id is not None and window_ms > 0:
            expires_ms, priority, number = queue.dedup.get(dedup_id, (0, 0, 0))
            if expires_ms > meta.wall_ms:
                queue.duplicates += 1
                return priority, number, True
            queue.dedup[dedup_id] = (meta.wall_ms + window_ms, part.priority, queue.next_number)
        message = Message(part.priority, queue.next_number, data, meta.wall_ms)
        delay_ms = queue.settings.delay_ms if part.delay_ms is None else part.delay_ms
        if delay_ms > 0:
            message.state, message.due_ms = "delayed", meta.wall_ms + delay_ms
        queue.next_number += 1
        queue.enqueued += 1
        queue.messages.append(message)
        return message.priority, message.number, False

    def _lease(self, meta: Meta, command: Lease, queue: Queue) -> Reply:
        taken: list[Message] = []
        size = 0
        for message in queue.of("ready")[: command.max]:
            size += len(message.data)
            if taken and size > command.max_bytes:
                break
            taken.append(message)
        if not taken or queue.settings.paused:
            return Leased(queue.number, 0, [], 0)
        self.last_lease += 1
        self.taken = taken
        lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
        for message in taken:
            message.state = "leased"
            message.deliveries += 1
        queue.delivered += len(taken)
        if command.settle:
            queue.messages = [message for message in queue.messages if message not in taken]
            queue.acked += len(taken)
        else:
            queue.leases[self.last_lease] = [Slot(message, meta.lease_ms + lease_ms) for message in taken]
        return Leased(queue.number, self.last_lease, ranges(taken), meta.wall_ms + lease_ms)

    def _slots(self, command: Ack | Nack | Release | Extend, queue: Queue) -> Iterator[list[Slot | None]]:
        """For each lease of the command its slots, None for one that there is not."""
        for named in command.leases:
            lease = queue.leases.get(named.lease_id, []) if command.queue_number == queue.number else []
            yield [lease[at] if 0 <= at < len(lease) else None for at in named.slots]

    def _settle(self, meta: Meta, command: Ack | Nack | Release, queue: Queue) -> Reply:
        results = []
        for slots in self._slots(command, queue):
            good = ("held", "acked") if isinstance(command, Ack) else ("held",)
            results.append(bytes(DONE if slot is not None and slot.state in good else GONE for slot in slots))
            for slot in slots:
                if slot is not None and slot.state == "held":
                    self._settle_one(meta, command, queue, slot)
        return Settled(results)

    def _settle_one(self, meta: Meta, command: Ack | Nack | Release, queue: Queue, slot: Slot) -> None:
        message = slot.message
        if isinstance(command, Ack):
            slot.state = "acked"
            queue.messages.remove(message)
            queue.acked += 1
            return
        slot.state, message.state = "gone", "ready"
        if isinstance(command, Release):
            queue.released += 1
            return
        queue.nacked += 1
        message.failures += 1
        if command.delay_ms:
            message.state, message.due_ms = "delayed", meta.wall_ms + command.delay_ms

    def _extend(self, meta: Meta, command: Extend, queue: Queue) -> Reply:
        lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
        results = []
        for named, slots in zip(command.leases, self._slots(command, queue), strict=True):
            held = [slot for slot in slots if slot is not None and slot.state == "held"]
            results.append(bytes(DONE if slot in held else GONE for slot in slots))
            # How long a settled slot is remembered: as long as the last that was extended.
            for slot in queue.leases[named.lease_id] if held else []:
                if slot in held or slot.state != "held":
                    slot.deadline_ms = meta.lease_ms + lease_ms
        return Settled(results, meta.wall_ms + lease_ms)

    def _expire(self, meta: Meta, limit: int) -> Reply:
        left, done = limit, Expired(0, 0, 0, more=False)
        for queue, lease_id in [(queue, lease_id) for _, _, lease_id, queue in self._passed(meta)]:
            if left <= 0:
                break
            returned = self._expire_lease(meta, queue, lease_id, left)
            left -= max(returned, 1)
            done.leases += returned
        for _, table, queue, record in self._due(meta):
            if left <= 0:
                break
            left -= 1
            if isinstance(record, Message):
                record.state = "ready"
                done.delays += 1
            else:
                records: dict[Any, Any] = queue.dedup if table == "dedup" else queue.requests
                del records[record]
                done.forgotten += 1
        done.more = self.due(meta)
        return done

    def _incarnate(self, meta: Meta) -> Reply:
        released = 0
        for queue in self.queues.values():
            for slot in (slot for lease in queue.leases.values() for slot in lease if slot.state == "held"):
                slot.message.state = "ready"
                queue.released += 1
                released += 1
            queue.leases.clear()
        self.incarnation += 1
        self.last_lease = max(self.last_lease + 2**32, min(meta.wall_ms, 2**42) * 1024)
        return Incarnated(self.incarnation, released)

    def _passed(self, meta: Meta) -> list[tuple[int, int, int, Queue]]:
        found = [
            (min(slot.deadline_ms for slot in lease), queue.number, lease_id, queue)
            for queue in self.queues.values()
            for lease_id, lease in queue.leases.items()
        ]
        return sorted(item for item in found if item[0] <= meta.lease_ms)

    def _expire_lease(self, meta: Meta, queue: Queue, lease_id: int, limit: int) -> int:
        lease = queue.leases[lease_id]
        passed = [slot for slot in lease if slot.deadline_ms <= meta.lease_ms]
        held = [slot for slot in passed if slot.state == "held"]
        for slot in held[:limit]:
            slot.state, slot.message.state = "gone", "ready"
            slot.message.failures += 1
            queue.expired += 1
        later = [slot.deadline_ms for slot in lease if slot.deadline_ms > meta.lease_ms]
        if len(held) > limit:
            return limit
        if not later:
            del queue.leases[lease_id]
        for slot in passed if later else []:
            slot.deadline_ms = min(later)
        return len(held)

    def _due(self, meta: Meta) -> list[tuple[Any, str, Queue, Any]]:
        """What has passed by wall time, in order: (order, table, queue, record). The order begins with the moment."""
        found: list[tuple[Any, str, Queue, Any]] = []
        for queue in self.queues.values():
            for dedup_id, (ms, _, _) in queue.dedup.items():
                found.append(((ms, 1, queue.number, dedup_id.encode()), "dedup", queue, dedup_id))
            found += [((m.due_ms, 2, queue.number, m.place), "due", queue, m) for m in queue.of("delayed")]
            for record, (ms, _) in queue.requests.items():
                kind = (Enqueue, Lease, Ack, Nack, Release, Extend).index(record[0])
                found.append(((ms, 3, queue.number, (kind, record[1].encode())), "request", queue, record))
        return sorted((item for item in found if item[0][0] <= meta.wall_ms), key=lambda item: item[0])

    def due(self, meta: Meta) -> bool:
        """Something passes now."""
        return bool(self._passed(meta) or self._due(meta))

    def next_due(self) -> tuple[int | None, int | None]:
        """(lease time, wall time) of the first that passes."""
        for_ever = Meta(0, 0, 0, 1 << 63, 1 << 63)
        leases, others = self._passed(for_ever), self._due(for_ever)
        return leases[0][0] if leases else None, others[0][0][0] if others else None

    def deliveries(self, leased: Leased) -> list[Message | None]:
        """By slot, None for one that a repeated lease does not hold any more."""
        if not leased.repeated:
            return list(self.taken) if leased.ranges else []
        queue = next(queue for queue in self.queues.values() if queue.number == leased.queue_number)
        lease = queue.leases.get(leased.lease_id)
        if lease is None:
            return [None] * sum(taken.count for taken in leased.ranges)
        return [slot.message if slot.state == "held" else None for slot in lease]
