"""The writer: batches become durable whole or not at all, through kills and full disks."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftq.storage.environment import Environment, StorageFailed, WriteBatch, u64
from raftq.storage.writer import Writer


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = Environment(tmp_path / "data")
    yield environment
    environment.close()


@pytest.fixture
def writer(environment: Environment) -> Iterator[Writer]:
    writer = Writer(environment)
    yield writer
    writer.close()


def read_tables(environment: Environment) -> dict[bytes, bytes]:
    snapshot = environment.snapshot()
    items = dict(snapshot.scan(b"", b"\xff" * 8))
    snapshot.close()
    return items


def test_a_batch_is_applied_in_the_order_of_its_fields(environment: Environment, writer: Writer) -> None:
    writer.write(WriteBatch(entries=[(i, 1, b"old%d" % i) for i in range(1, 7)], tables=[(b"a", b"1"), (b"b", b"2")]))
    writer.write(
        WriteBatch(
            truncate_from=4,
            entries=[(4, 2, b"new4"), (5, 2, b"new5")],
            compact_below=3,
            meta={"term": u64(2), "vote": b"n1"},
            tables=[(b"a", None), (b"b", b"3"), (b"c", b""), (b"never there", None)],
        )
    )
    assert environment.log_bounds() == (3, 5)
    assert environment.log_entries(3, 1000, 9) == [(b"old3", 3, 1), (b"new4", 4, 2), (b"new5", 5, 2)]
    assert environment.meta("term") == u64(2)
    assert environment.meta("vote") == b"n1"
    assert read_tables(environment) == {b"b": b"3", b"c": b""}


def test_counts_commits_and_their_time(writer: Writer) -> None:
    for _ in range(3):
        writer.write(WriteBatch(meta={"applied": u64(1)}))
    assert writer.commits == 3
    assert 0 < writer.last_seconds < writer.seconds


def test_done_is_called_in_the_writers_thread(writer: Writer) -> None:
    threads: list[str] = []
    ended = threading.Event()
    writer.commit(WriteBatch(), lambda _: (threads.append(threading.current_thread().name), ended.set())[0])
    assert ended.wait(10)
    assert threads == ["raftq-writer"]


@pytest.mark.parametrize("index", [3, 5])
def test_entries_that_do_not_follow_the_log_fail_the_commit(
    environment: Environment, writer: Writer, index: int
) -> None:
    """An entry over another, or after a gap, is a broken invariant of the caller: nothing of the batch is written."""
    writer.write(WriteBatch(entries=[(i, 1, b"x") for i in range(1, 4)]))
    with pytest.raises(StorageFailed, match="do not follow the log"):
        writer.write(WriteBatch(entries=[(index, 1, b"y")], tables=[(b"k", b"v")]))
    assert environment.log_bounds() == (1, 3)
    assert read_tables(environment) == {}


def test_after_a_failure_nothing_is_written(environment: Environment, writer: Writer) -> None:
    with pytest.raises(StorageFailed) as first:
        writer.write(WriteBatch(tables=[(b"x" * 600, b"a key longer than LMDB takes")]))
    with pytest.raises(StorageFailed) as second:
        writer.write(WriteBatch(tables=[(b"k", b"v")]))
    assert second.value is first.value
    assert writer.failure is first.value
    assert read_tables(environment) == {}
    assert writer.commits == 0


def test_a_caller_that_is_gone_stops_the_writing(environment: Environment, writer: Writer) -> None:
    """Its loop was closed, say: nobody heard of that commit, so nothing more may be built on it."""

    def gone(_: BaseException | None) -> None:
        raise RuntimeError("Event loop is closed")

    writer.commit(WriteBatch(tables=[(b"k", b"v")]), gone)
    writer.close()
    assert isinstance(writer.failure, StorageFailed)
    assert read_tables(environment) == {b"k": b"v"}


def test_a_closed_writer_refuses(writer: Writer) -> None:
    writer.close()
    with pytest.raises(AssertionError, match="the writer is closed"):
        writer.commit(WriteBatch(), lambda _: None)


def test_pages_are_used_again(environment: Environment, writer: Writer) -> None:
    """A snapshot renewed after each commit keeps no old pages: the file stops growing."""
    snapshot = environment.snapshot()
    sizes = []
    for round_ in range(200):
        writer.write(WriteBatch(tables=[(b"k%03d" % i, bytes([round_]) * 500) for i in range(100)]))
        snapshot.renew()
        sizes.append(environment.used_bytes())
    snapshot.close()
    assert sizes[-1] == sizes[20]


def limit_file_size(size: int) -> tuple[int, int]:
    """Files of this process cannot grow over `size` bytes: the same to LMDB as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return before


