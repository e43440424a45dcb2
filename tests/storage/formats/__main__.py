"""Make a folder of data of this format, with something of everything in it: `python -m tests.storage.formats`.

It writes `v<machine version>/` beside this file: the environment of node n1 of cluster c1, a backup of it, and what can
be read of it. `tests/storage/test_formats.py` opens it from then on; a folder of a version that was released is never
made again. A command that is new gets a few lines in `Story` and, once there was a release, a folder of its own.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from raftq.node import identity
from raftq.replication.cycle import RaftShard
from raftq.replication.shard_config import ShardConfig
from raftq.replication.world import World
from raftq.storage import digest, snapshot
from raftq.storage.environment import Environment
from raftq.storage.machine import commands, packing
from raftq.storage.machine.apply import VERSION_MAX, Machine
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
    Extend,
    Grant,
    Incarnate,
    Lease,
    Nack,
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
    Transact,
    Unsubscribe,
)
from raftq.storage.overlay import Overlay
from tests.storage.formats import views

CLUSTER, NODE, ADDRESS = "c1", "n1", "127.0.0.1:27701"
JOBS, DEAD, KEPT, GONE = "default/jobs", "default/dead", "default/kept", "default/gone"
ORDERS, INVOICES, RED = "other/orders", "other/invoices", "default/red"
GROUPED, PARTED = "default/grouped", "default/parted"
EVENTS, OLD_EVENTS = "default/events", "default/old"
#: 2026-01-01: from then on the data's own clock runs.
WALL: Final = 1_767_225_600.0
MINUTE_MS: Final = 60_000


class Clock:
    """Goes on from `WALL`, and can be put forward."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        #: Seconds.
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        return WALL + self.monotonic() - self._begun


