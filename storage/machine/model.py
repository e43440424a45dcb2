"""The queue as it should be, small and slow: what the state machine is tested against.

One object a message, one list a lease, nothing kept twice, every question answered by looking at all of it. It knows no
tables, batches, entries or restarts, so it cannot share a mistake with the machine about any of them. So the version
changes little here: what differs by it is how the tables are kept, and which commands are refused.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from raftq.storage.machine import deadletters, filters, packing, publishing, queues, redrives, tokens
from raftq.storage.machine.commands import (
    WITHOUT_GROUPS,
    Ack,
    CancelRedrive,
    Command,
    CreateToken,
    DefineQueue,
    DefineSchedule,
    DefineTopic,
    DeleteMessage,
    DeleteQueue,
    DeleteSchedule,
    DeleteTopic,
    Enqueue,
    Expire,
    Extend,
    Incarnate,
    Lease,
    Nack,
    Operation,
    Part,
    Publish,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Reject,
    Release,
    RevokeToken,
    Schedule,
    SetVersion,
    Subscribe,
    TakeDigest,
    Tick,
    Transact,
    Unsubscribe,
)
from raftq.storage.machine.packing import DeadLetter, Extension
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
    MessageDeleted,
    Obstacle,
    Published,
    Purged,
    QueueDefined,
    QueueDeleted,
    QueueReady,
    Range,
    Redriving,
    Refused,
    Reply,
    ScheduleDefined,
    ScheduleState,
    Settled,
    Ticked,
    TokenCreated,
    TokenRevoked,
    TopicDefined,
    TopicDeleted,
    Transacted,
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
    replace_key: str | None = None
    #: A newer message has its replace key: it is dropped when its lease returns it.
    superseded: bool = False

    @property
    def group(self) -> str:
        return packing.unpack_message(self.data).group

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
class RedriveState:
    given: Redrive
    begun_ms: int
    number_max: int
    ready: int
    due_ms: int | None
    #: From where on nothing was looked at.
    place: tuple[int, int] = (0, 0)
    moved: int = 0
    skipped: int = 0
    state: str = "running"
    ended_ms: int | None = None

    def end(self, state: str, ms: int) -> None:
        self.state, self.ended_ms, self.due_ms = state, ms, None

    def shown(self) -> Redriving:
        left = 0 if self.due_ms is None else max(self.ready - self.moved - self.skipped, 0)
        g = self.given
        limits = g.target, filters.parse(g.filter).text, g.per_second, g.redrives_max, g.limit
        return Redriving(self.state, *limits, self.moved, self.skipped, left, self.begun_ms, self.ended_ms)


@dataclass(eq=False)
class Queue:
    key: str
    number: int
    settings: QueueSettings
    created_index: int
    next_number: int = 1
    messages: list[Message] = field(default_factory=list)
    leases: dict[int, list[Slot]] = field(default_factory=dict)
    #: dedup id -> (expires, priority, number, number of the queue then)
    dedup: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    #: (command, request id) -> (expires, reply)
    requests: dict[tuple[type, str], tuple[int, Reply]] = field(default_factory=dict)
    enqueued: int = 0
    delivered: int = 0
    acked: int = 0
    nacked: int = 0
    released: int = 0
    expired: int = 0
    duplicates: int = 0
    removed: int = 0
    redriven: int = 0
    #: The number that it was created with.
    ids: int = 0
    redrive: RedriveState | None = None
    dead_lettered: int = 0
    discarded: int = 0
    rejected: int = 0
    #: When to look for messages past retention: when the oldest that became ready since the last look is.
    look_ms: int | None = None
    #: Wall time of the last command.
    now_ms: int = 0

    def of(self, state: str) -> list[Message]:
        """In order of delivery."""
        return sorted((m for m in self.messages if m.state == state), key=lambda m: m.place)

    def leasable(self) -> list[Message]:
        """Those that are ready and whose group has room, in order of delivery."""
        limit = self.settings.max_leased_per_group
        if limit is None:
            return self.of("ready")
        busy = Counter(m.group for m in self.of("leased"))
        if limit == 1:
            busy.update(m.group for m in self.of("delayed") if m.deliveries)
        found = []
        for message in self.of("ready"):
            if not message.group or busy[message.group] < limit:
                busy[message.group] += 1
                found.append(message)
        return found

    def replace(self, replace_key: str) -> None:
        for message in [m for m in self.messages if m.replace_key == replace_key and not m.superseded]:
            message.superseded = True
            if message.state != "leased":
                self.drop(message)

    def drop(self, message: Message) -> bool:
        """Remove what was superseded."""
        if message.superseded:
            self.messages.remove(message)
            self.removed += 1
        return message.superseded

    def make_ready(self, message: Message) -> None:
        if self.drop(message):
            return
        message.state = "ready"
        self.look_at(message.enqueued_at_ms, self.now_ms + 1)

    def look_at(self, enqueued_at_ms: int, earliest_ms: int = 0) -> None:
        if self.settings.retention_ms is not None:
            due_ms = max(enqueued_at_ms + self.settings.retention_ms, earliest_ms)
            self.look_ms = due_ms if self.look_ms is None else min(self.look_ms, due_ms)

    def look_again(self) -> None:
        self.look_ms = None
        for message in self.of("ready"):
            self.look_at(message.enqueued_at_ms)


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


@dataclass(eq=False)
class Topic:
    number: int
    created_index: int
    #: queue key -> (filter, created_index)
    subscriptions: dict[str, tuple[filters.Filter, int]] = field(default_factory=dict)
    requests: dict[tuple[type, str], tuple[int, Reply]] = field(default_factory=dict)
    published: int = 0
    partitions: int | None = None


@dataclass(eq=False)
class Partitioned:
    """A name that stands for several queues."""

    number: int
    created_index: int
    #: Of the queues.
    keys: list[str]
    requests: dict[tuple[type, str], tuple[int, Reply]] = field(default_factory=dict)
    turn: int = 0
    turn_in: int = 0

    def shares(self, parts: list[Part], turn: int) -> tuple[dict[str, list[tuple[int, Part]]], bool]:
        """What each queue gets, message by message, with the place in the request; and whether any goes by turn."""
        found: dict[str, list[tuple[int, Part]]] = {}
        by_turn = False
        for position, part in _singles(parts):
            named = packing.unpack_message(packing.unpack(part.blob)[0]).group or None
            for ids in (part.replace_keys, part.dedup_ids):
                named = named or (ids[0] if ids else None)
            by_turn = by_turn or named is None
            at = turn if named is None else zlib.crc32(named.encode())
            found.setdefault(self.keys[at % len(self.keys)], []).append((position, part))
        return {key: found[key] for key in self.keys if key in found}, by_turn


def _is_invalid(settings: QueueSettings) -> bool:
    return settings.max_leased_per_group not in (None, *range(1, 1_001))


def _places(reply: Enqueued) -> list[tuple[int, int, bool]]:
    spans = reply.spans or []
    return reply.places or [(priority, first + at, False) for priority, first, count in spans for at in range(count)]


def _singles(parts: list[Part]) -> list[tuple[int, Part]]:
    """The same messages, each in a part of its own, and where it stood in the request."""
    found = []
    for part in parts:
        for at, data in enumerate(packing.unpack(part.blob)):
            position = part.positions[at] if part.positions else at
            dedup_ids = [part.dedup_ids[at]] if part.dedup_ids else None
            replace_keys = [part.replace_keys[at]] if part.replace_keys else None
            alone = Part(part.priority, part.delay_ms, packing.pack([data]), None, dedup_ids, replace_keys)
            found.append((position, alone))
    return found


class Model:
    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.topics: dict[str, Topic] = {}
        self.partitioned: dict[str, Partitioned] = {}
        #: What each was defined with, and how it stands.
        self.schedules: dict[str, tuple[Schedule, ScheduleState]] = {}
        #: What each was created with, and the wall time and index.
        self.tokens: dict[str, tuple[CreateToken, int, int]] = {}
        self.first_tokens: set[str] = set()
        #: Of transactions, as in `Queue`.
        self.requests: dict[tuple[type, str], tuple[int, Reply]] = {}
        self.last_queue = 0
        self.last_lease = 0
        self.version = 1
        self.incarnation = 0
        #: What the last lease took.
        self.taken: list[Message] = []

    def apply(self, meta: Meta, command: Command) -> tuple[Reply, list[Effect]]:
        before = {key: (queue.settings.paused, len(queue.leasable())) for key, queue in self.queues.items()}
        return self.answer(meta, command), self._effects(before)

    def answer(self, meta: Meta, command: Command) -> Reply:
        """Do the command. `apply` without the effects, for whoever has no use for them."""
        for one in self.queues.values():
            one.now_ms = meta.wall_ms
        queue = self.queues.get(getattr(command, "queue", ""))
        request = getattr(command, "request", None)
        requests = self._requests(command)
        request_id = request.id if request else ""
        if isinstance(command, Transact):
            request_id = f"{command.namespace}\0{request_id}"
        if getattr(command, "queue", "") in self.partitioned and hasattr(command, "queue_number"):
            request_id = f"{command.queue_number}\0{request_id}"
        if request is not None and requests is not None:
            expires_ms, reply = requests.get((type(command), request_id), (0, None))
            if reply is not None and expires_ms > meta.wall_ms:
                again = msgspec.structs.replace(reply)
                if isinstance(again, Enqueued | Leased | Transacted | Published):
                    again.repeated = True
                return again
        reply = self._do(meta, command, queue)
        requests = self._requests(command)
        kept = not isinstance(reply, Refused) and not (isinstance(reply, Leased) and not reply.ranges)
        kept = kept and not (isinstance(reply, Transacted) and reply.obstacles)
        if request is not None and requests is not None and kept:
            requests[type(command), request_id] = (meta.wall_ms + request.keep_ms, reply)
        return reply

    def _requests(self, command: Command) -> dict[tuple[type, str], tuple[int, Reply]] | None:
        """What the command's request is kept in."""
        if isinstance(command, Transact):
            return self.requests
        if isinstance(command, Publish):
            topic = self.topics.get(command.topic)
            return None if topic is None else topic.requests
        key = getattr(command, "queue", "")
        owner = self.partitioned.get(key) or self.queues.get(key)
        return None if owner is None else owner.requests

    def _partition(self, name: Partitioned, number: int) -> str:
        return next((key for key in name.keys if self.queues[key].number == number), name.keys[0])

    def _effects(self, before: dict[str, tuple[bool, int]]) -> list[Effect]:
        """By queue key. A paused queue has nothing to give, so it may get all it has when it is resumed."""
        found: list[Effect] = []
        for key, queue in sorted(self.queues.items()):
            was_paused, ready_before = before.get(key, (False, 0))
            ready = len(queue.leasable())
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
        if isinstance(command, Transact):
            return self._transact_spread(meta, command)
        found = self._of_partitioned(meta, command)
        if found is not None:
            return found
        if isinstance(command, DefineTopic | DeleteTopic | Subscribe | Unsubscribe | Publish):
            return self._of_topic(meta, command)
        if isinstance(command, DefineSchedule | DeleteSchedule | Tick):
            return self._of_schedule(meta, command)
        if isinstance(command, CreateToken | RevokeToken):
            return self._of_token(meta, command)
        create = command.create if isinstance(command, DefineQueue) else getattr(command, "auto_create", False)
        if queue is None and not create:
            return Refused("unknown_queue", f"there is no queue {command.queue}")
        if isinstance(command, DefineQueue) and self._settings(command, queue).dead_letter_queue == command.queue:
            return Refused("invalid", "dead_letter_queue: a queue cannot be its own")
        if isinstance(command, DefineQueue) and _is_invalid(self._settings(command, queue)):
            return Refused("invalid", "max_leased_per_group: is a number from 1 to 1,000")
        if queue is None:
            settings = command.settings if isinstance(command, DefineQueue) else QueueSettings()
            queue = self._create(meta, command.queue, settings)
            if isinstance(command, DefineQueue):
                return QueueDefined(queue.number, created=True, settings=settings)
        handlers: dict[type, Callable[[Meta, Any, Queue], Reply]] = {
            Enqueue: self._enqueue,
            Lease: self._lease,
            Ack: self._settle,
            Nack: self._settle,
            Release: self._settle,
            Reject: self._settle,
            Extend: self._extend,
            DefineQueue: self._define,
            DeleteQueue: self._delete,
            PurgeQueue: self._purge,
            DeleteMessage: self._delete_message,
            Redrive: self._redrive,
            CancelRedrive: self._cancel_redrive,
        }
        return handlers[type(command)](meta, command, queue)

    def _of_partitioned(self, meta: Meta, command: Any) -> Reply | None:
        """None when the command has nothing to do with partitions."""
        key = getattr(command, "queue", "")
        name = self.partitioned.get(key)
        if isinstance(command, DefineQueue | DeleteQueue) and name is None and self._is_partition(key):
            owner = key.rpartition(".")[0].partition("/")[2]
            detail = f"it is a partition: change or delete {owner}, and all of its partitions with it"
            return Refused("partition", detail)
        if isinstance(command, DefineQueue) and name is None and command.partitions is not None:
            if not command.create and key not in self.queues:
                return Refused("unknown_queue", f"there is no queue {key}")
            return self._create_partitions(meta, command, command.partitions)
        if name is None or isinstance(command, Subscribe | Unsubscribe):
            return None
        if isinstance(command, Redrive | CancelRedrive):
            first, last = (one.partition("/")[2] for one in (name.keys[0], name.keys[-1]))
            return Refused("partitioned", f"it has partitions: name one of them, {first} to {last}")
        of_name = [self.queues[one] for one in name.keys]
        if isinstance(command, DefineQueue):
            return self._define_partitions(meta, command, name, of_name)
        if isinstance(command, DeleteQueue):
            count = sum(len(queue.messages) for queue in of_name)
            for one in name.keys:
                self._delete(meta, DeleteQueue(one), self.queues[one])
            for topic in self.topics.values():
                topic.subscriptions.pop(key, None)
            del self.partitioned[key]
            return QueueDeleted(count)
        if isinstance(command, PurgeQueue):
            counts = [len(queue.messages) for queue in of_name]
            for queue in of_name:
                self._purge(meta, command, queue)
            return Purged(sum(counts))
        if isinstance(command, Enqueue):
            reply = self._transact_spread(meta, Transact(key.partition("/")[0], [command]))
            assert isinstance(reply, Transacted)
            obstacles = reply.obstacles
            return Refused(obstacles[0].reason, obstacles[0].detail) if obstacles else reply.enqueued[0]
        if isinstance(command, Lease):
            for at in range(name.turn, name.turn + len(of_name)):
                reply = self._lease(meta, command, of_name[at % len(of_name)])
                if isinstance(reply, Refused):
                    return reply
                if isinstance(reply, Leased) and reply.ranges:
                    name.turn = (at + 1) % len(of_name)
                    return reply
            return Leased(name.number, 0, [], 0)
        one = self._partition(name, command.queue_number)
        return self._do(meta, msgspec.structs.replace(command, queue=one), self.queues[one])

    def _is_partition(self, key: str) -> bool:
        return any(key in name.keys for name in self.partitioned.values())

    def _create_partitions(self, meta: Meta, command: DefineQueue, count: int) -> Reply:
        key = command.queue
        if not 1 <= count <= 64:
            return Refused("invalid", "partitions: is a number from 1 to 64")
        partitions = [f"{key}.{at}" for at in range(count)]
        for one in [key, *partitions]:
            if one in self.queues or (one != key and one in self.partitioned):
                detail = f"there is a queue {one} already: delete it, or choose another name"
                return Refused("partitions_fixed", detail)
        if command.settings.dead_letter_queue in [key, *partitions]:
            return Refused("invalid", "dead_letter_queue: a queue cannot be its own")
        if _is_invalid(command.settings):
            return Refused("invalid", "max_leased_per_group: is a number from 1 to 1,000")
        self.last_queue += 1
        self.partitioned[key] = Partitioned(self.last_queue, meta.index, partitions)
        for one in partitions:
            self._create(meta, one, command.settings)
        return QueueDefined(self.partitioned[key].number, created=True, settings=command.settings)

    def _define_partitions(self, meta: Meta, command: DefineQueue, name: Partitioned, of_name: list[Queue]) -> Reply:
        count = len(of_name)
        if command.partitions not in (None, count):
            detail = f"it has {count} partitions, and their number is fixed: delete it to have another"
            return Refused("partitions_fixed", detail)
        settings = self._settings(command, of_name[0])
        for queue in of_name:
            if settings.dead_letter_queue in [command.queue, *name.keys]:
                return Refused("invalid", "dead_letter_queue: a queue cannot be its own")
            grouped = queue.settings.max_leased_per_group is None, settings.max_leased_per_group is None
            if grouped[0] != grouped[1] and queue.messages:
                return Refused("not_empty", queues.NOT_EMPTY)
        if _is_invalid(settings):
            return Refused("invalid", "max_leased_per_group: is a number from 1 to 1,000")
        for queue in of_name:
            self._define(meta, msgspec.structs.replace(command, only=None, settings=settings), queue)
        return QueueDefined(name.number, created=False, settings=settings)

    def _transact_spread(self, meta: Meta, command: Transact) -> Reply:
        """With each operation on a partitioned name done on its partitions."""
        done: list[Operation] = []
        #: Of each done: which was given, and of an enqueue on partitions the places of its messages.
        given: list[tuple[int, list[int] | None]] = []
        turns = {key: name.turn_in for key, name in self.partitioned.items()}
        for at, operation in enumerate(command.operations):
            name = self.partitioned.get(operation.queue)
            if name is None:
                more: list[tuple[Operation, list[int] | None]] = [(operation, None)]
            elif isinstance(operation, Enqueue):
                shares, by_turn = name.shares(operation.parts, turns[operation.queue])
                turns[operation.queue] = (turns[operation.queue] + by_turn) % len(name.keys)
                more = [
                    (Enqueue(key, [part for _, part in share], auto_create=False), [place for place, _ in share])
                    for key, share in shares.items()
                ]
            else:
                key = self._partition(name, operation.queue_number)
                more = [(msgspec.structs.replace(operation, queue=key), None)]
            done += [one for one, _ in more]
            given += [(at, places) for _, places in more]
        reply = self._transact(meta, msgspec.structs.replace(command, operations=done))
        if not isinstance(reply, Transacted) or reply.obstacles:
            obstacles: dict[int, Obstacle] = {}
            for obstacle in reply.obstacles if isinstance(reply, Transacted) else []:
                at = given[obstacle.operation][0]
                obstacles.setdefault(at, msgspec.structs.replace(obstacle, operation=at))
            return reply if isinstance(reply, Refused) else Transacted([], list(obstacles.values()))
        for key, name in self.partitioned.items():
            name.turn_in = turns[key]
        enqueued: dict[int, Enqueued] = {}
        places: dict[int, list[tuple[int, int, tuple[int, int, bool]]]] = {}
        of_enqueues = [one for one, operation in zip(given, done, strict=True) if isinstance(operation, Enqueue)]
        for (at, positions), one in zip(of_enqueues, reply.enqueued, strict=True):
            enqueued[at] = one
            if positions is not None:
                found = zip(positions, one.numbers or [one.queue_number] * len(positions), _places(one), strict=True)
                places.setdefault(at, []).extend(found)
        for at, unordered in places.items():
            ordered = sorted(unordered)
            number = self.partitioned[command.operations[at].queue].number
            numbers = [number for _, number, _ in ordered]
            enqueued[at] = Enqueued(number, None, [place for _, _, place in ordered], numbers=numbers)
        return Transacted(list(enqueued.values()))

    def _create(self, meta: Meta, key: str, settings: QueueSettings) -> Queue:
        self.last_queue += 1
        queue = Queue(key, self.last_queue, settings, meta.index, ids=self.last_queue, now_ms=meta.wall_ms)
        self.queues[key] = queue
        return queue

    def _settings(self, command: DefineQueue, queue: Queue | None) -> QueueSettings:
        if queue is None or command.only is None:
            return command.settings
        given = {name: getattr(command.settings, name) for name in command.only}
        return msgspec.structs.replace(queue.settings, **given)

    def _define(self, _meta: Meta, command: DefineQueue, queue: Queue) -> Reply:
        kept_ms, settings = queue.settings.retention_ms, self._settings(command, queue)
        limits = {queue.settings.max_leased_per_group, settings.max_leased_per_group}
        if None in limits and len(limits) > 1 and queue.messages:
            return Refused("not_empty", queues.NOT_EMPTY)
        queue.settings = settings
        if queue.settings.retention_ms != kept_ms:
            queue.look_again()
        return QueueDefined(queue.number, created=False, settings=queue.settings)

    def _delete(self, _meta: Meta, command: DeleteQueue, queue: Queue) -> Reply:
        del self.queues[command.queue]
        for topic in self.topics.values():
            topic.subscriptions.pop(command.queue, None)
        return QueueDeleted(len(queue.messages))

    def _purge(self, _meta: Meta, _command: PurgeQueue, queue: Queue) -> Reply:
        count = len(queue.messages)
        if count:
            self.last_queue += 1
            queue.number = self.last_queue
            queue.messages, queue.leases, queue.look_ms = [], {}, None
            queue.redrive = None
            queue.removed += count
        return Purged(count)

    def _redrive(self, meta: Meta, command: Redrive, queue: Queue) -> Reply:
        if queue.redrive is not None and queue.redrive.due_ms is not None:
            return Refused(
                "redrive_runs", "a redrive of this queue is under way: wait until it has ended, or cancel it"
            )
        if command.target == queue.key:
            return Refused("invalid", "to: a queue cannot be redriven to itself")
        if command.target is not None and command.target not in self.queues:
            return Refused("invalid", f"to: there is no queue {command.target.partition('/')[2]}")
        ready = len(queue.of("ready"))
        queue.redrive = RedriveState(command, meta.wall_ms, queue.next_number, ready, meta.wall_ms)
        return queue.redrive.shown()

    def _cancel_redrive(self, meta: Meta, _command: CancelRedrive, queue: Queue) -> Reply:
        if queue.redrive is None:
            return Refused("unknown_redrive", "there was no redrive of this queue")
        if queue.redrive.due_ms is not None:
            queue.redrive.end("cancelled", meta.wall_ms)
        return queue.redrive.shown()

    def _step_redrive(self, meta: Meta, queue: Queue, redrive: RedriveState, looked_max: int) -> tuple[int, int]:
        """How many messages were looked at, and their bytes."""
        given = redrive.given
        moves_max = redrives.LOOKED_MAX if given.per_second is None else max(given.per_second // 10, 1)
        looked = size = moved = 0
        more = False
        for message in [m for m in queue.of("ready") if m.place >= redrive.place and m.number < redrive.number_max]:
            more = looked >= min(looked_max, redrives.LOOKED_MAX) or moved >= moves_max
            more = more or (looked > 0 and size + len(message.data) > redrives.LOOKED_BYTES_MAX)
            if more:
                break
            looked += 1
            size += len(message.data)
            redrive.place = (message.place[0], message.place[1] + 1)
            moved += self._redrive_one(meta, queue, given, message)
            if given.limit is not None and redrive.moved + moved >= given.limit:
                break
        redrive.moved += moved
        redrive.skipped += looked - moved
        if not more:
            redrive.end("done", meta.wall_ms)
        else:
            due_ms, pace = redrive.due_ms or 0, given.per_second
            kept_ms = max(due_ms + moved * 1000 // pace, meta.wall_ms - 1_000) if pace and moved else 0
            redrive.due_ms = kept_ms or meta.wall_ms + 1
        return looked, size

    def _redrive_one(self, meta: Meta, queue: Queue, given: Redrive, message: Message) -> bool:
        unpacked = packing.unpack_message(message.data)
        extension = unpacked.extension or Extension()
        key = given.target or (extension.dead.queue if extension.dead else None)
        target = self.queues.get(key or "")
        taken = filters.parse(given.filter).matches(unpacked.attributes)
        worn = given.redrives_max is not None and extension.redriven >= given.redrives_max
        if target is None or target is queue or worn or not taken:
            return False
        queue.messages.remove(message)
        queue.redriven += 1
        data = packing.extended(message.data, Extension(None, extension.redriven + 1))
        self._append(meta, target, message.priority, data)
        return True

    def _delete_message(self, _meta: Meta, command: DeleteMessage, queue: Queue) -> Reply:
        for message in queue.messages if command.queue_number == queue.number else []:
            if (message.priority, message.number) == (command.priority, command.number):
                if message.state == "leased":
                    return Refused("leased", "the message is leased: ack it, or wait until its lease has passed")
                queue.messages.remove(message)
                queue.removed += 1
                return MessageDeleted()
        return Refused("unknown_message", "there is no such message")

    def _full(self, meta: Meta, command: Enqueue, queue: Queue) -> Refused | None:
        """By doing it to a copy."""
        settings = queue.settings
        sizes, known = [], {dedup_id for dedup_id, (ms, *_) in queue.dedup.items() if ms > meta.wall_ms}
        for part in command.parts:
            for at, data in enumerate(packing.unpack(part.blob)):
                dedup_id = part.dedup_ids[at] if part.dedup_ids and settings.dedup_window_ms > 0 else None
                if dedup_id is None or dedup_id not in known:
                    sizes.append(len(data))
                known |= set() if dedup_id is None else {dedup_id}
        has = len(queue.messages), sum(len(message.data) for message in queue.messages)
        new, most = (len(sizes), sum(sizes)), (settings.max_messages, settings.max_bytes)
        for at, name in enumerate(("max_messages", "max_bytes")):
            limit = most[at]
            if new[at] and limit is not None and has[at] + new[at] > limit:
                return Refused("full", f"{name} is {limit}, the queue has {has[at]}, and {new[at]} more would come")
        return None

    def _enqueue(self, meta: Meta, command: Enqueue, queue: Queue) -> Reply:
        refused = self._full(meta, command, queue)
        if refused is not None:
            return refused
        return self._store(meta, command, queue)

    def _store(self, meta: Meta, command: Enqueue, queue: Queue) -> Enqueued:
        placed: list[tuple[int, tuple[int, int, bool], int]] = []
        for part in command.parts:
            for at, data in enumerate(packing.unpack(part.blob)):
                position = part.positions[at] if part.positions else at
                dedup_id = part.dedup_ids[at] if part.dedup_ids else None
                replace_key = part.replace_keys[at] if part.replace_keys else None
                placed.append((position, *self._enqueue_one(meta, queue, part, data, dedup_id, replace_key)))
        if len(command.parts) == 1 and command.parts[0].dedup_ids is None:
            first = placed[0][1]
            return Enqueued(queue.number, [(first[0], first[1], len(placed))])
        if any(part.positions for part in command.parts):
            placed.sort()
        numbers = [number for *_, number in placed]
        alike = set(numbers) == {queue.number}
        return Enqueued(queue.number, None, [place for _, place, _ in placed], numbers=None if alike else numbers)

    def _enqueue_one(
        self, meta: Meta, queue: Queue, part: Part, data: bytes, dedup_id: str | None, replace_key: str | None
    ) -> tuple[tuple[int, int, bool], int]:
        """Its place, and the number of the queue that it is, or was, in."""
        window_ms = queue.settings.dedup_window_ms
        if dedup_id is not None and window_ms > 0:
            expires_ms, priority, number, queue_number = queue.dedup.get(dedup_id, (0, 0, 0, 0))
            if expires_ms > meta.wall_ms:
                queue.duplicates += 1
                return (priority, number, True), queue_number
            queue.dedup[dedup_id] = (meta.wall_ms + window_ms, part.priority, queue.next_number, queue.number)
        if replace_key is not None:
            queue.replace(replace_key)
        message = Message(part.priority, queue.next_number, data, meta.wall_ms, replace_key=replace_key)
        delay_ms = queue.settings.delay_ms if part.delay_ms is None else part.delay_ms
        if delay_ms > 0:
            message.state, message.due_ms = "delayed", meta.wall_ms + delay_ms
        else:
            queue.make_ready(message)
        queue.next_number += 1
        queue.enqueued += 1
        queue.messages.append(message)
        return (message.priority, message.number, False), queue.number

    def _transact(self, meta: Meta, command: Transact) -> Reply:
        if any(not operation.queue.startswith(f"{command.namespace}/") for operation in command.operations):
            return Refused("invalid", "the queues of a transaction are of its namespace")
        obstacles = self._obstacles(meta, command)
        if obstacles:
            return Transacted([], obstacles)
        enqueues = [operation for operation in command.operations if isinstance(operation, Enqueue)]
        for enqueue in enqueues:
            if enqueue.queue not in self.queues:
                self._create(meta, enqueue.queue, QueueSettings())
        done = Transacted([])
        for operation in command.operations:
            queue = self.queues[operation.queue]
            if isinstance(operation, Enqueue):
                done.enqueued.append(self._store(meta, operation, queue))
            else:
                settled = self._settle(meta, operation, queue)
                assert isinstance(settled, Settled)
                assert not any(map(any, settled.results))
        return done

    def _obstacles(self, meta: Meta, command: Transact) -> list[Obstacle]:
        found: list[Obstacle] = []
        named: list[Slot] = []
        dead: list[Message] = []
        for at, operation in enumerate(command.operations):
            queue = self.queues.get(operation.queue)
            if queue is None:
                before = [one.queue for one in command.operations[:at] if isinstance(one, Enqueue) and one.auto_create]
                known = operation.queue in before or getattr(operation, "auto_create", False)
                if not isinstance(operation, Enqueue) or not known:
                    found.append(Obstacle(at, "unknown_queue", f"there is no queue {operation.queue}"))
                continue
            if isinstance(operation, Enqueue):
                continue
            results = []
            more_dead: list[Message] = []
            for slots in self._slots(operation, queue):
                results.append(bytearray())
                for slot in slots:
                    held = slot is not None and slot.state == "held" and slot not in named
                    results[-1].append(DONE if held else GONE)
                    named += [slot] if slot is not None and held else []
                    if slot is not None and held and queue.settings.dead_letter_queue:
                        dies = isinstance(operation, Nack) and self._dies(queue, slot.message)
                        more_dead += [slot.message] if dies or isinstance(operation, Reject) else []
            if any(map(any, results)):
                found.append(Obstacle(at, "gone", "", [bytes(result) for result in results]))
                continue
            dead += more_dead
            if (
                isinstance(operation, Nack | Reject)
                and sum(len(message.data) for message in dead) > deadletters.MOVED_BYTES_MAX
            ):
                refused = deadletters.too_large(queue.settings)
                found.append(Obstacle(at, refused.reason, refused.detail))
        return found or self._obstacles_full(meta, command)

    def _obstacles_full(self, meta: Meta, command: Transact) -> list[Obstacle]:
        found = []
        for at, operation in enumerate(command.operations):
            queue = self.queues.get(operation.queue)
            if isinstance(operation, Enqueue) and queue is not None:
                alike = [one for one in command.operations if isinstance(one, Enqueue) and one.queue == queue.key]
                together = Enqueue(queue.key, [part for one in alike for part in one.parts])
                refused = self._full(meta, together, queue)
                if refused is not None:
                    found.append(Obstacle(at, refused.reason, refused.detail))
        return found

    def _of_topic(self, meta: Meta, command: DefineTopic | DeleteTopic | Subscribe | Unsubscribe | Publish) -> Reply:
        topic = self.topics.get(command.topic)
        if isinstance(command, DefineTopic):
            if command.partitions is not None and not 1 <= command.partitions <= 64:
                return Refused("invalid", "partitions: is a number from 1 to 64")
            created = topic is None
            if topic is None:
                self.last_queue += 1
                topic = self.topics[command.topic] = Topic(self.last_queue, meta.index)
            if command.partitions is not None:
                topic.partitions = command.partitions
            return TopicDefined(created, topic.published, topic.partitions)
        if isinstance(command, Subscribe) and command.topic.partition("/")[0] != command.queue.partition("/")[0]:
            return Refused("invalid", "topic and queue are of one namespace")
        if topic is None:
            return Refused("unknown_topic", f"there is no topic {command.topic}")
        if isinstance(command, DeleteTopic):
            del self.topics[command.topic]
            return TopicDeleted(len(topic.subscriptions))
        if isinstance(command, Publish):
            return self._publish(meta, command, topic)
        before = topic.subscriptions.pop(command.queue, None)
        if isinstance(command, Unsubscribe):
            if before is None:
                return Refused("unknown_subscription", f"{command.queue} is not subscribed to {command.topic}")
            return TopicDeleted(1)
        if command.queue not in self.queues and command.queue not in self.partitioned:
            if topic.partitions is None:
                self._create(meta, command.queue, QueueSettings())
            else:
                define = DefineQueue(command.queue, QueueSettings())
                reply = self._create_partitions(meta, define, topic.partitions)
                if isinstance(reply, Refused):
                    return reply
        topic.subscriptions[command.queue] = filters.parse(command.filter), before[1] if before else meta.index
        return TopicDefined(created=before is None)

    def _of_schedule(self, meta: Meta, command: DefineSchedule | DeleteSchedule | Tick) -> Reply:
        known = self.schedules.get(command.schedule)
        if isinstance(command, DefineSchedule):
            given = command.given
            if given.topic is not None and given.topic not in self.topics:
                return Refused("unknown_topic", f"there is no topic {given.topic}")
            before, state = known or (given, ScheduleState())
            if state.next_ms is None or (before.cron, before.interval_ms) != (given.cron, given.interval_ms):
                state.next_ms = command.next_ms
            state.next_ms = None if given.paused else state.next_ms
            self.schedules[command.schedule] = given, state
            return ScheduleDefined(known is None, msgspec.structs.replace(state))
        if isinstance(command, DeleteSchedule):
            if known is None:
                return Refused("unknown_schedule", f"there is no schedule {command.schedule}")
            return ScheduleDefined(False, self.schedules.pop(command.schedule)[1])
        if known is None or known[1].next_ms != command.due_ms:
            return Ticked(0)
        given, state = known
        state.next_ms = command.next_ms
        state.skipped += command.skipped
        if command.at_ms is None:
            return Ticked(state.passed)
        state.last_ms, number = command.at_ms, state.passed + 1
        more = {"schedule": command.schedule.partition("/")[2], "tick": number, "tick_at_ms": command.at_ms}
        refused = self._enqueue_tick(meta, given, more)
        state.failed += refused is not None
        state.ticks += refused is None
        state.failure = f"{refused.reason}: {refused.detail}" if refused else ""
        return Ticked(number)

    def _enqueue_tick(self, meta: Meta, given: Schedule, more: dict[str, Any]) -> Refused | None:
        [data] = packing.unpack(given.part.blob)
        message = packing.unpack_message(data)
        attributes = msgspec.json.encode(msgspec.json.decode(message.attributes or b"{}") | more)
        group = message.group.encode()
        data = packing.pack_message(message.body, kind=message.kind, group=group, attributes=attributes)
        part = msgspec.structs.replace(given.part, blob=packing.pack([data]))
        if given.topic in self.topics:
            reply = self._publish(meta, Publish(given.topic, [part]), self.topics[given.topic])
        elif given.topic is not None:
            return Refused("unknown_topic", f"there is no topic {given.topic}")
        else:
            assert given.queue is not None
            if given.queue in self.partitioned:
                tried = self._of_partitioned(meta, Enqueue(given.queue, [part]))
                return tried if isinstance(tried, Refused) else None
            queue = self.queues.get(given.queue) or self._create(meta, given.queue, QueueSettings())
            reply = self._enqueue(meta, Enqueue(queue.key, [part]), queue)
        return reply if isinstance(reply, Refused) else None

    def _of_token(self, meta: Meta, command: CreateToken | RevokeToken) -> Reply:
        known = self.tokens.get(command.id)
        if isinstance(command, RevokeToken):
            if known is None:
                return Refused("unknown_token", f"there is no token {command.id}")
            del self.tokens[command.id]
            return TokenRevoked(command.id)
        if self.version < tokens.TOKENS_VERSION:
            return Refused("conflict", "tokens wait until every node of the cluster runs this version")
        again = known is not None and msgspec.structs.replace(known[0], first=command.first) == command
        if again or (command.first and command.id in self.first_tokens):
            return TokenCreated(command.id, created=False)
        if known is not None:
            return Refused("conflict", f"there is another token {command.id}")
        if command.expires_ms is not None and command.expires_ms <= meta.wall_ms:
            return Refused("invalid", "expires_ms: is a moment to come")
        full = len(self.tokens) >= tokens.TOKENS_MAX
        if full or (command.first and len(self.first_tokens) >= tokens.FIRSTS_MAX):
            most = f"there are {tokens.TOKENS_MAX:,} tokens, or {tokens.FIRSTS_MAX} were first ones: revoke some"
            return Refused("conflict", most)
        self.first_tokens |= {command.id} if command.first else set()
        self.tokens[command.id] = command, meta.wall_ms, meta.index
        return TokenCreated(command.id)

    def _publish(self, meta: Meta, command: Publish, topic: Topic) -> Reply:
        """As one enqueue for each queue, of what its filter takes, in parts of one message."""
        given = _singles(command.parts)
        plan: list[tuple[Queue, list[int], Enqueue]] = []
        turned: list[Partitioned] = []
        copies = 0
        for key, (accepts, _) in sorted(topic.subscriptions.items()):
            taken = [
                (position, part)
                for position, part in given
                if accepts.matches(packing.unpack_message(packing.unpack(part.blob)[0]).attributes)
            ]
            name = self.partitioned.get(key)
            shares = {key: taken} if taken else {}
            if name is not None:
                unplaced = [msgspec.structs.replace(part, positions=[at]) for at, (_, part) in enumerate(taken)]
                spread, by_turn = name.shares(unplaced, name.turn_in)
                shares = {one: [taken[at] for at, _ in share] for one, share in spread.items()}
                turned += [name] if by_turn else []
            copies += len(given) * (1 if accepts.takes_all else 2) + 2 * (len(command.parts) - 1)
            for one, share in shares.items():
                enqueue = Enqueue(one, [part for _, part in share])
                plan.append((self.queues[one], [position for position, _ in share], enqueue))
                grouped = self.queues[one].settings.max_leased_per_group is not None
                copies += len(share) * (2 * grouped + 10 * (name is not None))
                for part in enqueue.parts:
                    copies += (part.dedup_ids not in (None, [None])) + 5 * (part.replace_keys not in (None, [None]))
        if copies > publishing.COPIES_MAX:
            return publishing.too_large(len(topic.subscriptions))
        whole: dict[str, list[Part]] = {}
        for queue, _, enqueue in plan:
            whole.setdefault(queue.key, []).extend(enqueue.parts)
        for queue, _, _ in plan:
            refused = self._full(meta, Enqueue(queue.key, whole[queue.key]), queue)
            if refused is not None:
                return Refused(refused.reason, refused.detail, queue.key)
        stored, duplicates = [0] * len(given), [0] * len(given)
        for queue, positions, enqueue in plan:
            reply = self._store(meta, enqueue, queue)
            places = reply.places or [(0, 0, False)]
            for position, (_, _, duplicate) in zip(positions, places, strict=True):
                (duplicates if duplicate else stored)[position] += 1
        topic.published += len(given)
        for name in turned:
            name.turn_in = (name.turn_in + 1) % len(name.keys)
        return Published(stored, duplicates if any(duplicates) else [])

    def _lease(self, meta: Meta, command: Lease, queue: Queue) -> Reply:
        taken: list[Message] = []
        size = 0
        if command.groups is not None and queue.settings.max_leased_per_group is None:
            return Refused("invalid", f"groups: {WITHOUT_GROUPS}")
        found = [m for m in queue.leasable() if command.groups is None or (m.group in command.groups and m.group)]
        for message in found[: command.max]:
            size += len(message.data)
            if taken and size > command.max_bytes:
                break
            taken.append(message)
        if not taken or queue.settings.paused or command.only_again:
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

    def _slots(self, command: Ack | Nack | Release | Reject | Extend, queue: Queue) -> Iterator[list[Slot | None]]:
        """For each lease of the command its slots, None for one that there is not."""
        for named in command.leases:
            lease = queue.leases.get(named.lease_id, []) if command.queue_number == queue.number else []
            yield [lease[at] if 0 <= at < len(lease) else None for at in named.slots]

    def _dies(self, queue: Queue, message: Message) -> bool:
        settings = queue.settings
        most = settings.max_failures or (20 if settings.dead_letter_queue else None)
        return most is not None and message.failures + 1 >= most

    def _too_large(self, command: Nack | Reject, queue: Queue) -> bool:
        named = [slot for slots in self._slots(command, queue) for slot in slots if slot and slot.state == "held"]
        found = [
            message
            for message in queue.messages
            if any(slot.message is message for slot in named)
            and (isinstance(command, Reject) or self._dies(queue, message))
        ]
        size = sum(len(message.data) for message in found)
        return queue.settings.dead_letter_queue is not None and size > deadletters.MOVED_BYTES_MAX

    def _settle(self, meta: Meta, command: Ack | Nack | Release | Reject, queue: Queue) -> Reply:
        if isinstance(command, Nack | Reject) and self._too_large(command, queue):
            return deadletters.too_large(queue.settings)
        results: list[bytes] = []
        dead: list[Message] = []
        for slots in self._slots(command, queue):
            good = ("held", "acked") if isinstance(command, Ack) else ("held",)
            results.append(bytes(DONE if slot is not None and slot.state in good else GONE for slot in slots))
            for slot in queue.leases.get(command.leases[len(results) - 1].lease_id, []):
                if slot in slots and slot.state == "held":
                    self._settle_one(meta, command, queue, slot, dead)
        reason = "max_failures" if isinstance(command, Nack) else "rejected"
        self._bury(meta, queue, dead, f"rejected: {text}" if (text := getattr(command, "reason", "")) else reason)
        return Settled(results)

    def _bury(self, meta: Meta, queue: Queue, dead: list[Message], reason: str) -> None:
        """Move the messages, which nobody holds, in this order."""
        key = queue.settings.dead_letter_queue
        for message in dead:
            queue.messages.remove(message)
            if key is None:
                queue.discarded += 1
                continue
            queue.dead_lettered += 1
            key = self.partitioned[key].keys[0] if key in self.partitioned else key
            target = self.queues.get(key) or self._create(meta, key, QueueSettings())
            origin = DeadLetter(
                queue.key,
                queue.number,
                message.priority,
                message.number,
                reason,
                message.failures,
                message.deliveries,
                message.enqueued_at_ms,
                meta.wall_ms,
            )
            before = packing.unpack_message(message.data).extension
            data = packing.extended(message.data, Extension(origin, before.redriven if before else 0))
            self._append(meta, target, message.priority, data)

    def _append(self, meta: Meta, queue: Queue, priority: int, data: bytes) -> None:
        message = Message(priority, queue.next_number, data, meta.wall_ms)
        queue.next_number += 1
        queue.enqueued += 1
        queue.messages.append(message)
        queue.make_ready(message)

    def _settle_one(
        self, meta: Meta, command: Ack | Nack | Release | Reject, queue: Queue, slot: Slot, dead: list[Message]
    ) -> None:
        message = slot.message
        if isinstance(command, Ack):
            slot.state = "acked"
            queue.messages.remove(message)
            queue.acked += 1
            return
        slot.state = "gone"
        if isinstance(command, Reject):
            queue.rejected += 1
            if not queue.drop(message):
                dead.append(message)
            return
        if isinstance(command, Release):
            queue.released += 1
            queue.make_ready(message)
            return
        queue.nacked += 1
        last = self._dies(queue, message)
        message.failures += 1
        delay_ms, backoff = command.delay_ms, queue.settings.backoff
        if delay_ms is None and backoff is not None:
            delay_ms = backoff.initial_ms
            for _ in range(message.failures - 1):
                delay_ms = min(delay_ms * backoff.factor_milli // 1000, backoff.max_ms)
            delay_ms = min(delay_ms, backoff.max_ms)
        if queue.drop(message):
            return
        if last:
            dead.append(message)
        elif delay_ms:
            message.state, message.due_ms = "delayed", meta.wall_ms + delay_ms
        else:
            queue.make_ready(message)

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
        bytes_left = deadletters.MOVED_BYTES_MAX
        for queue, lease_id in [(queue, lease_id) for _, _, lease_id, queue in self._passed(meta)]:
            if left <= 0 or bytes_left <= 0:
                break
            dead: list[Message] = []
            returned = self._expire_lease(meta, queue, lease_id, left, dead)
            left -= max(returned, 1)
            done.leases += returned
            done.dead += len(dead)
            bytes_left -= self._moved(queue, dead)
            self._bury(meta, queue, dead, "max_failures")
        while left > 0 and bytes_left > 0 and (found := self._due(meta)):
            _, table, queue, record = found[0]
            left -= 1
            if table == "retention":
                dead = self._past_retention(meta, queue, left + 1, bytes_left)
                left -= max(len(dead) - 1, 0)
                done.dead += len(dead)
                bytes_left -= sum(len(message.data) for message in dead)
                self._bury(meta, queue, dead, "retention")
                queue.look_again()
            elif isinstance(record, RedriveState):
                looked, size = self._step_redrive(meta, queue, record, left + 1)
                left -= max(looked - 1, 0)
                bytes_left -= size
            elif isinstance(record, Message):
                queue.make_ready(record)
                done.delays += 1
            elif table == "token":
                del self.tokens[record]
                done.forgotten += 1
            else:
                records: dict[Any, Any] = queue.dedup if table == "dedup" else queue.requests
                del records[record]
                done.forgotten += 1
        done.more = self.due(meta)
        return done

    def _moved(self, queue: Queue, dead: list[Message]) -> int:
        return sum(len(message.data) for message in dead) if queue.settings.dead_letter_queue else 0

    def _past_retention(self, meta: Meta, queue: Queue, count: int, bytes_max: int) -> list[Message]:
        kept_ms = queue.settings.retention_ms or 0
        taken: list[Message] = []
        for message in [m for m in queue.of("ready") if m.enqueued_at_ms + kept_ms <= meta.wall_ms][:count]:
            if taken and sum(len(one.data) for one in [*taken, message]) > bytes_max:
                break
            taken.append(message)
        return taken

    def _incarnate(self, meta: Meta) -> Reply:
        released = 0
        for queue in self.queues.values():
            for slot in (slot for lease in queue.leases.values() for slot in lease if slot.state == "held"):
                queue.make_ready(slot.message)
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

    def _expire_lease(self, meta: Meta, queue: Queue, lease_id: int, limit: int, dead: list[Message]) -> int:
        lease = queue.leases[lease_id]
        passed = [slot for slot in lease if slot.deadline_ms <= meta.lease_ms]
        held = [slot for slot in passed if slot.state == "held"]
        for slot in held[:limit]:
            slot.state = "gone"
            if self._dies(queue, slot.message) and not slot.message.superseded:
                dead.append(slot.message)
            else:
                queue.make_ready(slot.message)
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
            for dedup_id, (ms, *_) in queue.dedup.items():
                found.append(((ms, 0, queue.ids, dedup_id.encode()), "dedup", queue, dedup_id))
            if queue.redrive is not None and queue.redrive.due_ms is not None:
                found.append(((queue.redrive.due_ms, -1, queue.number, b""), "redrive", queue, queue.redrive))
            if queue.look_ms is not None:
                found.append(((queue.look_ms, 1, queue.number, b""), "retention", queue, None))
            found += [((m.due_ms, 2, queue.number, m.place), "due", queue, m) for m in queue.of("delayed")]
            for record, (ms, _) in queue.requests.items():
                kind = record[0].__struct_config__.tag  # type: ignore[attr-defined]
                found.append(((ms, 3, queue.ids, (kind, record[1].encode())), "request", queue, record))
        others = [*self.topics.values(), *self.partitioned.values()]
        for owner, number in [(self, 0), *((other, other.number) for other in others)]:  # type: ignore[attr-defined]
            for record, (ms, _) in owner.requests.items():  # type: ignore[attr-defined]
                kind = record[0].__struct_config__.tag
                found.append(((ms, 3, number, (kind, record[1].encode())), "request", owner, record))  # type: ignore[arg-type]
        for token, _, _ in self.tokens.values():
            if token.expires_ms is not None:
                ms = token.expires_ms + tokens.EXPIRED_KEPT_MS
                found.append(((ms, -2, 0, token.id), "token", self, token.id))  # type: ignore[arg-type]
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
        found = [queue for queue in self.queues.values() if queue.number == leased.queue_number]
        lease = found[0].leases.get(leased.lease_id) if found else None
        if lease is None:
            return [None] * sum(taken.count for taken in leased.ranges)
        return [slot.message if slot.state == "held" else None for slot in lease]
