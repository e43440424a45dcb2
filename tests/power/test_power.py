"""The file system forgets what it should, and a cluster whose power is cut loses nothing that it acknowledged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.power.mount import Mount
from tests.power.rounds import TOO_LITTLE, rounds, syncing, until_found

pytestmark = [pytest.mark.cluster, pytest.mark.power, pytest.mark.usefixtures("power")]

ROUNDS = 4


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with Mount(tmp_path / "disk") as made:
        made.mount()
        yield made


def cut_and_mount(mount: Mount) -> None:
    """Everything not synced is lost."""
    makes_files = "import itertools, sys\nfor number in itertools.count(): open(f'{sys.argv[1]}/more{number}', 'w')"
    busy = subprocess.Popen([sys.executable, "-c", makes_files, str(mount.point)], stderr=subprocess.DEVNULL)
    mount.cut(after=1, survives=0.0, seed=1)
    mount.settle()
    assert busy.wait(20) == 1, "its last file was refused"
    mount.mount()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_files_and_names_that_were_not_synced_are_gone(mount: Mount) -> None:
    for name in ("kept", "emptied", "moved"):
        (mount.point / name).write_bytes(b"x" * 10_000)
        if name != "emptied":
            sync(mount.point / name)
    sync(mount.point)
    (mount.point / "moved").rename(mount.point / "elsewhere")
    (mount.point / "unnamed").write_bytes(b"x")
    assert (mount.point / "elsewhere").read_bytes() == b"x" * 10_000
    cut_and_mount(mount)
    assert {path.name: path.stat().st_size for path in mount.point.iterdir()} == {
        "kept": 10_000,
        "emptied": 0,
        "moved": 10_000,
    }


def test_writes_through_a_synced_descriptor_are_kept_and_others_are_not(mount: Mount) -> None:
    path = mount.point / "file"
    path.write_bytes(bytes(8192))
    sync(path)
    sync(mount.point)
    plain, synced = os.open(path, os.O_RDWR), os.open(path, os.O_WRONLY | os.O_DSYNC)
    os.pwrite(plain, b"plain", 0)
    os.pwrite(synced, b"synced", 4096)
    assert os.pread(plain, 6, 4096) == b"synced"
    os.close(plain)
    os.close(synced)
    cut_and_mount(mount)
    found = path.read_bytes()
    assert (found[:5], found[4096:4102], len(found)) == (bytes(5), b"synced", 8192)


@pytest.mark.parametrize("synced", [True, False])
def test_a_transaction_of_lmdb_is_kept_if_it_was_synced(mount: Mount, synced: bool) -> None:
    folder = mount.point / "environment"

    def opened(synced: bool = True) -> lmdb.Environment:
        return lmdb.open(str(folder), map_size=1 << 40, sync=synced, metasync=synced)

    with opened() as environment, environment.begin(write=True) as txn:
        txn.put(b"before", b"x" * 10_000)
    sync(folder)
    sync(mount.point)
    with opened(synced) as environment:
        with environment.begin(write=True) as txn:
            txn.put(b"after", b"y" * 10_000)
        with environment.begin() as txn:  # through the memory map
            assert txn.get(b"after") == b"y" * 10_000
        cut_and_mount(mount)
    with opened() as environment, environment.begin() as txn:
        assert txn.get(b"before") == b"x" * 10_000
        assert (txn.get(b"after") is not None) == synced


def test_a_new_data_folder_is_kept_with_all_that_was_made_above_it(mount: Mount) -> None:
    """In a process of its own: this one would keep the file system busy."""
    folder = mount.point / "var" / "raftq" / "n1"
    opens = "import sys, pathlib, raftq.storage.environment as e; e.Environment(pathlib.Path(sys.argv[1])).close()"
    subprocess.run([sys.executable, "-c", opens, str(folder)], check=True)
    cut_and_mount(mount)
    assert (folder / "data.mdb").stat().st_size > 0


@pytest.mark.timeout(300)
def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with rounds(tmp_path, seed=3) as made:
        for number in range(ROUNDS):
            print(f"round {number + 1}: {made.round()}")
        made.end()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", TOO_LITTLE)
def test_a_power_cut_finds_a_cluster_that_syncs_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for name, value in syncing(what).items():
        monkeypatch.setenv(name, value)
    print(until_found(tmp_path, 20, seed=3))
