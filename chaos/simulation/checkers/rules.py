"""The promises of a queue, each by itself, with no machine and no model behind it: who holds a message, what was acked,
which lease came last, which id named which message, and what must still be there at the end.

Invariant: what passes gave each message to one living lease at a time, none after its ack or before its delay, in
order, with growing fences, once per dedup id and request id; and what was enqueued and not settled is in the tables at
the end, counted by its body, in its own queue or as a dead letter.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from raftq.chaos.simulation.history import Violation
from raftq.storage.machine import packing
from raftq.storage.machine.commands import (
    Ack,
    CancelRedrive,
    Command,
    DefineQueue,
    DefineSchedule,
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
    Part,
    Publish,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Reject,
    Subscribe,
    Tick,
    Transact,
    Unsubscribe,
)
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import (
    DONE,
    Enqueued,
    Leased,
    MessageDeleted,
    Published,
    Purged,
    QueueDefined,
    QueueDeleted,
    Redriving,
    Refused,
    Reply,
    Settled,
    Ticked,
    Transacted,
)
from raftq.storage.machine.views import Delivery


class _Message(msgspec.Struct, gc=False):
    priority: int
    #: Wall time before which it is not ready.
    due_ms: int
    body: bytes
    group: str
    #: The last lease that had it: its fence.
    fence: int = 0
    #: At the last delivery.
    failures: int = 0
    deadline_ms: int = 0
    #: Held by `fence` until it is settled or `deadline_ms` has passed, in lease time.
    held: bool = False
    #: What became of it for good: acked, dead, deleted or passed over; never delivered again here.
    gone: str = ""


#: (command, request id) -> (until, first reply).
_Requests = dict[tuple[type, str], tuple[int, Reply]]


class _Queue:
    def __init__(self, key: str, settings: QueueSettings) -> None:
        self.key = key
        self.settings = settings
        self.messages: dict[int, _Message] = {}
        #: Group, where groups are limited -> priority -> numbers that never were delayed or delivered, in order.
        self.waiting: defaultdict[str, defaultdict[int, deque[int]]] = defaultdict(lambda: defaultdict(deque))
        #: Messages leave the line without a reply that says which: replaced, too old, redriven.
        self.leaks = False
        #: Lease id -> numbers by slot.
        self.leases: dict[int, list[int]] = {}
        #: Dedup id -> (until, (priority, number)).
        self.dedup: dict[str, tuple[int, tuple[int, int]]] = {}
        self.requests: _Requests = {}

    def line(self, group: str) -> defaultdict[int, deque[int]]:
        return self.waiting[group if self.settings.max_leased_per_group is not None else ""]


class Rules:
    """Told of each command and its reply, in the order of the log."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        #: Of names that stand for partitions, which are the queues here: name -> partition's number -> partition.
        self._partitions: dict[str, dict[int, _Queue]] = {}
        #: Queues that messages come into without a reply that says which: dead letters, redriven and published ones.
        self._fed: set[str] = set()
        self._last_lease = 0
        #: By namespace, and by topic.
        self._transactions: defaultdict[str, _Requests] = defaultdict(dict)
        self._publishes: defaultdict[str, _Requests] = defaultdict(dict)
        #: Topic -> queues that are subscribed.
        self._subscribed: defaultdict[str, set[str]] = defaultdict(set)
        #: Queue -> those that its messages may move to.
        self._moves: defaultdict[str, set[str]] = defaultdict(set)
        #: Queues that messages may vanish from without a reply that says which.
        self._lossy: set[str] = set()
        #: Schedule -> its times, the body of its message, and the last moment that it ticked for.
        self._rhythms: dict[str, tuple[str | None, int | None] | None] = {}
        self._beats: dict[str, bytes] = {}
        self._ticks: dict[str, int] = {}
        #: Body -> queues that it was enqueued into; how often; and how often one of them was settled for good.
        self._entered: defaultdict[bytes, set[str]] = defaultdict(set)
        self._copies: Counter[bytes] = Counter()
        self._settled_for_good: Counter[bytes] = Counter()

    def judge(self, meta: Meta, command: Command, reply: Reply, given: Sequence[Delivery | None] = ()) -> None:
        """`given`: the messages of a lease, by slot. Raises Violation."""
        if isinstance(reply, Refused):
            return
        if isinstance(command, Incarnate):
            self._end_leases()
        elif isinstance(command, DefineQueue) and isinstance(reply, QueueDefined):
            self._defined(command, reply)
        elif isinstance(command, DeleteQueue) and isinstance(reply, QueueDeleted):
            self._queues.pop(command.queue, None)
            self._partitions.pop(command.queue, None)
            self._lossy.add(command.queue)
        elif isinstance(command, Transact) and isinstance(reply, Transacted):
            self._transacted(meta, command, reply)
        elif isinstance(command, Subscribe):
            self._fed.add(command.queue)
            self._subscribed[command.topic].add(command.queue)
        elif isinstance(command, Unsubscribe):
            self._subscribed[command.topic].discard(command.queue)
        elif isinstance(command, DeleteTopic):
            self._subscribed.pop(command.topic, None)
            self._publishes.pop(command.topic, None)
        elif isinstance(command, Publish) and isinstance(reply, Published):
            self._published(meta, command, reply)
        elif isinstance(command, DefineSchedule):
            self._scheduled(command)
        elif isinstance(command, DeleteSchedule):
            self._ticks.pop(command.schedule, None)
        elif isinstance(command, Tick) and isinstance(reply, Ticked):
            self._ticked(meta, command, reply)
        elif not isinstance(command, Expire) and hasattr(command, "queue"):
            queue = self._queue(command.queue)
            if not self._repeats(meta, queue.requests, command, reply):
                self._judge(meta, queue, command, reply, given)

    def _judge(self, meta: Meta, queue: _Queue, command: Any, reply: Reply, given: Sequence[Delivery | None]) -> None:
        if isinstance(command, Enqueue) and isinstance(reply, Enqueued):
            self._enqueued(meta, queue, command, reply)
        elif isinstance(command, Lease) and isinstance(reply, Leased):
            if reply.ranges:
                self._leased(meta, self._partition(queue, reply.queue_number), command, reply, given)
        elif isinstance(command, PurgeQueue) and isinstance(reply, Purged):
            self._purged(queue, reply)
        elif isinstance(command, DeleteMessage) and isinstance(reply, MessageDeleted):
            self._deleted(meta, queue, command)
        elif isinstance(command, Redrive) and isinstance(reply, Redriving):
            self._redriven(queue, command)
        elif isinstance(command, CancelRedrive) and isinstance(reply, Redriving):
            pass
        elif isinstance(reply, Settled):
            self._settled(meta, self._partition(queue, command.queue_number), command, reply)
        else:
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}")

    def _queue(self, key: str) -> _Queue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(key, QueueSettings())
        return queue

    def _partition(self, queue: _Queue, number: int) -> _Queue:
        """The partition that has the number, when the queue's key stands for several."""
        partitions = self._partitions.get(queue.key)
        if partitions is None:
            return queue
        return partitions.setdefault(number, _Queue(queue.key, queue.settings))

    def _defined(self, command: DefineQueue, reply: QueueDefined) -> None:
        settings = command.settings if reply.settings is None else reply.settings
        queue = self._queue(command.queue)
        if command.partitions is not None:
            self._partitions.setdefault(command.queue, {})
        for one in (queue, *self._partitions.get(command.queue, {}).values()):
            one.settings = settings
            one.leaks = one.leaks or settings.retention_ms is not None
        if settings.dead_letter_queue is not None:
            self._feed(queue.key, settings.dead_letter_queue)
        elif settings.max_failures is not None or settings.retention_ms is not None:
            self._lossy.add(queue.key)

    def _feed(self, key: str, target: str) -> None:
        self._moves[key].add(target)
        self._fed.add(target)

    def _redriven(self, queue: _Queue, command: Redrive) -> None:
        queue.leaks = True
        origins = [key for key, targets in self._moves.items() if queue.key in targets]
        for target in origins if command.target is None else [command.target]:
            self._feed(queue.key, target)

    def _purged(self, queue: _Queue, reply: Purged) -> None:
        """Of a queue with nothing in it all stays as it was: what was acked may be acked again."""
        if reply.messages:
            queue.messages.clear()
            queue.waiting.clear()
            queue.leases.clear()
            self._lossy.add(queue.key)

    def _deleted(self, meta: Meta, queue: _Queue, command: DeleteMessage) -> None:
        message = queue.messages.get(command.number)
        if message is None:
            self._lossy.add(queue.key)
            queue.messages[command.number] = _Message(command.priority, 0, b"", "", gone="deleted")
            return
        if message.gone or (message.held and message.deadline_ms > meta.lease_ms):
            raise Violation("only what is free is deleted", f"{command} at {_at(meta)}: {message}")
        line = queue.line(message.group)[message.priority]
        if command.number in line:
            line.remove(command.number)
        self._end(message, "deleted")

    def _end(self, message: _Message, how: str) -> None:
        """For good, and in no other queue."""
        message.gone = how
        self._settled_for_good[message.body] += 1

    def _end_leases(self) -> None:
        partitions = [each for name in self._partitions.values() for each in name.values()]
        for queue in (*self._queues.values(), *partitions):
            for message in queue.messages.values():
                message.held = False

    def judge_rest(self, found: Counter[bytes]) -> None:
        """`found`: the bodies of all messages at the end. Raises Violation."""
        for body in found - self._copies:
            raise Violation("nothing is lost or doubled", f"nobody enqueued {body!r} as often as it is there")
        for body, copies in self._copies.items():
            left = copies - self._settled_for_good[body]
            told = f"{body!r} should be there {left} times, and is {found[body]} times: {sorted(self._entered[body])}"
            if found[body] > left or (found[body] < left and not self._may_vanish(body)):
                raise Violation("nothing is lost or doubled", told)

    def _may_vanish(self, body: bytes) -> bool:
        reached, more = set[str](), set(self._entered[body])
        while more:
            reached |= more
            more = {target for key in more for target in self._moves[key]} - reached
        return bool(reached & self._lossy)

    # Topics and transactions

    def _published(self, meta: Meta, command: Publish, reply: Published) -> None:
        if self._repeats(meta, self._publishes[command.topic], command, reply):
            return
        asked, subscribed = _asked(command.parts), self._subscribed[command.topic]
        if len(asked) != len(reply.queues) or max(reply.queues, default=0) > len(subscribed):
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}, to {sorted(subscribed)}")
        for (*_, data), copies in zip(asked, reply.queues, strict=True):
            body = packing.unpack_message(data).body
            self._copies[body] += copies
            self._entered[body] |= subscribed

    def _transacted(self, meta: Meta, command: Transact, reply: Transacted) -> None:
        if self._repeats(meta, self._transactions[command.namespace], command, reply) or reply.obstacles:
            return
        enqueued = iter(reply.enqueued)
        for operation in command.operations:
            queue = self._queue(operation.queue)
            if isinstance(operation, Enqueue):
                self._enqueued(meta, queue, operation, next(enqueued))
            else:
                done = Settled([bytes([DONE]) * len(named.slots) for named in operation.leases])
                self._settled(meta, self._partition(queue, operation.queue_number), operation, done)

    # Schedules

    def _scheduled(self, command: DefineSchedule) -> None:
        """Its ticks may fail, so that its message is there at most as often as it ticked."""
        given = command.given
        rhythm = None if given.paused else (given.cron, given.interval_ms)
        if self._rhythms.get(command.schedule) != rhythm:  # its times begin anew
            self._ticks.pop(command.schedule, None)
        self._rhythms[command.schedule] = rhythm
        [data] = packing.unpack(given.part.blob)
        body = self._beats[command.schedule] = packing.unpack_message(data).body
        targets = {given.queue} if given.queue is not None else self._subscribed[given.topic or ""]
        self._fed |= targets
        self._entered[body] |= targets | {command.schedule}
        self._lossy.add(command.schedule)

    def _ticked(self, meta: Meta, command: Tick, reply: Ticked) -> None:
        """Each moment once, and they only grow."""
        if reply.number == 0 or command.at_ms is None:
            return
        if command.at_ms <= self._ticks.get(command.schedule, -1):
            raise Violation("a tick once", f"{command} at {_at(meta)} comes after {self._ticks[command.schedule]}")
        self._ticks[command.schedule] = command.at_ms
        self._copies[self._beats[command.schedule]] += max(len(self._entered[self._beats[command.schedule]]) - 1, 1)

    # Ids

    def _repeats(self, meta: Meta, requests: _Requests, command: Any, reply: Reply) -> bool:
        """A request whose first reply is kept is answered by it, and does nothing; another is not."""
        request = getattr(command, "request", None)
        if request is None:
            return False
        key = type(command), request.id
        until_ms, first = requests.get(key, (0, reply))
        again, plain = getattr(reply, "repeated", False), reply
        says = isinstance(reply, Enqueued | Leased | Transacted | Published)
        if says and again:
            plain = msgspec.structs.replace(reply, repeated=False)
        if until_ms > meta.wall_ms:
            if plain != first or (says and not again):
                raise Violation("request ids", f"{command} at {_at(meta)} was answered {reply}, at first {first}")
            return True
        if again:
            raise Violation("request ids", f"{command} at {_at(meta)} was answered as a repeated one: {reply}")
        if not _did_nothing(reply):
            requests[key] = meta.wall_ms + request.keep_ms, reply
        return False

    def _enqueued(self, meta: Meta, queue: _Queue, command: Enqueue, reply: Enqueued) -> None:
        places, asked = list(_places(reply)), _asked(command.parts)
        if len(places) != len(asked):
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}")
        name, numbers = queue, reply.numbers or [reply.queue_number] * len(places)
        window_ms = queue.settings.dedup_window_ms
        for (_, part, dedup_id, data), place, queue_number in sorted(
            zip(asked, places, numbers, strict=True), key=lambda each: each[0][0]
        ):
            queue = self._partition(name, queue_number)
            priority, number, duplicate = place
            first: tuple[int, int] | None = None
            if dedup_id is not None and window_ms > 0:
                until_ms, known = queue.dedup.get(dedup_id, (0, (0, 0)))
                if until_ms > meta.wall_ms:
                    first = known
                else:
                    queue.dedup[dedup_id] = meta.wall_ms + window_ms, (priority, number)
            if duplicate != (first is not None) or (duplicate and (priority, number) != first):
                raise Violation(
                    "dedup ids",
                    f"{dedup_id!r} at {_at(meta)} was answered with message {(priority, number)}, duplicate: "
                    f"{duplicate}; its first message within the window is {first}",
                )
            if not duplicate:
                self._add(meta, queue, part, priority, number, packing.unpack_message(data))

    def _add(self, meta: Meta, queue: _Queue, part: Part, priority: int, number: int, message: packing.Message) -> None:
        if number in queue.messages or priority != part.priority:
            raise Violation("enqueue numbers", f"message {(priority, number)} of {_at(meta)} was given before")
        delay_ms = queue.settings.delay_ms if part.delay_ms is None else part.delay_ms
        queue.messages[number] = _Message(priority, meta.wall_ms + max(delay_ms, 0), message.body, message.group)
        self._copies[message.body] += 1
        self._entered[message.body].add(queue.key)
        if part.replace_keys is not None:
            queue.leaks = True
            self._lossy.add(queue.key)
        if delay_ms <= 0:
            queue.line(message.group)[priority].append(number)

    # Leases

    def _leased(
        self, meta: Meta, queue: _Queue, command: Lease, reply: Leased, given: Sequence[Delivery | None]
    ) -> None:
        lease_id = reply.lease_id
        if lease_id <= self._last_lease:
            raise Violation("fences grow", f"lease {lease_id} at {_at(meta)} comes after lease {self._last_lease}")
        self._last_lease = lease_id
        lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
        numbers: list[int] = []
        for taken in reply.ranges:
            for number in range(taken.first, taken.first + taken.count):
                data = given[len(numbers)] if len(numbers) < len(given) else None
                numbers.append(number)
                message = self._message(queue, number, taken.priority, data)
                if message is None or message.priority != taken.priority:
                    raise Violation("replies", f"lease {lease_id} at {_at(meta)} gave unknown message {number}")
                self._take(meta, queue, lease_id, number, message, first=taken.deliveries == 1)
                message.fence, message.deadline_ms = lease_id, meta.lease_ms + lease_ms
                message.held, message.failures = not command.settle, taken.failures
                if command.settle:
                    self._end(message, "acked")
        if not command.settle:
            queue.leases[lease_id] = numbers
        self._check_groups(meta, queue, lease_id)

    def _message(self, queue: _Queue, number: int, priority: int, given: Delivery | None) -> _Message | None:
        """One that came without a reply that says so is known from its first delivery on."""
        message = queue.messages.get(number)
        if message is None and queue.key in self._fed and given is not None:
            found = packing.unpack_message(given.data)
            message = queue.messages[number] = _Message(priority, 0, found.body, found.group)
        return message

    def _check_groups(self, meta: Meta, queue: _Queue, lease_id: int) -> None:
        limit = queue.settings.max_leased_per_group
        if limit is None:
            return
        held = [m for m in queue.messages.values() if m.group and m.held and m.deadline_ms > meta.lease_ms]
        for group, count in Counter(message.group for message in held).items():
            if count > limit:
                what = f"after lease {lease_id} at {_at(meta)} {count} messages of {group!r} are leased"
                raise Violation("leases of a group", f"{what}, of {queue.settings}")

    def _take(self, meta: Meta, queue: _Queue, lease_id: int, number: int, message: _Message, *, first: bool) -> None:
        what = f"lease {lease_id} at {_at(meta)} gave message {(message.priority, number)} of {queue.settings}"
        if message.gone:
            raise Violation(f"{message.gone} is gone", f"{what}, which was {message.gone} under lease {message.fence}")
        if message.held and message.deadline_ms > meta.lease_ms:
            raise Violation(
                "one live lease a message",
                f"{what} at {meta.lease_ms} ms, while lease {message.fence} held it until {message.deadline_ms} ms",
            )
        if message.due_ms > meta.wall_ms:
            raise Violation("delays", f"{what} at wall time {meta.wall_ms}, before {message.due_ms}")
        if first != (message.fence == 0):
            raise Violation("deliveries", f"{what}, first delivery: {first}, but lease {message.fence} had it before")
        if first:
            self._check_order(queue, number, message, what)

    def _check_order(self, queue: _Queue, number: int, message: _Message, what: str) -> None:
        lines = queue.line(message.group)
        if queue.leaks and number in lines[message.priority]:
            self._pass_over(queue, number, message)
        line = next((lines[priority] for priority in range(9, -1, -1) if lines[priority]), None)
        if line and line[0] == number:
            line.popleft()
        elif number in lines[message.priority]:
            raise Violation("delivery order", f"{what}, while {line and line[0]} waits before it")

    @staticmethod
    def _pass_over(queue: _Queue, number: int, message: _Message) -> None:
        """What waits before it must have left, and never comes again."""
        lines = queue.line(message.group)
        for priority in range(9, message.priority - 1, -1):
            line = lines[priority]
            while line and (priority > message.priority or line[0] < number):
                queue.messages[line.popleft()].gone = "passed over"

    def _settled(self, meta: Meta, queue: _Queue, command: Any, reply: Settled) -> None:
        if len(reply.results) != len(command.leases):
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}")
        for named, results in zip(command.leases, reply.results, strict=True):
            numbers = queue.leases.get(named.lease_id, [])
            for slot, result in zip(named.slots, results, strict=True):
                if result != DONE:
                    continue
                message = queue.messages[numbers[slot]] if 0 <= slot < len(numbers) else None
                acked = isinstance(command, Ack) and message is not None and message.gone == "acked"
                if message is None or message.fence != named.lease_id or not (message.held or acked):
                    raise Violation(
                        "only the holder settles",
                        f"{command} at {_at(meta)} was answered done for slot {slot} of lease {named.lease_id}, "
                        f"which does not hold it: {message}",
                    )
                if not acked:
                    self._settle(meta, queue, command, message)

    def _settle(self, meta: Meta, queue: _Queue, command: Any, message: _Message) -> None:
        settings = queue.settings
        if isinstance(command, Extend):
            lease_ms = settings.lease_ms if command.lease_ms is None else command.lease_ms
            message.deadline_ms = meta.lease_ms + lease_ms
            return
        message.held = False
        if isinstance(command, Ack):
            self._end(message, "acked")
        elif isinstance(command, Reject):
            self._die(settings, message)
        elif isinstance(command, Nack):
            failures, limit = message.failures + 1, settings.failures_max()
            if limit is not None and failures >= limit:
                self._die(settings, message)
            delay_ms = _backoff(settings, failures) if command.delay_ms is None else command.delay_ms
            message.due_ms = meta.wall_ms + delay_ms

    def _die(self, settings: QueueSettings, message: _Message) -> None:
        """Discarded, or to be found in the dead-letter queue."""
        message.gone = "dead"
        if settings.dead_letter_queue is None:
            self._end(message, "dead")


