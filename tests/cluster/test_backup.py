"""A backup is made while clients work, and a new cluster goes on from it, out of reach of the old one."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.client.client import AsyncClient
from raftq.client.models import LeasedMessage, NewMessage
from raftq.node import probe
from raftq.node.cluster_file import ClusterFile
from raftq.node.exits import Exit
from raftq.node.local_cluster import PEER_PORTS, new_state
from raftq.node.local_ports import free_first
from raftq.node.waiting import wait_until
from raftq.storage import snapshot
from tests.cluster.client import ask
from tests.cluster.load import Load
from tests.cluster.up import RAFTQ, READY, Up, run

pytestmark = pytest.mark.cluster


@pytest.fixture
def old(up: Callable[..., Up]) -> Up:
    started = up()
    started.wait_for(READY)
    return started


def urls(running: Up) -> list[str]:
    return [node.api_url for node in running.nodes()]


def bodies_of(running: Up) -> list[str]:
    """Of all messages of the queue marks, by acking them."""

    async def take() -> list[str]:
        found = []
        async with AsyncClient(urls(running)) as client:
            while leased := await client.lease("marks", max=1000):
                found += [message.body for message in leased]
                await client.ack("marks", [message.receipt for message in leased])
        return found

    return asyncio.run(take())


def enqueue(running: Up, *bodies: str) -> None:
    async def put() -> None:
        async with AsyncClient(urls(running)) as client:
            await client.enqueue("marks", [NewMessage(body=body) for body in bodies])

    asyncio.run(put())


def lease(running: Up) -> LeasedMessage:
    async def take() -> LeasedMessage:
        async with AsyncClient(urls(running)) as client:
            [message] = await client.lease("marks", lease_seconds=600)
            return message

    return asyncio.run(take())


def ack(running: Up, receipt: str) -> str:
    async def settle() -> str:
        async with AsyncClient(urls(running)) as client:
            [settled] = await client.ack("marks", [receipt])
            return settled.status

    return asyncio.run(settle())


def assert_equal(running: Up) -> None:
    digests = ask("GET", f"{urls(running)[0]}/v1/cluster/digest").json()["nodes"]
    assert None not in digests.values()
    assert (len(digests), len(set(digests.values()))) == (3, 1)


def test_a_backup_under_load_becomes_a_new_cluster(old: Up, up: Callable[..., Up], tmp_path: Path) -> None:
    enqueue(old, "first", "second", "third")
    leased = lease(old)
    follower = next(
        node for node in old.nodes() if node.id != ask("GET", f"{urls(old)[0]}/v1/cluster").json()["leader"]
    )
    load = Load(urls(old), seed=1)
    load.start()
    try:
        load.wait_for(300)
        wait_until(
            lambda: ask("GET", f"{follower.api_url}/v1/queues/marks/stats?consistency=stale").status == 200, 20, ""
        )
        code, said = run("backup", str(tmp_path / "b.snapshot"), "--url", follower.api_url)
        assert (code, f"of {follower.api_url}" in said) == (0, True), said
        load.wait_for(300)
    finally:
        load.end()
    assert load.failed == []
    load.check()
    head = snapshot.check(tmp_path / "b.snapshot")
    assert str(head.index) in said.replace(",", "")
    assert not list((Path(follower.data) / "snapshots").iterdir())

    data = tmp_path / "new"
    port = free_first(3, PEER_PORTS)
    code, said = run("restore", str(tmp_path / "b.snapshot"), "--data", str(data), "--port", str(port))
    assert (code, said.endswith(f"raftq up --data {data}")) == (0, True), said
    new = up(data=data, new=False)
    new.wait_for(READY)
    assert_equal(new)
    counts = ask("GET", f"{urls(new)[0]}/v1/queues/jobs/stats").json()
    assert counts["leased"] == 0
    assert counts["ready"] > 0

    # The old cluster's receipts are gone, and what was leased there is leased anew, with a higher fence.
    assert ack(new, leased.receipt) == "gone"
    again = lease(new)
    assert (again.body, again.id, again.fence > leased.fence) == ("first", leased.id, True)
    assert ack(new, again.receipt) == "done"
    assert bodies_of(new) == ["second", "third"]
    # Both go on beside each other.
    assert ack(old, leased.receipt) == "done"
    assert bodies_of(old) == ["second", "third"]


def test_what_is_left_of_the_old_cluster_cannot_mix_with_the_new_one(
    old: Up, up: Callable[..., Up], tmp_path: Path
) -> None:
    """The new one has its addresses, and one of the old nodes is started in the place of a new one."""
    enqueue(old, "one")
    assert run("backup", str(tmp_path / "b"), "--url", urls(old)[0])[0] == 0
    stored = ClusterFile(old.data).read()
    assert stored is not None
    assert old.interrupt() == Exit.STOPPED
    port = stored.nodes[0].api_url.rpartition(":")[2]
    assert run("restore", str(tmp_path / "b"), "--data", str(tmp_path / "new"), "--port", port)[0] == 0
    new = up(data=tmp_path / "new", new=False)
    new.wait_for(READY)
    assert run("kill", "n1", "--data", str(new.data))[0] == 0
    told = f"{urls(new)[1]}/v1/cluster"
    before = wait_until(lambda: ask("GET", told).json()["leader"] and ask("GET", told).json(), 20, "a leader")
    assert before["cluster_id"] != stored.cluster_id

    n1 = stored.nodes[0]
    flags = [
        "node",
        "--node-id=n1",
        f"--data={n1.data}",
        f"--api-listen={n1.api_url.removeprefix('http://')}",
        f"--peer-listen={n1.peer_address}",
        f"--members={','.join(f'{node.id}={node.peer_address}' for node in stored.nodes)}",
    ]
    code, said = run(*flags, f"--cluster-id={before['cluster_id']}")
    assert (code, f"holds data of cluster {stored.cluster_id}" in said) == (Exit.FOREIGN_DATA, True)
    stranger = Stranger([*flags, f"--cluster-id={stored.cluster_id}"], tmp_path / "log")
    try:
        stranger.wait_for(f"it is of cluster '{stored.cluster_id}'")
        enqueue(new, "two")
    finally:
        stranger.end()
    after = ask("GET", told).json()
    assert (after["leader"], after["term"]) == (before["leader"], before["term"])
    assert run("start", "n1", "--data", str(new.data))[0] == 0
    wait_until(lambda: (probe.cluster(urls(new)[0]) or {}).get("leader"), 20, "n1 to be ready")
    assert bodies_of(new) == ["one", "two"]
    assert_equal(new)


class Stranger:
    """A `raftq node` that runs, and its log."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen([*RAFTQ, *arguments], stdout=file, stderr=file, env=os.environ)

    def wait_for(self, words: str) -> None:
        try:
            wait_until(lambda: words in self._log.read_text(), 20, words)
        except TimeoutError as error:
            raise AssertionError(self._log.read_text()) from error

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def test_a_cluster_of_machines_is_restored_node_by_node(old: Up, up: Callable[..., Up], tmp_path: Path) -> None:
    """With the settings of a node. `cluster.json` is written by hand here, to start them together."""
    enqueue(old, "one", "two")
    leased = lease(old)
    assert run("backup", str(tmp_path / "b"), "--url", urls(old)[1])[0] == 0
    folder = tmp_path / "new"
    folder.mkdir()
    state = new_state(folder, 3, free_first(3, PEER_PORTS))
    members = ",".join(f"{node.id}={node.peer_address}" for node in state.nodes)
    for node in state.nodes:
        flags = [f"--node-id={node.id}", f"--cluster-id={state.cluster_id}", f"--members={members}"]
        code, said = run("restore", str(tmp_path / "b"), *flags, f"--data={node.data}")
        assert (code, f"{node.id} of the new cluster {state.cluster_id}" in said) == (0, True), said
    code, said = run("restore", str(tmp_path / "b"), *flags, f"--data={node.data}")
    assert (code, "restore into a new folder" in said) == (Exit.CONFIG, True), said
    ClusterFile(folder).create(state)
    new = up(data=folder, new=False)
    new.wait_for(READY)
    assert ack(new, leased.receipt) == "gone"
    assert_equal(new)
    assert bodies_of(new) == ["one", "two"]
