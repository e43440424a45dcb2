"""Faults 3, 6, 11, 12, 14 and 23: snapshots, which stock pysyncobj calls dumps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pysyncobj.serializer import Serializer

from raftq.replication.cycle import RaftShard
from raftq.replication.engine import InvariantBroken
from raftq.replication.progress import Flow, Timing
from raftq.storage import snapshot
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.writer import Writer
from tests.faults.conftest import Maker
from tests.faults.harness import Cluster, Message, Told
from tests.replication.shards import drain, enqueue, shards, until

#: The stock journal leaves files open: when it reads its meta file, and when it is not destroyed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

QUICK = Timing(election_min=0.1, election_max=0.2, heartbeat=0.02)
#: The log is cut early, and nobody is waited for.
SHORT: dict[str, Any] = {"compact_bytes": 64 * 1024, "flow": Flow(lag_bytes=128 * 1024)}


def old_leader_comes_back(cluster: Cluster) -> Told:
    """a leads, is cut off, and is given a write that nobody hears of. The others go on, and cut what a needs off their
    logs. a is back, and gets the first message of the new leader. What the client of that write was told."""
    cluster.elect("a", "b", "c")
    cluster.cut("a", "b", "c")
    told = cluster.write("a", "lost")
    cluster.elect("b", "c")
    for value in ("x", "y", "z"):
        cluster.write("b", value)
        cluster.exchange("b", "c")
    cluster.step("b")
    cluster["b"].compact()
    assert min(cluster["b"].log()) > 3
    cluster.heal("a", "b")
    cluster.step("b")
    cluster.deliver("b", "a", 1)
    cluster.step("a")
    return told


def test_fault_03_a_message_of_a_snapshot_commits_what_nobody_has_stock(stock: Maker) -> None:
    """A message with a piece of a dump raises the commit index to the end of the log, which it was not held against: an
    old leader applies its own entry, tells its client that all is well, and then loses it."""
    cluster = stock(logCompactionBatchSize=50)
    told = old_leader_comes_back(cluster)
    assert told == ["ok"]
    assert "lost" in cluster["a"].applied
    cluster.exchange("a", "b")
    assert "lost" not in cluster["b"].applied


def test_fault_03_a_node_that_needs_a_snapshot_commits_nothing_ours(ours: Maker) -> None:
    """Pieces of snapshots say nothing of the commit index, and an append that does not match raises it for nobody."""
    cluster = ours(lag_bytes=1)
    assert old_leader_comes_back(cluster) == []
    assert "lost" not in cluster["a"].applied
    cluster.exchange("a", "b")
    assert cluster["b"].engine.lacking() == ["a"]
    assert cluster["a"].install_from(cluster["b"])
    cluster.step("b")
    cluster.exchange("a", "b")
    assert cluster["a"].commit_index == cluster["b"].commit_index
    assert "lost" not in cluster["a"].log().values()


def lagging(cluster: Cluster) -> None:
    """c was away, and needs what the leader a holds no more; b is cut off now."""
    cluster.elect("a", "b", "c")
    cluster.cut("c", "a", "b")
    for value in ("v", "w", "x"):
        cluster.write("a", value)
        cluster.exchange("a", "b")
    cluster.step("a")
    cluster["a"].compact()
    cluster.heal("c", "a", "b")
    cluster.cut("b", "a", "c")


def test_fault_06_an_older_snapshot_is_installed_stock(stock: Maker) -> None:
    """The pieces of a dump are heard again, as from a connection that was replaced, when there is more than they hold:
    the log begins anew behind them, and what was confirmed and acknowledged is lost with the leader."""
    cluster = stock()
    lagging(cluster)
    cluster.step("a")
    pieces = [message for message in cluster.waiting("a", "c") if message.get("serialized")]
    cluster.exchange("a", "c")
    told = cluster.write("a", "late")
    cluster.exchange("a", "c")
    cluster.step("a")
    assert told == ["ok"]
    assert "late" in cluster["c"].log().values()
    for message in pieces:
        cluster.inject("a", "c", message)
    assert "late" not in cluster["c"].log().values()
    cluster.crash("a")
    cluster.heal("b", "c")
    cluster.elect("b", "c")
    assert "late" not in {*cluster["b"].log().values(), *cluster["c"].log().values()}


def test_fault_06_an_older_snapshot_is_never_installed_ours(ours: Maker) -> None:
    """A snapshot at or below the commit index is an error of this node's own, and ends it."""
    cluster = ours(lag_bytes=1)
    lagging(cluster)
    cluster.step("a")
    cluster.exchange("a", "c")
    early = cluster["a"]._member.snapshot()
    assert cluster["c"].install_from(cluster["a"])
    cluster.step("a")
    cluster.exchange("a", "c")
    told = cluster.write("a", "late")
    cluster.exchange("a", "c")
    cluster.step("a")
    cluster.exchange("a", "c")
    assert told == ["ok"]
    engine = cluster["c"].engine
    assert early.index < engine.commit_index
    assert not cluster["c"]._member.install(early)
    with pytest.raises(InvariantBroken, match=f"a snapshot at {early.index} was installed over"):
        engine.installed(engine.journal, early.index, early.base)
    assert "late" in cluster["c"].log().values()