def _did_nothing(reply: Reply) -> bool:
    if isinstance(reply, Leased):
        return not reply.ranges
    return isinstance(reply, Transacted) and bool(reply.obstacles)


def _backoff(settings: QueueSettings, failures: int) -> int:
    backoff = settings.backoff
    if backoff is None:
        return 0
    delay_ms = backoff.initial_ms
    for _ in range(failures - 1):
        delay_ms = delay_ms * backoff.factor_milli // 1000
    return min(delay_ms, backoff.max_ms)


def _places(reply: Enqueued) -> Iterator[tuple[int, int, bool]]:
    """In the order of the request."""
    if reply.places is not None:
        yield from reply.places
    for priority, first, count in reply.spans or ():
        for number in range(first, first + count):
            yield priority, number, False


def _asked(parts: list[Part]) -> list[tuple[int, Part, str | None, bytes]]:
    """Of each message, in the order of the request: when it is added, its part, its dedup id, and as packed."""
    found: list[tuple[int, tuple[int, Part, str | None, bytes]]] = []
    for part in parts:
        for at, data in enumerate(packing.unpack(part.blob)):
            position = part.positions[at] if part.positions else len(found)
            found.append((position, (len(found), part, part.dedup_ids[at] if part.dedup_ids else None, data)))
    return [asked for _, asked in sorted(found, key=lambda item: item[0])]


def _at(meta: Meta) -> str:
    return f"({meta.index}, {meta.position})"
