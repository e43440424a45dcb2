"""An operator changes a cluster of real processes while clients work: nothing that was acknowledged is lost, and no
request fails that is retried."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from raftq.client.models import Cluster, ClusterNode
from raftq.node import probe
from raftq.node.exits import Exit
from raftq.node.waiting import wait_until
from tests.cluster.client import ask
from tests.cluster.load import Load
from tests.cluster.up import READY, Up, run

pytestmark = pytest.mark.cluster

#: Requests that succeed before, and after, what a test is about.
SOME = 200


@pytest.fixture
def running(up: Callable[..., Up]) -> Up:
    started = up()
    started.wait_for(READY)
    return started


@contextmanager
def load_on(running: Up, again: Load | None = None) -> Iterator[Load]:
    """Clients that work before, during and after the block; `again`: they go on with what an earlier block left."""
    load = again or Load([node.api_url for node in running.nodes()], seed=1)
    load.start()
    try:
        load.wait_for(SOME)
        yield load
        load.wait_for(SOME)
    finally:
        load.end()
    assert load.failed == []
    load.check()


def cluster_of(running: Up) -> Cluster:
    """As the leader sees it."""
    for node in running.nodes():
        found = probe.cluster(node.api_url)
        if found and found["leader"] == node.id:
            return msgspec.convert(found, Cluster)
    raise AssertionError("no leader")


def leader(running: Up) -> str:
    return wait_until(lambda: cluster_of(running).leader, 20, "a leader")


def follower(running: Up) -> str:
    return next(node.id for node in running.nodes() if node.id != leader(running))


def voters(running: Up) -> list[str]:
    return [member.id for member in cluster_of(running).nodes if member.voter]


def assert_equal(running: Up) -> None:
    digests = ask("GET", f"{running.nodes()[0].api_url}/v1/cluster/digest").json()["nodes"]
    assert sorted(digests) == sorted(node.id for node in running.nodes())
    assert None not in digests.values()
    assert len(set(digests.values())) == 1


def change(running: Up, *arguments: str) -> str:
    code, said = run("cluster", *arguments, "--data", str(running.data))
    assert code == 0, said
    return said


def refused(running: Up, *arguments: str) -> str:
    code, said = run("cluster", *arguments, "--data", str(running.data))
    assert (code, said.count("raftq: ")) == (Exit.REFUSED, 1), said
    return said


def test_a_fourth_node_is_added_under_load_and_votes(running: Up) -> None:
    with load_on(running) as load:
        said = change(running, "add", "n4")
        assert said.startswith(f"n4 is a learner now, {running.node('n4').api_url}, its data in ")
        assert said.endswith("n4 votes")
    assert voters(running) == ["n1", "n2", "n3", "n4"]
    assert_equal(running)
    # Its vote is needed: 3 of 4.
    assert run("kill", follower(running), "--data", str(running.data))[0] == 0
    with load_on(running, load):
        pass


def test_a_cluster_that_was_changed_comes_back_as_it_was(running: Up, up: Callable[..., Up]) -> None:
    change(running, "add", "n4")
    change(running, "remove", "n1")
    assert ask("POST", f"{running.nodes()[0].api_url}/q/jobs", "kept").status == 201
    assert running.interrupt() == Exit.STOPPED
    again = up(new=False)
    again.wait_for(READY)
    assert [node.id for node in again.nodes()] == voters(again) == ["n2", "n3", "n4"]
    assert ask("GET", f"{again.node('n4').api_url}/q/jobs").text == '"kept"'
    assert (again.data / "n1" / "data.mdb").exists()


def test_a_dead_node_is_replaced_by_one_command_under_load(running: Up) -> None:
    with load_on(running):
        dead = follower(running)
        assert run("kill", dead, "--data", str(running.data))[0] == 0
        said = change(running, "replace", dead, "n4")
        assert f"n4 votes, and {dead} is removed" in said
        assert said.endswith(f"{dead} has left the cluster; its data stays in {running.data / dead}")
    rest = sorted({"n1", "n2", "n3", "n4"} - {dead})
    assert [node.id for node in running.nodes()] == voters(running) == rest
    assert_equal(running)


def test_a_leader_that_lives_is_replaced_under_load(running: Up) -> None:
    with load_on(running):
        old = leader(running)
        before = running.node(old)
        change(running, "replace", old, "n4")
    assert voters(running) == sorted({"n1", "n2", "n3", "n4"} - {old})
    assert probe.cluster(before.api_url) is None
    assert_equal(running)


def test_a_leader_is_removed_under_load(running: Up) -> None:
    with load_on(running):
        old = leader(running)
        before = running.node(old)
        change(running, "remove", old)
    rest = sorted({"n1", "n2", "n3"} - {old})
    assert [node.id for node in running.nodes()] == voters(running) == rest
    assert probe.cluster(before.api_url) is None
    assert_equal(running)


def test_leadership_is_handed_over_under_load(running: Up) -> None:
    with load_on(running):
        target = follower(running)
        code, said = run("cluster", "transfer", target, "--url", running.nodes()[0].api_url)
        assert (code, said) == (0, f"{target} leads")
    assert len(voters(running)) == 3


def test_what_would_lose_the_quorum_is_refused_and_taken_back(running: Up) -> None:
    down = follower(running)
    other = next(node.id for node in running.nodes() if node.id not in (down, leader(running)))
    before = running.node(other)
    assert run("kill", down, "--data", str(running.data))[0] == 0
    with load_on(running):
        wait_until(lambda: not member(running, down).reachable, 20, f"{down} to be missed")
        hint = f"bring back {down} first"
        assert hint in refused(running, "remove", other)
        assert hint in refused(running, "replace", other, other)
    now = running.node(other)
    assert (now.pid, now.leaves, now.joins, Path(now.data).name) == (before.pid, False, False, other)
    assert [node.id for node in running.nodes()] == voters(running) == ["n1", "n2", "n3"]


def member(running: Up, node: str) -> ClusterNode:
    return next(found for found in cluster_of(running).nodes if found.id == node)


def ends_fenced(running: Up, node: str, why: str) -> None:
    """It ends with one line that says what to do, and is not started again."""
    running.wait_for(f"{node} ended with exit code {Exit.FENCED:d}", why, "raftq cluster replace", "it stays down")
    wait_until(lambda: running.node(node).kept_down, 10, f"{node} to be kept down")


def test_a_wiped_folder_is_fenced_and_comes_back_by_one_command(running: Up, up: Callable[..., Up]) -> None:
    wiped = follower(running)
    with load_on(running) as load:
        assert run("kill", wiped, "--data", str(running.data))[0] == 0
        shutil.rmtree(running.data / wiped)
        run("start", wiped, "--data", str(running.data))
        ends_fenced(running, wiped, "comes with another data folder")
    # Also one that is started again with the whole cluster: the others go on without it.
    assert running.interrupt() == Exit.STOPPED
    again = up(new=False)
    again.wait_for(READY)
    again.wait_for(f"  {wiped}  ", "is down: ", "comes with another data folder")
    with load_on(again, load):
        said = change(again, "replace", wiped, wiped)
        assert said.endswith(f"the old data of {wiped} stays in {again.data / wiped}")
    assert voters(again) == ["n1", "n2", "n3"]
    assert again.node(wiped).data == str(again.data / f"{wiped}-2")
    assert_equal(again)


def test_an_old_copy_of_a_folder_is_fenced_and_comes_back_by_one_command(running: Up) -> None:
    old = follower(running)
    data, copy = running.data / old, running.data / "copy"
    with load_on(running) as load:
        assert run("kill", old, "--data", str(running.data))[0] == 0
        shutil.copytree(data, copy)
        assert run("start", old, "--data", str(running.data))[0] == 0
        wait_until(lambda: member(running, old).reachable, 20, f"{old} to be back")
        load.wait_for(SOME)
        assert run("kill", old, "--data", str(running.data))[0] == 0
        shutil.rmtree(data)
        copy.rename(data)
        run("start", old, "--data", str(running.data))
        ends_fenced(running, old, "but it had acknowledged")
        change(running, "replace", old, old)
    assert voters(running) == ["n1", "n2", "n3"]
    assert_equal(running)


def test_an_addition_that_was_interrupted_is_taken_up_again(running: Up) -> None:
    """`raftq cluster add` is killed while the new node does not answer; the same command goes on."""
    change(running, "add", "n4", "--no-wait")
    said = change(running, "add", "n4")
    assert said.endswith("n4 votes")
    assert voters(running) == ["n1", "n2", "n3", "n4"]
    assert sum(node.id == "n4" for node in running.nodes()) == 1


def test_a_learner_that_dies_is_started_again_on_its_new_folder(running: Up) -> None:
    node = follower(running)
    change(running, "replace", node, node, "--no-wait")
    pid = running.node(node).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: running.node(node).pid not in (None, pid), 30, f"{node} to be started again")
    wait_until(lambda: voters(running) == ["n1", "n2", "n3"], 30, f"{node} to vote")
    assert Path(running.node(node).data).name == f"{node}-2"
