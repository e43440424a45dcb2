"""Snapshots: what is loaded is what was written, damage is never loaded, and an install is all or nothing."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from raftq.storage import snapshot
from raftq.storage.checksums import seal
from raftq.storage.digest import digest
from raftq.storage.environment import (
    BOUNDARY,
    Environment,
    EnvironmentBusy,
    EnvironmentDamaged,
    EnvironmentUnusable,
    StorageFailed,
    WriteBatch,
    u64,
)
from raftq.storage.machine import packing
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.commands import Ack, Command, Enqueue, Lease, Part, Slots
from raftq.storage.machine.ports import Meta
from raftq.storage.overlay import Overlay
from raftq.storage.snapshot import SnapshotDamaged, SnapshotForeign, SnapshotHead
from raftq.storage.verify import verify
from raftq.storage.writer import Writer

Items = list[tuple[bytes, bytes]]

CLUSTER = "cluster"
ITEMS: Items = [(b"key%03d" % i, b"value %d " % i * 3) for i in range(20)]
#: Several chunks, one of a single item that is larger than a chunk.
LARGE: Items = [(b"key%05d" % i, b"%d" % i * 40) for i in range(6_000)] + [(b"large", bytes(700_000)), (b"z", b"")]


def make(folder: Path, items: Items, *, applied: int = 7, term: int = 3) -> Environment:
    environment = Environment(folder)
    entries = [(index, min(index, term), b"\x01") for index in range(1, applied + 3)]
    named = {"applied": u64(applied), "term": u64(9), "vote": b"n1", "clocks": bytes(range(16)), "membership": b"all"}
    put(environment, WriteBatch(entries=entries, meta=named, tables=list(items)))
    return environment


def put(environment: Environment, batch: WriteBatch) -> None:
    writer = Writer(environment)
    writer.write(batch)
    writer.close()


def tables(environment: Environment) -> Items:
    with environment.begin_read() as txn:
        return [(key, stored[:-8]) for key, stored in txn.cursor()]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = make(tmp_path / "data", ITEMS)
    yield environment
    environment.close()


@pytest.fixture
def path(environment: Environment, tmp_path: Path) -> Path:
    """A snapshot of ITEMS."""
    path = tmp_path / "some.snapshot"
    snapshot.write(environment, path, CLUSTER)
    return path


# The file.


@settings(deadline=None, max_examples=50)
@given(
    items=st.dictionaries(st.binary(min_size=1, max_size=511), st.binary(max_size=3_000), max_size=60),
    applied=st.integers(2, 30),
)
def test_what_is_loaded_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, items: dict[bytes, bytes], applied: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    environment = make(folder / "data", sorted(items.items()), applied=applied)
    head = snapshot.write(environment, folder / "file", CLUSTER)
    assert snapshot.check(folder / "file") == head
    assert snapshot.load(folder / "file", folder / "loaded") == head
    assert (head.index, head.term, head.items) == (applied, min(applied, 3), len(items))
    assert (head.cluster_id, head.clocks, head.membership) == (CLUSTER, bytes(range(16)), b"all")
    loaded = Environment(folder / "loaded")
    assert tables(loaded) == tables(environment) == sorted(items.items())
    assert head.digest == digest(loaded)[1] == digest(environment)[1]
    assert loaded.log_bounds() is None
    assert [loaded.meta(name) for name in ("applied", "term", "vote", "clocks", "membership")] == [None] * 5
    assert verify(loaded) == len(items) + len(["format"])
    loaded.close()
    environment.close()


def test_many_chunks_and_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_SYNC_BYTES", 300_000)
    environment = make(tmp_path / "data", LARGE)
    chunks: list[None] = []
    head = snapshot.write(environment, tmp_path / "file", CLUSTER, between=lambda: chunks.append(None))
    assert len(chunks) == 5
    assert snapshot.load(tmp_path / "file", tmp_path / "loaded") == head
    loaded = Environment(tmp_path / "loaded")
    assert loaded._lmdb.info()["last_txnid"] >= 3 + 1, "what a transaction changes is kept in memory"
    assert tables(loaded) == LARGE
    assert digest(loaded)[1] == digest(environment)[1]
    assert loaded.tables_bytes() <= environment.tables_bytes()
    loaded.close()
    environment.close()


def test_tables_of_the_machine_go_on_alike(tmp_path: Path) -> None:
    """The same entries, applied before a snapshot or after it, give the same tables."""

    def run(environment: Environment, first: int, commands: list[Command]) -> None:
        overlay = Overlay(environment)
        machine = Machine(overlay)
        for index, command in enumerate(commands, first):
            meta = Meta(index, 0, 1, 1_000 + index, 1_700_000_000_000 + index)
            machine.apply(meta, command)
            machine.end_entry(meta)
        last = first + len(commands) - 1
        entries = [(index, 1, b"\x01") for index in range(first, last + 1)]
        put(environment, WriteBatch(entries=entries, meta={"applied": u64(last)}, tables=overlay.take()))
        overlay.close()

    blob = packing.pack([packing.pack_message(b"body %d" % i) for i in range(100)])
    before: list[Command] = [Enqueue("a/b", [Part(i % 10, None, blob)]) for i in range(20)] + [Lease("a/b", 150, 5_000)]
    after: list[Command] = [Ack("a/b", 1, [Slots(22, list(range(40)))]), Enqueue("a/c", [Part(0, 500, blob)])]
    environment = Environment(tmp_path / "data")
    run(environment, 2, before)
    head = snapshot.write(environment, tmp_path / "file", CLUSTER)
    assert head.index == 22
    snapshot.load(tmp_path / "file", tmp_path / "loaded")
    loaded = Environment(tmp_path / "loaded")
    unchanged = digest(environment)[1]
    for one in (environment, loaded):
        run(one, 23, after)
    assert digest(loaded) == digest(environment)
    assert digest(loaded)[1] != unchanged
    loaded.close()
    environment.close()


def test_it_is_of_one_state_while_the_node_goes_on(tmp_path: Path) -> None:
    environment = make(tmp_path / "data", LARGE)
    expected = digest(environment)
    writer = Writer(environment)
    applied = expected[0]

    def commit() -> None:
        nonlocal applied
        applied += 1
        batch = WriteBatch(entries=[(applied + 2, 3, b"\x01")], meta={"applied": u64(applied), "clocks": b"later"})
        batch.tables = [(b"key%05d" % (10 * applied), None), (b"key%05d" % (10 * applied + 1), b"changed")]
        batch.compact_below = applied - 1
        writer.write(batch)

    head = snapshot.write(environment, tmp_path / "file", CLUSTER, between=commit)
    assert applied > expected[0] + 4
    assert (head.index, head.digest) == expected
    assert (head.term, head.clocks) == (3, bytes(range(16)))
    snapshot.load(tmp_path / "file", tmp_path / "loaded")
    loaded = Environment(tmp_path / "loaded")
    assert tables(loaded) == LARGE
    loaded.close()
    writer.close()
    environment.close()


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    """However the environment came to hold them; and the id tells any difference."""
    first, second = make(tmp_path / "first", ITEMS), make(tmp_path / "second", LARGE)
    put(second, WriteBatch(tables=[*((key, None) for key, _ in LARGE)]))
    put(second, WriteBatch(tables=list(ITEMS)))
    heads = [snapshot.write(one, one.folder / "file", CLUSTER) for one in (first, second)]
    assert heads[0] == heads[1]
    assert (first.folder / "file").read_bytes() == (second.folder / "file").read_bytes()
    put(second, WriteBatch(tables=[(b"key000", b"other")]))
    ids = {head.id for head in heads} | {snapshot.write(second, second.folder / "file", CLUSTER).id}
    ids |= {msgspec.structs.replace(heads[0], term=4).id, msgspec.structs.replace(heads[0], clocks=b"").id}
    assert len(ids) == 4
    first.close()
    second.close()


def test_the_term_is_that_of_the_applied_entry(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "data")
    head = snapshot.write(environment, tmp_path / "file", CLUSTER)
    assert (head.index, head.term, head.items, head.clocks, head.membership) == (1, 0, 0, b"", b"")
    put(environment, WriteBatch(entries=[(1, 0, b"\x01"), (2, 4, b""), (3, 6, b"")], meta={"applied": u64(2)}))
    assert snapshot.write(environment, tmp_path / "file", CLUSTER).term == 4
    put(environment, WriteBatch(compact_below=3))
    with pytest.raises(EnvironmentDamaged, match="lacks the entry at the applied index 2"):
        snapshot.write(environment, tmp_path / "file", CLUSTER)
    environment.close()


# Damage, and what is left of what fails.


def refused(path: Path, error: type[Exception], match: str) -> None:
    """By both who read it, and nothing is left."""
    folder = path.with_name("loaded")
    with pytest.raises(error, match=match):
        snapshot.check(path)
    with pytest.raises(error, match=match):
        snapshot.load(path, folder)
    assert not folder.exists()


def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    whole = path.read_bytes()
    assert len(whole) < 1_500
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises((SnapshotDamaged, SnapshotForeign), match="damaged") as caught:
            snapshot.check(path)
        assert str(path) in str(caught.value)
        assert (type(caught.value) is SnapshotForeign) == (at < 8)


@pytest.mark.parametrize("at", [10, 40, 300, -40, -1])
def test_a_flipped_bit_is_never_loaded(path: Path, at: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 4
    path.write_bytes(damaged)
    refused(path, SnapshotDamaged, r"is damaged at byte \d+: what is written before it .* take another copy")


def test_a_cut_file_is_found_wherever_it_was_cut(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(SnapshotDamaged, match=r"it ends early, \d+ bytes or more are missing: take another copy"):
            snapshot.check(path)
    refused(path, SnapshotDamaged, "it ends early, 1 bytes or more are missing")


def test_a_cut_file_is_not_loaded_after_its_first_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_SYNC_BYTES", 300_000)
    environment = make(tmp_path / "data", LARGE)
    snapshot.write(environment, tmp_path / "file", CLUSTER)
    os.truncate(tmp_path / "file", (tmp_path / "file").stat().st_size - 10)
    refused(tmp_path / "file", SnapshotDamaged, "it ends early")
    environment.close()


def test_what_follows_the_end_is_found(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x" * 5)
    refused(path, SnapshotDamaged, "5 bytes follow its end")


def test_a_newer_format_says_what_to_do(path: Path) -> None:
    prelude = path.read_bytes()[:8] + struct.pack(">I", 2)
    path.write_bytes(prelude + struct.pack(">Q", xxh3_64_intdigest(prelude)) + b"what it has changed")
    refused(path, SnapshotForeign, "is of format 2, this raftq knows 1: use the newer raftq")


def test_another_file_is_no_snapshot(path: Path) -> None:
    path.write_bytes(b"precious" * 100)
    refused(path, SnapshotForeign, "is not a snapshot of raftq, or its first bytes are damaged")


def parts(path: Path) -> list[bytes]:
    """The prelude, and each part with its checksums."""
    data, found = path.read_bytes(), []
    found.append(data[:20])
    at = 20
    while at < len(data):
        _kind, _count, size, _checksum = struct.unpack_from(">BIIQ", data, at)
        found.append(data[at : at + 25 + size])
        at += 25 + size
    return found


@pytest.mark.parametrize(
    ("order", "match"),
    [
        ([0, 1, 2, 4, 5], "are not those that were written"),
        ([0, 1, 2, 3, 3, 4, 5], "are not those that were written"),
        ([0, 1, 3, 2, 4, 5], "are not those that were written"),
        ([0, 1, 5], "are not those that were written"),
        ([0, 2, 3, 4, 5], "the head is missing"),
        ([0, 1, 1, 2, 3, 4, 5], "it has a part of kind 1"),
        ([0, 1, 2, 3, 4], "it ends early"),
        ([0, 1, 2, 3, 4, 5, 5], "bytes follow its end"),
    ],
)
def test_parts_that_are_right_one_by_one_are_compared_as_a_whole(tmp_path: Path, order: list[int], match: str) -> None:
    environment = make(tmp_path / "data", LARGE[:4_500])
    snapshot.write(environment, tmp_path / "file", CLUSTER)
    found = parts(tmp_path / "file")
    assert len(found) == 6
    (tmp_path / "file").write_bytes(b"".join(found[at] for at in order))
    refused(tmp_path / "file", SnapshotDamaged, match)
    environment.close()


def test_a_length_that_was_changed_is_not_believed(path: Path) -> None:
    """It would be read into memory otherwise."""
    damaged = bytearray(path.read_bytes())
    damaged[20 + 5] ^= 0x40
    path.write_bytes(damaged)
    os.truncate(path, 1 << 31)  # sparse
    refused(path, SnapshotDamaged, "is damaged at byte 45: what is written before it")


class Failure(Exception):
    pass


def fail() -> None:
    raise Failure


def test_a_write_that_fails_leaves_what_was_there(path: Path, environment: Environment) -> None:
    whole = path.read_bytes()
    before = set(path.parent.iterdir())
    with pytest.raises(Failure):
        snapshot.write(environment, path, CLUSTER, between=fail)
    assert path.read_bytes() == whole
    assert set(path.parent.iterdir()) == before


def test_damaged_tables_are_not_written(environment: Environment, tmp_path: Path) -> None:
    with environment.begin_write() as txn:
        txn.put(b"key007", seal(b"key008", b"of another key"), db=environment.tables)
    with pytest.raises(EnvironmentDamaged, match=f"key {b'key007'.hex()} does not match"):
        snapshot.write(environment, tmp_path / "file", CLUSTER)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_load_that_fails_leaves_nothing(path: Path) -> None:
    with pytest.raises(Failure):
        snapshot.load(path, path.with_name("loaded"), between=fail)
    assert not path.with_name("loaded").exists()


def test_tables_that_are_not_as_they_were_written_are_not_given_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was loaded is read again, from LMDB."""
    sealed = snapshot._sealed
    monkeypatch.setattr(
        snapshot, "_sealed", lambda chunk: [*list(sealed(chunk))[:-1], (b"key999", seal(b"key999", b""))]
    )
    with pytest.raises(EnvironmentDamaged, match="the tables loaded have the digest"):
        snapshot.load(path, path.with_name("loaded"))
    assert not path.with_name("loaded").exists()


