"""`cluster.json` is always whole, and two writers do not undo each other's changes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from raftq.node.cluster_file import ClusterFile, LocalClusterState, LocalNode
from raftq.node.exits import Exit, Fatal

CHANGES = 50


def new_file(folder: Path) -> ClusterFile:
    nodes = [LocalNode(f"n{k}", f"http://127.0.0.1:{k}", f"127.0.0.1:{k + 1000}", 0, "d", "l") for k in (1, 2)]
    file = ClusterFile(folder)
    file.create(LocalClusterState("c1", nodes))
    return file


def count_up(folder: Path, node: str) -> None:
    for _ in range(CHANGES):
        with ClusterFile(folder).change() as state:
            state.node(node).pid = (state.node(node).pid or 0) + 1


def test_readers_find_it_whole_and_no_change_is_lost(tmp_path: Path) -> None:
    file = new_file(tmp_path)
    writers = [threading.Thread(target=count_up, args=(tmp_path, node)) for node in ("n1", "n1", "n2")]
    for writer in writers:
        writer.start()
    done = threading.Event()
    seen = []

    def read() -> None:
        while not done.is_set():
            seen.append(json.loads(file.path.read_text())["nodes"][0]["pid"])

    reader = threading.Thread(target=read)
    reader.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    state = file.read()
    assert state is not None
    assert [node.pid for node in state.nodes] == [2 * CHANGES, CHANGES]
    assert seen == sorted(seen)


def test_a_change_that_fails_is_not_written(tmp_path: Path) -> None:
    file = new_file(tmp_path)
    before = file.path.read_bytes()

    def fail() -> None:
        with file.change() as state:
            state.nodes.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.path.read_bytes() == before


def test_it_holds_what_scripts_read(tmp_path: Path) -> None:
    written = json.loads(new_file(tmp_path).path.read_text())
    assert written["cluster_id"] == "c1"
    assert written["nodes"][0].keys() == {
        "id",
        "api_url",
        "peer_address",
        "pid",
        "data",
        "log",
        "kept_down",
        "joins",
        "leaves",
    }


def test_no_file_and_no_node(tmp_path: Path) -> None:
    assert ClusterFile(tmp_path).read() is None
    state = new_file(tmp_path).read()
    assert state is not None
    with pytest.raises(Fatal, match="n1, n2"):
        state.node("n7")


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"nodes": 3}')
    with pytest.raises(Fatal) as caught:
        ClusterFile(tmp_path).read()
    assert caught.value.code is Exit.CONFIG
