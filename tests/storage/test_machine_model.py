"""The state machine against a small obvious model, on real tables, with crashes.

Goal: whatever is done, every reply, effect and view is the model's; and replicas that group entries into commits
differently, and crash at any step, give the same replies and the same digest.

Method: hypothesis draws commands. The first replica applies each at once, next to the model; the others get the entries
as bytes, later. A crash drops a replica's memory: what was last committed is opened again, and the entries after it are
applied again, with the same replies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raftq.storage.digest import digest
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.machine import audit, commands, entries, keys, model, packing
from raftq.storage.machine.apply import Machine
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
    DeleteTopic,
    Enqueue,
    Expire,
    Extend,
    Grant,
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
    Request,
    RevokeToken,
    Schedule,
    SetVersion,
    Slots,
    Subscribe,
    TakeDigest,
    Tick,
    Transact,
    Unsubscribe,
)
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import SubscriptionRecord, TokenRecord, TopicRecord
from raftq.storage.machine.replies import Effect, Expired, Leased, Reply
from raftq.storage.machine.views import Delivery, QueueInfo
from raftq.storage.overlay import Overlay
from raftq.storage.writer import Writer

EXAMPLES = int(os.environ.get("RAFTQ_MODEL_EXAMPLES", "150"))

Outcome = tuple[Reply, list[Effect]]


class Replica:
    """One machine over its own environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Index of the last entry applied.
        self.applied = 0
        self._committing = False
        self._open()

    def _open(self) -> None:
        self._environment = Environment(self.folder, map_bytes=1 << 28)
        self._writer = Writer(self._environment)
        self.overlay = Overlay(self._environment)
        self.machine = Machine(self.overlay)

    def close(self) -> None:
        self._writer.close()
        self.overlay.close()
        self._environment.close()

    def crash(self) -> None:
        """Lose the memory, and what is in the tables but not committed."""
        self.close()
        self._committing = False
        self._open()
        stored = self._environment.meta("applied")
        self.applied = 0 if stored is None else int.from_bytes(stored, "big")

    def apply(self, index: int, entry: bytes) -> list[Outcome]:
        """As a follower does: all of an entry."""
        clocks, encoded = entries.decode(entry)
        outcomes = []
        for position, data in enumerate(encoded):
            meta = Meta(index, position, 1, clocks.lease_ms, clocks.wall_ms)
            outcomes.append(self.machine.apply(meta, commands.decode(data)))
        self.machine.end_entry(Meta(index, 0, 1, clocks.lease_ms, clocks.wall_ms))
        self.applied = index
        return outcomes

    def commit(self) -> None:
        """Write what was applied. The overlay learns of it later, as when a commit runs beside the loop."""
        self.land()
        batch = WriteBatch(meta={"applied": u64(self.applied)}, tables=self.overlay.take())
        self._writer.write(batch)
        self._committing = True

    def land(self) -> None:
        if self._committing:
            self._committing = False
            self.overlay.landed()

    def digest(self) -> tuple[int, str]:
        self.commit()
        self.land()
        return digest(self._environment)


QUEUES = st.sampled_from(["default/a"] * 8 + ["default/b", "other/a"] + ["default/p"] * 3)
BODY_BYTES = st.sampled_from([0, 1, 1, 7, 20, 300, 3_000, 5_000, 30_000])
DURATIONS = st.sampled_from([1, 500, 1_000, 3_000])
IDS = st.sampled_from(["x", "y", "zé", "w"])
SETTINGS = st.builds(
    QueueSettings,
    lease_ms=DURATIONS,
    delay_ms=st.sampled_from([0, 0, 0, 700]),
    dedup_window_ms=st.sampled_from([0, 900, 300_000]),
    paused=st.sampled_from([False, False, False, True]),
    retention_ms=st.sampled_from([None, None, 1, 900, 5_000]),
    dead_letter_queue=st.sampled_from([None, "default/b", "default/b", "default/dead", "default/a"]),
    max_failures=st.sampled_from([None, None, 1, 2]),
    backoff=st.sampled_from([None, None, Backoff(400, 2_000, 1_000), Backoff(1, 1_500, 9_000)]),
    max_messages=st.sampled_from([None, None, None, 30]),
    max_bytes=st.sampled_from([None, None, None, 20_000]),
    max_leased_per_group=st.sampled_from([None, None, 1, 2, 5, 0]),
)
REQUESTS = st.one_of(st.none(), st.none(), st.builds(Request, IDS, st.sampled_from([1, 1_000, 60_000])))

