"""Faults 4, 7, 8 and 20: what is applied, how often, and what a restart takes for committed.

Fault 8 was read in the source only; it shows when run.
"""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from pysyncobj.syncobj import _COMMAND_TYPE

from raftq.replication.engine import Timing
from raftq.replication.journal import Journal
from raftq.replication.shard import OutcomeUnknown
from raftq.storage.environment import Environment, EnvironmentDamaged, WriteBatch, u64
from raftq.storage.machine.commands import UnknownCommand
from raftq.storage.writer import Writer
from tests.faults.conftest import Maker
from tests.faults.harness import Cluster
from tests.replication.shards import enqueue, shards, until

#: The stock journal leaves files open when it reads its meta file.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

QUICK = Timing(election_min=0.1, election_max=0.2, heartbeat=0.02)


def test_fault_04_a_commit_index_beyond_the_log_is_believed_stock(stock: Maker, tmp_path: Path) -> None:
    """The commit index read at start may lie beyond the end of the journal, whose last pages were not yet on disk at a
    power cut: what is then written at these indexes counts as committed, without any follower."""
    cluster = stock(durable=True)
    cluster.elect("a", "b", "c")
    early = {name: (tmp_path / name).read_bytes() for name in "abc"}
    for value in "uvwxyz":
        cluster.write("a", value)
        cluster.exchange("a", "b", "c")
    cluster.step("a", seconds=1.5)  # the commit index is written once a second
    for name, journal in early.items():
        cluster.crash(name)
        (tmp_path / name).write_bytes(journal)
    cluster.restart("a")
    assert cluster["a"].commit_index > max(cluster["a"].log())
    cluster.restart("b")
    cluster.elect("a", "b")
    cluster.cut("a", "b")
    told = cluster.write("a", "heard by nobody")
    assert "heard by nobody" not in cluster["b"].log().values()
    assert told == ["ok"]


def test_fault_04_a_log_that_ends_before_what_was_applied_is_refused_ours(tmp_path: Path) -> None:
    """Log and applied index are written in one transaction, so that neither can be ahead. Should they differ, a node
    does not start."""
    environment = Environment(tmp_path / "a", map_bytes=1 << 24)
    writer = Writer(environment)
    writer.write(WriteBatch(entries=[(1, 0, b"\1")], meta={"applied": u64(7)}))
    with pytest.raises(EnvironmentDamaged, match="ends at 1, before the applied index 7"):
        Journal(environment)
    writer.close()
    environment.close()


def test_fault_07_an_exception_in_a_callback_applies_twice_stock(stock: Maker) -> None:
    """An exception of a result callback escapes between applying and counting: the entry is applied again."""
    cluster = stock(1)
    cluster.elect("a")
    cluster["a"].object.put("x", callback=_fails)
    with pytest.raises(RuntimeError):
        cluster.step("a", "a")
    cluster.step("a")
    assert cluster["a"].applied == ["x", "x"]


def test_fault_07_an_exception_in_apply_stalls_the_node_stock(stock: Maker) -> None:
    """An exception in apply repeats at every tick, before appends are sent: no heartbeat leaves any more."""
    cluster = stock()
    cluster.elect("a", "b", "c")
    cluster["a"].applied = cluster["a"].object.applied = None  # the state machine is broken
    cluster.write("a", "x")
    cluster.exchange("a", "b", "c")
    sent = len(cluster.history)
    for _ in range(20):
        with pytest.raises(AttributeError):
            cluster.step("a")
    assert cluster["a"].leads
    assert len(cluster.history) == sent


async def test_fault_07_an_exception_in_a_callback_stays_there_ours(tmp_path: Path) -> None:
    """The one who waits has a future: what its callbacks raise is not raised in the cycle."""
    failed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failed.append(context["exception"]))
    async with shards(tmp_path, size=1, timing=QUICK) as cluster:
        shard = await cluster.leader()
        first = shard.propose(enqueue(b"1"))
        first.add_done_callback(lambda _future: _fails())
        second = await shard.propose(enqueue(b"2"))
        assert [type(error) for error in failed] == [RuntimeError]
        assert not cluster.fatal
        view = await shard.read()
        assert view.ready("default/jobs") == 2
        assert shard.status().applied_index == second.index


