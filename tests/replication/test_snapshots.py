"""Snapshots between whole shards: who lags too far, or is new, gets one while the cluster works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raftq.replication.cycle import RaftShard
from raftq.replication.progress import Flow
from raftq.storage import snapshot
from raftq.storage.machine.apply import VERSION_MAX
from tests.replication.shards import Shards, enqueue, free_addresses, shards, until

#: The log is cut early, and nobody is waited for.
SHORT: dict[str, Any] = {"compact_bytes": 64 * 1024, "flow": Flow(lag_bytes=128 * 1024)}


async def write_until_cut(leader: RaftShard) -> int:
    """Entries until the log begins beyond where it ended."""
    end = leader.status().last_index
    count = 0
    while leader.status().first_index <= end:
        await leader.propose(enqueue(bytes(2000)))
        count += 1
    return count


async def same(cluster: Shards, names: list[str]) -> None:
    leader = await cluster.leader()
    await until(
        lambda: all(cluster.running[name].status().commit_index >= leader.status().commit_index for name in names)
    )
    _, found = await leader.digest()
    assert None not in found.values(), found
    assert len(set(found.values())) == 1, found
    assert set(found) == set(names)


async def test_a_follower_that_lags_too_far_gets_a_snapshot(tmp_path: Path) -> None:
    async with shards(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        name = next(name for name in cluster.running if name != leader.config.node_id)
        await cluster.kill(name)
        written = await write_until_cut(leader)
        assert written > 30
        follower = await cluster.start(name)
        await until(lambda: follower.status().first_index > 1)
        await same(cluster, ["n1", "n2", "n3"])
        assert follower.status().first_index > written // 2
        assert (follower.snapshots_installed, leader.snapshots_installed) == (1, 0)
        assert leader.snapshot_bytes_sent > 0 == follower.snapshot_bytes_sent
        await cluster.kill(name)  # what was installed is what it starts from
        follower = await cluster.start(name)
        await same(cluster, ["n1", "n2", "n3"])


async def test_a_node_joins_by_a_snapshot_while_others_write(tmp_path: Path) -> None:
    async with shards(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        await write_until_cut(leader)
        cluster.voters["n4"] = free_addresses(1)[0]
        joiner = await cluster.start("n4", join=True)
        await leader.add("n4", cluster.voters["n4"])
        while "n4" not in leader._engine.voters:
            await leader.propose(enqueue(bytes(500)))
        await same(cluster, ["n1", "n2", "n3", "n4"])
        assert joiner.status().first_index > 1


async def test_a_leader_keeps_the_log_after_a_snapshot_on_its_way(tmp_path: Path) -> None:
    """Else it would be needless when it arrives, and the next one too."""
    async with shards(tmp_path, **SHORT) as cluster:
        leader = await cluster.leader()
        name = next(name for name in cluster.running if name != leader.config.node_id)
        await cluster.kill(name)
        await write_until_cut(leader)
        leader._sender._begin_making()
        await until(lambda: leader._sender._held is not None)
        pinned = leader._sender.pinned_index
        assert pinned is not None
        for _ in range(300):
            await leader.propose(enqueue(bytes(2000)))
        assert leader.status().first_index <= pinned
        await cluster.start(name)
        await same(cluster, ["n1", "n2", "n3"])


async def test_a_backup_of_a_follower_is_what_the_leader_has(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        for number in range(20):
            await leader.propose(enqueue(str(number).encode()))
        await until(lambda: leader._machine.version == VERSION_MAX)  # from here on nothing is proposed unasked
        index, digests = await leader.digest()
        follower = next(shard for shard in cluster.running.values() if shard is not leader)
        await until(lambda: follower._applied_durable >= index)
        head = await follower.backup(tmp_path / "backup")
        assert snapshot.check(tmp_path / "backup") == head
        assert (head.index, head.digest) == (index, digests[leader.config.node_id])
