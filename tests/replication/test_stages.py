"""How long things take is counted where they happen, once an entry or a commit."""

from __future__ import annotations

import asyncio
from pathlib import Path

from raftq.replication.stages import BOUNDS, Histogram
from tests.replication.shards import enqueue, shards, until


def test_a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        histogram.observe(seconds)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-2:] == [1, 1]
    assert sum(histogram.counts) == 5
    assert histogram.sum > 2 * BOUNDS[-1]


async def test_each_stage_is_observed_once_an_entry(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        stages = leader.stages
        before = sum(stages.waited.counts)
        # Handed over in one pass of the loop: one entry.
        await asyncio.gather(*(leader.propose(enqueue(b"1")) for _ in range(100)))
        await until(lambda: leader.status().applied_index == leader.status().last_index)
        entries = sum(stages.waited.counts) - before
        # The shard may have added one of its own.
        assert 1 <= entries <= 3
        assert sum(stages.replicated.counts) == sum(stages.latency.counts) == sum(stages.waited.counts)
        assert stages.latency.sum >= stages.replicated.sum > 0
        assert 0 < sum(stages.applied.counts) <= leader.status().applied_index
        assert sum(stages.committed.counts) == leader.writer.commits
        assert sum(stages.lag.counts) > 0
        follower = next(shard for shard in cluster.running.values() if shard is not leader)
        await until(lambda: follower.status().applied_index == leader.status().applied_index)
        assert sum(follower.stages.applied.counts) > 0
        assert sum(follower.stages.committed.counts) > 0
        others = {shard.status().node_id for shard in cluster.running.values() if shard is not leader}
        await until(lambda: set(leader.stages.peer_lags) == others)
        assert all(sum(lag.counts) and lag.sum > 0 for lag in leader.stages.peer_lags.values())


async def test_nodes_agree_about_the_time_while_nothing_is_done(tmp_path: Path) -> None:
    """Clocks that are off by less than what keeps a node from leading: what is told is the median."""
    off = {"n1": 0.0, "n2": 0.4, "n3": -0.4}
    async with shards(tmp_path, wall=lambda name: asyncio.get_running_loop().time() + 1e9 + off[name]) as cluster:
        leader = await cluster.leader()
        await leader.propose(enqueue(b"1"))

        def told() -> list[int]:
            return [shard.wall_ms() for shard in cluster.running.values()]

        await until(lambda: max(told()) - min(told()) < 100)
        before = told()
        await asyncio.sleep(0.3)
        assert all(now >= then + 250 for now, then in zip(told(), before, strict=True))
