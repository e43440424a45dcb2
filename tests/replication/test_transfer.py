"""Snapshots on their way: whatever the network, the disks and the nodes do, what becomes ready is what was written.

A leader's `Sender` and a follower's `Receiver` over a network and a clock in the test's hands. What they give to
threads runs at once, unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raftq.replication import transfer
from raftq.replication.engine import NO_OP
from raftq.replication.transfer import GIVE_UP_SECONDS, KEPT_SECONDS, PART_SECONDS, WINDOW, Receiver, Sender
from raftq.storage import snapshot
from raftq.storage.checksums import seal
from raftq.storage.digest import digest
from raftq.storage.environment import BOUNDARY, Environment, EnvironmentDamaged, WriteBatch, u64
from raftq.storage.snapshot import SnapshotError, SnapshotHead
from raftq.storage.writer import Writer

CLUSTER = "cluster"
CHUNK = 2_000
#: The applied index of the leader, and its term.
PLACE = (500, 3)


class AtOnce(ThreadPoolExecutor):
    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except BaseException as exc:
            done.set_exception(exc)
        return done


def commit(environment: Environment, batch: WriteBatch) -> None:
    writer = Writer(environment)
    writer.write(batch)
    writer.close()


def fill(environment: Environment, *, items: int = 400, applied: tuple[int, int] = PLACE) -> None:
    index, term = applied
    first = (environment.log_bounds() or (0, 0))[1] + 1
    entries = [(at, term, b"\x01") for at in range(first, index + 6)]
    tables: list[tuple[bytes, bytes | None]] = [(b"key%05d" % i, random.Random(i).randbytes(90)) for i in range(items)]
    commit(environment, WriteBatch(entries=entries, meta={"applied": u64(index), "clocks": bytes(16)}, tables=tables))


class Pair:
    """A leader `n1` and a follower `n2` that needs a snapshot."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        #: Of a message: to be lost, to come twice, to have a bit flipped, to be late.
        self.losses = self.copies = self.flips = self.delays = 0.0
        self.late = 0.5
        self.now = 1_000.0
        self.term = 4
        self.leader, self.follower = Environment(folder / "n1"), Environment(folder / "n2")
        fill(self.leader)
        self.lacking = ["n2"]
        self.log_first = 0
        self.place = (0, 0)
        self.commit_index = 1
        self.failures: list[BaseException] = []
        self.notices = 0
        #: (when, sender, to, message)
        self.flying: list[tuple[float, str, str, dict[str, Any]]] = []
        self.sent: list[tuple[str, dict[str, Any], bool]] = []
        self.given: list[bool] = []
        self.queued = 0
        self.sender = self.new_sender()
        self.receiver = self.new_receiver()

    def new_sender(self) -> Sender:
        return Sender(
            self.leader,
            CLUSTER,
            self.post("n1"),
            term=lambda: self.term,
            on_failure=self.failures.append,
            queued_bytes=lambda _node: self.queued,
            reserve_bytes=1 << 20,
            chunk_bytes=CHUNK,
        )

    def new_receiver(self) -> Receiver:
        return Receiver(
            self.follower,
            CLUSTER,
            self.post("n2"),
            term=lambda: self.term,
            needless=lambda index, term: index <= self.commit_index or (index, term) == self.place,
            on_ready=self.noticed,
            on_failure=self.failures.append,
            reserve_bytes=1 << 20,
            chunk_bytes=CHUNK,
        )

    def noticed(self) -> None:
        self.notices += 1

    def post(self, sender: str) -> transfer.Send:
        def send(nodes: list[str], message: dict[str, Any], *, bulk: bool = False) -> None:
            for node in nodes:
                self.sent.append((node, message, bulk))
                for _ in range(1 + (self.chance.random() < self.copies)):
                    late = self.chance.random() * self.late if self.chance.random() < self.delays else 0.0
                    self.flying.append((self.now + 0.001 + late, sender, node, dict(message)))

        return send

    async def step(self, seconds: float = 0.01) -> None:
        self.now += seconds
        self.sender.tick(self.now, self.lacking, self.log_first)
        self.receiver.tick(self.now)
        arrived = [item for item in self.flying if item[0] <= self.now]
        self.flying = [item for item in self.flying if item[0] > self.now]
        for _, sender, node, message in sorted(arrived, key=lambda item: item[0]):
            if self.chance.random() >= self.losses:
                self.deliver(sender, node, message)
        for _ in range(8):
            await asyncio.sleep(0)

    def deliver(self, sender: str, node: str, message: dict[str, Any]) -> None:
        if "data" in message and self.chance.random() < self.flips:
            data = bytearray(message["data"])
            data[self.chance.randrange(len(data))] ^= 1
            message["data"] = bytes(data)
        if node == "n1":
            self.sender.on_ask(sender, message)
        elif message["type"] == "snapshot_offer":
            self.given.append(self.receiver.on_offer(sender, message))
        else:
            self.receiver.on_chunk(sender, message)

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = self.now + seconds
        while not condition():
            assert self.now < end, f"not within {seconds} simulated seconds"
            await self.step()

    def kinds(self, kind: str, of: str = "type") -> list[dict[str, Any]]:
        return [message for _, message, _ in self.sent if message[of] == kind]

    def asked(self) -> list[int]:
        return [message["offset"] for message in self.kinds("snapshot_ask")]

    def here(self) -> int:
        progress = self.receiver.progress()
        return 0 if progress is None else progress[0]

    async def install(self) -> SnapshotHead:
        ready = self.receiver.ready()
        assert ready is not None
        head, incoming = ready
        self.follower.install(incoming, {"identity": b"own"} | head.meta(), (head.index, head.term))
        self.commit_index = head.index
        self.receiver.done()
        await self.step()
        return head

    async def close(self) -> None:
        await self.sender.interrupt()
        await self.receiver.interrupt()
        self.leader.close()
        self.follower.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    asyncio.get_running_loop().set_default_executor(AtOnce())
    pair = Pair(tmp_path)
    yield pair
    await pair.close()
    assert pair.failures == []


