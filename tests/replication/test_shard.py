"""One shard of three nodes, over real sockets and real environments."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftq.replication.cycle import RaftShard
from raftq.replication.membership import Configuration, bootstrap
from raftq.replication.peers import Hello
from raftq.replication.roster import Roster
from raftq.replication.shard import ChangeRefused, DiskReserve, NotLeader, OutcomeUnknown, Overloaded, Stopping
from raftq.storage import digest
from raftq.storage.environment import WriteBatch
from raftq.storage.failures import StorageFailed
from raftq.storage.machine import commands, packing
from raftq.storage.overlay import Overlay
from raftq.storage.writer import Done
from tests.replication.shards import QUEUE, drain, enqueue, lease, shards, until


async def test_what_is_enqueued_is_leased_acked_and_equal_on_all_nodes(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        bodies = [str(number).encode() for number in range(250)]
        await asyncio.gather(*(leader.propose(enqueue(body)) for body in bodies))
        assert sorted(await drain(leader), key=int) == bodies
        index, digests = await leader.digest()
        assert index > 0
        assert len(set(digests.values())) == 1
        assert None not in digests.values()


async def test_a_read_sees_what_was_acknowledged_before_it(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        for number in range(20):
            await leader.propose(enqueue(b"1"))
            view = await leader.read()
            assert view.ready(QUEUE) == number + 1


async def test_a_follower_refuses_and_names_the_leader(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        follower = next(shard for shard in cluster.running.values() if shard is not leader)
        await until(lambda: follower.status().leader == leader.config.node_id)
        with pytest.raises(NotLeader) as refused:
            follower.propose(enqueue(b"1"))
        assert refused.value.leader == leader.config.node_id
        with pytest.raises(NotLeader):
            follower.read()


async def test_nothing_acknowledged_is_lost_when_the_leader_dies(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        acknowledged: list[bytes] = []
        for round_ in range(3):
            leader = await cluster.leader()
            for number in range(30):
                body = f"{round_}{number:03}".encode()
                await leader.propose(enqueue(body))
                acknowledged.append(body)
            name = leader.config.node_id
            await cluster.kill(name)
            await cluster.leader()
            await cluster.start(name)
        assert await drain(await cluster.leader()) == acknowledged


async def test_nothing_acknowledged_is_lost_when_all_die_at_once(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        bodies = [str(number).encode() for number in range(100)]
        for body in bodies:
            await leader.propose(enqueue(body))
        await asyncio.gather(*(cluster.kill(name) for name in list(cluster.running)))
        for name in cluster.voters:
            await cluster.start(name)
        leader = await cluster.leader()
        assert await drain(leader) == bodies
        _, digests = await leader.digest()
        assert len(set(digests.values())) == 1


async def test_without_a_majority_the_outcome_is_unknown_and_then_refused(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        for name in [name for name, shard in cluster.running.items() if shard is not leader]:
            await cluster.kill(name)
        pending, read = leader.propose(enqueue(b"2")), leader.read()
        with pytest.raises(OutcomeUnknown):
            await pending
        with pytest.raises(NotLeader):
            await read
        with pytest.raises(NotLeader):
            leader.propose(enqueue(b"3"))
        assert not leader.status().ready


async def test_transfer_moves_leadership_and_loses_nothing(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        target = next(name for name, shard in cluster.running.items() if shard is not leader)
        pending = [leader.propose(enqueue(str(number).encode())) for number in range(10)]
        assert await leader.transfer(target) == target
        answers: list[Any] = await asyncio.gather(*pending, return_exceptions=True)
        done = [answer for answer in answers if not isinstance(answer, Exception)]
        assert all(isinstance(answer, NotLeader | OutcomeUnknown) for answer in answers if answer not in done)
        assert len(await drain(await cluster.leader())) >= len(done)


async def test_a_stopping_node_answers_what_is_in_flight_and_hands_over(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        pending = [leader.propose(enqueue(str(number).encode())) for number in range(10)]
        stopping = asyncio.create_task(cluster.stop(leader.config.node_id))
        await asyncio.gather(*pending)
        with pytest.raises(Stopping):
            leader.propose(enqueue(b"late"))
        await stopping
        assert len(await drain(await cluster.leader())) == 10


async def test_a_failed_commit_ends_the_node_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shards(tmp_path, size=1) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(leader.environment, "begin_write", fail)
        with pytest.raises(OutcomeUnknown):
            await leader.propose(enqueue(b"2"))
        assert isinstance(cluster.fatal["n1"], StorageFailed)
        with pytest.raises(Stopping):
            leader.propose(enqueue(b"3"))


async def test_short_of_disk_enqueues_are_refused_and_leases_go_on(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        follower = next(shard for shard in cluster.running.values() if shard is not leader)
        name = follower.config.node_id
        await cluster.kill(name)
        follower = await cluster.start(name, disk_reserve_bytes=1 << 62)

        def refused() -> bool:
            try:
                leader.propose(enqueue(b"2")).cancel()
            except DiskReserve as error:
                return follower.config.node_id in str(error)
            return False

        await until(refused)
        assert (await leader.propose(lease())).messages


async def test_what_waits_is_bounded_in_commands(tmp_path: Path) -> None:
    async with shards(tmp_path, waiting_commands=5) as cluster:
        leader = await cluster.leader()
        taken = [leader.propose(enqueue(b"1")) for _ in range(5)]
        with pytest.raises(Overloaded):
            leader.propose(enqueue(b"1"))
        await asyncio.gather(*taken)
        await leader.propose(enqueue(b"1"))


async def test_an_entry_gathers_what_is_applied_in_a_moment(tmp_path: Path) -> None:
    """Handed over in one pass of the loop: small ones share an entry, dear ones have one each."""

    def dear(number: int) -> bytes:
        blob = packing.pack([packing.pack_message(b"1")] * 1_000)
        keys = [f"{number}-{at}" for at in range(1_000)]
        return commands.encode(commands.Enqueue(QUEUE, [commands.Part(0, None, blob, replace_keys=list(keys))]))

    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        done = await asyncio.gather(*(leader.propose(dear(number)) for number in range(5)))
        assert len({one.index for one in done}) == 5
        done = await asyncio.gather(*(leader.propose(enqueue(b"1")) for _ in range(500)))
        assert len({one.index for one in done}) == 1


async def test_a_lease_expires_through_the_log(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        first = await leader.propose(commands.encode(commands.Lease(QUEUE, 1, lease_ms=50)))
        assert first.messages is not None
        await until(lambda: leader.stale().ready(QUEUE) == 1)
        again = await leader.propose(lease())
        assert again.messages is not None
        assert (again.messages[0].deliveries, again.messages[0].failures) == (2, 1)
        assert again.reply.lease_id > first.reply.lease_id


async def test_the_log_is_cut_below_what_every_node_has(tmp_path: Path) -> None:
    async with shards(tmp_path, compact_bytes=50_000) as cluster:
        leader = await cluster.leader()
        for _ in range(150):
            await leader.propose(enqueue(b"x" * 1000))
        await until(lambda: all(shard.status().first_index > 50 for shard in cluster.running.values()))
        lagging = next(name for name, shard in cluster.running.items() if shard is not leader)
        await cluster.kill(lagging)
        cut = leader.status().first_index
        for _ in range(100):
            await leader.propose(enqueue(b"x" * 1000))
        assert leader.status().first_index <= max(cut, leader.status().last_index - 100)
        shard = await cluster.start(lagging)
        await until(lambda: shard.status().applied_index >= leader.status().commit_index)
        _, digests = await leader.digest()
        assert len(set(digests.values())) == 1


def hello(**changed: Any) -> Hello:
    fields = {
        "protocol": 1,
        "cluster_id": "test",
        "node_id": "n2",
        "node_uuid": "uuid",
        "boot": 3,
        "api_url": "",
        "peer_address": "",
        "version": "0",
        "last_index": 10,
        "term": 1,
    }
    return Hello(**(fields | changed))


def two() -> tuple[int, Configuration, bool]:
    return 0, bootstrap({"n1": "", "n2": ""}), True


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cluster_id": "other"}, "belongs to cluster test"),
        ({"node_id": "n9"}, "not a member"),
        ({"node_uuid": "new"}, "another data folder"),
        ({"boot": 2}, "old copy"),
        ({"last_index": 4}, "ends at 4, but it had acknowledged 7"),
    ],
)
def test_a_folder_that_forgot_its_promises_is_refused(changed: dict[str, Any], reason: str) -> None:
    roster = Roster("test", None, two)
    assert roster.admit(hello()) is None
    roster.met(hello())
    roster.matched("n2", 7)
    kept = Roster("test", roster.encode(), two)
    assert kept.admit(hello(boot=4)) is None
    refusal = kept.admit(hello(**changed))
    assert refusal is not None
    assert reason in refusal.reason


async def test_a_leader_whose_clock_is_far_off_hands_leadership_over(tmp_path: Path) -> None:
    """Once a second the shard looks at its clock; it leads again only when the clock is right."""
    wrong = {"by": 0.0}
    async with shards(tmp_path, wall=lambda name: time.time() + (wrong["by"] if name == "n1" else 0.0)) as cluster:
        leader = await cluster.leader()
        if leader.config.node_id != "n1":
            await leader.transfer("n1")
        wrong["by"] = 5.0
        await until(lambda: cluster.running["n1"].status().role != "leader")
        other = await cluster.leader()
        assert other.config.node_id != "n1"
        committed = await other.propose(enqueue(b"1"))
        assert abs(committed.wall_ms - time.time() * 1000) < 1000


class LongCommit:
    """The next commit of `shard` lands only when the test says so, and takes as long as the test says."""

    def __init__(self, shard: RaftShard, clocks: dict[str, float]) -> None:
        self._shard, self._clocks = shard, clocks
        self._done: list[Callable[[], None]] = []
        self._commit = shard.writer.commit
        shard.writer.commit = self._hold  # type: ignore[method-assign]

    def _hold(self, batch: WriteBatch, done: Done) -> None:
        self._shard.writer.commit = self._commit  # type: ignore[method-assign]
        self._commit(batch, lambda error: self._done.append(lambda: done(error)))

    async def takes(self, seconds: float) -> None:
        await until(lambda: bool(self._done))
        name = self._shard.config.node_id
        self._clocks[name] = self._clocks.get(name, 0.0) + seconds

    def land(self) -> None:
        self._done.pop()()


async def test_a_commit_of_a_second_does_not_cost_leadership(tmp_path: Path) -> None:
    clocks: dict[str, float] = {}
    async with shards(tmp_path, monotonic=lambda name: time.monotonic() + clocks.get(name, 0.0)) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        term = leader.status().term
        commit = LongCommit(leader, clocks)
        pending = leader.propose(enqueue(b"2"))
        await commit.takes(1.0)
        commit.land()
        await pending
        assert (leader.status().role, leader.status().term) == ("leader", term)


async def test_while_a_commit_hangs_clients_are_answered_and_sent_away(tmp_path: Path) -> None:
    """A disk that hangs: the leader cannot step down, as nothing is stepped, but nobody waits for it for ever."""
    clocks: dict[str, float] = {}
    async with shards(tmp_path, monotonic=lambda name: time.monotonic() + clocks.get(name, 0.0)) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        commit = LongCommit(leader, clocks)
        pending = leader.propose(enqueue(b"2"))
        await commit.takes(0.0)
        waiting, reading = leader.propose(enqueue(b"3")), leader.read()
        await commit.takes(2.5)
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown):
                await pending
            for refused in (waiting, reading):
                with pytest.raises(NotLeader) as told:
                    await refused
                assert told.value.leader is None
        with pytest.raises(NotLeader):
            leader.propose(enqueue(b"4"))
        assert not leader.status().ready
        commit.land()
        assert len(await drain(await cluster.leader())) in (1, 2)


async def test_a_follower_says_that_it_follows_while_its_commit_takes_long(tmp_path: Path) -> None:
    clocks: dict[str, float] = {}
    async with shards(tmp_path, monotonic=lambda name: time.monotonic() + clocks.get(name, 0.0)) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        followers = [shard for shard in cluster.running.values() if shard is not leader]
        commits = [LongCommit(shard, clocks) for shard in followers]
        pending = leader.propose(enqueue(b"2"))
        for commit in commits:
            await commit.takes(1.0)
        view = await leader.read()
        assert view.ready(QUEUE) == 1
        assert not pending.done()
        for commit in commits:
            commit.land()
        await pending


async def test_a_node_that_never_comes_to_rest_stops_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower under load has always something that rides, or a commit that runs."""
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        follower = next(name for name, shard in cluster.running.items() if shard is not leader)
        pending = property(lambda _overlay: 1, lambda _overlay, _bytes: None)
        monkeypatch.setattr(Overlay, "pending_bytes", pending, raising=False)
        async with asyncio.timeout(5):
            await cluster.stop(follower)