async def test_fault_06_an_older_snapshot_is_not_pulled_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole node: the offer of a snapshot and its pieces are heard again, and nothing of them is wanted."""
    async with shards(tmp_path, timing=QUICK, **SHORT) as cluster:
        leader = await cluster.leader()
        name = next(name for name in cluster.running if name != leader.config.node_id)
        await cluster.kill(name)
        await write_until_cut(leader)
        heard: list[tuple[str, Message]] = []
        on_message = RaftShard._on_message

        def listen(self: RaftShard, node: str, message: Message) -> None:
            if self.config.node_id == name and message["type"].startswith("snapshot"):
                heard.append((node, message))
            on_message(self, node, message)

        monkeypatch.setattr(RaftShard, "_on_message", listen)
        follower = await cluster.start(name)
        await until(lambda: follower.status().first_index > 1)
        await until(lambda: follower.status().commit_index == leader.status().commit_index)
        first, commit = follower.status().first_index, follower.status().commit_index
        assert {message["type"] for _, message in heard} == {"snapshot_offer", "snapshot_chunk"}
        for node, message in heard.copy():
            follower._on_message(node, message | {"term": follower.status().term})
        await until(lambda: not follower._inbox)
        assert follower._receiver.progress() is None
        assert (follower.status().first_index, follower.status().commit_index) == (first, commit)


async def write_until_cut(leader: RaftShard) -> None:
    """Entries until the log begins beyond where it ended."""
    end = leader.status().last_index
    while leader.status().first_index <= end:
        await leader.propose(enqueue(bytes(2000)))


def test_fault_11_a_dump_that_does_not_match_wipes_the_journal_stock(stock: Maker) -> None:
    """The dump is written first, and the journal cut later. Killed between the two, a node finds a journal that does
    not begin where its dump ends, and wipes it: with all that it confirmed since."""
    cluster = stock(durable=True, dumps=True)
    cluster.elect("a", "b", "c")
    for value in ("v", "w", "x"):
        cluster.write("a", value)
        cluster.exchange("a", "b", "c")
    cluster.step("a", "b")
    cluster["b"].object.forceLogCompaction()
    cluster["b"].tick()
    told = cluster.write("a", "late")
    cluster.exchange("a", "b")
    cluster.step("a")
    assert told == ["ok"]
    assert "late" in cluster["b"].log().values()
    cluster.crash("b")
    cluster.restart("b")
    assert "late" in cluster["b"].log().values()
    cluster["b"].tick()
    assert "late" not in cluster["b"].log().values()


STEPS = ("complete", "close", "rename", "sync", "open")


@pytest.mark.parametrize("killed", [f"{when} {step}" for step in STEPS for when in ("before", "after")])
def test_fault_11_a_kill_while_a_snapshot_is_installed_leaves_one_of_both_whole_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Tables and log are one environment, and a snapshot takes the place of both by one rename. Whatever else lies in
    the folder is not read at start."""
    environment = Environment(tmp_path, map_bytes=1 << 24)
    writer = Writer(environment)
    entries = [(index, 1, b"\0entry") for index in range(1, 8)]
    writer.write(WriteBatch(entries=entries, tables=[(b"old", b"1")], meta={"applied": u64(5)}))
    writer.close()
    with environment.begin_read() as txn:
        assert txn.stat()["entries"] == 1
    Environment(environment.incoming, map_bytes=1 << 24).close()
    when, step = killed.split()
    kill(monkeypatch, when, f"_install_{step}")
    with pytest.raises(KeyboardInterrupt):
        environment.install(environment.incoming, {"applied": u64(20)}, (20, 3))
    monkeypatch.undo()
    os.close(environment._lock)
    environment._lmdb.close()
    again = Environment(tmp_path, map_bytes=1 << 24)
    assert not again.incoming.exists()
    with again.begin_read() as txn:
        found = (again.applied(txn), again.log_bounds(), txn.stat()["entries"])
    renamed = STEPS.index(step) > STEPS.index("rename") or killed == "after rename"
    assert found == ((20, (20, 20), 0) if renamed else (5, (1, 7), 1))
    again.close()


