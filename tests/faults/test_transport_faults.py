"""Fault 16: what a stranger can do at the port where peers talk. Read in the source only; it shows when run."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import pickle
import socket
import struct
import zlib
from pathlib import Path

import pysyncobj
import pytest

import raftq.replication
from raftq.replication import wire
from raftq.replication.wire import Hello
from tests.replication.shards import Shards


class MakesFolder:
    """Unpickled, it runs a command of the sender's choice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def test_fault_16_a_stranger_runs_code_stock(tmp_path: Path) -> None:
    """Peers exchange pickles, and the first one is loaded before it is known who sends it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    conf = pysyncobj.SyncObjConf(autoTick=False, bindAddress=f"127.0.0.1:{port}")
    node = pysyncobj.SyncObj(f"127.0.0.1:{port}", ["127.0.0.1:1"], conf)
    evil = zlib.compress(pickle.dumps(MakesFolder(tmp_path / "made by a stranger")))
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(struct.pack("i", len(evil)) + evil)
        for _ in range(10):
            node.doTick(0.5)
            if (tmp_path / "made by a stranger").exists():
                break
    node.destroy()
    assert (tmp_path / "made by a stranger").is_dir()


@pytest.mark.parametrize("greeting", [b"", "hello"])
async def test_fault_16_a_stranger_is_sent_away_ours(tmp_path: Path, greeting: bytes | str) -> None:
    """Frames are msgpack of plain values; whatever else comes closes its connection, from a known peer too."""
    cluster = Shards(tmp_path)
    shard = await cluster.start("n1")
    reader, writer = await asyncio.open_connection(*cluster.voters["n1"].split(":"))
    if greeting:
        writer.write(wire.frame(Hello(wire.PROTOCOL, "test", "n2", "uuid-n2", 1, "", "", "0", 1, 0)))
        assert await reader.readexactly(4)
    pickled = pickle.dumps(MakesFolder(tmp_path / "made by a stranger"))
    for evil in (pickled, zlib.compress(pickled)):
        writer.write(len(evil).to_bytes(4, "big") + evil)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    await cluster.kill("n1")
    assert not (tmp_path / "made by a stranger").exists()
    assert shard.status().term == 0


def test_fault_16_nothing_of_replication_imports_pickle_ours() -> None:
    """Own code neither pickles nor unpickles."""
    for path in Path(raftq.replication.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not any("pickle" in name for name in names), path
