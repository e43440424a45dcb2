"""Faults 19, 21, 25 and 26: what becomes of a client's command, and when the client is told."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pysyncobj.pickle
import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.tcp_connection import TcpConnection

from raftq.replication import wire
from raftq.replication.engine import InvariantBroken, Timing
from raftq.replication.shard import NotLeader, OutcomeUnknown, Overloaded
from tests.faults.conftest import Maker
from tests.replication.shards import Shards, enqueue, shards

#: So that an election takes no time worth mentioning.
QUICK = Timing(election_min=0.1, election_max=0.2, heartbeat=0.02)


def test_fault_19_a_lost_message_leaves_its_client_without_an_answer_stock(stock: Maker) -> None:
    """What `send` returns is ignored: a command lost on its way to the leader is never answered, nor sent again."""
    cluster = stock()
    cluster.elect("a", "b", "c")
    told = cluster["b"].propose("x")
    cluster.cut("a", "b")
    cluster.heal("a", "b")
    for _ in range(1200):
        cluster.step("a")
        cluster.exchange("a", "b", "c")
    assert told == []
    assert cluster["a"].applied == []


def test_fault_19_proposals_queue_without_limit_of_bytes_stock(stock: Maker) -> None:
    """The queue of proposals counts commands, not bytes."""
    cluster = stock(commandsQueueSize=300)
    reasons: list[Any] = []
    for _ in range(301):
        cluster["a"].object.put("x" * 100_000, callback=lambda _result, reason: reasons.append(reason))
    assert reasons == [FAIL_REASON.QUEUE_FULL]


async def test_fault_19_proposals_are_limited_by_bytes_and_always_answered_ours(tmp_path: Path) -> None:
    """Beyond the limit in bytes a proposal is refused at once; each one taken in ends, also when the node does."""
    async with shards(tmp_path, size=1, timing=QUICK, waiting_bytes=10_000) as cluster:
        shard = await cluster.leader()
        taken = [shard.propose(enqueue(bytes(4_000))) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 operations of 8"):
            shard.propose(enqueue(bytes(4_000)))
        assert [(await future).position for future in taken] == [0, 1]
        last = shard.propose(enqueue(b"1"))
        await cluster.kill("n1")
        with pytest.raises((OutcomeUnknown, NotLeader)):
            await last


def test_fault_19_what_was_lost_with_a_connection_is_sent_again_ours(ours: Maker) -> None:
    """What was on its way when a connection broke is known to be in doubt."""
    cluster = ours()
    cluster.elect("a", "b")
    told = cluster.write("a", "x")
    cluster.cut("a", "b")
    assert "x" not in cluster["b"].log().values()
    cluster.heal("a", "b")
    cluster.exchange("a", "b")
    assert told == ["ok"]


def test_fault_21_a_command_waits_for_the_period_stock(stock: Maker) -> None:
    """Appends leave once per period of 100 ms, on ticks of 50 ms: a client that waits for each answer gets 10 commands
    a second, however fast the network."""
    cluster = stock(appendEntriesPeriod=0.1)
    cluster.elect("a", "b", "c")
    done, told = 0, cluster["a"].propose("0")
    for _ in range(100):
        cluster.step("a", seconds=0.01)
        cluster.exchange("a", "b", "c")
        if told:
            done, told = done + 1, cluster["a"].propose(str(done))
    assert 5 <= done <= 10


def test_fault_21_a_command_waits_for_nothing_ours(ours: Maker) -> None:
    """An entry leaves when it is proposed, and is committed when a majority has answered: no time passes."""
    cluster = ours()
    cluster.elect("a", "b", "c")
    begun = cluster.now
    for number in range(100):
        told = cluster["a"].propose(str(number))
        cluster.exchange("a", "b", "c")
        assert told == ["ok"]
    assert cluster.now == begun


def test_fault_21_the_encoding_swells_and_compresses_stock() -> None:
    """A command is pickled, and again in each message, with protocol 2, which makes 1.5 bytes of a random one each
    time, and then compressed, for each follower anew."""
    command = pysyncobj.pickle.dumps((0, (os.urandom(20_000),)))
    message = pysyncobj.pickle.dumps({"type": "append_entries", "entries": [(command, 3, 1)]})
    assert 49_000 < len(message) < 52_000
    assert "zlib.compress(pickle.dumps(message), 3)" in inspect.getsource(TcpConnection.send)


def test_fault_21_the_encoding_adds_some_bytes_ours() -> None:
    """A body stays as it is, in one frame for all followers."""
    assert len(wire.frame({"type": "append", "entries": [(1, os.urandom(20_000))]})) < 20_100


def test_fault_25_a_command_without_a_leader_is_run_much_later_stock(stock: Maker) -> None:
    """A command given to a node without a leader is parked, and run whenever there is one: long after its client gave
    up, and perhaps did the work elsewhere."""
    cluster = stock()
    told = cluster["a"].propose("x")
    cluster.now += 3600
    assert told == []
    cluster.elect("a", "b", "c")
    cluster.step("a")
    cluster.exchange("a", "b", "c")
    cluster.step("a")
    assert cluster["a"].applied == ["x"]


async def test_fault_25_a_command_without_a_leader_is_refused_ours(ours: Maker, tmp_path: Path) -> None:
    """A shard refuses at once, and its engine would rather stop than park."""
    with pytest.raises(InvariantBroken):
        ours()["a"].propose("x")
    cluster = Shards(tmp_path / "shards")
    shard = await cluster.start("n1")
    with pytest.raises(NotLeader):
        shard.propose(enqueue(b"1"))
    await cluster.kill("n1")


def test_fault_26_a_deposed_leader_does_not_tell_its_clients_stock(stock: Maker) -> None:
    """The callbacks of a deposed leader wait until another entry is applied at their index, which may never come."""
    cluster = stock()
    cluster.elect("a", "b", "c")
    cluster.cut("a", "b", "c")
    told = [cluster.write("a", value) for value in "xyz"]
    cluster.elect("b", "c")
    cluster.heal("a", "b", "c")
    for _ in range(1200):  # 60 seconds
        cluster.step("b")
        cluster.exchange("a", "b", "c")
        cluster["a"].tick()
    assert cluster["b"].leads
    assert not cluster["a"].leads
    assert told == [[FAIL_REASON.DISCARDED], [], []]


async def test_fault_26_a_deposed_leader_tells_its_clients_ours(tmp_path: Path) -> None:
    """When leadership is lost, all that is pending ends: nobody waits."""
    async with shards(tmp_path) as cluster:
        shard = await cluster.leader()
        await shard.propose(enqueue(b"1"))
        for name in set(cluster.voters) - {shard.config.node_id}:
            await cluster.kill(name)
        pending = [shard.propose(enqueue(b"2")) for _ in range(3)]
        for future in pending:
            with pytest.raises(OutcomeUnknown):
                await future
        with pytest.raises(NotLeader):
            shard.propose(enqueue(b"3"))