def kill(monkeypatch: pytest.MonkeyPatch, when: str, step: str) -> None:
    """The process ends before or after a step of `Environment.install`."""
    run: Callable[..., None] = getattr(Environment, step)

    def killed(self: Environment, *args: Any) -> None:
        if when == "after":
            run(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Environment, step, killed)


DUMP_AND_WAIT = """
import sys, time
from pysyncobj.serializer import Serializer

class Slow:
    def __reduce__(self):
        open(sys.argv[2]).read()
        return str, ("older",)

Serializer(sys.argv[1], 1000, True, None, None, None).serialize((Slow(),), 1)
print("begun", flush=True)
time.sleep(60)
"""


def test_fault_12_a_forked_writer_replaces_a_newer_dump_stock(tmp_path: Path) -> None:
    """The dump is written by a forked process, which a kill of its parent does not reach. It goes on beside the next
    start of the node, and puts its dump in the place of a newer one."""
    dump, release = tmp_path / "dump", tmp_path / "release"
    os.mkfifo(release)
    parent = begin(DUMP_AND_WAIT, dump, release)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    restarted = Serializer(str(dump), 1000, False, None, None, None)
    restarted.serialize(("newer",), 9)
    assert restarted.deserialize() == ("newer",)
    release.write_text("")  # waits for the one that reads
    until_true(lambda: restarted.deserialize() == ("older",))


SNAPSHOT_AND_WAIT = """
import sys, time
from pathlib import Path
from raftq.storage import snapshot
from raftq.storage.environment import Environment

environment = Environment(Path(sys.argv[1]), map_bytes=1 << 24)

def between():
    print("begun", flush=True)
    time.sleep(60)

snapshot.write(environment, Path(sys.argv[2]), "test", between=between)
"""


def test_fault_12_the_writer_of_a_snapshot_ends_with_its_node_ours(tmp_path: Path) -> None:
    """A snapshot is written by a thread. When its process is killed nobody holds the folder any more, and what was
    begun has not the name of a snapshot."""
    folder, file = tmp_path / "n1", tmp_path / "outgoing.snapshot"
    fill(folder, 5, b"older")
    process = begin(SNAPSHOT_AND_WAIT, folder, file)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    fill(folder, 9, b"newer")  # it can be locked
    assert [path.name for path in tmp_path.glob("outgoing*")] == ["outgoing.snapshot.part"]
    environment = Environment(folder, map_bytes=1 << 24)
    head = snapshot.write(environment, file, "test")
    environment.close()
    assert (head.index, head.items) == (9, 2)
    assert snapshot.check(file) == head
    assert [path.name for path in tmp_path.glob("outgoing*")] == ["outgoing.snapshot"]


