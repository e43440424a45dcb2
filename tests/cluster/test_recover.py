"""A cluster that lost its quorum for ever goes on from one folder that is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable

import pytest

from raftq.node.exits import Exit
from tests.cluster.client import ask
from tests.cluster.load import Load
from tests.cluster.test_backup import ack, assert_equal, bodies_of, enqueue, lease, urls
from tests.cluster.up import RAFTQ, READY, Up, run

pytestmark = pytest.mark.cluster


def answer(folder: str, text: str) -> subprocess.CompletedProcess[str]:
    """`raftq recover`, and what a person types."""
    command = [*RAFTQ, "recover", "--data", folder]
    return subprocess.run(command, input=f"{text}\n", capture_output=True, text=True, check=False)


def test_one_node_that_is_left_becomes_a_cluster_and_others_join_it(up: Callable[..., Up]) -> None:
    old = up()
    old.wait_for(READY)
    enqueue(old, "first", "second")
    leased = lease(old)
    load = Load(urls(old), seed=1)
    load.start()
    load.wait_for(200)
    load.end()
    assert old.interrupt() == Exit.STOPPED
    n1, n2, n3 = (str(old.data / name) for name in ("n1", "n2", "n3"))
    shutil.rmtree(n2)

    code, said = run("recover", "--look", n1, n3)
    assert code == 0
    assert [line.split()[1] for line in said.splitlines()[1:3]] == ["n1", "n3"]
    best = said.rpartition("raftq recover --data ")[2]
    assert best in (n1, n3)
    code, said = run("recover", "--look", n2)
    assert (code, "is not the data folder of a node" in said) == (Exit.USAGE, True)

    # It asks, and takes no other answer than the name of the node.
    asked = answer(best, "yes")
    assert (asked.returncode, "cannot be undone" in asked.stdout) == (Exit.USAGE, True), asked
    assert asked.stderr == "raftq: nothing was changed\n"
    name = best.rpartition("/")[2]
    asked = answer(best, name)
    assert asked.returncode == 0, asked

    new = up(data=old.data, new=False)
    new.wait_for(READY)
    assert [node.id for node in new.nodes()] == [name]
    code, said = run("recover", "--data", best, "--yes")
    assert (code, "stop raftq up first" in said) == (Exit.FOLDER_IN_USE, True), said
    load.check()  # its nodes have the addresses that they had

    assert ack(new, leased.receipt) == "gone"
    again = lease(new)
    assert (again.body, again.fence > leased.fence) == ("first", True)
    assert ack(new, again.receipt) == "done"
    for other in ("n4", "n2"):
        code, said = run("cluster", "add", other, "--data", str(new.data))
        assert (code, said.endswith(f"{other} votes")) == (0, True), said
    assert_equal(new)
    assert bodies_of(new) == ["second"]

    # A folder of a node that was given up belongs to the cluster that is no more.
    lost = n3 if best == n1 else n1
    cluster_id = ask("GET", f"{urls(new)[0]}/v1/cluster").json()["cluster_id"]
    node_id = lost.rpartition("/")[2]
    code, said = run("node", f"--node-id={node_id}", f"--cluster-id={cluster_id}", f"--data={lost}")
    assert (code, "holds data of cluster local-" in said) == (Exit.FOREIGN_DATA, True)


def test_what_was_never_committed_counts_from_then_on(up: Callable[..., Up]) -> None:
    """A leader that took messages with nobody to confirm them: after the recovery they are there."""
    old = up("--no-restart")
    old.wait_for(READY)
    enqueue(old, "acknowledged")
    leader = ask("GET", f"{urls(old)[0]}/v1/cluster").json()["leader"]
    others = [node for node in old.nodes() if node.id != leader]
    for node in others:
        assert node.pid is not None
        os.kill(node.pid, signal.SIGSTOP)
    unsure = ask("POST", f"{old.node(leader).api_url}/v1/queues/marks/messages", {"body": "unknown"})
    assert (unsure.status, unsure.json()["applied"]) == (503, "unknown")
    assert old.interrupt() == Exit.STOPPED
    found = run("recover", "--look", str(old.data / leader))[1].splitlines()[1].split()
    last, applied = (int(text.replace(",", "")) for text in (found[5], found[7]))
    assert last > applied
    assert run("recover", "--data", str(old.data / leader), "--yes")[0] == 0
    new = up(data=old.data, new=False)
    new.wait_for(READY)
    assert bodies_of(new) == ["acknowledged", "unknown"]