#: Of the messages of a part, one after the other.
ATTRIBUTES = st.sampled_from([[b""], [b'{"n":1}'], [b"", b'{"n":1}', b'{"n":2.5,"c":"red"}']]).map(cycle)
#: Group keys, as of attributes.
GROUPS = st.sampled_from([[b""], [b"a"], [b"a", b"", b"b"], [b"b", b"b", b"a"]]).map(cycle)
FILTERS = st.sampled_from([b"{}", b"{}", b'{"n":[{"numeric":[">",1]}]}', b'{"c":[{"exists":false}]}', b'{"c":["red"]}'])
TOPICS = st.sampled_from(["default/t"] * 6 + ["default/u", "other/t"])


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    """One to three parts; in half of the cases of one part nothing but a blob."""
    counts = draw(st.lists(st.sampled_from([1, 1, 2, 3, 9]), min_size=1, max_size=3))
    positions = draw(st.permutations(range(sum(counts))))
    found = []
    for count in counts:
        size = draw(BODY_BYTES)
        attributes = draw(ATTRIBUTES)
        groups = draw(GROUPS)
        bodies = [bytes([at]) * size for at in range(count)]
        blob = packing.pack(
            [packing.pack_message(body, attributes=next(attributes), group=next(groups)) for body in bodies]
        )
        ids = draw(st.one_of(st.none(), st.lists(st.one_of(st.none(), IDS), min_size=count, max_size=count)))
        keyed = st.lists(st.one_of(st.none(), IDS), min_size=count, max_size=count)
        replace_keys = draw(st.one_of(st.none(), st.none(), keyed))
        mine, positions = positions[:count], positions[count:]
        delay_ms = draw(st.sampled_from([0, 0, 0, None, 600, 2_000]))
        priority = draw(st.sampled_from([0, 0, 0, 4, 9]))
        found.append(Part(priority, delay_ms, blob, sorted(mine) if len(counts) > 1 else None, ids, replace_keys))
    return found


def small(body: bytes, count: int = 1, group: bytes = b"") -> list[Part]:
    return [Part(0, 0, packing.pack([packing.pack_message(body, group=group)] * count))]


class MachineModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.model = model.Model()
        self.leader = Replica(self.folder / "leader")
        self.followers = [Replica(self.folder / "one"), Replica(self.folder / "two")]
        self.clocks = Clocks(1_000, 1_700_000_000_000)
        #: The log: entry, outcomes of its commands.
        self.log: list[tuple[bytes, list[Outcome]]] = []
        self.open: list[bytes] = []
        self.outcomes: list[Outcome] = []
        #: (queue, queue number, lease id, slots) of every lease given.
        self.leases: list[tuple[str, int, int, int]] = []

    def teardown(self) -> None:
        self.end_entry()
        self.all_equal()
        for replica in (self.leader, *self.followers):
            replica.close()
        shutil.rmtree(self.folder)

    def meta(self) -> Meta:
        return Meta(len(self.log) + 1, len(self.open), 1, *self.clocks)

    def do(self, command: Command) -> Reply:
        """Apply to the leader and the model, and compare."""
        meta = self.meta()
        reply, effects = self.leader.machine.apply(meta, commands.decode(commands.encode(command)))
        expected, expected_effects = self.model.apply(meta, command)
        if isinstance(expected, Expired) and (self.sparse_ms or meta.lease_ms + 1) <= meta.lease_ms:
            expected.more = True
        if isinstance(expected, Expired) and self.remains_before:
            assert isinstance(reply, Expired)
            assert (reply.leases, reply.delays, reply.dead) == (expected.leases, expected.delays, expected.dead)
        else:
            assert reply == expected
        assert sorted(effects, key=lambda effect: effect.queue) == expected_effects
        if isinstance(reply, Leased):
            self.same_deliveries(reply)
        self.open.append(commands.encode(command))
        self.outcomes.append((reply, effects))
        return reply

    def same_deliveries(self, leased: Leased) -> None:
        expected = [
            m and Delivery(m.priority, m.number, m.deliveries, m.failures, m.enqueued_at_ms, m.data)
            for m in self.model.deliveries(leased)
        ]
        assert self.leader.machine.deliveries(leased) == expected

    @property
    def remains_before(self) -> bool:
        """What deleted queues left is still being removed: how many steps that takes is not the model's concern."""
        return self.leader.machine.next_due()[1] == 0 or self._remains

    _remains = False

    @property
    def sparse_ms(self) -> int | None:
        """When batches are to be rewritten next: how messages lie in batches is not the model's concern."""
        for key, _ in self.leader.overlay.scan(keys.SPARSE, keys.SPARSE + b"\xff"):
            return keys.moment_of(key)[0]
        return None

    @rule(queue=QUEUES, parts=parts(), request=REQUESTS, auto_create=st.sampled_from([True, True, False]))
    def enqueue(self, queue: str, parts: list[Part], request: Request | None, auto_create: bool) -> None:
        self.do(Enqueue(queue, parts, request, auto_create))

    @rule(queue=QUEUES, count=st.integers(1, 20), size=st.sampled_from([0, 10, 80, 80, 4_000]))
    def enqueue_singles(self, queue: str, count: int, size: int) -> None:
        """As many clients do at once: they are joined, up to a blob's size (16 of 4,000 bytes)."""
        for _ in range(count):
            self.do(Enqueue(queue, small(b"s" * size)))

    @initialize(
        counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        lease_ms=DURATIONS,
        version=st.sampled_from([1, 2, 3, 3]),
        settings=st.one_of(st.just(QueueSettings()), SETTINGS),
    )
    def some_are_leased(self, counts: list[int], lease_ms: int, version: int, settings: QueueSettings) -> None:
        """Most is to be seen where something is leased."""
        self.do(SetVersion(version))
        self.do(DefineQueue("default/a", settings))
        for count in counts:
            self.do(Enqueue("default/a", small(b"first", count)))
        self.end_entry()
        self.lease("default/a", 3, lease_ms, None, 8 << 20, False)
        self.lease("default/a", 5, lease_ms, None, 8 << 20, False)

    @rule(
        queue=QUEUES,
        count=st.sampled_from([0, 1, 2, 2, 5, 5, 20, 1_000]),
        lease_ms=st.one_of(st.none(), DURATIONS),
        request=REQUESTS,
        bytes_max=st.sampled_from([1, 300, 9_000, 8 << 20, 8 << 20]),
        settle=st.sampled_from([False, False, False, False, True]),
        groups=st.sampled_from([None, None, None, [], ["a"], ["b", "c", "a", "b"]]),
    )
    def lease(
        self,
        queue: str,
        count: int,
        lease_ms: int | None,
        request: Request | None,
        bytes_max: int,
        settle: bool,
        groups: list[str] | None = None,
    ) -> None:
        reply = self.do(Lease(queue, count, lease_ms, request, bytes_max, settle, groups))
        if isinstance(reply, Leased) and reply.ranges:
            slots = sum(taken.count for taken in reply.ranges)
            self.leases.append((queue, reply.queue_number, reply.lease_id, slots))

    def receipts(self, data: st.DataObject) -> tuple[str, int, list[Slots]]:
        """Of one or two leases, mostly of the last ones: all slots, some, or some that there are not."""
        queue, number, _, _ = data.draw(st.sampled_from(self.leases[-6:]))
        alike = [lease for lease in self.leases[-12:] if lease[:2] == (queue, number)]
        named = []
        for _, _, lease_id, count in data.draw(st.lists(st.sampled_from(alike), min_size=1, max_size=2)):
            some = st.lists(st.integers(-1, count), max_size=5)
            all_but_one = st.integers(0, count - 1).map(lambda kept, n=count: [at for at in range(n) if at != kept])
            whole = st.just(list(range(count)))
            slots = data.draw(st.one_of(whole, all_but_one, some, st.permutations(range(min(count, 9)))))
            named.append(Slots(data.draw(st.sampled_from([lease_id] * 9 + [lease_id + 1, -1])), list(slots)))
        return queue, data.draw(st.sampled_from([number] * 9 + [number + 1])), named

    @rule(count=st.integers(1, 6))
    def lease_plainly(self, count: int) -> None:
        self.lease("default/a", count, None, None, 8 << 20, False)

    @rule(
        limit=st.sampled_from([1, 1, 2, None]),
        before=st.sampled_from(["purge", "purge", "nothing"]),
        groups=st.lists(st.sampled_from([b"a", b"b", b""]), min_size=1, max_size=6),
        count=st.integers(1, 4),
        delay_ms=st.sampled_from([None, 0, 500, 2_000]),
    )
    def groups_are_leased(
        self, limit: int | None, before: str, groups: list[bytes], count: int, delay_ms: int | None
    ) -> None:
        """A limit is set or taken away while there is nothing, or changed while there is; one of a key comes back."""
        if before == "purge":
            self.do(PurgeQueue("default/a"))
        given = QueueSettings(max_leased_per_group=limit, paused=False)
        self.do(DefineQueue("default/a", given, True, ["max_leased_per_group", "paused"]))
        for group in groups:
            self.do(Enqueue("default/a", small(b"of %b" % group, 1 + count // 2, group)))
        self.lease("default/a", count, None, None, 8 << 20, False)
        if delay_ms is not None and self.leases:
            queue, number, lease_id, _ = self.leases[-1]
            self.do(Nack(queue, number, [Slots(lease_id, [0])], delay_ms))
            self.lease("default/a", count, None, None, 8 << 20, False)

    @rule(count=st.integers(1, 40), kept=st.sets(st.integers(0, 40), min_size=1, max_size=3), whole=st.booleans())
    def all_but_some_are_acked(self, count: int, kept: set[int], whole: bool) -> None:
        """Stragglers make a batch sparse."""
        if whole:
            self.do(Enqueue("default/a", small(b"straggler", count)))
        else:
            self.enqueue_singles("default/a", count, 10)
        self.lease("default/a", 1_000, None, None, 8 << 20, False)
        if not self.leases:
            return
        queue, number, lease_id, slots = self.leases[-1]
        self.do(Ack(queue, number, [Slots(lease_id, [slot for slot in range(slots) if slots - slot not in kept])]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), request=REQUESTS)
    def ack(self, data: st.DataObject, request: Request | None) -> None:
        self.do(Ack(*self.receipts(data), request))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), request=REQUESTS)
    def release(self, data: st.DataObject, request: Request | None) -> None:
        self.do(Release(*self.receipts(data), request))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reason=st.sampled_from(["", "bad pärse"]), request=REQUESTS)
    def reject(self, data: st.DataObject, reason: str, request: Request | None) -> None:
        self.do(Reject(*self.receipts(data), reason, request))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), delay_ms=st.sampled_from([None, 0, 0, 500, 2_000]), request=REQUESTS)
    def nack(self, data: st.DataObject, delay_ms: int | None, request: Request | None) -> None:
        self.do(Nack(*self.receipts(data), delay_ms, request))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lease_ms=st.one_of(st.none(), DURATIONS), request=REQUESTS)
    def extend(self, data: st.DataObject, lease_ms: int | None, request: Request | None) -> None:
        self.do(Extend(*self.receipts(data), lease_ms, request))

    @initialize(topics=st.lists(TOPICS, max_size=2), accepts=FILTERS)
    def some_are_subscribed(self, topics: list[str], accepts: bytes) -> None:
        for topic in topics:
            self.do(DefineTopic(topic))
            self.do(Subscribe(topic, f"{topic.partition('/')[0]}/a"))
            self.do(Subscribe(topic, f"{topic.partition('/')[0]}/b", accepts))

    @rule(topic=TOPICS, partitions=st.sampled_from([None, None, 2, 0]))
    def define_topic(self, topic: str, partitions: int | None) -> None:
        self.do(DefineTopic(topic, partitions))

    @rule(topic=TOPICS)
    def delete_topic(self, topic: str) -> None:
        self.do(DeleteTopic(topic))

    @rule(topic=TOPICS, queue=QUEUES, accepts=FILTERS, what=st.sampled_from([Subscribe, Subscribe, Unsubscribe]))
    def subscribe_or_not(self, topic: str, queue: str, accepts: bytes, what: Any) -> None:
        self.do(Subscribe(topic, queue, accepts) if what is Subscribe else Unsubscribe(topic, queue))

    @rule(topic=TOPICS, parts=parts(), request=REQUESTS)
    def publish(self, topic: str, parts: list[Part], request: Request | None) -> None:
        self.do(Publish(topic, parts, request))

    @rule(
        name=st.sampled_from(["default/s", "default/s", "default/r"]),
        what=st.sampled_from(["define", "define", "delete"]),
        interval_ms=st.sampled_from([100, 100, 900]),
        topic=st.sampled_from([None, None, "default/t", "default/u"]),
        parts=parts(),
        paused=st.sampled_from([False, False, True]),
        first_ms=st.sampled_from([None, 0, 500]),
        queue=st.sampled_from(["default/b", "default/p", "default/p.1"]),
    )
    def define_or_delete_schedule(
        self,
        name: str,
        what: str,
        interval_ms: int,
        topic: str | None,
        parts: list[Part],
        paused: bool,
        first_ms: int | None,
        queue: str,
    ) -> None:
        if what == "delete":
            self.do(DeleteSchedule(name))
            return
        one = packing.pack(packing.unpack(parts[0].blob)[:1])
        replace_keys = parts[0].replace_keys and parts[0].replace_keys[:1]
        part = Part(parts[0].priority, parts[0].delay_ms, one, None, None, replace_keys)
        given = Schedule(None, "UTC", interval_ms, queue if topic is None else None, topic, part, "one", paused)
        self.do(DefineSchedule(name, given, None if first_ms is None else self.clocks.wall_ms + first_ms))

    @precondition(lambda self: self.model.schedules)
    @rule(
        data=st.data(),
        late=st.sampled_from([0] * 5 + [1]),
        next_ms=st.sampled_from([None, 1, 100, 100, 100]),
        skipped=st.sampled_from([0, 0, 3]),
        done=st.sampled_from([True, True, False]),
        count=st.sampled_from([1, 1, 2]),
    )
    def tick(self, data: st.DataObject, late: int, next_ms: int | None, skipped: int, done: bool, count: int) -> None:
        """As a leader proposes it, or two of them do."""
        name = data.draw(st.sampled_from(sorted(self.model.schedules)))
        due_ms = (self.model.schedules[name][1].next_ms or 1) + late
        next_ms = None if next_ms is None else due_ms + next_ms
        for _ in range(count):
            self.do(Tick(name, due_ms, next_ms, due_ms if done else None, skipped))

    @rule(data=st.data(), count=st.integers(1, 4), request=REQUESTS)
    def transact(self, data: st.DataObject, count: int, request: Request | None) -> None:
        operations = [self.operation(data) for _ in range(count)]
        self.do(Transact(data.draw(st.sampled_from(["default"] * 9 + ["other"])), operations, request))

    def operation(self, data: st.DataObject) -> Operation:
        """Mostly one that can be done."""
        kind = data.draw(st.sampled_from([Ack, Nack, Release, Reject, Enqueue]))
        held = [
            (queue, lease_id, slots)
            for queue in self.model.queues.values()
            for lease_id, lease in queue.leases.items()
            if (slots := [at for at, slot in enumerate(lease) if slot.state == "held"])
        ]
        if kind is Enqueue or not held:
            return Enqueue(data.draw(QUEUES), data.draw(parts()), auto_create=data.draw(st.sampled_from([True, False])))
        if data.draw(st.sampled_from([False] * 7 + [True])):
            return kind(*self.receipts(data))
        queue, lease_id, slots = data.draw(st.sampled_from(held))
        some = data.draw(st.lists(st.sampled_from(slots), min_size=1, max_size=len(slots), unique=True))
        return kind(queue.key, queue.number, [Slots(lease_id, some)])

    @rule(lease_ms=DURATIONS, wall_ms=st.sampled_from([600, 900, 6_000]), limit=st.sampled_from([3, 1_000]))
    def time_passes(self, lease_ms: int, wall_ms: int, limit: int) -> None:
        self.end_entry(lease_ms, wall_ms)
        self.expire(limit)

    @rule(limit=st.sampled_from([1, 2, 7, 1_000, 1_000]))
    def expire(self, limit: int) -> None:
        self._remains = self.remains_before
        meta = self.meta()
        if self._remains and self.model.due(meta):
            limit = 1_000_000  # how much of a smaller limit the remains take is not the model's concern
        self.do(Expire(limit))
        self._remains = False

    @rule(
        queue=QUEUES,
        settings=SETTINGS,
        what=st.sampled_from(["create", "create", "change", "delete"]),
        only=st.one_of(st.none(), st.lists(st.sampled_from(QueueSettings.__struct_fields__), max_size=3)),
    )
    def define_or_delete(self, queue: str, settings: QueueSettings, what: str, only: list[str] | None) -> None:
        if what == "delete":
            self.do(DeleteQueue(queue))
        else:
            self.do(DefineQueue(queue, settings, what == "create", only))

    @rule(
        queue=st.sampled_from(["default/p"] * 4 + ["default/p.1", "default/a"]),
        settings=SETTINGS,
        count=st.sampled_from([None, 3, 3, 3, 1, 0, 65]),
        only=st.one_of(st.none(), st.lists(st.sampled_from(QueueSettings.__struct_fields__), max_size=3)),
    )
    def define_partitions(self, queue: str, settings: QueueSettings, count: int | None, only: list[str] | None) -> None:
        self.do(DefineQueue(queue, settings, True, only, count))

    @initialize(count=st.sampled_from([None, 2, 3]), settings=st.one_of(st.just(QueueSettings()), SETTINGS))
    def some_are_partitioned(self, count: int | None, settings: QueueSettings) -> None:
        if count is not None:
            self.do(DefineQueue("default/p", settings, partitions=count))

    @rule(parts=parts(), count=st.integers(1, 5), what=st.sampled_from([Ack, Nack, Release, Reject]))
    def partitions_are_worked(self, parts: list[Part], count: int, what: Any) -> None:
        self.do(Enqueue("default/p", parts))
        for _ in range(3):
            self.lease("default/p", count, None, None, 8 << 20, False)
            if self.leases and self.leases[-1][0] == "default/p":
                queue, number, lease_id, slots = self.leases[-1]
                self.do(what(queue, number, [Slots(lease_id, list(range(0, slots, 2)))]))

    @rule(queue=QUEUES, request=REQUESTS)
    def purge(self, queue: str, request: Request | None) -> None:
        self.do(PurgeQueue(queue, request))

    @rule(
        queue=st.sampled_from(["default/b", "default/dead", "default/a", "default/p.0"]),
        to=st.sampled_from([None, None, None, "default/a", "default/b", "default/none", "default/p", "default/p.1"]),
        accepts=FILTERS,
        per_second=st.sampled_from([None, None, 1, 30]),
        redrives_max=st.sampled_from([None, None, 1]),
        limit=st.sampled_from([None, None, 2]),
        request=REQUESTS,
    )
    def redrive(
        self,
        queue: str,
        to: str | None,
        accepts: bytes,
        per_second: int | None,
        redrives_max: int | None,
        limit: int | None,
        request: Request | None,
    ) -> None:
        self.do(Redrive(queue, to, accepts, per_second, redrives_max, limit, request))

    @rule(keys_=st.lists(IDS, min_size=1, max_size=3), delay_ms=st.sampled_from([0, 0, 600]), count=st.integers(1, 20))
    def leased_ones_are_replaced(self, keys_: list[str], delay_ms: int, count: int) -> None:
        """What returns of them later is dropped."""
        for _ in range(2):
            blob = small(b"keyed", len(keys_))[0].blob
            self.do(Enqueue("default/a", [Part(9, delay_ms, blob, None, None, list(keys_))]))
            self.lease("default/a", count, None, None, 8 << 20, False)

    @rule(count=st.integers(1, 9), kept=st.integers(0, 9), accepts=FILTERS, attributes=ATTRIBUTES)
    def letters_are_redriven(self, count: int, kept: int, accepts: bytes, attributes: Any) -> None:
        given = QueueSettings(dead_letter_queue="default/dead", paused=False)
        self.do(DefineQueue("default/a", given, True, ["dead_letter_queue", "paused"]))
        blob = packing.pack([packing.pack_message(b"letter", attributes=next(attributes)) for _ in range(count)])
        self.do(Enqueue("default/a", [Part(9, 0, blob)]))
        self.lease("default/a", count, None, None, 8 << 20, False)
        queue, number, lease_id, slots = self.leases[-1]
        self.do(Reject(queue, number, [Slots(lease_id, [slot for slot in range(slots) if slot != kept])]))
        self.do(Redrive("default/dead", filter=accepts))

    @rule(queue=st.sampled_from(["default/b", "default/dead", "default/a"]))
    def cancel_redrive(self, queue: str) -> None:
        self.do(CancelRedrive(queue))

    @rule(queue=QUEUES, data=st.data(), count=st.integers(1, 4))
    def delete_messages(self, queue: str, data: st.DataObject, count: int) -> None:
        """Wherever they are, some that there are not among them."""
        name = self.model.partitioned.get(queue)
        found = self.model.queues.get(queue if name is None else name.keys[-1])
        places = [(m.priority, m.number) for m in found.messages] if found else []
        for _ in range(count):
            priority, number = data.draw(st.sampled_from(places * 4 + [(0, 1), (4, 2), (9, 1 << 63), (-1, 1), (0, 0)]))
            queue_number = found.number if found else 1
            self.do(DeleteMessage(queue, queue_number - data.draw(st.sampled_from([0] * 9 + [1])), priority, number))

    @rule(
        token=st.sampled_from(["000000000001", "00000000000a", "f00000000000"]),
        what=st.sampled_from(["create", "create", "create again", "revoke"]),
        digest=st.sampled_from([b"d" * 32, b"d" * 32, b"e" * 32]),
        expires=st.sampled_from([None, None, 0, 1, 500, 2_000]),
        first=st.booleans(),
    )
    def create_or_revoke(self, token: str, what: str, digest: bytes, expires: int | None, first: bool) -> None:
        known = self.model.tokens.get(token)
        if what == "revoke":
            self.do(RevokeToken(token))
        elif what == "create again" and known is not None:
            self.do(known[0])
        else:
            expires_ms = None if expires is None else self.clocks.wall_ms + expires
            self.do(CreateToken(token, digest, "ci", "*", [Grant("produce", "a*")], expires_ms, first))

    @rule(what=st.sampled_from([SetVersion(1), SetVersion(2), SetVersion(3), Incarnate()]))
    def switch_or_incarnate(self, what: SetVersion | Incarnate) -> None:
        self.do(what)
        assert self.leader.machine.version == self.model.version

    def take_digest(self) -> None:
        """Alone in its entry."""
        self.end_entry()
        self.do(TakeDigest())
        self.end_entry()
        self.all_equal()

    @rule(lease_ms=st.sampled_from([0, 1, 499, 1_000, 4_000]), wall_ms=st.sampled_from([0, 1, 700, 3_000]))
    def end_entry(self, lease_ms: int = 0, wall_ms: int = 0) -> None:
        if self.open:
            meta = self.meta()
            self.leader.machine.end_entry(meta)
            self.leader.applied = meta.index
            self.log.append((entries.encode(self.clocks, self.open), self.outcomes))
            self.open, self.outcomes = [], []
            self.same_view()
            audit.check(self.leader.overlay)
        self.clocks = Clocks(self.clocks.lease_ms + lease_ms, self.clocks.wall_ms + wall_ms)

    @rule(
        which=st.integers(0, 2),
        what=st.sampled_from(["follow", "follow", "commit", "commit and land", "crash", "crash", "take digest"]),
    )
    def replicate(self, which: int, what: str) -> None:
        replica = (self.leader, *self.followers)[which]
        if what == "take digest":
            self.take_digest()
        elif what == "crash":
            self.crash(replica)
        elif what == "follow":
            self.replay(self.followers[which % 2], 3)
        elif replica is not self.leader or not self.open:
            replica.commit()
            if what == "commit and land":
                replica.land()

    def replay(self, replica: Replica, count: int) -> None:
        for entry, outcomes in self.log[replica.applied :][:count]:
            assert replica.apply(replica.applied + 1, entry) == outcomes

    def crash(self, replica: Replica) -> None:
        if replica is self.leader:
            self.end_entry()
        before = replica.applied
        replica.crash()
        self.replay(replica, before - replica.applied)
        if replica is self.leader:
            self.same_view()

    def all_equal(self) -> None:
        for replica in self.followers:
            self.replay(replica, len(self.log))
        digests = {replica.digest() for replica in (self.leader, *self.followers)}
        assert len(digests) == 1

    def same_view(self) -> None:
        view = self.leader.machine.view()
        if not self.log:
            return
        lease_ms, wall_ms = entries.clocks(self.log[-1][0])
        assert (view.lease_ms, view.wall_ms) == (lease_ms, wall_ms)
        for queue in self.model.queues.values():
            assert view.queue(queue.key) == queue_info(queue)
            paused = queue.settings.paused
            assert view.ready(queue.key) == (0 if paused else len(queue.leasable()))
            if queue.settings.max_leased_per_group is not None:
                alike = [] if paused else [m for m in queue.leasable() if m.group in ("a", "c")]
                assert view.ready(queue.key, ["a", "c", "a"]) == len(alike)
            assert pages(view, queue.key, "ready") == [shown(m) for m in queue.of("ready")]
            assert pages(view, queue.key, "delayed") == [shown(m, due_ms=m.due_ms) for m in queue.of("delayed")]
            assert pages(view, queue.key, "leased") == [
                shown(slot.message, deadline_ms=slot.deadline_ms + wall_ms - lease_ms)
                for lease in queue.leases.values()
                for slot in lease
                if slot.state == "held"
            ]
            for message in queue.messages[-3:]:
                found = view.message(queue.key, message.priority, message.number)
                assert found is not None
                assert found[:7] == shown(message)[:7]
        for key, name in self.model.partitioned.items():
            of_name = [self.model.queues[one] for one in name.keys]
            shown_name = view.queue(key)
            assert shown_name is not None
            assert (shown_name.number, shown_name.partitions, shown_name.created_index) == (
                name.number,
                len(of_name),
                name.created_index,
            )
            assert shown_name.ready == sum(len(queue.of("ready")) for queue in of_name)
            assert shown_name.enqueued == view.counted(key)["enqueued"] == sum(queue.enqueued for queue in of_name)
            assert view.ready(key) == sum(view.ready(one) for one in name.keys)
        for namespace, names in groupby(sorted(self.model.queues), key=lambda key: key.partition("/")[0]):
            assert [info.key for info in view.queues(namespace)[0]] == list(names)
        assert view.version == self.model.version
        assert view.tokens() == ([token_record(*self.model.tokens[token]) for token in sorted(self.model.tokens)], None)
        for token in ("000000000001", "f00000000000"):
            known = self.model.tokens.get(token)
            assert view.token(token) == (None if known is None else token_record(*known))
        for key, topic in self.model.topics.items():
            counted = topic.number, topic.created_index, topic.published, topic.partitions
            assert view.topic(key) == TopicRecord(key, *counted)
            assert view.subscriptions(key) == [
                (queue, SubscriptionRecord(accepts.text, index))
                for queue, (accepts, index) in sorted(topic.subscriptions.items())
            ]
        for key, (given, state) in self.model.schedules.items():
            schedule = view.schedule(key)
            assert schedule is not None
            assert (schedule.given, schedule.state) == (given, state)
        assert [one.key for one in view.schedules("default")[0]] == sorted(self.model.schedules)
        for namespace, names in groupby(sorted(self.model.topics), key=lambda key: key.partition("/")[0]):
            assert [topic.key for topic in view.topics(namespace)[0]] == list(names)

    @invariant()
    def what_is_due_is_known(self) -> None:
        now_ms = self.clocks.wall_ms
        ticks = [(state.next_ms, key) for key, (_, state) in self.model.schedules.items() if state.next_ms is not None]
        due = [key for ms, key in sorted(ticks) if ms <= now_ms]
        assert [one.key for one in self.leader.machine.schedules_due(now_ms, 9)] == due
        if not self.remains_before:
            lease_ms, wall_ms = self.model.next_due()
            earliest = min((ms for ms in (lease_ms, self.sparse_ms) if ms is not None), default=None)
            assert self.leader.machine.next_due() == (earliest, wall_ms)


