"""Goal: a node starts on data that older code wrote, and refuses what newer code did: with its exit code, and one line
that says to upgrade. Method: real processes on copies of the folders in tests/storage/formats."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest
from xxhash import xxh3_64_digest

from raftq.node.exits import Exit
from raftq.node.waiting import wait_until
from raftq.replication.engine import REGULAR
from raftq.storage.checksums import seal
from raftq.storage.environment import u64
from raftq.storage.machine import entries, keys, records
from raftq.storage.machine.apply import VERSION_MAX
from raftq.storage.machine.entries import Clocks
from tests.cluster.client import ask
from tests.node.conftest import COMMAND, Node, Settings
from tests.storage.formats import views
from tests.storage.test_formats import MADE

Start = Callable[..., Node]


@pytest.fixture(params=MADE, ids=[made.name for made in MADE])
def made(request: pytest.FixtureRequest, settings: Settings) -> Path:
    """The folder that is kept; a copy of its data is that of the node."""
    kept: Path = request.param
    Path(settings["data"]).mkdir()
    shutil.copy(kept / views.DATA, settings["data"])
    return kept


def test_a_node_works_on_data_of_an_older_format(start: Start, settings: Settings, made: Path) -> None:
    known = msgspec.json.decode((made / views.EXPECTED).read_bytes())["views"]
    node = start(settings.flags)
    node.wait_ready(settings.url)
    queue = f"{settings.url}/v1/queues/jobs"
    names = [each["name"] for each in ask("GET", f"{settings.url}/v1/queues").json()["queues"]]
    assert sorted(f"default/{name}" for name in names) == [key for key in known["queues"] if key[:8] == "default/"]
    messages = ask("POST", f"{queue}/lease", {"max": 1000}).json()["messages"]
    assert len(messages) >= len(known["messages"]["default/jobs"]["ready"])
    receipts = [message["receipt"] for message in messages]
    acked = ask("POST", f"{queue}/ack", {"receipts": receipts[1:]}).json()["results"]
    rejected = ask("POST", f"{queue}/reject", {"receipts": receipts[:1]}).json()["results"]
    assert {result["status"] for result in acked + rejected} == {"done"}
    dead = f"{settings.url}/v1/queues/dead"
    assert ask("POST", f"{dead}/redrive", {"to": "kept"}).status == 202
    wait_until(lambda: ask("GET", f"{dead}/redrive").json()["state"] == "done", 10, "the redrive to end")
    assert ask("GET", f"{dead}/stats").json()["ready"] == 0
    node.process.terminate()
    assert node.end()[0] == Exit.STOPPED


def newer_format(data: Path) -> None:
    put(data, b"meta", b"format", u64(2))


def newer_tables(data: Path) -> None:
    with open_raw(data) as raw, raw.begin() as txn:
        cluster = records.decode_cluster(txn.get(keys.CLUSTER, db=raw.open_db(b"tables", txn, create=False))[:-8])
    cluster.version = VERSION_MAX + 1
    put(data, b"tables", keys.CLUSTER, records.encode(cluster))


def newer_command(data: Path) -> None:
    append(data, entries.encode(Clocks(1 << 40, 1 << 41), [msgspec.msgpack.encode([127, "default/jobs"])], REGULAR))


def newer_entry(data: Path) -> None:
    append(data, b"\x7fwhatever a newer raftq has there")


def append(data: Path, command: bytes) -> None:
    """To the log."""
    with open_raw(data) as raw, raw.begin() as txn:
        cursor = txn.cursor(raw.open_db(b"log", txn, create=False))
        cursor.last()
        index, term = int.from_bytes(cursor.key(), "big"), cursor.value()[:8]
    put(data, b"log", u64(index + 1), term + command)


def open_raw(data: Path) -> lmdb.Environment:
    return lmdb.open(str(data), max_dbs=3)


def put(data: Path, table: bytes, key: bytes, value: bytes) -> None:
    with open_raw(data) as raw, raw.begin(write=True) as txn:
        txn.put(key, seal(key, value), db=raw.open_db(table, txn, create=False))


@pytest.mark.parametrize("change", [newer_format, newer_tables, newer_command, newer_entry])
def test_a_node_refuses_data_of_a_newer_format(
    start: Start, settings: Settings, made: Path, change: Callable[[Path], None]
) -> None:
    assert made
    change(Path(settings["data"]))
    for _ in range(2):  # and starting it again changes nothing
        code, lines = start(settings.flags).end()
        assert code == Exit.DAMAGED, lines
        assert settings["data"] in lines[-1]
        assert "pgrade this node" in lines[-1] or "start it with the newer one" in lines[-1]
        assert not [line for line in lines if "exception" in line]


def test_a_backup_of_an_older_format_is_restored_and_a_newer_one_refused(
    start: Start, settings: Settings, made: Path, tmp_path: Path
) -> None:
    restored = settings.but(data=str(tmp_path / "restored"), cluster_id="c2")
    assert restore(made / views.BACKUP, restored) == (0, "")
    node = start(restored.flags)
    node.wait_ready(restored.url)
    assert ask("GET", f"{restored.url}/v1/queues/jobs/stats").json()["ready"]
    node.process.terminate()
    assert node.end()[0] == Exit.STOPPED

    newer = tmp_path / "newer"
    found = (made / views.BACKUP).read_bytes()
    prelude = found[:8] + (2).to_bytes(4, "big")
    newer.write_bytes(prelude + xxh3_64_digest(prelude) + found[20:])
    code, said = restore(newer, settings.but(data=str(tmp_path / "other"), cluster_id="c3"))
    assert code == Exit.FILE_REFUSED
    assert "use the newer raftq" in said
    assert str(newer) in said
    assert not (tmp_path / "other" / "data.mdb").exists()


def restore(file: Path, settings: Settings) -> tuple[int, str]:
    command = [*COMMAND[:-1], "restore", str(file), *settings.flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return ended.returncode, ended.stderr
