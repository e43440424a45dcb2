"""What a node warns of at its start."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from raftq.node import doctor
from raftq.node.settings import load
from raftq.storage.environment import Environment

NEEDED = {"node_id": "n1", "cluster_id": "c1", "data": "/data"}


def warnings(folder: Path, flags: dict[str, str], environ: dict[str, str], files_max: int) -> list[str]:
    environment = Environment(folder)
    try:
        return doctor.warnings(load(NEEDED | flags, {}), environment, environ, files_max)
    finally:
        environment.close()


def test_nothing_on_a_sound_machine(tmp_path: Path) -> None:
    assert warnings(tmp_path, {"disk_reserve_bytes": "0"}, {"RAFTQ_DATA": "/data"}, doctor.FILES_WANTED) == []


def test_few_files_little_disk_a_misspelt_variable(tmp_path: Path) -> None:
    found = warnings(tmp_path, {"disk_reserve_bytes": "1000TiB"}, {"RAFTQ_HEARTBEATMS": "1"}, 256)
    assert [word for line, word in zip(found, ["HEARTBEATMS", "ulimit", "disk"], strict=True) if word in line] == [
        "HEARTBEATMS", "ulimit", "disk",
    ]  # fmt: skip


def test_a_remote_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_file_system", lambda _folder: "nfs4")
    [line] = warnings(tmp_path, {"disk_reserve_bytes": "0"}, {}, doctor.FILES_WANTED)
    assert "nfs4" in line


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount() -> None:
    if not Path("/proc/self/mounts").exists():
        pytest.skip("there is no /proc here")
    assert doctor._file_system(Path("/proc/self")) == "proc"


def test_the_limit_of_open_files_is_raised_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, soft), hard))
    try:
        got = doctor.raise_file_limit()
        assert got == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert got == (min(hard, doctor.FILES_WANTED) if hard != resource.RLIM_INFINITY else doctor.FILES_WANTED)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