def test_a_file_that_cannot_grow_fails_the_commit_and_keeps_what_was_there(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "data")
    writer = Writer(environment)
    kept = [(b"k%d" % i, b"v" * 1000) for i in range(9)]
    writer.write(WriteBatch(entries=[(1, 0, b"first")], tables=kept))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = limit_file_size(256 * 1024)
    try:
        with pytest.raises(StorageFailed, match="commit failed: ") as failed:
            writer.write(WriteBatch(entries=[(2, 0, b"x" * 1_000_000)], tables=[(b"k0", b"lost")]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(tmp_path / "data") in str(failed.value)
    assert "file size limit" in str(failed.value)
    writer.close()
    environment.close()

    environment = Environment(tmp_path / "data")
    assert environment.log_bounds() == (1, 1)
    assert read_tables(environment) == dict(kept)
    environment.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "raftq-test", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_the_commit_and_keeps_what_was_there(small_disk: Path) -> None:
    environment = Environment(small_disk / "data")
    writer = Writer(environment)
    kept = [(b"k%03d" % i, b"v" * 50_000) for i in range(8)]
    writer.write(WriteBatch(tables=kept))
    with pytest.raises(StorageFailed, match="full"):
        writer.write(WriteBatch(tables=[(key, b"w" * 80_000) for key, _ in kept]))
    writer.close()
    environment.close()

    environment = Environment(small_disk / "data")
    assert read_tables(environment) == dict(kept)
    environment.close()


#: Commits batches in a loop, printing the number of each when it is durable. Entry, tables and applied go together.
_COMMITTING = """
import sys
from pathlib import Path
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.writer import Writer
environment = Environment(Path(sys.argv[1]))
writer = Writer(environment)
number = environment.applied()
while True:
    number += 1
    tables = [(b"k%02d" % i, u64(number) + b"v" * (number * i % 700)) for i in range(20)]
    entries = [(number - 1, number // 10, b"c" * (number % 5000))]
    writer.write(WriteBatch(entries=entries, meta={"applied": u64(number)}, tables=tables))
    print(number, flush=True)
"""


def kill_while_committing(folder: Path, lines: int) -> int:
    """The last number acknowledged by a process that is killed at a random moment after `lines` of them."""
    child = subprocess.Popen([sys.executable, "-c", _COMMITTING, str(folder)], stdout=subprocess.PIPE, env=os.environ)
    assert child.stdout is not None
    for _ in range(lines):
        child.stdout.readline()
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    return int(rest[-1]) if rest else 0


def test_what_was_acknowledged_survives_kills_and_is_whole(tmp_path: Path) -> None:
    moments = random.Random(7)
    for _ in range(8):
        acknowledged = kill_while_committing(tmp_path / "data", moments.randrange(2, 60))
        environment = Environment(tmp_path / "data")
        applied = environment.applied()
        assert acknowledged <= applied <= acknowledged + 1 or acknowledged == 0
        assert environment.log_bounds() == (1, applied - 1)
        assert len(environment.log_entries(1, 1 << 40, applied)) == applied - 1
        assert {value[:8] for value in read_tables(environment).values()} == {u64(applied)}
        environment.close()
