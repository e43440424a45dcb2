"""The dearest entries: how long applying one keeps a node from everything else.

One node's tables on disk, in this process: an entry is applied to them, timed, and committed, as the cycle does it.
What touches many messages is done in steps, each an entry of its own, until nothing is left to do: the dearest step
counts. A command that names many messages, leases or queues is as large as the API lets it be; many commands at once
are gathered into entries as the leader does it. Reads that look at much keep a node as well, and are timed alike.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import msgspec

from raftq.bench.bars import Bar, at_most, number
from raftq.bench.measure import median
from raftq.bench.report import table
from raftq.replication.pending import Proposals
from raftq.replication.shard_config import ShardConfig
from raftq.replication.stages import Stages
from raftq.storage.environment import Environment, WriteBatch
from raftq.storage.machine import commands, packing
from raftq.storage.machine.apply import VERSION_MAX, Machine
from raftq.storage.machine.commands import (
    Ack,
    Command,
    DefineQueue,
    DefineTopic,
    DeleteQueue,
    Enqueue,
    Expire,
    Lease,
    Nack,
    Part,
    Publish,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Reject,
    Release,
    SetVersion,
    Slots,
    Subscribe,
    Transact,
)
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.publishing import COPIES_MAX
from raftq.storage.machine.replies import Expired, Refused
from raftq.storage.overlay import Overlay
from raftq.storage.writer import Writer

QUEUE, OTHER, DEAD, TOPIC = "default/jobs", "default/more", "default/dead", "default/news"
#: Of one request: messages, receipts.
MOST = 1000
STALL_MS_MAX = 50.0
SEED = 1


_CONFIG = ShardConfig(
    node_id="n1",
    cluster_id="",
    node_uuid="",
    boot=1,
    members={},
    peer_listen="",
    peer_address="",
    api_url="",
    version="",
)


@dataclass(frozen=True)
class Cost:
    """Of the entries of one kind."""

    what: str
    entries: int
    median_ms: float
    worst_ms: float


@dataclass(frozen=True)
class Outcome:
    messages: int
    costs: list[Cost]


class Bench:
    """The tables of one node."""

    def __init__(self, folder: Path, bodies: int) -> None:
        self.environment = Environment(folder)
        self.writer = Writer(self.environment)
        self.overlay = Overlay(self.environment)
        self.machine = Machine(self.overlay)
        self.index = self.ms = 0
        self.blob = packing.pack([packing.pack_message(b'"%0100d"' % at) for at in range(bodies)])
        self.do(SetVersion(VERSION_MAX))

    def close(self) -> None:
        self.overlay.close()
        self.writer.close()
        self.environment.close()

    def entry(self, given: Sequence[Command]) -> tuple[list[Any], float]:
        """The replies, and the milliseconds that applying took."""
        self.index += 1
        encoded = [commands.encode(command) for command in given]
        meta = Meta(self.index, 0, 1, self.ms, 1_700_000_000_000 + self.ms)
        replies: list[Any] = []
        begun = perf_counter()
        for position, command in enumerate(encoded):
            meta.position = position
            replies.append(self.machine.apply(meta, commands.decode(command))[0])
        self.machine.end_entry(meta)
        took_ms = (perf_counter() - begun) * 1000
        self.writer.write(WriteBatch(tables=self.overlay.take()))
        self.overlay.landed()
        refused = [reply for reply in replies if isinstance(reply, Refused)]
        assert not refused, (given[0], refused[0])
        return replies, took_ms

    def do(self, command: Command) -> Any:
        return self.entry([command])[0][0]

    def entries(self, given: Sequence[Command]) -> Iterator[float]:
        """The milliseconds of each of the entries that they are gathered into."""
        proposals = Proposals(_CONFIG, perf_counter, Stages())
        for command in given:
            proposals.add(commands.encode(command), None)
        while batch := proposals.enter(self.index):
            yield self.entry([commands.decode(command) for command in batch])[1]

    def steps(self) -> list[float]:
        """Of the steps of what is due, until nothing is."""
        took: list[float] = []
        while True:
            [reply], ms = self.entry([Expire()])
            took.append(ms)
            assert isinstance(reply, Expired)
            if not reply.more:
                return took

    def fill(self, queue: str, messages: int) -> None:
        for _ in range(messages // MOST):
            self.do(Enqueue(queue, [Part(0, None, self.blob)]))

    def lease(self, count: int, most: int, queue: str = QUEUE) -> list[tuple[int, Slots]]:
        """(queue number, all slots) of so many leases."""
        found = []
        for _ in range(count):
            reply = self.do(Lease(queue, most))
            found.append((reply.queue_number, Slots(reply.lease_id, list(range(sum(t.count for t in reply.ranges))))))
        return found


#: What is timed, by name: each gives the milliseconds of its entries.
Case = Callable[[Bench, int], Iterable[float]]


def timed(read: Callable[[], Any]) -> float:
    """The milliseconds of what is read from the tables."""
    begun = perf_counter()
    assert read() is not None
    return (perf_counter() - begun) * 1000


def part(bench: Bench, **ids: list[str | None]) -> Part:
    return Part(0, None, bench.blob, None, ids.get("dedup_ids"), ids.get("replace_keys"))


def named(prefix: str) -> list[str | None]:
    return [f"{prefix}{at}" for at in range(MOST)]


def grouped(first: int = 0, keys: int = MOST, count: int = MOST) -> bytes:
    """A blob of messages of so many groups, one after the other."""
    return packing.pack(
        [packing.pack_message(b'"%0100d"' % at, group=b"g%d" % (first + at % keys)) for at in range(count)]
    )


def limit(bench: Bench, most: int) -> float:
    return bench.entry([DefineQueue(QUEUE, QueueSettings(max_leased_per_group=most, lease_ms=10_000_000))])[1]


def fill_groups(bench: Bench, messages: int, keys: int) -> None:
    """All of a group stand together."""
    for first in range(0, keys, MOST):
        some = min(MOST, keys - first)
        for _ in range(messages // keys * some // MOST):
            bench.do(Enqueue(QUEUE, [Part(0, None, grouped(first, some))]))


def purge(bench: Bench, messages: int) -> list[float]:
    bench.fill(QUEUE, messages)
    return [bench.entry([PurgeQueue(QUEUE)])[1], *bench.steps()]


def delete(bench: Bench, messages: int) -> list[float]:
    bench.fill(QUEUE, messages)
    return [bench.entry([DeleteQueue(QUEUE)])[1], *bench.steps()]


def delete_singles(bench: Bench, messages: int) -> list[float]:
    """Each message a batch of its own, as a replace key makes it."""
    for at in range(messages // MOST // 10):
        bench.do(Enqueue(QUEUE, [part(bench, replace_keys=named(f"{at}-"))]))
    return [bench.entry([DeleteQueue(QUEUE)])[1], *bench.steps()]


def purge_large(bench: Bench, messages: int) -> list[float]:
    """Of 1 MiB each."""
    for _ in range(min(messages // 1_000, 300)):
        bench.do(Enqueue(QUEUE, [Part(0, None, _LARGE)]))
    return [bench.entry([PurgeQueue(QUEUE)])[1], *bench.steps()]


def purge_leases(bench: Bench, messages: int) -> list[float]:
    """Their records name 1,000 messages one by one."""
    bench.do(DefineQueue(QUEUE, QueueSettings(lease_ms=10_000_000)))
    for _ in range(messages // MOST):
        bench.do(Enqueue(QUEUE, [part(bench, replace_keys=named(f"{bench.index}-"))]))
        bench.do(Lease(QUEUE, MOST))
    return [bench.entry([PurgeQueue(QUEUE)])[1], *bench.steps()]


def retention_large(bench: Bench, messages: int) -> list[float]:
    """To nowhere."""
    bench.do(DefineQueue(QUEUE, QueueSettings(retention_ms=60_000)))
    for _ in range(min(messages // 1_000, 300)):
        bench.do(Enqueue(QUEUE, [Part(0, None, _LARGE)]))
    bench.ms += 61_000
    return bench.steps()


def retention(bench: Bench, messages: int) -> list[float]:
    bench.do(DefineQueue(QUEUE, QueueSettings(retention_ms=60_000)))
    bench.fill(QUEUE, messages)
    bench.ms += 61_000
    return bench.steps()


def retention_dead(bench: Bench, messages: int) -> list[float]:
    bench.do(DefineQueue(QUEUE, QueueSettings(retention_ms=60_000, dead_letter_queue=DEAD)))
    bench.fill(QUEUE, messages // 10)
    bench.ms += 61_000
    return bench.steps()


def redrive(bench: Bench, messages: int) -> list[float]:
    bench.do(DefineQueue(OTHER, QueueSettings()))
    bench.fill(DEAD, messages // 10)
    bench.do(Redrive(DEAD, OTHER))
    took: list[float] = []
    while (redrive := bench.machine.view().redrive(DEAD)) is not None and redrive.state == "running":
        took += bench.steps()
        bench.ms += 100
    return took


def expiry(bench: Bench, messages: int) -> list[float]:
    bench.fill(QUEUE, messages)
    bench.lease(messages // MOST, MOST)
    bench.ms += 31_000
    return bench.steps()


def expiry_singles(bench: Bench, messages: int) -> list[float]:
    bench.fill(QUEUE, messages // 10)
    bench.lease(messages // 10, 1)
    bench.ms += 31_000
    return bench.steps()


def sparse(bench: Bench, messages: int) -> list[float]:
    """Acked in no order but for every twentieth, then rewritten."""
    bench.fill(QUEUE, messages)
    dice = random.Random(SEED)
    for queue_number, slots in bench.lease(messages // MOST, MOST):
        some = sorted(dice.sample(slots.slots, MOST * 19 // 20))
        bench.do(Ack(QUEUE, queue_number, [Slots(slots.lease_id, some)]))
    bench.ms += 12_000
    return bench.steps()


def delayed(bench: Bench, messages: int) -> list[float]:
    for _ in range(messages // MOST):
        bench.do(Enqueue(QUEUE, [Part(0, 1_000, bench.blob)]))
    bench.ms += 2_000
    return bench.steps()


def with_ids(bench: Bench, _messages: int) -> Iterator[float]:
    for at in range(20):
        yield bench.entry([Enqueue(QUEUE, [part(bench, dedup_ids=named(f"{at}-"))])])[1]


def with_replace_keys(bench: Bench, _messages: int) -> Iterator[float]:
    for _ in range(20):
        yield bench.entry([Enqueue(QUEUE, [part(bench, replace_keys=named("k"))])])[1]


def with_groups(bench: Bench, _messages: int) -> Iterator[float]:
    bench.do(DefineQueue(QUEUE, QueueSettings(max_leased_per_group=1)))
    for _ in range(20):
        yield bench.entry([Enqueue(QUEUE, [Part(0, None, grouped())])])[1]


def with_all(partitions: int | None) -> Case:
    """Dedup ids, replace keys, groups, and a batch for each message."""

    def case(bench: Bench, _messages: int) -> Iterator[float]:
        bench.do(DefineQueue(QUEUE, QueueSettings(max_leased_per_group=1), partitions=partitions))
        messages = [packing.pack([one]) for one in packing.unpack(grouped())]
        for at in range(5):
            parts = [
                Part(0, 60_000 + place, message, [place], [f"{at}-{place}"], [f"k{place}"])
                for place, message in enumerate(messages)
            ]
            yield bench.entry([Enqueue(QUEUE, parts)])[1]

    return case


def lease_groups(bench: Bench, _messages: int) -> Iterator[float]:
    bench.do(DefineQueue(QUEUE, QueueSettings(max_leased_per_group=2)))
    for _ in range(10):
        bench.do(Enqueue(QUEUE, [Part(0, None, grouped())]))
        yield bench.entry([Lease(QUEUE, MOST)])[1]


def higher_limit(keys: int) -> Case:
    def case(bench: Bench, messages: int) -> Iterator[float]:
        limit(bench, 1)
        fill_groups(bench, messages, keys)
        yield limit(bench, 1_000)
        yield from bench.steps()
        yield limit(bench, 1)
        yield from bench.steps()

    return case


def ack_stale(bench: Bench, messages: int) -> Iterator[float]:
    """Of 1,000 keys that no step has come to, and that have much waiting behind."""
    limit(bench, 1)
    fill_groups(bench, messages, 2 * MOST)
    leases = [bench.do(Lease(QUEUE, MOST)) for _ in range(2)]
    limit(bench, 1_000)
    for leased in leases:
        slots = Slots(leased.lease_id, list(range(MOST)))
        yield bench.entry([Ack(QUEUE, leased.queue_number, [slots])])[1]
    yield from bench.steps()


def lease_stale(bench: Bench, messages: int) -> Iterator[float]:
    """After a lower limit, past keys that have no room: each has one leased and one ready."""
    keys = messages // 5
    limit(bench, 1)
    fill_groups(bench, 2 * keys, keys)
    for _ in range(keys // MOST):
        bench.do(Lease(QUEUE, MOST))
    limit(bench, 2)
    bench.steps()
    yield limit(bench, 1)
    for _ in range(10):
        yield bench.entry([Lease(QUEUE, 1)])[1]
    yield from bench.steps()


def lease_returned(bench: Bench, messages: int) -> Iterator[float]:
    """Of messages that came back one by one, in no order."""
    bench.fill(QUEUE, messages // 50)
    leases = bench.lease(messages // 50, 1)
    random.Random(SEED).shuffle(leases)
    for queue_number, slots in leases:
        bench.entry([Release(QUEUE, queue_number, [slots])])
    for _ in range(messages // 50 // MOST):
        yield bench.entry([Lease(QUEUE, MOST)])[1]


def settle_singles(kind: type[Ack] | type[Nack] | type[Reject]) -> Case:
    """1,000 leases of one message each, of all over the queue, in one command."""

    def case(bench: Bench, messages: int) -> Iterator[float]:
        settings = QueueSettings(dead_letter_queue=DEAD, lease_ms=10_000_000)
        bench.do(DefineQueue(QUEUE, settings))
        bench.fill(QUEUE, messages // 50)
        leases = bench.lease(messages // 50, 1)
        random.Random(SEED).shuffle(leases)
        while leases:
            some, leases = leases[:MOST], leases[MOST:]
            yield bench.entry([kind(QUEUE, some[0][0], [slots for _, slots in some])])[1]

    return case


def publish(queues: int, **ids: bool) -> Case:
    """As many as one publish may."""

    def case(bench: Bench, _messages: int) -> Iterator[float]:
        bench.do(DefineTopic(TOPIC))
        for at in range(queues):
            bench.do(DefineQueue(f"{QUEUE}{at}", QueueSettings()))
            bench.do(Subscribe(TOPIC, f"{QUEUE}{at}"))
        count = min(COPIES_MAX // (1 + ids.get("dedup", False)) // queues, MOST)
        blob = packing.pack(packing.unpack(bench.blob)[:count])
        for at in range(10):
            dedup_ids = named(f"{at}-")[:count] if ids.get("dedup") else None
            yield bench.entry([Publish(TOPIC, [Part(0, None, blob, None, dedup_ids)])])[1]

    return case


def publish_all(queues: int, count: int, partitions: int | None = None) -> Case:
    """With dedup ids and replace keys, into queues that keep groups: as many as one publish may."""

    def case(bench: Bench, _messages: int) -> Iterator[float]:
        bench.do(DefineTopic(TOPIC))
        for at in range(queues):
            settings = QueueSettings(max_leased_per_group=1)
            bench.do(DefineQueue(f"{QUEUE}{at}", settings, partitions=partitions))
            bench.do(Subscribe(TOPIC, f"{QUEUE}{at}"))
        for at in range(10):
            ids, replace_keys = named(f"{at}-")[:count], named("k")[:count]
            yield bench.entry([Publish(TOPIC, [Part(0, None, grouped(count=count), None, ids, replace_keys)])])[1]

    return case


def publish_filtered(bench: Bench, _messages: int) -> Iterator[float]:
    """78 messages to 64 queues, by 5 conditions for each of 10 attributes."""
    conditions = [{"numeric": [">=", 90 + at]} for at in range(4)]
    accepts = {f"a{at}": [*conditions, {"numeric": ["<", 5]}] for at in range(10)}
    attributes = msgspec.json.encode({f"a{at}": 1 for at in range(10)})
    bench.do(DefineTopic(TOPIC))
    for at in range(64):
        bench.do(Subscribe(TOPIC, f"{QUEUE}{at}", msgspec.json.encode(accepts)))
    blob = packing.pack([packing.pack_message(b'"%0100d"' % at, attributes=attributes) for at in range(78)])
    for _ in range(10):
        yield bench.entry([Publish(TOPIC, [Part(0, None, blob)])])[1]


def transact(bench: Bench, messages: int) -> Iterator[float]:
    """1,000 leases of one message are acked, and 1,000 messages with dedup ids enqueued."""
    bench.do(DefineQueue(QUEUE, QueueSettings(lease_ms=10_000_000)))
    bench.fill(QUEUE, messages // 50)
    leases = bench.lease(messages // 50, 1)
    for at in range(messages // 50 // MOST):
        some, leases = leases[:MOST], leases[MOST:]
        ack = Ack(QUEUE, some[0][0], [slots for _, slots in some])
        enqueue = Enqueue(OTHER, [part(bench, dedup_ids=named(f"{at}-"))])
        yield bench.entry([Transact("default", [ack, enqueue])])[1]


def gathered(make: Callable[[int], Command], count: int = 20_000) -> Case:
    """Many commands that are handed over at once: as many as an entry gathers."""

    def case(bench: Bench, messages: int) -> Iterator[float]:
        bench.fill(QUEUE, messages // 10)
        yield from bench.entries([make(at) for at in range(count)])

    return case


def gathered_acks(size: int) -> Case:
    """Of leases of one message each, `size` in each ack."""

    def case(bench: Bench, messages: int) -> Iterator[float]:
        bench.do(DefineQueue(QUEUE, QueueSettings(lease_ms=10_000_000)))
        bench.fill(QUEUE, messages // 10)
        leases = bench.lease(messages // 10, 1)
        numbers = range(0, len(leases), size)
        acks = [Ack(QUEUE, leases[0][0], [slots for _, slots in leases[at : at + size]]) for at in numbers]
        yield from bench.entries(acks)

    return case


def gathered_nacks(delay_ms: int | None) -> Case:
    """Of every second message of leases of 1,000, each in a command of its own."""

    def case(bench: Bench, messages: int) -> Iterator[float]:
        bench.do(DefineQueue(QUEUE, QueueSettings(lease_ms=10_000_000)))
        bench.fill(QUEUE, messages)
        leases = bench.lease(messages // MOST, MOST)
        some = list(range(0, MOST, 2))
        yield from bench.entries([Nack(QUEUE, one, [Slots(slots.lease_id, some)], delay_ms) for one, slots in leases])

    return case


def read_leased(size: int) -> Case:
    """One message of the oldest lease, and pages of leased ones of which one is left in each lease."""

    def case(bench: Bench, messages: int) -> Iterator[float]:
        bench.do(DefineQueue(QUEUE, QueueSettings(lease_ms=10_000_000)))
        bench.fill(QUEUE, messages)
        leases = bench.lease(min(messages // size, 5_000), size)
        yield timed(lambda: bench.machine.view().message(QUEUE, 0, 5))
        for queue_number, slots in leases if size > 1 else []:
            bench.do(Ack(QUEUE, queue_number, [Slots(slots.lease_id, slots.slots[:-1])]))
        yield timed(lambda: bench.machine.view().message(QUEUE, 0, size))
        yield timed(lambda: bench.machine.view().peek(QUEUE, "leased", 500))

    return case


_LARGE = packing.pack([packing.pack_message(b'"%01000000d"' % 1)])
_MANY = packing.pack([packing.pack_message(b'"%0100d"' % at) for at in range(MOST)])
_ONE = Part(0, None, packing.pack([packing.pack_message(b'"%0100d"' % 1)]))

CASES: dict[str, Case] = {
    "purge": purge,
    "purge of messages of 1 MB": purge_large,
    "purge of leases of 1,000 batches": purge_leases,
    "delete a queue": delete,
    "delete a queue of batches of one": delete_singles,
    "retention": retention,
    "retention, messages of 1 MB": retention_large,
    "retention, to dead letters": retention_dead,
    "redrive": redrive,
    "leases of 1,000 expire at once": expiry,
    "leases of one expire at once": expiry_singles,
    "sparse batches rewritten": sparse,
    "delayed messages become ready": delayed,
    "enqueue of 1,000 with dedup ids": with_ids,
    "enqueue of 1,000 that replace 1,000": with_replace_keys,
    "enqueue of 1,000 in 1,000 groups": with_groups,
    "enqueue of 1,000 with all of these, each a batch": with_all(None),
    "enqueue of 1,000 with all of these, each a batch, into 64 partitions": with_all(64),
    "lease of 1,000 of 1,000 groups": lease_groups,
    "another limit, one group": higher_limit(1),
    "another limit, 1,000 groups": higher_limit(1_000),
    "another limit, and acks of 1,000 groups": ack_stale,
    "another limit, and leases": lease_stale,
    "lease of 1,000 that were returned one by one": lease_returned,
    "ack of 1,000 leases": settle_singles(Ack),
    "nack of 1,000 leases": settle_singles(Nack),
    "reject of 1,000 leases, to dead letters": settle_singles(Reject),
    "publish of 1,000 to 10 queues": publish(10),
    "publish of 1,000 to 5 queues, with dedup ids": publish(5, dedup=True),
    "publish of 78 to 64 queues, with dedup ids": publish(64, dedup=True),
    "publish of 1,000 into a queue, with dedup ids, replace keys and groups": publish_all(1, 1_000),
    "publish of 17 to 64 queues, with dedup ids, replace keys and groups": publish_all(64, 17),
    "publish of 8 to 64 times 64 partitions, with dedup ids, replace keys and groups": publish_all(64, 8, 64),
    "publish of 78 to 64 queues, with filters": publish_filtered,
    "transaction of 1,000 leases acked and 1,000 enqueued": transact,
    "20,000 enqueues of one at once": gathered(lambda _: Enqueue(QUEUE, [_ONE])),
    "20,000 enqueues of one at once, each to another queue": gathered(lambda at: Enqueue(f"default/q{at}", [_ONE])),
    "20,000 leases of one at once": gathered(lambda _: Lease(QUEUE, 1)),
    "acks of one at once": gathered_acks(1),
    "acks of 10 leases at once": gathered_acks(10),
    "acks of 1,000 leases at once": gathered_acks(1_000),
    "nacks of every second of 1,000 at once": gathered_nacks(None),
    "nacks of every second of 1,000 at once, with a delay": gathered_nacks(60_000),
    "reads of leased messages, leases of one": read_leased(1),
    "reads of leased messages, leases of 1,000": read_leased(MOST),
    "20 enqueues of 1,000 that replace 1,000 at once": gathered(
        lambda _: Enqueue(QUEUE, [Part(0, None, _MANY, replace_keys=named("k"))]), 20
    ),
}


def run(folder: Path, *, messages: int, say: Callable[[str], None]) -> tuple[Outcome, list[Bar]]:
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    costs = []
    for what, case in CASES.items():
        with opened(folder) as bench:
            took = list(case(bench, messages))
        costs.append(Cost(what, len(took), median(took), max(took)))
        say(f"{what}: {len(took):,} entries, median {number(median(took))} ms, worst {number(max(took))} ms")
    worst = max(costs, key=lambda cost: cost.worst_ms)
    return Outcome(messages, costs), [at_most(f"the dearest entry: {worst.what}", worst.worst_ms, STALL_MS_MAX, "ms")]


@contextmanager
def opened(folder: Path) -> Iterator[Bench]:
    with TemporaryDirectory(dir=folder) as data:
        bench = Bench(Path(data), MOST)
        try:
            yield bench
        finally:
            bench.close()


def body(outcome: Outcome) -> str:
    rows = [(cost.what, f"{cost.entries:,}", number(cost.median_ms), number(cost.worst_ms)) for cost in outcome.costs]
    return table(("entries", "number", "median ms", "worst ms"), rows) + (
        f"\n\nOne process on this machine, its tables on disk; {outcome.messages:,} messages of 102 bytes where many "
        "are touched in steps, a tenth of that or less where each is touched for itself. Applying alone is timed, as "
        "it keeps the loop of every node; the commit runs beside it. Reads are timed alike."
    )
