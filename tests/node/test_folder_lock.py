"""A folder is held by one process at a time, until that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raftq.node.folder_lock import FolderInUse, FolderLock, is_held
from raftq.storage.environment import Environment

HOLD = """
import sys
from pathlib import Path
from raftq.node.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_it_is_held_until_released(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert not is_held(folder)
    lock = FolderLock(folder)
    assert is_held(folder)
    with pytest.raises(FolderInUse):
        FolderLock(folder)
    lock.release()
    assert not is_held(folder)
    FolderLock(folder).release()


def test_it_ends_with_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_held(tmp_path)
        holder.kill()
        holder.wait()
    assert not is_held(tmp_path)


def test_it_tells_of_an_open_environment(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "n1")
    assert is_held(tmp_path / "n1")
    environment.close()
    assert not is_held(tmp_path / "n1")