def test_a_load_into_what_is_there_is_refused(path: Path, environment: Environment) -> None:
    with pytest.raises(EnvironmentUnusable, match="is there already"):
        snapshot.load(path, environment.folder)
    assert verify(environment) > len(ITEMS)


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("what", ["write", "load"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, what: str) -> None:
    environment = make(tmp_path / "data", LARGE)
    snapshot.write(environment, tmp_path / "whole", CLUSTER)
    environment.close()
    done = child(
        """
        import resource, sys
        from pathlib import Path
        from raftq.storage import snapshot
        from raftq.storage.environment import Environment
        folder = Path(sys.argv[1])
        environment = Environment(folder / "data")
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        if sys.argv[2] == "write":
            snapshot.write(environment, folder / "file", "c")
        else:
            snapshot.load(folder / "whole", folder / "loaded")
        """,
        tmp_path,
        what,
    )
    assert ("File too large" if what == "write" else "StorageFailed") in done.stderr.splitlines()[-1]
    assert {entry.name for entry in tmp_path.iterdir()} == {"data", "whole"}


# Installing.

BEFORE = [(b"old%02d" % i, b"x" * i) for i in range(50)]
OWN = {"identity": b"me", "term": u64(12), "vote": b"n2", "roster": b"known"}


def prepare(folder: Path) -> tuple[Environment, SnapshotHead]:
    """An environment that holds BEFORE, and LARGE loaded beside it."""
    leader = make(folder / "leader", LARGE, applied=700)
    snapshot.write(leader, folder / "file", CLUSTER)
    leader.close()
    environment = make(folder / "data", BEFORE)
    return environment, snapshot.load(folder / "file", environment.incoming)


def assert_old(environment: Environment) -> None:
    assert tables(environment) == BEFORE
    assert (environment.applied(), environment.log_bounds()) == (7, (1, 9))
    assert environment.meta("vote") == b"n1"


def assert_new(environment: Environment, head: SnapshotHead) -> None:
    assert digest(environment) == (700, head.digest)
    assert environment.log_bounds() == (700, 700)
    assert environment.log_entries(700, 1, 1) == [(BOUNDARY, 700, 3)]
    assert {name: environment.meta(name) for name in OWN} == OWN
    assert (environment.meta("clocks"), environment.meta("membership")) == (bytes(range(16)), b"all")
    assert verify(environment) == len(LARGE) + 1 + len(OWN) + len(["format", "applied", "clocks", "membership"])


def test_the_same_object_serves_the_new_tables(tmp_path: Path) -> None:
    environment, head = prepare(tmp_path)
    environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
    assert_new(environment, head)
    assert {entry.name for entry in environment.folder.iterdir()} == {"data.mdb", "lock.mdb"}
    with pytest.raises(EnvironmentBusy):
        Environment(environment.folder)
    put(environment, WriteBatch(entries=[(701, 13, b"next")], meta={"applied": u64(701)}, tables=[(b"z", b"new")]))
    environment.close()
    again = Environment(environment.folder)
    assert again.log_bounds() == (700, 701)
    assert tables(again) == [*LARGE[:-1], (b"z", b"new")]
    again.close()


def test_it_happens_again_and_again(tmp_path: Path) -> None:
    """The transaction numbers of LMDB begin anew each time; old readers must not be taken for new ones."""
    environment, head = prepare(tmp_path)
    for _ in range(3):
        for number in range(5):
            put(environment, WriteBatch(tables=[(b"mark", b"%d" % number)]))
        environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
        assert_new(environment, head)
        overlay = Overlay(environment)
        put(environment, WriteBatch(tables=[(b"mark", b"other")]))
        assert overlay.get(b"mark") is None
        overlay.close()
        snapshot.load(tmp_path / "file", environment.incoming)
    environment.close()


#: Reads the environment at argv[1] until its input ends, as a tool of LMDB's may.
_OUTSIDER = """
import sys, lmdb
with lmdb.open(sys.argv[1], readonly=True).begin():
    print("reads", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("commits", [1, 2])
def test_another_process_may_read_the_old_one_meanwhile(tmp_path: Path, commits: int) -> None:
    """Its locks are those of the old file: with them, the number of the last transaction would be the old one."""
    environment, head = prepare(tmp_path)
    for number in range(20 + commits):
        put(environment, WriteBatch(tables=[(b"mark", b"%d" % number)]))
    command = [sys.executable, "-c", _OUTSIDER, str(environment.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outsider:
        assert outsider.stdout is not None
        assert outsider.stdout.readline() == b"reads\n"
        environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
        assert_new(environment, head)
        put(environment, WriteBatch(tables=[(b"z", b"new")]))
        environment.close()
        again = Environment(environment.folder)
        assert tables(again) == [*LARGE[:-1], (b"z", b"new")]
        again.close()
        outsider.communicate()
    assert outsider.returncode == 0


def test_a_reader_that_was_not_closed_is_found(tmp_path: Path) -> None:
    environment, head = prepare(tmp_path)
    reader = environment.snapshot()
    with pytest.raises(AssertionError, match="somebody still reads"):
        environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
    held, release = threading.Event(), threading.Event()
    reader.close()

    def read() -> None:
        with environment.begin_read():
            held.set()
            release.wait(10)

    thread = threading.Thread(target=read)
    thread.start()
    assert held.wait(10)
    with pytest.raises(AssertionError, match="somebody still reads"):
        environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
    release.set()
    thread.join()
    assert_old(environment)
    environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
    assert_new(environment, head)
    environment.close()


def test_tables_of_another_index_are_refused(tmp_path: Path) -> None:
    environment, head = prepare(tmp_path)
    with pytest.raises(AssertionError, match="another index than the boundary"):
        environment.install(environment.incoming, OWN | head.meta(), (head.index + 1, head.term))
    assert_old(environment)
    environment.close()


def test_an_install_that_fails_says_so_and_changes_nothing(tmp_path: Path) -> None:
    environment, head = prepare(tmp_path)
    environment.close()
    full = _Full(environment.folder)
    snapshot.load(tmp_path / "file", full.incoming)
    with pytest.raises(StorageFailed, match="installing a snapshot failed: the disk is full"):
        full.install(full.incoming, OWN | head.meta(), (head.index, head.term))
    full.close()
    environment = Environment(environment.folder)
    assert_old(environment)
    environment.close()


class _Full(Environment):
    def _install_rename(self, incoming: Path) -> None:
        raise OSError(28, "No space left on device")


STEPS = ["complete", "close", "rename", "sync", "open"]

#: argv: folder, step, "before" or "after": installs, and ends there as a crash would.
_CRASH = """
import os, sys
from pathlib import Path
from raftq.storage import snapshot
from raftq.storage.environment import Environment
from tests.storage.test_snapshot import OWN
folder, step, when = Path(sys.argv[1]), "_install_" + sys.argv[2], sys.argv[3]
environment = Environment(folder / "data")
head = snapshot.load(folder / "file", environment.incoming)
done = getattr(environment, step)
def crash(*arguments):
    if when == "after":
        done(*arguments)
    os._exit(77)
setattr(environment, step, crash)
environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_leaves_the_old_or_the_new_one_whole(tmp_path: Path, step: str, when: str) -> None:
    environment, head = prepare(tmp_path)
    environment.close()
    Environment(environment.folder).close()
    done = subprocess.run(
        [sys.executable, "-c", _CRASH, str(tmp_path), step, when],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    assert done.returncode == 77, done.stderr
    environment = Environment(environment.folder)
    if step in ("complete", "close") or (step, when) == ("rename", "before"):
        assert_old(environment)
    else:
        assert_new(environment, head)
    assert {entry.name for entry in environment.folder.iterdir()} == {"data.mdb", "lock.mdb"}
    snapshot.load(tmp_path / "file", environment.incoming)
    environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
    assert_new(environment, head)
    environment.close()


def test_what_an_interruption_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    environment, _head = prepare(tmp_path)
    environment.close()
    folder = environment.folder
    (folder / "incoming.0123456789abcdef0123456789abcdef.part").write_bytes(b"for the receiver")
    (folder / "notes").mkdir()
    (folder / "notes" / "data.mdb").write_bytes(b"of somebody")
    Environment(folder).close()
    assert not (folder / "incoming").exists()
    (folder / "incoming").mkdir()
    (folder / "incoming" / "data.mdb").write_bytes(b"half made")
    (folder / "incoming" / "mine.txt").write_bytes(b"precious")
    environment = Environment(folder)
    assert_old(environment)
    environment.close()
    assert [entry.name for entry in (folder / "incoming").iterdir()] == ["mine.txt"]
    assert (folder / "notes" / "data.mdb").exists()
    assert (folder / "incoming.0123456789abcdef0123456789abcdef.part").exists()


# Restoring.


def test_a_data_folder_is_made_from_a_snapshot(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    head = snapshot.restore(path, folder, {"identity": b"another", "membership": b"of the new cluster"})
    environment = Environment(folder)
    assert tables(environment) == ITEMS
    assert environment.log_entries(7, 1 << 20, 10) == [(BOUNDARY, 7, 3)]
    assert (environment.applied(), environment.meta("term"), environment.meta("vote")) == (7, u64(3), b"")
    assert (environment.meta("identity"), environment.meta("clocks")) == (b"another", head.clocks)
    assert environment.meta("membership") == b"of the new cluster"
    environment.close()


def test_one_more_entry_of_the_next_term_may_follow(path: Path, tmp_path: Path) -> None:
    snapshot.restore(path, tmp_path / "new", {}, command=b"\x00 a new incarnation")
    environment = Environment(tmp_path / "new")
    assert environment.log_entries(7, 1 << 20, 10) == [(BOUNDARY, 7, 3), (b"\x00 a new incarnation", 8, 4)]
    assert (environment.applied(), environment.meta("term")) == (7, u64(4))
    environment.close()


def test_a_folder_with_data_is_never_restored_into(path: Path, environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBusy):
        snapshot.restore(path, environment.folder, {})
    make(tmp_path / "other", BEFORE).close()
    with pytest.raises(EnvironmentUnusable, match="holds the data of a node: restore into a new folder"):
        snapshot.restore(path, tmp_path / "other", {})
    other = Environment(tmp_path / "other")
    assert_old(other)
    other.close()


def test_a_restore_that_fails_leaves_no_data(path: Path, tmp_path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(SnapshotDamaged):
        snapshot.restore(path, tmp_path / "new", {})
    assert not (tmp_path / "new").exists()