class Story:
    """What is done, one entry a command."""

    def __init__(self, shard: RaftShard, clock: Clock) -> None:
        self._shard, self._clock = shard, clock

    async def tell(self) -> None:
        await self._do(SetVersion(VERSION_MAX))
        await self._queues()
        await self._settled()
        await self._dead()
        await self._topics()
        await self._transacted()
        await self._removed()
        await self._redriven()
        await self._grouped()
        await self._partitioned()
        await self._scheduled()
        await self._tokens()
        await self._left()
        await self._do(TakeDigest())

    async def _do(self, command: Command) -> Any:
        return (await self._shard.propose(commands.encode(command))).reply

    async def _pass(self, seconds: float) -> None:
        """And what is due by then is done."""
        self._clock.ahead += seconds
        await asyncio.sleep(0.5)

    async def _lease(self, queue: str, count: int, lease_ms: int | None = None) -> tuple[int, int]:
        """Queue number and lease id."""
        leased = await self._do(Lease(queue, count, lease_ms))
        assert sum(taken.count for taken in leased.ranges) == count, leased
        return leased.queue_number, leased.lease_id

    async def _queues(self) -> None:
        settings = QueueSettings(
            lease_ms=10 * MINUTE_MS,
            dead_letter_queue=DEAD,
            max_failures=2,
            backoff=Backoff(1_000, 2_000, MINUTE_MS),
            max_messages=1_000,
            max_bytes=1_000_000,
        )
        await self._do(DefineQueue(JOBS, settings))
        await self._do(DefineQueue(JOBS, QueueSettings(max_messages=900), create=False, only=["max_messages"]))
        await self._do(DefineQueue(KEPT, QueueSettings(retention_ms=5 * MINUTE_MS, dead_letter_queue=DEAD)))
        await self._do(DefineQueue(INVOICES, QueueSettings(paused=True, delay_ms=100, dedup_window_ms=MINUTE_MS)))
        await self._do(Enqueue(JOBS, [_part("leased when the cluster was restored")]))
        await self._lease(JOBS, 1)
        await self._do(Incarnate())
        number, lease = await self._lease(JOBS, 1)
        await self._do(Ack(JOBS, number, [Slots(lease, [0])]))

    async def _settled(self) -> None:
        """In line, given back, gone from the midst of a batch, settled twice by one request."""
        await self._do(Enqueue(JOBS, [_part(*(f"job {at}" for at in range(40)))], Request("enqueue-1", 60 * MINUTE_MS)))
        number, lease = await self._lease(JOBS, 30)
        await self._do(Ack(JOBS, number, [Slots(lease, [*range(10), 12, 14])], Request("ack-1", 60 * MINUTE_MS)))
        await self._do(Nack(JOBS, number, [Slots(lease, [15])], 0))
        await self._do(Nack(JOBS, number, [Slots(lease, [16])], 365 * 24 * 60 * MINUTE_MS))
        await self._do(Release(JOBS, number, [Slots(lease, [17, 18])]))
        await self._do(Extend(JOBS, number, [Slots(lease, [19, 20])], 20 * MINUTE_MS))

    async def _dead(self) -> None:
        """By reject, by nacks, by leases that passed, by age."""
        await self._do(Enqueue(JOBS, [_part("rejected", "nacked", "left", priority=9, attributes=b'{"kind":"bad"}')]))
        number, lease = await self._lease(JOBS, 3, 1_000)
        await self._do(Reject(JOBS, number, [Slots(lease, [0])], "it cannot be read"))
        await self._do(Nack(JOBS, number, [Slots(lease, [1])]))
        await self._pass(2)
        number, lease = await self._lease(JOBS, 2, 1_000)
        await self._do(Nack(JOBS, number, [Slots(lease, [0])]))
        await self._do(Enqueue(KEPT, [_part("old", attributes=b'{"kind":"old"}')]))
        await self._pass(6 * 60)

    async def _topics(self) -> None:
        await self._do(DefineTopic(EVENTS))
        await self._do(DefineTopic(OLD_EVENTS))
        await self._do(Subscribe(EVENTS, RED, b'{"color":["red",{"prefix":"dark-"}]}'))
        await self._do(Subscribe(EVENTS, JOBS))
        await self._do(Subscribe(EVENTS, GONE))
        await self._do(Unsubscribe(EVENTS, GONE))
        both = [_part("red", attributes=b'{"color":"red"}'), _part("blue", attributes=b'{"color":"blue"}')]
        both = [msgspec.structs.replace(part, positions=[at]) for at, part in enumerate(both)]
        await self._do(Publish(EVENTS, both, Request("publish-1", 60 * MINUTE_MS)))
        await self._do(DeleteTopic(OLD_EVENTS))

    async def _transacted(self) -> None:
        await self._do(Enqueue(ORDERS, [_part("order 1", "order 2", "order 3")]))
        number, lease = await self._lease(ORDERS, 2, 10 * MINUTE_MS)
        settled = Ack(ORDERS, number, [Slots(lease, [0])])
        made = Enqueue(INVOICES, [_part("invoice 1", dedup_ids=["invoice-1"])])
        await self._do(Transact("other", [settled, made], Request("transact-1", 60 * MINUTE_MS)))

    async def _removed(self) -> None:
        """Purged, deleted, replaced."""
        await self._do(Enqueue(RED, [_part("purged")]))
        await self._do(PurgeQueue(RED, Request("purge-1", 60 * MINUTE_MS)))
        await self._do(Enqueue(GONE, [_part("deleted with its queue")]))
        await self._do(DeleteQueue(GONE))
        made = await self._do(Enqueue(RED, [_part("one", "two", "three", attributes=b'{"color":"red"}', delay_ms=0)]))
        [(priority, first, _)] = made.spans
        await self._do(DeleteMessage(RED, made.queue_number, priority, first + 1))
        for body in ("replaced", "newest"):
            await self._do(Enqueue(RED, [_part(body, replace_keys=["state"])]))

    async def _redriven(self) -> None:
        """One that was cancelled, one that has ended and one that goes on."""
        await self._do(Redrive(DEAD, per_second=1, limit=3, redrives_max=2))
        await self._do(CancelRedrive(DEAD))
        await self._do(Redrive(DEAD, filter=b'{"kind":["bad"]}', limit=1, request=Request("redrive-1", MINUTE_MS)))
        await self._pass(1)
        await self._do(Redrive(RED, target=KEPT, per_second=1))

    async def _grouped(self) -> None:
        """Leased, kept back by its group, given back, and without a group."""
        await self._do(DefineQueue(GROUPED, QueueSettings(lease_ms=10 * MINUTE_MS, max_leased_per_group=1)))
        for group in (b"customer 1", b"customer 2", b"customer 1", b""):
            await self._do(Enqueue(GROUPED, [_part("first", "second", group=group)]))
        await self._lease(GROUPED, 1)
        number, lease = await self._lease(GROUPED, 1)
        await self._do(Release(GROUPED, number, [Slots(lease, [0])]))

    async def _partitioned(self) -> None:
        """Filled by group and in turn, leased by the name."""
        await self._do(DefineQueue(PARTED, QueueSettings(lease_ms=10 * MINUTE_MS), partitions=3))
        for group in (b"customer 1", b"customer 2", b"", b""):
            await self._do(Enqueue(PARTED, [_part("first", "second", group=group)], Request(f"{group!r}", MINUTE_MS)))
        leased = await self._do(Lease(PARTED, 2))
        await self._do(Ack(PARTED, leased.queue_number, [Slots(leased.lease_id, [0])]))

    async def _scheduled(self) -> None:
        """One that has ticked, a paused one, and one that is gone."""
        hourly = Schedule(None, "UTC", 60 * MINUTE_MS, ORDERS, None, _part("every hour"), "skip")
        daily = Schedule("0 6 * * *", "Europe/Berlin", None, None, EVENTS, _part("every day"), paused=True)
        await self._do(DefineSchedule("other/hourly", hourly, int(WALL * 1000)))
        await self._do(DefineSchedule("default/daily", daily, None))
        await self._do(DefineSchedule("default/gone", daily, None))
        await self._do(DeleteSchedule("default/gone"))
        await self._pass(0)

    async def _tokens(self) -> None:
        """One for all, one that expires, a first one, and a first one that was revoked."""
        expires_ms = int(WALL * 1000) + 365 * 24 * 60 * MINUTE_MS
        grants = [Grant("produce", "orders.*"), Grant("consume", "jobs"), Grant("admin", "*")]
        await self._do(CreateToken("0000000000aa", b"\xaa" * 32, "all", "*", grants))
        await self._do(CreateToken("0000000000bb", b"\xbb" * 32, "worker", "default", grants[:1], expires_ms))
        for token in ("0000000000cc", "0000000000dd"):
            await self._do(CreateToken(token, b"\xcc" * 32, "first", "*", grants[2:], first=True))
        await self._do(RevokeToken("0000000000dd"))

    async def _left(self) -> None:
        """Delayed, leased, in line with a group key, with dedup ids; at all priorities."""
        for priority in range(10):
            await self._do(Enqueue(ORDERS, [_part(f"of priority {priority}", priority=priority)]))
        await self._do(Enqueue(ORDERS, [_part("later", delay_ms=365 * 24 * 60 * MINUTE_MS), _part("x" * 5_000)]))
        await self._do(Enqueue(ORDERS, [_part("of a group", group=b"customer 7")]))
        await self._lease(ORDERS, 3, 10 * MINUTE_MS)