@pytest.fixture
async def threads(pair: Pair) -> AsyncIterator[None]:
    """Threads as they are."""
    executor = ThreadPoolExecutor(4)
    asyncio.get_running_loop().set_default_executor(executor)
    yield
    asyncio.get_running_loop().set_default_executor(AtOnce())
    executor.shutdown()


def held_up(pair: Pair) -> tuple[threading.Event, threading.Event]:
    """What the leader writes stops after its first chunk, which sets the one, until the other is set."""
    begun, go_on = threading.Event(), threading.Event()

    def between() -> None:
        begun.set()
        assert go_on.wait(20)

    pair.sender._threads.between = between  # type: ignore[method-assign]
    return begun, go_on


def names(environment: Environment) -> set[str]:
    return {str(entry.relative_to(environment.folder)) for entry in environment.folder.rglob("*")}


PLAIN = {"data.mdb", "lock.mdb"}


def test_the_boundary_is_what_the_engine_calls_a_no_op() -> None:
    assert BOUNDARY == NO_OP


async def test_a_follower_gets_the_tables_of_its_leader(pair: Pair) -> None:
    await pair.until(pair.receiver.ready)
    assert pair.notices == 1
    head = await pair.install()
    assert (head.index, head.term, head.cluster_id) == (*PLACE, CLUSTER)
    assert digest(pair.follower) == digest(pair.leader)
    assert names(pair.follower) == PLAIN
    (offer,) = pair.kinds("snapshot_offer")
    assert (offer["term"], offer["index"], offer["snapshot_term"]) == (4, *PLACE)
    assert pair.asked() == [*range(0, offer["bytes"], CHUNK), offer["bytes"]]
    assert len(pair.asked()) > 20
    assert {bulk for _, message, bulk in pair.sent if message["type"] == "snapshot_chunk"} == {True}
    assert {bulk for _, message, bulk in pair.sent if message["type"] != "snapshot_chunk"} == {False}


async def test_no_more_is_on_its_way_than_the_window(pair: Pair) -> None:
    pair.losses = 1.0
    await pair.until(lambda: pair.sender.pinned_index and pair.kinds("snapshot_offer"))
    pair.receiver.on_offer("n1", pair.kinds("snapshot_offer")[0])
    await pair.until(lambda: len(pair.asked()) > 5 * WINDOW)
    assert set(pair.asked()) == {at * CHUNK for at in range(WINDOW)}


