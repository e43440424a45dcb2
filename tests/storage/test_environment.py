"""The environment: what may be opened, what is refused, and that damage is never given out as data."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from raftq.storage.checksums import seal
from raftq.storage.environment import (
    MAP_BYTES,
    Environment,
    EnvironmentBusy,
    EnvironmentDamaged,
    EnvironmentUnusable,
    WriteBatch,
    u64,
)
from raftq.storage.verify import verify
from raftq.storage.writer import Writer

TABLES = [(b"key%03d" % i, b"value %d " % i * 9) for i in range(300)]
ENTRIES = [(i, 1 + i // 20, b"command %d " % i * (60 if i % 2 else 900)) for i in range(1, 60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed environment with TABLES and ENTRIES."""
    environment = Environment(tmp_path / "some" / "data")
    writer = Writer(environment)
    writer.write(WriteBatch(entries=ENTRIES, meta={"applied": u64(7), "term": u64(3)}, tables=TABLES))
    writer.close()
    environment.close()
    return environment.folder


@pytest.fixture
def environment(folder: Path) -> Iterator[Environment]:
    environment = Environment(folder)
    yield environment
    environment.close()


def in_a_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, check=False
    )


def test_gives_back_what_was_committed(environment: Environment) -> None:
    assert environment.meta("term") == u64(3)
    assert environment.meta("vote") is None
    assert environment.applied() == 7
    assert environment.log_bounds() == (1, 59)
    assert environment.log_entries(1, 1 << 30, 100) == [(command, i, term) for i, term, command in ENTRIES]
    snapshot = environment.snapshot()
    assert list(snapshot.scan(b"", b"z")) == TABLES
    assert list(snapshot.scan(b"key010", b"key020", reverse=True)) == TABLES[19:9:-1]
    assert snapshot.get(b"key010") == TABLES[10][1]
    assert snapshot.get(b"key") is None
    snapshot.close()


def test_an_empty_environment_has_no_log(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    assert environment.log_bounds() is None
    assert environment.applied() == 1
    environment.close()


@pytest.mark.parametrize(
    ("bytes_max", "count_max", "given"),
    [(1 << 30, 3, 3), (0, 3, 1), (1 << 30, 0, 0), (len(ENTRIES[9][2]) + len(ENTRIES[10][2]), 9, 2)],
)
def test_log_entries_keep_both_limits_but_give_one(
    environment: Environment, bytes_max: int, count_max: int, given: int
) -> None:
    entries = environment.log_entries(10, bytes_max, count_max)
    assert [index for _, index, _ in entries] == [10, 11, 12][:given]


def test_a_snapshot_stays_on_its_state_until_renewed(environment: Environment) -> None:
    writer = Writer(environment)
    snapshot = environment.snapshot()
    writer.write(WriteBatch(tables=[(b"key000", b"new"), (b"key001", None)]))
    assert list(snapshot.scan(b"key000", b"key002")) == TABLES[:2]
    snapshot.renew()
    assert list(snapshot.scan(b"key000", b"key002")) == [(b"key000", b"new")]
    snapshot.close()
    writer.close()


def test_the_map_is_huge_sparse_and_never_grown(environment: Environment) -> None:
    writer = Writer(environment)
    writer.write(WriteBatch(tables=[(b"big%03d" % i, bytes(100_000)) for i in range(200)]))
    assert environment._lmdb.info()["map_size"] == MAP_BYTES
    assert 20_000_000 < environment.used_bytes() < 40_000_000
    assert environment.free_bytes() > 0
    writer.close()


def test_commits_are_synced(environment: Environment) -> None:
    flags = environment._lmdb.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["map_async"]
    assert not flags["writemap"]


# What is refused.


def test_a_second_open_is_refused_in_this_process(environment: Environment) -> None:
    with pytest.raises(EnvironmentBusy, match="is open in another process: stop that one first"):
        Environment(environment.folder)


def test_a_second_open_is_refused_in_another_process(environment: Environment) -> None:
    child = in_a_child(
        """
        import sys
        from pathlib import Path
        from raftq.storage.environment import Environment
        Environment(Path(sys.argv[1]))
        """,
        str(environment.folder),
    )
    said = f"EnvironmentBusy: {environment.folder} is open in another process: stop that one first"
    assert child.stderr.splitlines()[-1].endswith(said)


def test_a_closed_or_refused_environment_can_be_opened_again(folder: Path) -> None:
    for _ in range(2):
        Environment(folder).close()


def write_raw(folder: Path, table: bytes | None, key: bytes, value: bytes) -> None:
    raw = lmdb.open(str(folder), max_dbs=4)
    with raw.begin(write=True) as txn:
        txn.put(key, value, db=raw.open_db(table, txn))
    raw.close()


def test_a_newer_format_is_refused(folder: Path) -> None:
    write_raw(folder, b"meta", b"format", seal(b"format", u64(2)))
    with pytest.raises(EnvironmentDamaged, match="has format 2, this raftq knows 1"):
        Environment(folder)


@pytest.mark.parametrize("table", [b"another", None])
def test_data_of_another_program_is_refused(tmp_path: Path, table: bytes | None) -> None:
    write_raw(tmp_path, table, b"k", b"v")
    with pytest.raises(EnvironmentDamaged, match="other data than the tables"):
        Environment(tmp_path)


def test_a_file_that_is_not_lmdb_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"precious" * 2000)
    with pytest.raises(EnvironmentDamaged, match="damaged, or not of raftq"):
        Environment(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == b"precious" * 2000


def test_a_file_that_was_cut_is_refused(folder: Path) -> None:
    os.truncate(folder / "data.mdb", (folder / "data.mdb").stat().st_size - 4096)
    with pytest.raises(EnvironmentDamaged, match=r"data\.mdb has \d+ bytes of \d+"):
        Environment(folder)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentUnusable, match="cannot be used for data"):
        Environment(tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentUnusable, match="no permission"):
        Environment(tmp_path / "data")


