"""Faults 9, 10, 13 and 15: what is on disk when a process or a machine ends, and what is made of it afterwards.

A power cut cannot be had in a test, so of fault 9 is shown that nothing is ever asked of the disk: neither fsync nor
msync is called. Fault 15 was read in the source only; it shows when run, the SIGBUS where a tmpfs can be mounted.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pysyncobj.journal
import pytest
from pysyncobj.journal import FileJournal, ResizableFile

from raftq.replication.journal import Journal
from raftq.storage.environment import Environment, EnvironmentDamaged, StorageFailed, WriteBatch, u64
from raftq.storage.writer import Writer
from tests.faults.conftest import Maker
from tests.faults.harness import asks_for_vote

#: The stock journal leaves files open: when it reads its meta file, and when it is not destroyed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

COMMAND = b"command " * 20


def stock_journal(path: Path, entries: int) -> FileJournal:
    journal = FileJournal(str(path))
    for index in range(1, entries + 1):
        journal.add(COMMAND, index, 1)
    return journal


class Ours:
    """Our journal over its environment, written as the cycle writes it."""

    def __init__(self, folder: Path) -> None:
        self.environment = Environment(folder, map_bytes=1 << 28)
        self.writer = Writer(self.environment)
        self.journal = Journal(self.environment)

    def fill(self, last: int) -> None:
        for index in range(self.journal.last_index + 1, last + 1):
            self.journal.add(COMMAND, index, 1)
        self.commit()

    def commit(self) -> None:
        batch = WriteBatch()
        self.journal.collect(batch)
        self.writer.write(batch)
        self.journal.landed()

    def close(self) -> None:
        self.writer.close()
        self.environment.close()


def test_fault_09_nothing_is_ever_synced_stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries, term and vote are written and never synced: a power cut takes all that was acknowledged since the last
    writeback, and lets a node vote twice in a term."""
    synced: list[Any] = []

    class Watched(mmap.mmap):
        def flush(self, *range_: int) -> None:
            synced.append(range_)

    monkeypatch.setattr(pysyncobj.journal.mmap, "mmap", Watched)
    for name in ("fsync", "fdatasync", "sync"):
        monkeypatch.setattr(os, name, lambda *args: synced.append(args))
    journal = stock_journal(tmp_path / "journal", 100)
    journal.setCurrentTerm(3, "b")
    journal.setRaftCommitIndex(90)
    journal.onOneSecondTimer()
    assert synced == []
    journal._destroy()
    assert len(synced) == 1  # the only sync is that of a clean end


def test_fault_09_term_and_entries_are_synced_before_an_answer_leaves_ours(ours: Maker) -> None:
    """One transaction with LMDB's default sync holds them; answers and votes are held until it has ended."""
    cluster = ours()
    cluster.campaign("a")
    request = next(message for message in cluster.waiting("a", "b") if asks_for_vote(message))
    engine = cluster["b"].engine
    flags = engine.journal._environment._lmdb.flags()
    assert (flags["sync"], flags["metasync"], flags["map_async"], flags["writemap"]) == (True, True, False, False)
    engine.step("a", request)
    assert engine.journal.dirty
    assert [message["granted"] for _, message in engine.held] == [True]
    assert engine.outbox == []


def test_fault_09_a_damaged_vote_counts_as_none_stock(stock: Maker, tmp_path: Path) -> None:
    """A meta file that cannot be read counts as empty: a node forgets term and vote, and votes again."""
    cluster = stock(durable=True)
    answers = []
    for candidate in ("a", "c"):
        cluster.campaign(candidate)
        (request,) = cluster.lose(candidate, "b")
        assert request["term"] == 1
        cluster.inject(candidate, "b", request)
        answers += cluster.lose("b", candidate)
        cluster.crash("b")
        (tmp_path / "b.meta").write_bytes(b"\0" * 50)
        cluster.restart("b")
    assert [answer["term"] for answer in answers] == [1, 1]


def test_fault_09_a_damaged_vote_stops_the_node_ours(tmp_path: Path) -> None:
    """Term and vote carry a checksum; a node that cannot read them does not start."""
    ours = Ours(tmp_path / "a")
    ours.fill(3)
    ours.journal.setCurrentTerm(7, "candidate-b")
    ours.commit()
    ours.close()
    flip(tmp_path / "a" / "data.mdb", b"candidate-b")
    environment = Environment(tmp_path / "a", map_bytes=1 << 28)
    with pytest.raises(EnvironmentDamaged, match="'meta'"):
        Journal(environment)
    environment.close()


@pytest.mark.parametrize("writes", [1, 50, 99])
def test_fault_10_a_kill_during_compaction_loses_the_tail_stock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Compaction empties the journal and writes what stays over it, in place: a kill meanwhile loses the rest."""
    journal = stock_journal(tmp_path / "journal", 100)
    kill_after(monkeypatch, writes)
    with pytest.raises(KeyboardInterrupt):
        journal.deleteEntriesTo(50)
    monkeypatch.undo()
    left = FileJournal(str(tmp_path / "journal"))
    assert len(left) < 50
    assert len(left) == 0 or left[-1][1] < 100
    left._destroy()
    journal._destroy()


def kill_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """What a process does to the journal's file after `writes` more writes does not happen."""
    write: Callable[..., None] = ResizableFile.write
    left = [writes]

    def killed(self: ResizableFile, offset: int, values: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, offset, values)

    monkeypatch.setattr(ResizableFile, "write", killed)