async def test_each_piece_is_asked_for_once_while_pieces_come(pair: Pair) -> None:
    pair.delays, pair.late = 1.0, 0.08
    await pair.until(pair.receiver.ready)
    asked = [offset for offset in pair.asked() if offset < pair.here()]
    assert sorted(asked) == list(range(0, pair.here(), CHUNK))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_the_network_does(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    pair.chance = chance
    pair.losses, pair.copies, pair.flips, pair.delays = (chance.random() * 0.4 for _ in range(4))
    pair.term = 4
    for pieces in (3, 6, 12):
        await pair.until(lambda here=pieces * CHUNK: pair.here() > here, 300)  # type: ignore[misc]
        if chance.random() < 0.5:
            pair.flying.clear()
            pair.receiver.disconnected("n1")
            pair.sender.disconnected("n2")
    await pair.until(pair.receiver.ready, 300)
    await pair.install()
    assert digest(pair.follower) == digest(pair.leader)


# Going on


async def test_a_restarted_follower_goes_on_where_it_was(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    had = pair.here()
    await pair.receiver.interrupt()
    pair.follower.close()
    pair.follower = Environment(pair.follower.folder)
    pair.receiver = pair.new_receiver()
    pair.flying.clear()
    pair.sent.clear()
    await pair.until(pair.receiver.ready)
    assert min(pair.asked()) == had
    await pair.install()
    assert digest(pair.follower) == digest(pair.leader)


async def test_a_lost_connection_is_asked_over_at_once(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    had = pair.here()
    pair.flying.clear()
    pair.sent.clear()
    pair.receiver.disconnected("n1")
    await pair.step()
    assert min(pair.asked()) == had
    assert len(pair.asked()) >= WINDOW
    await pair.until(pair.receiver.ready)


async def test_a_new_leader_with_an_equal_snapshot_goes_on_with_it(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    offer = pair.kinds("snapshot_offer")[0]
    had = pair.here()
    pair.flying.clear()
    pair.sent.clear()
    assert pair.receiver.on_offer("n3", offer | {"term": 5})
    pair.losses = 1.0
    await pair.until(pair.asked)
    assert {node for node, message, _ in pair.sent if message["type"] == "snapshot_ask"} == {"n3"}
    assert min(pair.asked()) == had


async def test_a_newer_offer_takes_over_and_an_old_one_does_not(pair: Pair) -> None:
    pair.losses = 1.0
    await pair.until(lambda: pair.kinds("snapshot_offer"))
    offer = pair.kinds("snapshot_offer")[0]
    one, two, three = (offer | {"id": digit * 32} for digit in "123")

    async def takes(message: dict[str, Any]) -> bool:
        assert pair.receiver.on_offer("n1", message)
        pair.sent.clear()
        await pair.step(1.5)
        (asked,) = {ask["id"] for ask in pair.kinds("snapshot_ask")}
        return bool(asked == message["id"])

    assert await takes(one)
    assert await takes(two | {"index": 510})
    assert not await takes(one), "it is of an older snapshot of the same leader"
    assert not await takes(three | {"index": 510})
    assert await takes(three | {"index": 400, "term": 5}), "a new leader may have applied less"
    assert not await takes(two | {"index": 600}), "it is of the leader before"


async def test_a_pull_in_which_nothing_comes_is_given_up_and_may_begin_again(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    offer, had = pair.kinds("snapshot_offer")[0], pair.here()
    pair.losses = 1.0
    await pair.until(lambda: pair.receiver.progress() is None, GIVE_UP_SECONDS + 1)
    pair.sent.clear()
    assert pair.receiver.on_offer("n1", offer)
    await pair.until(pair.asked)
    assert min(pair.asked()) == had


async def test_what_was_loaded_and_not_installed_is_loaded_again(pair: Pair) -> None:
    await pair.until(pair.receiver.ready)
    await pair.receiver.interrupt()
    pair.receiver = pair.new_receiver()
    await pair.until(pair.receiver.ready)
    assert pair.asked().count(0) == 1
    await pair.install()
    assert digest(pair.follower) == digest(pair.leader)


async def test_what_is_left_of_another_snapshot_is_deleted(pair: Pair) -> None:
    pair.losses = 1.0
    (pair.follower.folder / f"incoming.{'a' * 32}.part").write_bytes(b"of an earlier one")
    await pair.until(lambda: pair.kinds("snapshot_offer"))
    pair.losses = 0.0
    await pair.until(lambda: pair.here() > 3 * CHUNK)
    assert [name for name in names(pair.follower) if name.endswith(".part")] == [
        f"incoming.{pair.kinds('snapshot_offer')[0]['id']}.part"
    ]


async def test_what_nobody_goes_on_with_is_deleted(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    pair.losses = 1.0
    await pair.receiver.interrupt()
    pair.receiver = pair.new_receiver()
    (part,) = names(pair.follower) - PLAIN
    (pair.follower.folder / "of-somebody.part").write_bytes(b"precious")
    await pair.step()
    await pair.step(PART_SECONDS - 1)
    assert part in names(pair.follower)
    await pair.step(2)
    assert names(pair.follower) == PLAIN | {"of-somebody.part"}


# What is not taken


async def test_an_offer_of_nothing_new_is_refused(pair: Pair) -> None:
    pair.commit_index = PLACE[0]
    await pair.until(lambda: pair.given)
    pair.commit_index, pair.place = 1, PLACE
    await pair.until(lambda: len(pair.given) > 1)
    assert not any(pair.given)
    assert pair.asked() == []
    assert names(pair.follower) == PLAIN


async def test_what_becomes_needless_is_dropped(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    pair.commit_index = PLACE[0]
    await pair.step()
    assert pair.receiver.progress() is None
    await pair.step()
    assert names(pair.follower) == PLAIN


async def test_what_is_ready_and_becomes_needless_is_not_installed(pair: Pair) -> None:
    await pair.until(pair.receiver.ready)
    assert (pair.follower.folder / "incoming" / "data.mdb").exists()
    pair.place = PLACE
    assert pair.receiver.ready() is None
    await pair.step()
    assert names(pair.follower) == PLAIN


async def test_an_id_that_is_none_is_no_file_name(pair: Pair) -> None:
    pair.lacking = []
    offer = {"type": "snapshot_offer", "term": 4, "index": 500, "snapshot_term": 3, "bytes": 100_000}
    pair.receiver.on_offer("n1", offer | {"id": "../../outside"})
    await pair.step()
    assert pair.receiver.progress() is None
    assert pair.sent == []


async def test_a_snapshot_of_another_cluster_is_never_ready(pair: Pair) -> None:
    pair.sender._cluster_id = "another"
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    await pair.until(lambda: pair.receiver.progress() is None)
    assert pair.receiver.ready() is None
    await pair.step()
    assert not {name for name in names(pair.follower) if name.startswith("incoming/")}


@pytest.mark.parametrize("at", [5, 100, 9 * CHUNK - 1])
async def test_a_file_that_was_damaged_here_is_fetched_anew(pair: Pair, at: int) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    (part,) = pair.follower.folder.glob("incoming.*.part")
    damaged = bytearray(part.read_bytes())
    damaged[at] ^= 1
    part.write_bytes(damaged)
    await pair.until(pair.receiver.ready)
    assert pair.asked().count(0) == 2
    await pair.install()
    assert digest(pair.follower) == digest(pair.leader)


async def test_a_file_that_is_too_long_is_fetched_anew(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    await pair.receiver.interrupt()
    (part,) = pair.follower.folder.glob("incoming.*.part")
    part.write_bytes(bytes(200_000))
    await pair.until(pair.receiver.ready)
    await pair.install()
    assert digest(pair.follower) == digest(pair.leader)


async def test_a_full_disk_of_the_follower_takes_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(pair.follower, "free_bytes", lambda: looks.append(pair.now) or 1 << 20)
    await pair.until(lambda: len(pair.given) > 8)
    assert pair.asked() == []
    assert 1 < len(looks) <= len(pair.given) / 2 + 1
    monkeypatch.undo()
    await pair.until(pair.receiver.ready)


# The leader


async def test_the_log_is_kept_after_what_is_made_and_held(pair: Pair, threads: None) -> None:
    begun, go_on = held_up(pair)
    assert pair.sender.pinned_index is None
    pair.lacking = []
    await pair.step()
    assert pair.sender.pinned_index is None
    pair.lacking = ["n2"]
    await pair.step()
    while not begun.is_set():
        await pair.step()
    assert pair.sender.pinned_index == PLACE[0]
    fill(pair.leader, applied=(520, 4))
    assert pair.sender.pinned_index == PLACE[0]
    go_on.set()
    while not pair.kinds("snapshot_offer"):
        await pair.step()
        await asyncio.sleep(0.001)
    assert pair.sender.pinned_index == PLACE[0] == pair.kinds("snapshot_offer")[0]["index"]


async def test_a_snapshot_that_nobody_pulls_is_forgotten(pair: Pair) -> None:
    await pair.until(pair.receiver.ready)
    await pair.install()
    pair.lacking = []
    await pair.step(KEPT_SECONDS - 1)
    assert pair.sender.pinned_index == PLACE[0]
    assert (pair.leader.folder / "snapshots" / "outgoing.snapshot").exists()
    await pair.step(2)
    assert pair.sender.pinned_index is None
    assert names(pair.leader) == PLAIN | {"snapshots"}


async def test_a_snapshot_that_the_log_does_not_go_on_from_is_made_anew(pair: Pair) -> None:
    """A leader that followed for a while was told to cut its log, and offered the same snapshot for ever after."""
    pair.losses = 1.0
    await pair.until(lambda: pair.kinds("snapshot_offer"))
    fill(pair.leader, items=450, applied=(530, 4))
    pair.log_first = PLACE[0] + 1
    await pair.until(lambda: pair.kinds("snapshot_offer")[-1]["index"] == 530, 5)


async def test_one_that_is_new_is_made_after_it(pair: Pair) -> None:
    pair.losses = 1.0
    await pair.until(lambda: pair.kinds("snapshot_offer"))
    fill(pair.leader, items=450, applied=(530, 4))
    await pair.until(lambda: pair.kinds("snapshot_offer")[-1]["index"] == 530, KEPT_SECONDS + 5)
    pair.losses = 0.0
    await pair.until(pair.receiver.ready)
    head = await pair.install()
    assert (head.index, head.term) == (530, 4)
    assert digest(pair.follower) == digest(pair.leader)


async def test_it_is_kept_while_a_follower_takes_long_to_load(
    pair: Pair, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()
    load = snapshot.load

    def slow(*arguments: Any, **named: Any) -> SnapshotHead:
        loading.set()
        assert go_on.wait(20)
        return load(*arguments, **named)

    monkeypatch.setattr(snapshot, "load", slow)
    while not loading.is_set():
        await pair.step()
        await asyncio.sleep(0.0005)
    pair.lacking = []
    for _ in range(200):
        await pair.step(KEPT_SECONDS / 60)
    assert pair.sender.pinned_index == PLACE[0]
    assert pair.sender.progress() == {"n2": (pair.here(), pair.here())}
    go_on.set()
    while not pair.receiver.ready():
        await pair.step()
        await asyncio.sleep(0.001)
    await pair.install()
    assert digest(pair.follower) == digest(pair.leader)


async def test_two_followers_pull_one_snapshot(pair: Pair, tmp_path: Path) -> None:
    other = Pair(tmp_path / "other")
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    pair.lacking.append("n3")
    third = Receiver(
        other.follower,
        CLUSTER,
        lambda nodes, message, *, bulk=False: pair.sender.on_ask("n3", message),
        term=lambda: 4,
        needless=lambda _index, _term: False,
        on_ready=lambda: None,
        on_failure=pair.failures.append,
        chunk_bytes=CHUNK,
    )
    deliver = pair.deliver

    def route(sender: str, node: str, message: dict[str, Any]) -> None:
        if node != "n3":
            deliver(sender, node, message)
        elif message["type"] == "snapshot_offer":
            third.on_offer(sender, message)
        else:
            third.on_chunk(sender, message)

    pair.deliver = route  # type: ignore[method-assign]
    while not (third.ready() and pair.receiver.ready()):
        third.tick(pair.now)
        await pair.step()
    ready = third.ready()
    assert ready is not None
    assert ready[0] == snapshot.check(pair.leader.folder / "snapshots" / "outgoing.snapshot")
    assert len({message["id"] for message in pair.kinds("snapshot_offer")}) == 1
    assert set(pair.sender.progress()) == {"n2", "n3"}
    await third.interrupt()
    await other.close()


async def test_a_connection_that_is_full_is_given_no_more(pair: Pair) -> None:
    pair.queued = WINDOW * CHUNK + 1
    await pair.until(lambda: len(pair.asked()) > 3 * WINDOW)
    assert pair.kinds("snapshot_chunk") == []
    pair.queued = 0
    await pair.until(pair.receiver.ready)


async def test_a_piece_that_is_being_read_is_not_read_twice(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    ask = pair.kinds("snapshot_ask")[0]
    assert ask["offset"] == 0
    pair.losses = 1.0
    pair.flying.clear()
    pair.sent.clear()
    for _ in range(3):
        pair.sender.on_ask("n2", ask)
    await pair.step()
    assert [message["offset"] for message in pair.kinds("snapshot_chunk")] == [0]


async def test_a_full_disk_of_the_leader_makes_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair.leader, "free_bytes", lambda: 1 << 20)
    for _ in range(300):
        await pair.step()
    assert pair.sent == []
    assert names(pair.leader) == PLAIN
    monkeypatch.undo()
    await pair.until(pair.receiver.ready)


async def test_damage_of_the_leader_ends_it(pair: Pair) -> None:
    with pair.leader.begin_write() as txn:
        txn.put(b"key00007", seal(b"key00008", b"of another key"), db=pair.leader.tables)
    await pair.until(lambda: pair.failures)
    assert isinstance(pair.failures.pop(), EnvironmentDamaged)
    pair.lacking = []
    await pair.step()
    assert names(pair.leader) == PLAIN | {"snapshots"}


async def test_a_restarted_leader_deletes_what_it_held(pair: Pair) -> None:
    await pair.until(lambda: pair.kinds("snapshot_offer"))
    (pair.leader.folder / "snapshots" / "outgoing.snapshot.part").write_bytes(b"half made")
    (pair.leader.folder / "snapshots" / "notes.txt").write_bytes(b"precious")
    pair.sender = pair.new_sender()
    assert names(pair.leader) == PLAIN | {"snapshots", "snapshots/notes.txt"}
    assert pair.sender.pinned_index is None
    await pair.until(pair.receiver.ready)


async def test_a_deposed_leader_answers_nothing_it_does_not_hold(pair: Pair) -> None:
    await pair.until(lambda: pair.here() >= 9 * CHUNK)
    await pair.sender.interrupt()
    assert names(pair.leader) == PLAIN | {"snapshots"}
    pair.lacking = []
    pair.sent.clear()
    for _ in range(200):
        await pair.step()
    assert len(pair.asked()) > WINDOW
    assert pair.kinds("snapshot_chunk") == []


# Backups, and an end to all of it


async def test_a_backup_is_of_any_node_beside_its_other_work(pair: Pair, tmp_path: Path, threads: None) -> None:
    pair.lacking = []
    head = await pair.sender.backup(tmp_path / "backup")
    assert snapshot.check(tmp_path / "backup") == head
    assert (PLACE[0], head.digest) == digest(pair.leader)
    assert pair.sender.pinned_index is None
    with pytest.raises(FileNotFoundError):
        await pair.sender.backup(tmp_path / "nowhere" / "backup")


async def test_an_interruption_ends_every_thread(pair: Pair, tmp_path: Path, threads: None) -> None:
    pair.lacking = []
    fill(pair.leader, items=10_000, applied=(600, 4))
    begun = threading.Event()
    between = pair.sender._threads.between

    def noticed() -> None:
        begun.set()
        while not pair.sender._threads._interrupted:
            pass
        between()

    pair.sender._threads.between = noticed  # type: ignore[method-assign]
    backup = asyncio.get_running_loop().create_task(pair.sender.backup(tmp_path / "backup"))
    pair.lacking = ["n2"]
    while not (begun.is_set() and pair.sender.pinned_index):
        await pair.step()
    assert pair.leader._read()
    await pair.sender.interrupt()
    assert not pair.leader._read()
    with pytest.raises(SnapshotError, match="the node stops, or gets a snapshot itself"):
        await backup
    assert pair.sender.pinned_index is None
    assert names(pair.leader) == PLAIN | {"snapshots"}
    assert not (tmp_path / "backup").exists()
    assert not (tmp_path / "backup.part").exists()


async def test_a_backup_goes_on_when_who_asked_for_it_is_gone(pair: Pair, tmp_path: Path, threads: None) -> None:
    """Its thread reads the environment: it is waited for before that is closed."""
    pair.lacking = []
    begun, go_on = held_up(pair)
    backup = asyncio.get_running_loop().create_task(pair.sender.backup(tmp_path / "backup"))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    backup.cancel()
    await asyncio.wait([backup])
    assert pair.leader._read()
    ending = asyncio.get_running_loop().create_task(pair.sender.interrupt())
    await asyncio.sleep(0.01)
    assert not ending.done()
    go_on.set()
    await ending
    assert not pair.leader._read()