def test_a_limit_of_address_space_is_named(tmp_path: Path) -> None:
    child = in_a_child(
        """
        import resource, sys
        from pathlib import Path
        from raftq.storage.environment import Environment
        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
        Environment(Path(sys.argv[1]))
        """,
        str(tmp_path / "data"),
    )
    assert "EnvironmentUnusable" in child.stderr.splitlines()[-1]
    assert "ulimit -v" in child.stderr.splitlines()[-1]


# Damage.


def flip(folder: Path, found: bytes, *, at: int = 0, bit: int = 2) -> None:
    """Change one bit of each place in data.mdb that holds `found`: a value may lie in an old page as well."""
    path = folder / "data.mdb"
    data = bytearray(path.read_bytes())
    assert found in data
    place = data.find(found)
    while place >= 0:
        data[place + at] ^= 1 << bit
        place = data.find(found, place + len(found))
    path.write_bytes(data)


def test_a_damaged_record_is_named(folder: Path) -> None:
    flip(folder, b"value 17 value 17", at=11)
    environment = Environment(folder)
    snapshot = environment.snapshot()
    with pytest.raises(EnvironmentDamaged, match=f"table 'tables' .* key {b'key017'.hex()} "):
        snapshot.get(b"key017")
    with pytest.raises(EnvironmentDamaged, match=b"key017".hex()):
        list(snapshot.scan(b"key000", b"key099"))
    with pytest.raises(EnvironmentDamaged, match=b"key017".hex()):
        list(snapshot.scan(b"key000", b"key099", reverse=True))
    assert snapshot.get(b"key018") == TABLES[18][1]
    snapshot.close()
    environment.close()


@pytest.mark.parametrize("bit", range(7))
def test_a_damaged_key_is_found_by_the_walk(folder: Path, bit: int) -> None:
    """A lookup can pass it by: to it the record is not there, or is out of order."""
    flip(folder, b"key017", at=5, bit=bit)
    environment = Environment(folder)
    with pytest.raises(EnvironmentDamaged, match="table 'tables' is damaged"):
        verify(environment)
    environment.close()


def test_the_walk_counts_what_is_right(environment: Environment) -> None:
    assert verify(environment) == len(ENTRIES) + len(TABLES) + len(["applied", "term", "format"])


@pytest.mark.parametrize("index", [8, 9], ids=["page of its own", "shared page"])
def test_a_damaged_log_entry_is_named(folder: Path, index: int) -> None:
    flip(folder, b"command %d command %d" % (index, index))
    environment = Environment(folder)
    with pytest.raises(EnvironmentDamaged, match=f"table 'log' .* key {u64(index).hex()} "):
        environment.log_entries(1, 1 << 30, 100)
    assert len(environment.log_entries(index + 1, 1 << 30, 100)) == 59 - index
    environment.close()


def test_a_damaged_named_value_is_named(folder: Path) -> None:
    flip(folder, seal(b"term", u64(3)), at=7)
    environment = Environment(folder)
    with pytest.raises(EnvironmentDamaged, match=f"table 'meta' .* key {b'term'.hex()} "):
        environment.meta("term")
    environment.close()


def test_an_entry_that_is_missing_is_damage(folder: Path) -> None:
    raw = lmdb.open(str(folder), max_dbs=4)
    with raw.begin(write=True) as txn:
        txn.delete(u64(5), db=raw.open_db(b"log", txn))
    raw.close()
    environment = Environment(folder)
    with pytest.raises(EnvironmentDamaged, match="58 entries from index 1 to 59"):
        environment.log_bounds()
    with pytest.raises(EnvironmentDamaged, match="index 6 where 5 should be"):
        environment.log_entries(3, 1 << 30, 100)
    environment.close()


#: Opens a folder and reads everything; prints `damaged`, or a hash of all that was read.
_READING = """
import hashlib, sys
from pathlib import Path
from raftq.storage.environment import Environment, EnvironmentDamaged
from raftq.storage.verify import verify
for folder in sys.argv[1:]:
    try:
        environment = Environment(Path(folder))
        verify(environment)
        first, last = environment.log_bounds()
        read = environment.log_entries(first, 1 << 30, last)
        snapshot = environment.snapshot()
        read += [environment.meta("applied"), environment.meta("term"), *snapshot.scan(b"", b"z")]
        print(hashlib.sha256(repr(read).encode()).hexdigest(), flush=True)
    except EnvironmentDamaged:
        print("damaged", flush=True)
"""


def test_flipped_bits_anywhere_never_give_wrong_data(folder: Path, tmp_path: Path) -> None:
    """Bits of the pages of all tables, their headers too. The two meta pages of LMDB and its free list are left out."""
    data = (folder / "data.mdb").read_bytes()
    chance = random.Random(3)
    folders = [str(folder)]
    for number in range(150):
        copy = tmp_path / f"copy{number}"
        copy.mkdir()
        damaged = bytearray(data)
        damaged[chance.randrange(2 * 4096, len(data))] ^= 1 << chance.randrange(8)
        (copy / "data.mdb").write_bytes(damaged)
        folders.append(str(copy))
    child = in_a_child(_READING, *folders)
    assert child.returncode == 0, child.stderr
    right, *outcomes = child.stdout.split()
    assert set(outcomes) == {right, "damaged"}
    assert outcomes.count("damaged") > 50