def _part(
    *bodies: str,
    priority: int = 0,
    delay_ms: int | None = None,
    attributes: bytes = b"",
    group: bytes = b"",
    dedup_ids: Iterable[str] | None = None,
    replace_keys: Iterable[str] | None = None,
) -> Part:
    messages = [packing.pack_message(msgspec.json.encode(body), attributes=attributes, group=group) for body in bodies]
    ids, replaced = (None if given is None else list(given) for given in (dedup_ids, replace_keys))
    return Part(priority, delay_ms, packing.pack(messages), None, ids, replaced)


async def make(folder: Path) -> None:
    """A node's data folder, as it leaves it when it is stopped."""
    environment = Environment(folder)
    owner = identity.begin(environment, CLUSTER, NODE)
    config = ShardConfig(
        node_id=NODE,
        cluster_id=CLUSTER,
        node_uuid=owner.node_uuid,
        boot=owner.boot,
        members={NODE: ADDRESS},
        peer_listen="127.0.0.1:0",
        peer_address=ADDRESS,
        api_url="http://127.0.0.1:7701",
        version="0",
        disk_reserve_bytes=0,
    )
    clock, failed = Clock(), list[BaseException]()
    world = World(monotonic=clock.monotonic, wall=clock.wall)
    shard = RaftShard(config, environment, on_fatal=failed.append, world=world)
    await shard.start()
    while not shard.status().ready:
        await asyncio.sleep(0.01)
    await Story(shard, clock).tell()
    await shard.stop()
    environment.close()
    assert not failed, failed


def described(folder: Path) -> dict[str, Any]:
    """What can be read of a data folder."""
    environment = Environment(folder)
    overlay = Overlay(environment)
    machine = Machine(overlay)
    index, found = digest.digest(environment)
    bounds = environment.log_bounds()
    views_ = views.of_view(machine.view())
    overlay.close()
    environment.close()
    return {"index": index, "digest": found, "version": machine.version, "log": bounds, "views": views_}


def main() -> None:
    target = Path(__file__).parent / f"v{VERSION_MAX}"
    with tempfile.TemporaryDirectory(prefix="raftq-formats-") as folder:
        data = Path(folder) / NODE
        asyncio.run(make(data))
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        environment = Environment(data)
        snapshot.write(environment, target / views.BACKUP, CLUSTER)
        environment.close()
        raw = lmdb.open(str(data), readonly=True, max_dbs=3)
        raw.copy(str(target), compact=True)
        raw.close()
        found = described(data)
    (target / views.EXPECTED).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print(f"{target}:", {file.name: file.stat().st_size for file in sorted(target.iterdir())})


if __name__ == "__main__":
    main()
