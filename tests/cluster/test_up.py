"""`raftq up`, `raftq kill` and `raftq start` as a person uses them: real commands, output and exit codes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.node import folder_lock
from raftq.node.exits import Exit
from raftq.node.local_cluster import PEER_PORTS
from raftq.node.local_ports import free_first
from raftq.node.waiting import wait_until
from tests.cluster.client import ask
from tests.cluster.up import READY, Up, run

pytestmark = pytest.mark.cluster


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_tour_then_ctrl_c_then_back_with_the_data(up: Callable[..., Up]) -> None:
    first = up("--tour")
    first.wait_for(READY)
    assert "The tour is complete" in first.text
    for words in ("307 -> ", "$ kill -9 ", '"status":"done"', '"acked":1', "leads, "):
        assert words in first.text
    nodes = first.nodes()
    assert ask("POST", f"{nodes[0].api_url}/q/jobs", "kept").status == 201
    assert first.interrupt() == Exit.STOPPED
    assert first.lines[-1].endswith("3 nodes are stopped")
    assert [node.pid for node in first.nodes()] == [None, None, None]
    assert not any(is_alive(node.pid) for node in nodes if node.pid)

    again = up(new=False)
    again.wait_for(READY)
    assert [(node.id, node.api_url) for node in again.nodes()] == [(node.id, node.api_url) for node in nodes]
    assert ask("GET", f"{nodes[2].api_url}/q/jobs").text == '"kept"'
    assert again.interrupt() == Exit.STOPPED


def test_a_node_that_dies_is_started_again_but_not_one_that_was_killed_by_raftq(up: Callable[..., Up]) -> None:
    running = up()
    running.wait_for(READY)
    data = f"--data={running.data}"
    before = running.node("n1").pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    running.wait_for("n1 was killed by SIGKILL")
    running.wait_for("n1 is started")
    assert running.node("n1").pid not in (None, before)

    code, said = run("kill", "n2", data)
    assert (code, said.startswith("n2 (process ")) == (0, True), said
    running.wait_for("n2 is killed, and kept down")
    assert (running.node("n2").pid, running.node("n2").kept_down) == (None, True)
    assert run("kill", "n2", data)[0] == 0
    # The supervisor has gone on meanwhile: it has restarted another one.
    again = running.node("n3").pid
    assert again is not None
    os.kill(again, signal.SIGKILL)
    running.wait_for("n3 is started")
    assert "n2 is started" not in running.text

    assert run("start", "n2", data)[0] == 0
    running.wait_for("n2 is started")
    code, said = run("start", "n2", data)
    assert (code, said.startswith("n2 runs already")) == (0, True), said
    code, said = run("kill", "n9", data)
    assert (code, said.count("\n")) == (Exit.USAGE, 0)
    assert "n1, n2, n3" in said
    assert running.interrupt() == Exit.STOPPED


def test_no_restart_and_a_lost_majority_is_told(up: Callable[..., Up]) -> None:
    running = up("--no-restart")
    running.wait_for(READY)
    for node in running.nodes()[:2]:
        assert node.pid is not None
        os.kill(node.pid, signal.SIGKILL)
        running.wait_for(f"{node.id} was killed by SIGKILL; it stays down")
    running.wait_for("no leader: 1 of 3 nodes run, and writes need 2")
    assert run("start", "n1", f"--data={running.data}")[0] == 0
    running.wait_for("leads (term")
    assert running.interrupt() == Exit.STOPPED


def test_a_node_that_needs_a_person_is_not_started_again(up: Callable[..., Up]) -> None:
    first = up()
    first.wait_for(READY)
    first.interrupt()
    again = up(new=False)
    again.wait_for(READY)
    node = again.node("n3")
    run("kill", "n3", f"--data={again.data}")
    (Path(node.data) / "data.mdb").write_bytes(b"no environment" * 1000)
    run("start", "n3", f"--data={again.data}")
    again.wait_for("n3 ended with exit code 13", "it stays down until")
    assert again.interrupt() == Exit.STOPPED


def test_nodes_do_not_outlive_a_killed_supervisor_and_the_next_one_comes_back(up: Callable[..., Up]) -> None:
    first = up()
    first.wait_for(READY)
    nodes = first.nodes()
    assert ask("POST", f"{nodes[0].api_url}/q/jobs", "kept").status == 201
    first.process.kill()
    first.end()
    again = up(new=False)
    again.wait_for(READY)
    assert {node.pid for node in again.nodes()}.isdisjoint(node.pid for node in nodes)
    assert ask("GET", f"{nodes[1].api_url}/q/jobs").text == '"kept"'
    again.process.kill()
    wait_until(lambda: not any(folder_lock.is_held(Path(node.data)) for node in nodes), 20, "the nodes to end")


def test_one_cluster_to_a_folder(up: Callable[..., Up]) -> None:
    first = up()
    first.wait_for(READY)
    second = up()
    assert second.end() == Exit.FOLDER_IN_USE
    assert len(second.lines) == 1
    assert f"another raftq up runs a cluster on {first.data}: stop it, or use another --data" in second.text
    assert first.process.poll() is None
    assert first.interrupt() == Exit.STOPPED
    other = up("--nodes=5")
    assert (other.end(), len(other.lines)) == (Exit.CONFIG, 1)
    assert "leave out" in other.text


@pytest.mark.parametrize(("up_by", "what"), [(1, "n2 needs for its API"), (PEER_PORTS, "n1 needs for its peers")])
def test_a_port_that_is_taken(up: Callable[..., Up], up_by: int, what: str) -> None:
    port = free_first(3, PEER_PORTS)
    with socket.create_server(("127.0.0.1", port + up_by)):
        failed = up(f"--port={port}", new=False)
        assert (failed.end(), len(failed.lines)) == (Exit.PORT_TAKEN, 1), failed.text
    assert f"port {port + up_by}, which {what}" in failed.text


def test_a_terminated_supervisor_stops_its_nodes(up: Callable[..., Up]) -> None:
    running = up("--nodes=1")
    running.wait_for(READY)
    running.process.terminate()
    assert running.end() == Exit.STOPPED
    assert running.node("n1").pid is None


def test_kill_and_start_without_a_cluster(tmp_path: Path) -> None:
    for command in ("kill", "start"):
        code, said = run(command, "n1", f"--data={tmp_path}")
        assert (code, said.count("\n")) == (Exit.USAGE, 0)
        assert "raftq up --data" in said