def begin(script: str, *arguments: Path) -> subprocess.Popen[bytes]:
    """Run `script` until it says that it has begun."""
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.stdout.close()
    return process


def fill(folder: Path, applied: int, key: bytes) -> None:
    environment = Environment(folder, map_bytes=1 << 24)
    writer = Writer(environment)
    first = (environment.log_bounds() or (1, 0))[1] + 1
    entries = [(index, 1, b"\0entry") for index in range(first, applied + 1)]
    writer.write(WriteBatch(entries=entries, tables=[(key, b"1")], meta={"applied": u64(applied)}))
    writer.close()
    environment.close()


def until_true(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Wait for another process."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_fault_14_a_journal_without_a_dump_file_is_empty_after_a_restart_stock(stock: Maker) -> None:
    """Without `fullDumpFile` the dump is kept in memory, and the journal cut on disk all the same: after a restart
    there is neither, and nothing is applied ever again."""
    cluster = stock(durable=True)
    cluster.elect("a", "b", "c")
    for value in ("v", "w", "x"):
        cluster.write("a", value)
        cluster.exchange("a", "b", "c")
    cluster.step("a", "b")
    cluster.exchange("a", "b", "c")
    cluster.step("b")
    assert cluster["b"].object.state == ["v", "w", "x"]
    cluster["b"].compact()
    cluster.crash("b")
    cluster.restart("b")
    cluster.write("a", "y")
    for _ in range(3):
        cluster.exchange("a", "b", "c")
        cluster.step("a", "b")
    assert "y" in cluster["b"].log().values()
    assert cluster["b"].object.state == []


async def test_fault_14_a_log_is_cut_below_what_is_on_disk_as_tables_ours(tmp_path: Path) -> None:
    """What an entry did is in the tables, durably, before the entry may be cut: they are all that a restart needs."""
    async with shards(tmp_path, size=1, timing=QUICK, **SHORT) as cluster:
        shard = await cluster.leader()
        bodies = [str(number).encode() * 200 for number in range(300)]
        for body in bodies:
            await shard.propose(enqueue(body))
        await until(lambda: shard.status().first_index > 100)
        await cluster.kill("n1")
        await cluster.start("n1")
        shard = await cluster.leader()
        assert shard.status().first_index > 100
        assert await drain(shard) == bodies


def sent_in_one_tick(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What the leader a sends to c in a tick, where each message takes a millisecond."""
    cluster.lose("a", "c")
    post = cluster.post

    def takes_time(source: str, target: str, message: Message) -> bool:
        cluster.now += 0.001
        return post(source, target, message)

    monkeypatch.setattr(cluster, "post", takes_time)
    cluster.step("a")
    return cluster.waiting("a", "c")


def test_fault_23_a_leader_without_a_ready_dump_spins_stock(stock: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the next dump is made none can be read, and the leader sends messages without one for a whole period, in
    every tick. Each is of the kind of fault 3."""
    cluster = stock()
    lagging(cluster)
    cluster.cut("c", "a")
    cluster.write("a", "y")
    cluster["a"].object._SyncObj__serializer.serialize((None,), 1)  # as the forked process that is at it
    cluster.heal("c", "a")
    sent = sent_in_one_tick(cluster, monkeypatch)
    assert len(sent) > 30
    assert {message["serialized"] for message in sent} == {None}


def test_fault_23_a_leader_without_a_ready_snapshot_beats_on_ours(ours: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who needs a snapshot gets a heartbeat a round, and the snapshot beside the log when there is one."""
    cluster = ours(lag_bytes=1)
    lagging(cluster)
    cluster.step("a")
    cluster.exchange("a", "c")
    assert cluster["a"].engine.lacking() == ["c"]
    sent = sent_in_one_tick(cluster, monkeypatch)
    assert [message["entries"] for message in sent] == [[]]