async def test_fault_07_an_exception_in_apply_ends_the_node_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken invariant is told once, ends the node, and what is pending is answered."""
    async with shards(tmp_path, size=1, timing=QUICK) as cluster:
        shard = await cluster.leader()
        tries: list[Any] = []
        monkeypatch.setattr(shard._machine, "apply", lambda *args: tries.append(args) or _fails())
        pending = shard.propose(enqueue(b"1"))
        await until(lambda: "n1" in cluster.fatal)
        assert isinstance(cluster.fatal["n1"], RuntimeError)
        assert len(tries) == 1
        assert isinstance(pending.exception(), OutcomeUnknown)


def test_fault_08_an_unknown_code_version_shifts_what_is_applied_stock(stock: Maker) -> None:
    """A switch to a code version that this node does not know is skipped, without counting it as applied: the applied
    index stays one behind, and the next entry is applied twice."""
    cluster = stock(1)
    cluster.elect("a")
    cluster["a"].object._applyCommand(pickle.dumps(99, 2), None, _COMMAND_TYPE.VERSION)
    cluster["a"].object.put("x")
    for _ in range(3):
        cluster.step("a")
    assert cluster["a"].applied[:2] == ["x", "x"]


async def test_fault_08_an_unknown_entry_ends_the_node_ours(tmp_path: Path) -> None:
    """An entry of a kind or version that this node does not know stops it where it is, also when it starts again."""
    async with shards(tmp_path, size=1, timing=QUICK) as cluster:
        shard = await cluster.leader()
        await until(lambda: shard._committing is None)
        shard._engine.propose(bytes([_COMMAND_TYPE.VERSION]) + b"99")
        pending = shard.propose(enqueue(b"1"))
        with pytest.raises(OutcomeUnknown):
            await pending
        assert isinstance(cluster.fatal.pop("n1"), UnknownCommand)
        await cluster.kill("n1")
        again = await cluster.start("n1")
        await until(lambda: "n1" in cluster.fatal)
        assert again.stale().queue("default/jobs") is None


def restarted(cluster: Cluster) -> Cluster:
    """Three values are applied by all, and a is killed and started, and catches up."""
    cluster.elect("b", "a", "c")
    for value in "xyz":
        cluster.write("b", value)
    cluster.exchange("a", "b", "c")
    cluster.step("b")
    cluster.exchange("a", "b", "c")
    return cluster


def test_fault_20_a_restart_applies_everything_again_stock(stock: Maker) -> None:
    """At start the whole log is loaded into memory, and applied from its first entry on: a durable state machine gets
    every command twice."""
    cluster = restarted(stock(durable=True))
    cluster["a"].tick()
    assert cluster["a"].applied == ["x", "y", "z"]
    cluster.crash("a")
    cluster.restart("a")
    assert set("xyz") <= set(cluster["a"].log().values())  # a list in memory
    cluster.step("b")
    cluster.exchange("a", "b", "c")
    cluster["a"].tick()
    assert cluster["a"].applied == ["x", "y", "z"] * 2


def test_fault_20_a_restart_goes_on_where_it_was_ours(ours: Maker) -> None:
    """The applied index comes from the transaction that holds what was applied; of the log the last entry is loaded."""
    cluster = restarted(ours())
    applied = cluster["a"].engine.applied_index
    cluster.write("b", "last")
    cluster.exchange("a", "b", "c")
    cluster.crash("a")
    cluster.restart("a")
    engine = cluster["a"].engine
    assert applied <= engine.applied_index == engine.commit_index <= engine.journal.last_index
    assert engine.journal.bytes_in_memory < 2 * 120


def _fails(*_args: object) -> None:
    raise RuntimeError("of the client")
