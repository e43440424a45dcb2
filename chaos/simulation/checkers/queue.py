"""What a queue promises, judged on the canonical log run through the real machine over tables in memory.

`Rules` knows each promise by itself, with no machine and no model behind it: who holds a message, what was acked, which
lease came last, which id named which message. `Replica` is the machine that the rules judge, and the third party for
the digests that nodes gave. Order per group key is not judged: the machine has no group keys yet.

Invariant: a run that passes gave each message to one living lease at a time, none after its ack or before its delay, in
order, with growing fences, once per dedup id and request id; and all nodes had equal tables at equal indexes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from xxhash import xxh3_128

from raftq.chaos.simulation.history import History, NodeView, Violation, decoded
from raftq.storage.digest import SIZES
from raftq.storage.machine import audit, commands, packing
from raftq.storage.machine.apply import Machine
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
)
from raftq.storage.machine.invariants import InvariantBroken
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.replies import (
    DONE,
    Enqueued,
    Leased,
    QueueDefined,
    QueueDeleted,
    Refused,
    Reply,
    Settled,
)

_AFTER_ALL: Final = b"\xff"


class Replica:
    """The real machine on the canonical log."""

    def __init__(self) -> None:
        self.tables = MemoryTxn()
        self._machine = Machine(self.tables)
        self._rules = Rules()

    def apply(self, index: int, term: int, entry: bytes) -> None:
        inside = decoded(entry)
        if inside is None:
            return
        meta = Meta(index, 0, term, *inside[0])
        for position, data in enumerate(inside[1]):
            meta.position = position
            command = commands.decode(data)
            reply, _ = self._machine.apply(meta, command)
            self._rules.judge(meta, command, reply)
        self._machine.end_entry(meta)


def digest(tables: Txn) -> str:
    """As `storage.digest`, of tables in memory, or of those that are not all on disk yet."""
    hashed = xxh3_128()
    for key, value in tables.scan(b"", _AFTER_ALL):
        hashed.update(SIZES.pack(len(key), len(value)) + key + value)
    return hashed.hexdigest()


class Digests:
    """Equal tables at equal indexes: on every node, at any time, and on the replica."""

    def __init__(self) -> None:
        #: Index -> (digest, node that gave it first).
        self.found: dict[int, tuple[str, str]] = {}

    def told(self, node: str, index: int, digest: str) -> None:
        first = self.found.setdefault(index, (digest, node))
        if first[0] != digest:
            raise Violation(
                "equal digests", f"at index {index} the digest of {node} is {digest}, that of {first[1]} is {first[0]}"
            )


def at_rest(history: History, digests: Digests, nodes: list[NodeView]) -> None:
    """Run the whole canonical log, and read all tables of every node."""
    for node in nodes:
        _audit(node.id, node.tables())
        digests.told(node.id, node.applied_index, digest(node.tables()))
    replica = Replica()
    for index in range(1, history.known + 1):
        entry = history.log.get(index)
        if entry is not None:
            replica.apply(index, entry.term, entry.command)
        if index in digests.found:
            digests.told("the canonical log", index, digest(replica.tables))
    _audit("the canonical log", replica.tables)


def _audit(name: str, tables: Txn) -> None:
    try:
        audit.check(tables)
    except InvariantBroken as error:
        raise Violation("one holder a message", f"tables of {name}: {error}") from error


class _Held(NamedTuple):
    lease_id: int
    deadline_ms: int


class _Message(msgspec.Struct, gc=False):
    priority: int
    #: Wall time before which it is not ready.
    due_ms: int
    #: The last lease that had it: its fence.
    fence: int = 0
    deadline_ms: int = 0
    #: Held by `fence` until it is settled or `deadline_ms` has passed, in lease time.
    held: bool = False
    acked: bool = False


class _Queue:
    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.messages: dict[int, _Message] = {}
        #: Priority -> numbers that never were delayed or delivered, in order.
        self.waiting: defaultdict[int, deque[int]] = defaultdict(deque)
        #: Lease id -> numbers by slot.
        self.leases: dict[int, list[int]] = {}
        #: Dedup id -> (until, (priority, number)).
        self.dedup: dict[str, tuple[int, tuple[int, int]]] = {}
        #: (command, request id) -> (until, first reply).
        self.requests: dict[tuple[type, str], tuple[int, Reply]] = {}


class Rules:
    """Told of each command and its reply, in the order of the log."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._last_lease = 0

    def judge(self, meta: Meta, command: Command, reply: Reply) -> None:
        """Raises Violation."""
        if isinstance(reply, Refused):
            return
        if isinstance(command, Incarnate):
            self._end_leases()
        elif isinstance(command, DefineQueue) and isinstance(reply, QueueDefined):
            self._queue(command.queue, command.settings).settings = command.settings
        elif isinstance(command, DeleteQueue) and isinstance(reply, QueueDeleted):
            del self._queues[command.queue]
        elif not isinstance(command, Expire) and hasattr(command, "queue"):
            queue = self._queue(command.queue, QueueSettings())
            if not self._repeats(meta, queue, command, reply):
                self._judge(meta, queue, command, reply)

    def _judge(self, meta: Meta, queue: _Queue, command: Any, reply: Reply) -> None:
        if isinstance(command, Enqueue) and isinstance(reply, Enqueued):
            self._enqueued(meta, queue, command, reply)
        elif isinstance(command, Lease) and isinstance(reply, Leased):
            if reply.ranges:
                self._leased(meta, queue, command, reply)
        elif isinstance(reply, Settled):
            self._settled(meta, queue, command, reply)
        else:
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}")

    def _queue(self, key: str, settings: QueueSettings) -> _Queue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(settings)
        return queue

    def _end_leases(self) -> None:
        for queue in self._queues.values():
            for message in queue.messages.values():
                message.held = False

    # Ids

    def _repeats(self, meta: Meta, queue: _Queue, command: Any, reply: Reply) -> bool:
        """A request whose first reply is kept is answered by it, and does nothing; another is not."""
        request = command.request
        if request is None:
            return False
        key = type(command), request.id
        until_ms, first = queue.requests.get(key, (0, reply))
        again, plain = getattr(reply, "repeated", False), reply
        if isinstance(reply, Enqueued | Leased) and again:
            plain = msgspec.structs.replace(reply, repeated=False)
        if until_ms > meta.wall_ms:
            if plain != first or (isinstance(reply, Enqueued | Leased) and not again):
                raise Violation("request ids", f"{command} at {_at(meta)} was answered {reply}, at first {first}")
            return True
        if again:
            raise Violation("request ids", f"{command} at {_at(meta)} was answered as a repeated one: {reply}")
        if not (isinstance(reply, Leased) and not reply.ranges):
            queue.requests[key] = meta.wall_ms + request.keep_ms, reply
        return False

    def _enqueued(self, meta: Meta, queue: _Queue, command: Enqueue, reply: Enqueued) -> None:
        places, asked = list(_places(reply)), _asked(command)
        if len(places) != len(asked):
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}")
        window_ms = queue.settings.dedup_window_ms
        for (_, part, dedup_id), place in sorted(zip(asked, places, strict=True), key=lambda pair: pair[0][0]):
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
                self._add(meta, queue, part, priority, number)

    def _add(self, meta: Meta, queue: _Queue, part: Part, priority: int, number: int) -> None:
        if number in queue.messages or priority != part.priority:
            raise Violation("enqueue numbers", f"message {(priority, number)} of {_at(meta)} was given before")
        delay_ms = queue.settings.delay_ms if part.delay_ms is None else part.delay_ms
        queue.messages[number] = _Message(priority, meta.wall_ms + max(delay_ms, 0))
        if delay_ms <= 0:
            queue.waiting[priority].append(number)

    # Leases

    def _leased(self, meta: Meta, queue: _Queue, command: Lease, reply: Leased) -> None:
        lease_id = reply.lease_id
        if lease_id <= self._last_lease:
            raise Violation("fences grow", f"lease {lease_id} at {_at(meta)} comes after lease {self._last_lease}")
        self._last_lease = lease_id
        lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
        numbers: list[int] = []
        for taken in reply.ranges:
            for number in range(taken.first, taken.first + taken.count):
                numbers.append(number)
                message = queue.messages.get(number)
                if message is None or message.priority != taken.priority:
                    raise Violation("replies", f"lease {lease_id} at {_at(meta)} gave unknown message {number}")
                self._take(meta, queue, lease_id, number, message, first=taken.deliveries == 1)
                message.fence, message.deadline_ms = lease_id, meta.lease_ms + lease_ms
                message.held, message.acked = not command.settle, command.settle
        if not command.settle:
            queue.leases[lease_id] = numbers

    def _take(self, meta: Meta, queue: _Queue, lease_id: int, number: int, message: _Message, *, first: bool) -> None:
        what = f"lease {lease_id} at {_at(meta)} gave message {(message.priority, number)} of {queue.settings}"
        if message.acked:
            raise Violation("acked is gone", f"{what}, which was acked under lease {message.fence}")
        if message.held and message.deadline_ms > meta.lease_ms:
            raise Violation(
                "one live lease a message",
                f"{what} at {meta.lease_ms} ms, while lease {message.fence} held it until {message.deadline_ms} ms",
            )
        if message.due_ms > meta.wall_ms:
            raise Violation("delays", f"{what} at wall time {meta.wall_ms}, before {message.due_ms}")
        if first != (message.fence == 0):
            raise Violation("deliveries", f"{what}, first delivery: {first}, but lease {message.fence} had it before")
        if not first:
            return
        waiting = queue.waiting
        line = next((waiting[priority] for priority in range(9, -1, -1) if waiting[priority]), None)
        if line and line[0] == number:
            line.popleft()
        elif number in waiting[message.priority]:
            raise Violation("delivery order", f"{what}, while {line and line[0]} waits before it")

    def _settled(self, meta: Meta, queue: _Queue, command: Any, reply: Settled) -> None:
        if len(reply.results) != len(command.leases):
            raise Violation("replies", f"{command} at {_at(meta)} was answered {reply}")
        for named, results in zip(command.leases, reply.results, strict=True):
            numbers = queue.leases.get(named.lease_id, [])
            for slot, result in zip(named.slots, results, strict=True):
                if result != DONE:
                    continue
                message = queue.messages[numbers[slot]] if 0 <= slot < len(numbers) else None
                acked = isinstance(command, Ack) and message is not None and message.acked
                if message is None or message.fence != named.lease_id or not (message.held or acked):
                    raise Violation(
                        "only the holder settles",
                        f"{command} at {_at(meta)} was answered done for slot {slot} of lease {named.lease_id}, "
                        f"which does not hold it: {message}",
                    )
                self._settle(meta, queue, command, message)

    def _settle(self, meta: Meta, queue: _Queue, command: Any, message: _Message) -> None:
        if isinstance(command, Extend):
            lease_ms = queue.settings.lease_ms if command.lease_ms is None else command.lease_ms
            message.deadline_ms = meta.lease_ms + lease_ms
            return
        message.held = False
        if isinstance(command, Ack):
            message.acked = True
        elif isinstance(command, Nack):
            message.due_ms = meta.wall_ms + (command.delay_ms or 0)


def _places(reply: Enqueued) -> Iterator[tuple[int, int, bool]]:
    """In the order of the request."""
    if reply.places is not None:
        yield from reply.places
    for priority, first, count in reply.spans or ():
        for number in range(first, first + count):
            yield priority, number, False


def _asked(command: Enqueue) -> list[tuple[int, Part, str | None]]:
    """Of each message, in the order of the request: when it is added, its part, its dedup id."""
    found: list[tuple[int, tuple[int, Part, str | None]]] = []
    for part in command.parts:
        for at in range(packing.count(part.blob)):
            position = part.positions[at] if part.positions else len(found)
            found.append((position, (len(found), part, part.dedup_ids[at] if part.dedup_ids else None)))
    return [asked for _, asked in sorted(found, key=lambda item: item[0])]


def _at(meta: Meta) -> str:
    return f"({meta.index}, {meta.position})"
