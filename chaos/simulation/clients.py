"""Clients of the simulated cluster: a seeded workload, as impatient and forgetful as real ones.

A client begins sessions at random times, several at once: an enqueue, a publish or a transaction; a lease, some work,
and what becomes of it; a question; a change of a queue, a purge, a redrive. It follows hints to the leader, tries other
nodes, repeats what it may repeat, times out and gives up. Every attempt is an `Op`, and the observer is told of its
begin and its end; what is told to have failed for certain (`no`) is what the node said so of, all else is `unknown`.

It knows the cluster by the Protocol `Cluster` alone, and runs on whatever asyncio loop that one is on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from itertools import count
from random import Random
from typing import Any, Final, Protocol

import msgspec

from raftq.chaos.simulation import questions
from raftq.chaos.simulation.history import Op, Outcome, Seen
from raftq.chaos.simulation.questions import (
    Find,
    Info,
    LastRedrive,
    Names,
    Peek,
    Question,
    Subscriptions,
    Ticks,
    Tokens,
)
from raftq.replication.shard import Committed, OutcomeUnknown, ShardError
from raftq.storage.machine import commands, packing
from raftq.storage.machine.commands import (
    Ack,
    Backoff,
    CancelRedrive,
    Command,
    CreateToken,
    DefineQueue,
    DefineSchedule,
    DefineTopic,
    DeleteMessage,
    DeleteQueue,
    DeleteSchedule,
    Enqueue,
    Extend,
    Grant,
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
    Request,
    RevokeToken,
    Schedule,
    Slots,
    Subscribe,
    Transact,
    Unsubscribe,
)
from raftq.storage.machine.replies import Leased
from raftq.storage.machine.views import View

#: Leases of the hot queue expire under its workers; dead letters of jobs go to the dead queue and are redriven; what is
#: in the scratch queue may be purged, replaced, discarded; the one called temporary comes and goes.
HOT: Final = "default/hot"
JOBS: Final = "default/jobs"
IDS: Final = "default/ids"
DEAD: Final = "default/dead"
SCRATCH: Final = "default/scratch"
GROUPED: Final = "default/grouped"
PARTED: Final = "default/parted"
TEMPORARY: Final = "other/temporary"
QUEUES: Final = (HOT, HOT, JOBS, JOBS, JOBS, IDS, IDS, TEMPORARY, SCRATCH, GROUPED, PARTED)
#: PARTED stands for these.
PARTITIONS: Final = tuple(f"{PARTED}.{at}" for at in range(3))
TOPIC: Final = "default/news"
SCHEDULE: Final = "default/beat"

_SETTINGS: Final = {
    HOT: QueueSettings(lease_ms=400),
    JOBS: QueueSettings(
        lease_ms=2_000,
        delay_ms=100,
        retention_ms=15_000,
        dead_letter_queue=DEAD,
        max_failures=2,
        backoff=Backoff(100, 3_000, 800),
    ),
    IDS: QueueSettings(lease_ms=1_500, dedup_window_ms=2_500),
    DEAD: QueueSettings(lease_ms=1_000),
    SCRATCH: QueueSettings(lease_ms=700, retention_ms=6_000, max_failures=2, max_messages=12, max_bytes=30_000),
    GROUPED: QueueSettings(lease_ms=800, max_leased_per_group=1),
    PARTED: QueueSettings(
        lease_ms=900, max_leased_per_group=2, dedup_window_ms=2_500, dead_letter_queue=DEAD, max_failures=2
    ),
    TEMPORARY: QueueSettings(lease_ms=1_000, dedup_window_ms=0),
}
_GROUPS: Final = ("g1", "g2", "g3", "g4", "g5")
_RED: Final = b'{"color":["red"]}'
_SUBSCRIBED: Final = {JOBS: _RED, SCRATCH: b"{}"}
_BODY_BYTES: Final = (0, 1, 20, 20, 60, 200, 1_000, 5_000)
#: A session holds about so many operations.
_OPS_PER_SESSION: Final = 1.6
#: Sessions that a client has at once, at most.
_SESSIONS_MAX: Final = 12


class Cluster(Protocol):
    """What clients need of the world. A future may raise a `ShardError`, or never end."""

    def dice_for(self, name: str) -> Random:
        """Random numbers of one's own, from the seed of the run."""
        ...

    def nodes(self) -> Sequence[str]:
        """Whom a client may know of: also nodes that are down, or were removed."""
        ...

    def now(self) -> float: ...
    def submit(self, node: str, command: bytes) -> asyncio.Future[Committed]: ...
    def read(self, node: str, look: Callable[[View], Any]) -> asyncio.Future[Seen]:
        """`look` is called on the node, and the applied index is the one that it saw."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None: ...


class Listener(Protocol):
    def invoked(self, op: Op) -> None: ...
    def returned(self, op: Op) -> None: ...


class Clients:
    """`rate` is in operations per second, of all clients together, without retries."""

    def __init__(self, cluster: Cluster, listener: Listener, *, rate: float, clients: int = 6) -> None:
        self.cluster, self.listener = cluster, listener
        self.ids = count(1)
        #: Operations by kind, retries counted once; and attempts by outcome.
        self.operations: Counter[str] = Counter()
        self.outcomes: Counter[Outcome] = Counter()
        self.stopped = False
        self._under_way = 0
        pause = clients * _OPS_PER_SESSION / rate
        self._clients = [
            _Client(self, f"c{number}", cluster.dice_for(f"c{number}"), pause) for number in range(1, clients + 1)
        ]

    def start(self) -> None:
        for client in self._clients:
            self.cluster.spawn(client.run())

    def stop(self) -> None:
        """Begin nothing new, and repeat nothing."""
        self.stopped = True

    def probe(self) -> None:
        """One more write, repeated until it succeeds."""
        self.begin(self._clients[0].probe())

    def read_for(self, seconds: float) -> None:
        for client in [*self._clients, *self._clients]:
            self.begin(client.read_for(seconds))

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return self._under_way == 0

    def begin(self, session: Coroutine[Any, Any, None], done: Callable[[], None] = lambda: None) -> None:
        self._under_way += 1
        self.cluster.spawn(self._attend(session, done))

    async def _attend(self, session: Coroutine[Any, Any, None], done: Callable[[], None]) -> None:
        try:
            await session
        finally:
            self._under_way -= 1
            done()


class _Client:
    def __init__(self, clients: Clients, name: str, dice: Random, pause: float) -> None:
        self._all, self._cluster, self.name, self._dice, self._pause = clients, clients.cluster, name, dice, pause
        self._node = ""
        self._serial = count(1)
        self._sessions = 0

    async def run(self) -> None:
        for queue in _SETTINGS:
            self._begin(self._define(queue, _SETTINGS[queue]))
        self._begin(self._define_topic())
        self._begin(self._define_schedule())
        while not self._all.stopped:
            await asyncio.sleep(self._dice.expovariate(1 / self._pause))
            if self._sessions < _SESSIONS_MAX and not self._all.stopped:
                self._begin(self._session())

    def _begin(self, session: Coroutine[Any, Any, None]) -> None:
        def done() -> None:
            self._sessions -= 1

        self._sessions += 1
        self._all.begin(session, done)

    async def probe(self) -> None:
        while await self._attempt_write(commands.encode(self._enqueue(JOBS)), 0.5) is None:
            await asyncio.sleep(0.02)

    async def read_for(self, seconds: float) -> None:
        until = self._cluster.now() + seconds
        while self._cluster.now() < until and not self._all.stopped:
            await self._ask(self._question(self._dice.choice(QUEUES)))
            await asyncio.sleep(0.02 * self._dice.random())

    async def _session(self) -> None:
        dice = self._dice
        queue = dice.choice(QUEUES)
        kinds = ("enqueue", "publish", "transact", "work", "ask", "change", "operate")
        [kind] = dice.choices(kinds, (38, 3, 4, 40, 14, 3, 5))
        if kind == "enqueue":
            await self._write(self._enqueue(queue))
        elif kind == "publish":
            await self._write(Publish(TOPIC, self._enqueue(HOT).parts, self._request(0.5)))
        elif kind == "transact":
            await self._transact(queue)
        elif kind == "work":
            await self._work(DEAD if dice.random() < 0.08 else queue)
        elif kind == "ask":
            await self._ask(self._question(dice.choice((queue, queue, queue, DEAD))))
        elif kind == "change":
            await self._change(queue)
        else:
            await self._operate()

    # What is asked for

    def _request(self, often: float) -> Request | None:
        if self._dice.random() >= often:
            return None
        return Request(f"{self.name}-{next(self._serial)}", self._dice.choice((2_000, 20_000, 60_000)))

    def _enqueue(self, queue: str) -> Enqueue:
        """Of one or two parts. Each body begins with a name that no other has."""
        dice = self._dice
        counts = [dice.choice((1, 1, 1, 2, 5)) for _ in range(dice.choice((1, 1, 1, 2)))]
        positions = dice.sample(range(sum(counts)), sum(counts))
        parts: list[Part] = []
        for number in counts:
            body = b"%s-%d:" % (self.name.encode(), next(self._serial))
            size = dice.choice(_BODY_BYTES)
            attributes = dice.choice((b"", b"", b'{"color":"red"}', b'{"color":"blue"}'))
            group = dice.choice(_GROUPS).encode() if queue in (GROUPED, PARTED) and dice.random() < 0.9 else b""
            bodies = [b'"%s%d%s"' % (body, at, b"." * size) for at in range(number)]
            messages = [packing.pack_message(each, attributes=attributes, group=group) for each in bodies]
            named = queue in (IDS, PARTED) and dice.random() < 0.8
            keyed = queue == SCRATCH and dice.random() < 0.4
            parts.append(
                Part(
                    priority=dice.choice((0, 0, 0, 4, 9)),
                    delay_ms=dice.choice((None, 0, 0, 0, 300, 2_000)),
                    blob=packing.pack(messages),
                    positions=sorted(positions[:number]) if len(counts) > 1 else None,
                    dedup_ids=[f"id{dice.randrange(40)}" for _ in range(number)] if named else None,
                    replace_keys=[f"key{dice.randrange(6)}" for _ in range(number)] if keyed else None,
                )
            )
            positions = positions[number:]
        return Enqueue(queue, parts, self._request(0.5))

    def _lease(self, queue: str) -> Lease:
        """`max_bytes` is larger than any lease gets, and makes the command one of its kind."""
        dice = self._dice
        return Lease(
            queue,
            max=dice.choice((1, 2, 5, 10, 20)),
            lease_ms=dice.choice((None, None, 300, 3_000)),
            request=self._request(0.4),
            max_bytes=(8 << 20) + int(self.name[1:]) * 1_000_000 + next(self._serial),
            settle=dice.random() < 0.06,
            groups=dice.sample(_GROUPS, 2) if queue in (GROUPED, PARTED) and dice.random() < 0.3 else None,
        )

    def _redrive(self) -> Redrive:
        dice = self._dice
        return Redrive(
            DEAD,
            target=dice.choice((None, None, None, HOT)),
            filter=dice.choice((b"{}", b"{}", _RED)),
            per_second=dice.choice((None, 1, 2, 20)),
            redrives_max=dice.choice((None, 1, 3)),
            limit=dice.choice((None, None, 4)),
            request=self._request(0.5),
        )

    def _question(self, queue: str) -> Question:
        dice = self._dice
        queue = dice.choice(PARTITIONS) if queue == PARTED else queue
        peek = Peek(queue, dice.choice(("ready", "delayed", "leased")), dice.choice((1, 5, 30)))
        find = Find(queue, dice.choice((0, 0, 4, 9)), dice.randrange(1, 300))
        rare: tuple[Question, ...] = (
            Names(queue.partition("/")[0]),
            LastRedrive(DEAD),
            Subscriptions(TOPIC),
            Ticks(SCHEDULE),
            Tokens(),
        )
        return dice.choice((Info(queue), peek, peek, find, dice.choice(rare)))

    # Sessions

    async def _work(self, queue: str) -> None:
        """As a worker does: lease, take a while, settle each message; or forget all about it."""
        op = await self._write(self._lease(queue))
        if op is None or not isinstance(op.reply, Leased) or not op.reply.ranges:
            return
        dice, lease = self._dice, op.reply
        await asyncio.sleep(dice.choice((0.01, 0.05, 0.2, 0.6)) * dice.random())
        if dice.random() < 0.15:
            await self._write(Extend(queue, lease.queue_number, [_all_slots(lease)], dice.choice((None, 500))))
            await asyncio.sleep(0.3 * dice.random())
        slots = _all_slots(lease).slots
        dice.shuffle(slots)
        while slots and dice.random() < 0.92:
            number = dice.choice((2, 10, 20))
            await self._settle(queue, lease, sorted(slots[:number]))
            slots = slots[number:]

    async def _settle(self, queue: str, lease: Leased, slots: list[int]) -> None:
        dice = self._dice
        named = [Slots(lease.lease_id, slots)]
        what = dice.random()
        command: Command = Ack(queue, lease.queue_number, named, self._request(0.1))
        if what < 0.12:
            delay_ms = dice.choice((None, 0, 200, 1_500))
            command = Nack(queue, lease.queue_number, named, delay_ms, self._request(0.3))
        elif what < 0.2:
            command = Release(queue, lease.queue_number, named, self._request(0.3))
        elif what < 0.26:
            command = Reject(queue, lease.queue_number, named, dice.choice(("", "no")), self._request(0.3))
        await self._write(command)
        if dice.random() < 0.08:  # a late or a doubtful one does it again
            await asyncio.sleep(dice.random())
            await self._write(Ack(queue, lease.queue_number, named))

    async def _transact(self, queue: str) -> None:
        """Settle what was leased, and enqueue what comes of it; too late, at times."""
        dice = self._dice
        namespace = queue.partition("/")[0]
        op = await self._write(self._lease(queue))
        operations: list[Operation] = []
        if op is not None and isinstance(op.reply, Leased) and op.reply.ranges:
            number, slots = op.reply.queue_number, _all_slots(op.reply)
            some = Slots(slots.lease_id, dice.sample(slots.slots, dice.randint(1, len(slots.slots))))
            operations.append(dice.choice((Ack, Ack, Ack, Nack, Release, Reject))(queue, number, [some]))
            await asyncio.sleep(dice.choice((0.01, 0.1, 1.0)) * dice.random())
        targets = [key for key in _SETTINGS if key.startswith(namespace)]
        some_targets = dice.sample(targets, min(dice.choice((0, 1, 1, 2)), len(targets)))
        operations += [msgspec.structs.replace(self._enqueue(target), request=None) for target in some_targets]
        if operations:
            await self._write(Transact(namespace, operations, self._request(0.6)))

    async def _operate(self) -> None:
        """What an operator does, or a program for once."""
        dice = self._dice
        kinds = ("purge", "delete", "delete", "redrive", "redrive", "cancel", "subscribe", "schedule", "token")
        what = dice.choice(kinds)
        if what == "purge":
            await self._write(PurgeQueue(SCRATCH, self._request(0.5)))
        elif what == "delete":
            await self._delete_messages(dice.choice((SCRATCH, IDS, JOBS)))
        elif what == "redrive":
            await self._write(self._redrive())
            if dice.random() < 0.5:  # the first one may still run
                await asyncio.sleep(0.3 * dice.random())
                await self._write(self._redrive())
        elif what == "cancel":
            await self._write(CancelRedrive(DEAD))
        elif what == "schedule":
            await self._write(DeleteSchedule(SCHEDULE))
            await self._define_schedule()
        elif what == "token":
            await self._change_token()
        else:
            queue = dice.choice(list(_SUBSCRIBED))
            await self._write(Unsubscribe(TOPIC, queue))
            await asyncio.sleep(0.5 * dice.random())
            await self._write(Subscribe(TOPIC, queue, _SUBSCRIBED[queue]))

    async def _change_token(self) -> None:
        """Of a few, so that one is created again, or another of its id, after it was revoked."""
        dice = self._dice
        token = f"{dice.randrange(3):012x}"
        if dice.random() < 0.3:
            await self._write(RevokeToken(token))
            return
        digest, expires_ms = bytes([dice.randrange(2)]) * 32, dice.choice((None, None, 1, 1 << 50))
        grants = [Grant("consume", "jobs*"), Grant("produce", "*")]
        await self._write(CreateToken(token, digest, "worker", "default", grants, expires_ms, dice.random() < 0.3))

    async def _delete_messages(self, queue: str) -> None:
        """Some that were seen a moment ago."""
        info = await self._ask(Info(queue))
        page = await self._ask(Peek(queue, self._dice.choice(("ready", "ready", "delayed", "leased")), 5))
        if info is None or page is None or info.value[2] is None:
            return
        for message in (page.value or ())[:2]:
            await self._write(DeleteMessage(queue, info.value[2].number, message[0], message[1]))

    async def _define(self, queue: str, settings: QueueSettings) -> None:
        await self._write(DefineQueue(queue, settings, partitions=len(PARTITIONS) if queue == PARTED else None))

    async def _define_schedule(self) -> None:
        """As if it had been due since 1970: what was missed of the last minute comes at once."""
        dice = self._dice
        part = Part(dice.choice((0, 4)), None, packing.pack([packing.pack_message(b'"%s beats"' % self.name.encode())]))
        given = Schedule(None, "UTC", 4_000, JOBS, None, part, dice.choice(("skip", "one")), dice.random() < 0.1)
        await self._write(DefineSchedule(SCHEDULE, given, 1))

    async def _define_topic(self) -> None:
        await self._write(DefineTopic(TOPIC))
        for queue, accepts in _SUBSCRIBED.items():
            await self._write(Subscribe(TOPIC, queue, accepts))

    async def _change(self, queue: str) -> None:
        dice, settings = self._dice, _SETTINGS[queue]
        if queue == TEMPORARY:
            await self._write(DeleteQueue(queue))
            if dice.random() < 0.5:
                await self._define(queue, settings)
            return
        for paused in (True, False):
            changed = msgspec.structs.replace(settings, paused=paused)
            await self._write(DefineQueue(queue, changed, create=False, only=dice.choice((None, ["paused"]))))
            await asyncio.sleep(0.5 * dice.random())

    # Attempts

    async def _write(self, command: Command) -> Op | None:
        """Until it is answered or patience ends. What may have happened is only repeated where that does no harm."""
        dice, data = self._dice, commands.encode(command)
        self._all.operations[type(command).__name__] += 1
        once = isinstance(command, Enqueue | Lease | Publish | Transact | Redrive)
        again = getattr(command, "request", None) is not None or not once
        until = self._cluster.now() + dice.choice((0.5, 2.0, 8.0))
        within = dice.choice((0.1, 0.4, 1.5))
        while True:
            op = await self._attempt_write(data, within, unknown_ends=not again)
            if op is not None or self._all.stopped or self._cluster.now() > until:
                return op if op is not None and op.outcome == "ok" else None
            await asyncio.sleep(dice.choice((0.01, 0.05, 0.2)) * dice.random())

    async def _attempt_write(self, data: bytes, within: float, *, unknown_ends: bool = False) -> Op | None:
        """None: try again."""
        op = self._op("write", data)
        committed = await self._attempt(op, partial(self._cluster.submit, op.node, data), within)
        if isinstance(committed, Committed):
            op.index, op.position, op.reply = committed.index, committed.position, committed.reply
            op.messages = committed.messages
        self._returned(op)
        return op if op.outcome == "ok" or (unknown_ends and op.outcome == "unknown") else None

    async def _ask(self, question: Question) -> Seen | None:
        self._all.operations["read"] += 1
        for _ in range(3):
            op = self._op("read", questions.encode(question))
            op.view = await self._attempt(op, partial(self._cluster.read, op.node, question.of_view), 1.0)
            self._returned(op)
            if op.outcome == "ok" or self._all.stopped:
                return op.view
            await asyncio.sleep(0.05 * self._dice.random())
        return None

    def _op(self, kind: Any, data: bytes) -> Op:
        """At the node that answered last; sometimes at any, as those do that missed a change of leaders."""
        node = self._node
        if not node or self._dice.random() < 0.1:
            node = self._dice.choice(self._cluster.nodes())
        op = Op(next(self._all.ids), self.name, kind, data, node, self._cluster.now())
        self._all.listener.invoked(op)
        return op

    async def _attempt(self, op: Op, call: Callable[[], asyncio.Future[Any]], within: float) -> Any:
        """Its result, or None; and the operation has its outcome."""
        result = None
        try:
            result = await asyncio.wait_for(call(), within)
        except (TimeoutError, OutcomeUnknown):
            op.outcome = "unknown"
            self._elsewhere(op, op.node if self._dice.random() < 0.4 else None)
        except ShardError as error:
            op.outcome = "no"
            self._elsewhere(op, getattr(error, "leader", None))
        else:
            op.outcome = "ok"
            self._node = op.node
        return result

    def _elsewhere(self, op: Op, leader: str | None) -> None:
        """Where to try next, unless another session knows better by now."""
        if self._node in ("", op.node):
            others = [node for node in self._cluster.nodes() if node != op.node]
            self._node = leader or self._dice.choice(others or [op.node])

    def _returned(self, op: Op) -> None:
        op.returned_at = self._cluster.now()
        assert op.outcome is not None
        self._all.outcomes[op.outcome] += 1
        self._all.listener.returned(op)


def _all_slots(lease: Leased) -> Slots:
    return Slots(lease.lease_id, list(range(sum(taken.count for taken in lease.ranges))))
