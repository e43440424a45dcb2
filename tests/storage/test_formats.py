"""Goal: data of every format that was ever released can be used by this code, exactly as it was written.
Method: folders that `python -m tests.storage.formats` made with the code of then, kept beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from raftq.replication.engine import REGULAR
from raftq.storage import digest, snapshot
from raftq.storage.environment import Environment
from raftq.storage.machine import audit, commands, entries
from raftq.storage.machine.apply import VERSION_MAX, Machine
from raftq.storage.machine.commands import (
    Ack,
    Command,
    Enqueue,
    Expire,
    Incarnate,
    Lease,
    Part,
    Redrive,
    Reject,
    SetVersion,
    Slots,
)
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import DONE, Leased, Redriving
from raftq.storage.overlay import Overlay
from raftq.storage.verify import verify
from tests.storage.conftest import blob
from tests.storage.formats import views

MADE = sorted((Path(__file__).parent / "formats").glob("v[0-9]*"))


class Old:
    """A copy of the folder, opened."""

    def __init__(self, made: Path, folder: Path) -> None:
        self.backup, self.folder = made / views.BACKUP, folder
        self.expected: dict[str, Any] = msgspec.json.decode((made / views.EXPECTED).read_bytes())
        folder.mkdir()
        shutil.copy(made / views.DATA, folder)
        self.environment = Environment(folder)

    def entries(self) -> list[bytes]:
        """Of the log, those that hold commands."""
        first, last = self.environment.log_bounds() or (1, 0)
        found = self.environment.log_entries(first, 1 << 30, last - first + 1)
        assert len(found) == last - first + 1
        return [b"" if command[:1] != REGULAR else command for command, _, _ in found]


@pytest.fixture(params=MADE, ids=[made.name for made in MADE])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    opened = Old(request.param, tmp_path / "n1")
    yield opened
    opened.environment.close()


def test_a_folder_is_kept_for_the_version_of_this_code() -> None:
    assert f"v{VERSION_MAX}" in [made.name for made in MADE]


def test_the_kept_folders_hold_every_command(tmp_path: Path) -> None:
    seen: set[type] = set()
    for made in MADE:
        kept = Old(made, tmp_path / made.name)
        for entry in filter(None, kept.entries()):
            seen |= {type(commands.decode(data)) for data in entries.decode(entry, 1)[1]}
        kept.environment.close()
    missing = [kind.__name__ for kind in get_args(Command) if kind not in seen]
    assert missing == [], (
        "drive them in tests/storage/formats, and make the folder again (or, once released, a new one)"
    )


def test_all_of_it_is_read_as_it_was_written(old: Old) -> None:
    assert verify(old.environment)
    assert digest.digest(old.environment) == (old.expected["index"], old.expected["digest"])
    overlay = Overlay(old.environment)
    machine = Machine(overlay)
    audit.check(overlay)
    assert machine.version == old.expected["version"]
    known = old.expected["views"]
    assert views.as_known(views.of_view(machine.view()), known) == known
    overlay.close()


def test_its_log_makes_the_same_tables(old: Old) -> None:
    """A member that runs the new code next to one that runs the old must not come to differ from it."""
    machine = Machine(tables := MemoryTxn())
    for index, entry in enumerate(old.entries(), 1):
        if not entry:
            continue
        clocks, encoded = entries.decode(entry, 1)
        for position, data in enumerate(encoded):
            machine.apply(Meta(index, position, 1, *clocks), commands.decode(data))
        machine.end_entry(Meta(index, 0, 1, *clocks))
    kept = MemoryTxn()
    with old.environment.begin_read() as txn:
        for key, stored in txn.cursor():
            kept.put(key, stored[:-8])
    assert dict(tables.scan(b"", b"\xff")) == dict(kept.scan(b"", b"\xff"))


def test_its_backup_is_loaded(old: Old, tmp_path: Path) -> None:
    head = snapshot.load(old.backup, tmp_path / "loaded")
    assert (head.index, head.digest) == (old.expected["index"], old.expected["digest"])


def test_the_machine_goes_on_with_it(old: Old) -> None:
    """Switched to the version of this code: all that is ready is leased and settled, dead letters are redriven, the
    rest passes with time, and the tables stay in order."""
    overlay = Overlay(old.environment)
    going = GoingOn(Machine(overlay), old.expected)
    going.do(SetVersion(VERSION_MAX))
    known = old.expected["views"]["queues"]
    for key in (*known, *old.expected["views"].get("partitions", ())):
        going.do(Enqueue(key, [Part(9, 0, blob(b'"new"'))]))
        leasable = going.machine.view().ready(key)
        assert leasable or known[key]["settings"]["paused"]
        leased = going.do(Lease(key, 1_000))
        assert isinstance(leased, Leased)
        count = sum(taken.count for taken in leased.ranges)
        assert count == leasable or key not in known
        if count:
            bodies = [message and message.data for message in going.machine.deliveries(leased)]
            assert len(bodies) == count
            rejected = going.do(Reject(key, leased.queue_number, [Slots(leased.lease_id, [0])]))
            acked = going.do(Ack(key, leased.queue_number, [Slots(leased.lease_id, list(range(1, count)))]))
            assert {*rejected.results[0], *acked.results[0]} <= {DONE}
        audit.check(overlay)
    redriven = going.do(Redrive("default/dead"))
    assert isinstance(redriven, Redriving)
    going.do(Incarnate())
    going.pass_time(400 * 24 * 3_600_000)
    audit.check(overlay)
    assert going.machine.view().redrive("default/dead").state == "done"  # type: ignore[union-attr]
    for key in old.expected["views"]["queues"]:
        info = going.machine.view().queue(key)
        assert info is not None
        assert (info.leased, info.delayed) == (0, 0)
    overlay.close()


class GoingOn:
    """Applies to a machine what comes after the last entry of its tables."""

    def __init__(self, machine: Machine, expected: dict[str, Any]) -> None:
        self.machine, self._index = machine, expected["index"]
        self._lease_ms, self._wall_ms = expected["views"]["clocks"]

    def do(self, command: Command) -> Any:
        self._index += 1
        meta = Meta(self._index, 0, 1, self._lease_ms, self._wall_ms)
        reply, _ = self.machine.apply(meta, commands.decode(commands.encode(command)))
        self.machine.end_entry(meta)
        return reply

    def pass_time(self, ms: int) -> None:
        """Until nothing is due any more."""
        self._lease_ms += ms
        self._wall_ms += ms
        while self.do(Expire()).more or min(at or 1 << 63 for at in self.machine.next_due()) <= self._wall_ms:
            self._wall_ms += 1_000
