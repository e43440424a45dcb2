from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from raftq.client.errors import FileInUse, FileRefused
from raftq.client.files.sidecar import Sidecar
from tests.client.files.crashes import Crash, Crasher


class State(msgspec.Struct):
    number: int
    text: str = "x" * 1000


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    sidecar = Sidecar(tmp_path / "s", State)
    assert sidecar.state is None
    sidecar.save(State(1))
    sidecar.save(State(2))
    sidecar.close()
    assert Sidecar(tmp_path / "s", State).state == State(2)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_only_one_owner(tmp_path: Path) -> None:
    first = Sidecar(tmp_path / "s", State)
    for _ in range(2):
        with pytest.raises(FileInUse):
            Sidecar(tmp_path / "s", State)
        first.save(State(1))  # the lock goes along with the new document
    first.close()
    Sidecar(tmp_path / "s", State).close()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from raftq.client.files.sidecar import Sidecar; import msgspec\n"
        "s = Sidecar(Path(sys.argv[1]), dict); s.save({'number': 1}); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(FileInUse):
            Sidecar(tmp_path / "s", State)
        process.kill()
    assert Sidecar(tmp_path / "s", State).state == State(1)


def test_a_save_killed_anywhere_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for at in range(1, 6):
        path = tmp_path / str(at)
        sidecar = Sidecar(path, State)
        sidecar.save(State(1))
        crasher = Crasher(at)
        with crasher.on_disk(monkeypatch):
            try:
                sidecar.save(State(2))
            except Crash:
                pass
            else:
                assert crasher.count < at
        sidecar.close()
        after = Sidecar(path, State)
        assert after.state in (State(1), State(2))
        found.add((at, after.state.number))
        after.save(State(3))
        after.close()
    assert found == {(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)}


def test_another_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text('{"number": "one"}')
    with pytest.raises(FileRefused, match="is not what this version of raftq wrote"):
        Sidecar(tmp_path / "s", State)
    (tmp_path / "s").write_text('{"number": 1}')
    Sidecar(tmp_path / "s", State).close()  # the refusal let the lock go