async def test_a_commit_is_not_handed_to_a_writer_that_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait in the loop for a thread that is gone."""
    async with shards(tmp_path, size=1) as cluster:
        leader = await cluster.leader()
        await until(lambda: leader.status().commit_index == leader.status().last_index)
        done: list[str] = []
        close = leader.writer.close
        monkeypatch.setattr(leader.writer, "commit", lambda *_: done.append("commit"))
        monkeypatch.setattr(leader.writer, "close", lambda: (done.append("close"), close()))
        pending = leader.propose(enqueue(b"1"))
        leader._sent = True
        leader._run()
        await cluster.kill("n1")
        await asyncio.sleep(0)
        assert done == ["close"]
        with pytest.raises(OutcomeUnknown):
            await pending


async def test_what_fails_between_queue_and_log_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shards(tmp_path, size=1) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))

        def fail(_command: bytes) -> int:
            raise AssertionError("broken")

        monkeypatch.setattr(leader._engine, "propose", fail)
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown):
                await leader.propose(enqueue(b"2"))
        assert "n1" in cluster.fatal


async def test_a_transfer_to_a_node_that_is_not_there_pauses_nothing(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        target = next(name for name, shard in cluster.running.items() if shard is not leader)
        await cluster.kill(target)
        await until(lambda: not next(peer for peer in leader.status().peers if peer.id == target).reachable)
        with pytest.raises(OutcomeUnknown, match=f"{target} is not connected"):
            await leader.transfer(target)
        with pytest.raises(ChangeRefused, match="n9 does not vote"):
            await leader.transfer("n9")
        assert not leader._engine.transferring
        await leader.propose(enqueue(b"1"))


async def test_a_read_rides_with_the_round_of_an_entry(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))
        leader._engine.broadcast()  # no heartbeat is due now
        rounds = leader._engine.round
        alone = leader.read()
        leader._run()
        assert leader._engine.round == rounds + 1
        await alone
        leader._engine.broadcast()
        rounds = leader._engine.round
        read, written = leader.read(), leader.propose(enqueue(b"2"))
        leader._run()
        assert leader._engine.round == rounds + 1
        await asyncio.gather(read, written)


async def test_what_a_node_has_acknowledged_is_known_after_a_restart(tmp_path: Path) -> None:
    """It was kept only when a peer's identity changed, so a copy of its folder of an hour ago came in unnoticed."""
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        name = leader.config.node_id

        def kept() -> Roster:
            return Roster("test", leader.environment.meta("roster"), leader._membership)

        for number in range(10):
            await leader.propose(enqueue(str(number).encode()))
        last = leader.status().last_index
        await until(lambda: all(peer.match_index == last for peer in leader.status().peers))
        leader._keep_roster = True  # as once a second
        await leader.propose(enqueue(b"more"))
        await until(lambda: all(kept().match(other) >= last - 1 for other in cluster.voters if other != name))


async def test_a_digest_that_is_being_taken_ends_before_the_environment_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that reads a map which is no longer there ends the process."""
    begun, ended = threading.Event(), threading.Event()
    hashing = digest.State.digest

    def slowly(state: digest.State) -> str:
        begun.set()
        time.sleep(0.05)
        found = hashing(state)
        ended.set()
        return found

    monkeypatch.setattr(digest.State, "digest", slowly)
    async with shards(tmp_path, size=1) as cluster:
        leader = await cluster.leader()
        asked = asyncio.create_task(leader.digest(within=0.0))
        await until(begun.is_set)
        await cluster.kill("n1")
        assert ended.is_set()
        await asked


async def test_what_made_a_commit_is_known_of_its_node_at_once(tmp_path: Path) -> None:
    """Else an old copy of its folder, without just that entry, comes in unnoticed until the next heartbeat."""
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        for _ in range(20):
            committed = await leader.propose(enqueue(b"1"))
            known = [leader._roster.match(node) for node in cluster.voters if node != leader.config.node_id]
            assert max(known) >= committed.index