@pytest.mark.parametrize("committed", [False, True])
def test_fault_10_a_kill_around_compaction_loses_nothing_ours(tmp_path: Path, committed: bool) -> None:
    """Compaction is a range delete in the transaction of a cycle: it happens whole, or not at all."""
    ours = Ours(tmp_path)
    ours.fill(100)
    ours.journal.compact_below(50)
    if committed:
        ours.commit()
    else:
        ours.journal.collect(WriteBatch())
    ours.close()
    again = Ours(tmp_path)
    assert again.journal.first_index == (49 if committed else 1)
    assert [index for _, index, _ in again.journal[:]] == list(range(again.journal.first_index, 101))
    again.close()


def test_fault_13_a_zeroed_page_stops_the_node_stock(tmp_path: Path) -> None:
    """There is no checksum: a page of zeros, as a power cut leaves it, over the head of a record ends the start in an
    unrelated error."""
    stock_journal(tmp_path / "journal", 100)._destroy()
    zero(tmp_path / "journal", 4096, 4096)
    with pytest.raises(struct.error):
        FileJournal(str(tmp_path / "journal"))


def test_fault_13_a_zeroed_page_is_loaded_stock(tmp_path: Path) -> None:
    """There is no checksum: a page of zeros within a record is loaded, and applied, as it is."""
    journal = FileJournal(str(tmp_path / "journal"))
    journal.add(b"x" * 20_000, 1, 1)
    journal._destroy()
    zero(tmp_path / "journal", 8192, 4096)
    again = FileJournal(str(tmp_path / "journal"))
    assert again[0][0].count(b"\0") == 4096
    again._destroy()


def test_fault_13_a_zeroed_page_is_found_ours(tmp_path: Path) -> None:
    """Each entry carries a checksum, held against it when read: damage ends the node with a line that says where."""
    ours = Ours(tmp_path)
    ours.journal.add(b"x" * 20_000, 2, 1)
    ours.commit()
    ours.close()
    data = (tmp_path / "data.mdb").read_bytes()
    zero(tmp_path / "data.mdb", data.index(b"x" * 5000), 4096)
    environment = Environment(tmp_path, map_bytes=1 << 28)
    with pytest.raises(EnvironmentDamaged, match=f"table 'log' .*{u64(2).hex()}"):
        Journal(environment)
    environment.close()


def test_fault_15_the_journal_ends_at_4_gib_stock(tmp_path: Path) -> None:
    """The end of the journal is kept in 32 bits: beyond 4 GiB nothing can be added."""
    journal = stock_journal(tmp_path / "journal", 1)
    journal._FileJournal__currentOffset = (1 << 32) - 100
    journal._FileJournal__journalFile.write = lambda offset, values: None  # no disk for 4 GiB here
    with pytest.raises(struct.error):
        journal.add(COMMAND, 2, 1)
    journal._destroy()


def test_fault_15_the_journal_never_shrinks_stock(tmp_path: Path) -> None:
    """Compaction gives no space back, neither to the disk nor within the limit of the file."""
    journal = stock_journal(tmp_path / "journal", 10_000)
    size = (tmp_path / "journal").stat().st_size
    journal.deleteEntriesTo(9_999)
    journal._destroy()
    assert size > 10_000 * len(COMMAND)
    assert (tmp_path / "journal").stat().st_size == size


def test_fault_15_space_is_used_again_ours(tmp_path: Path) -> None:
    """Pages that compaction frees are written again: a log of any length of which little is kept has a small file, and
    an index of 64 bits."""
    ours = Ours(tmp_path)
    sizes = []
    for last in range(1000, 11_000, 500):
        ours.fill(last)
        ours.journal.compact_below(last - 100)
        ours.commit()
        sizes.append(ours.environment.used_bytes())
    assert max(sizes[5:]) <= 1.1 * sizes[5]
    assert ours.environment.log_bounds() == (10_399, 10_500)
    ours.close()


#: Adds entries until something happens.
_FILLING = """
import sys
from pysyncobj.journal import FileJournal
journal = FileJournal(sys.argv[1])
for index in range(1, 4000):
    journal.add(b"x" * 1000, index, 1)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "raftq-test", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_fault_15_a_full_disk_kills_the_process_stock(small_disk: Path) -> None:
    """The journal is a sparse map of a file: a full disk is met at a store to memory, as SIGBUS."""
    child = subprocess.run([sys.executable, "-c", _FILLING, str(small_disk / "journal")], check=False)
    assert child.returncode == -signal.SIGBUS


def test_fault_15_a_full_disk_is_an_error_ours(small_disk: Path) -> None:
    """A commit that finds the disk full fails, says so, and leaves what was there."""
    ours = Ours(small_disk / "a")
    ours.fill(100)
    with pytest.raises(StorageFailed, match="full"):
        ours.fill(10_000)
    ours.close()
    again = Ours(small_disk / "a")
    assert again.journal.last_index == 100
    again.close()


def zero(path: Path, start: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(count))


def flip(path: Path, found: bytes) -> None:
    """Change a bit wherever the file holds `found`."""
    data = path.read_bytes()
    assert found in data
    path.write_bytes(data.replace(found, bytes([found[0] ^ 1]) + found[1:]))