def pages(view: Any, key: str, state: str) -> list[Any]:
    """All messages in that state, in pages."""
    found: list[Any] = []
    page, cursor = view.peek(key, state, 4)
    while cursor is not None:
        found += page
        page, cursor = view.peek(key, state, 30, cursor)
    return found + page


def shown(m: model.Message, due_ms: int | None = None, deadline_ms: int | None = None) -> Any:
    return (m.priority, m.number, m.deliveries, m.failures, m.enqueued_at_ms, m.data, m.state, due_ms, deadline_ms)


def token_record(given: CreateToken, created_ms: int, created_index: int) -> TokenRecord:
    kept = given.id, given.digest, given.name, given.namespace, given.grants
    return TokenRecord(*kept, created_ms, created_index, given.expires_ms)


def queue_info(queue: model.Queue) -> QueueInfo:
    ready = queue.of("ready")
    return QueueInfo(
        key=queue.key,
        number=queue.number,
        settings=queue.settings,
        created_index=queue.created_index,
        ready=len(ready),
        leased=len(queue.of("leased")),
        delayed=len(queue.of("delayed")),
        bytes=sum(len(message.data) for message in queue.messages),
        enqueued=queue.enqueued,
        delivered=queue.delivered,
        acked=queue.acked,
        nacked=queue.nacked,
        released=queue.released,
        expired=queue.expired,
        duplicates=queue.duplicates,
        removed=queue.removed,
        redriven=queue.redriven,
        dead_lettered=queue.dead_lettered,
        discarded=queue.discarded,
        rejected=queue.rejected,
        oldest_ready_ms=min((message.enqueued_at_ms for message in ready), default=None),
    )


@pytest.mark.timeout(600 + EXAMPLES)
def test_the_machine_is_the_model_through_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.batches.SPARSE_MS", 500)
    monkeypatch.setattr("raftq.storage.machine.deadletters.MOVED_BYTES_MAX", 1_500)
    # How messages lie in batches, and so how long the record of a lease is, is not the model's concern.
    monkeypatch.setattr("raftq.storage.machine.expiry.LEASE_BYTES", 1 << 30)
    monkeypatch.setattr("raftq.storage.machine.publishing.COPIES_MAX", 60)
    monkeypatch.setattr("raftq.storage.machine.tokens.TOKENS_MAX", 2)
    monkeypatch.setattr("raftq.storage.machine.tokens.FIRSTS_MAX", 2)
    monkeypatch.setattr("raftq.storage.machine.tokens.EXPIRED_KEPT_MS", 700)
    monkeypatch.setattr("raftq.storage.machine.redrives.LOOKED_MAX", 5)
    monkeypatch.setattr("raftq.storage.machine.redrives.LOOKED_BYTES_MAX", 6_000)
    run_state_machine_as_test(
        MachineModel,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
