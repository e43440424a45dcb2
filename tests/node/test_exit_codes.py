"""Goal: each way in which a node fails has its exit code, and exactly one line on stderr that says what and where.
Method: real processes and real causes: a taken port, a damaged file, a full file system, a file size limit."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.node import probe
from raftq.node.exits import Exit
from tests.node.conftest import COMMAND, Node, Settings

Start = Callable[..., Node]


def assert_ends(node: Node, code: Exit, *words: str) -> None:
    got, lines = node.end()
    assert (got, len(lines)) == (code, 1), lines
    for word in words:
        assert word in lines[0]


def test_a_wrong_setting(start: Start, settings: Settings) -> None:
    assert_ends(start(settings.but(heartbeat_ms="often").flags), Exit.CONFIG, "--heartbeat-ms", "often")


def test_a_data_folder_that_is_a_file(start: Start, settings: Settings) -> None:
    Path(settings["data"]).write_text("not a folder")
    assert_ends(start(settings.flags), Exit.CONFIG, settings["data"])


@pytest.mark.parametrize("setting", ["api-listen", "peer-listen"])
def test_a_port_that_is_taken(start: Start, settings: Settings, setting: str) -> None:
    host, port = settings[setting].split(":")
    with socket.create_server((host, int(port))):
        assert_ends(start(settings.flags), Exit.PORT_TAKEN, settings[setting], setting.replace("-", "_"))


def test_an_address_of_another_machine(start: Start, settings: Settings) -> None:
    elsewhere = settings.but(api_listen="203.0.113.1:7701")
    assert_ends(start([*elsewhere.flags, "--insecure"]), Exit.CONFIG, "cannot listen on 203.0.113.1:7701")


def run_once(start: Start, settings: Settings) -> None:
    node = start(settings.flags)
    node.wait_ready(settings.url)
    node.process.terminate()
    code, _ = node.end()
    assert code == Exit.STOPPED


def test_data_of_another_cluster_or_node(start: Start, settings: Settings) -> None:
    run_once(start, settings)
    assert_ends(start(settings.but(cluster_id="c2").flags), Exit.FOREIGN_DATA, "c1", "c2")
    assert_ends(start(settings.but(node_id="n2").flags), Exit.FOREIGN_DATA, "n1", "n2")
    run_once(start, settings)


def test_a_folder_in_use(start: Start, settings: Settings) -> None:
    start(settings.flags).wait_ready(settings.url)
    other = settings.but(api_listen="127.0.0.1:0", peer_listen="127.0.0.1:0")
    assert_ends(start(other.flags), Exit.FOLDER_IN_USE, settings["data"])


def test_damaged_data(start: Start, settings: Settings) -> None:
    run_once(start, settings)
    file = Path(settings["data"]) / "data.mdb"
    found = file.read_bytes()
    assert b"cluster_id" in found  # in the identity, which is read at every start
    file.write_bytes(found.replace(b"cluster_id", b"clusteR_id"))
    assert_ends(start(settings.flags), Exit.DAMAGED, settings["data"], "'meta'")


def test_data_that_is_not_of_raftq(start: Start, settings: Settings) -> None:
    folder = Path(settings["data"])
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"something else" * 4096)
    assert_ends(start(settings.flags), Exit.DAMAGED, settings["data"])


def can_mount() -> bool:
    script = "mount -t tmpfs tmpfs /mnt"
    return shutil.which("unshare") is not None and (
        subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="this user may not mount a small file system")
def test_a_full_disk(settings: Settings, tmp_path: Path) -> None:
    """On a file system of 16 KiB, into which an empty environment does not fit."""
    script = f'mount -t tmpfs -o size=16k tmpfs "{tmp_path}" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *COMMAND, *settings.flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (Exit.DISK_FULL, 1), ended.stderr
    assert settings["data"] in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
def test_a_commit_that_fails_ends_a_serving_node(start: Start, settings: Settings) -> None:
    """The file size limit of a running node is lowered to what its environment has now. What it had acknowledged is
    there when it is started again."""
    node = start(settings.flags)
    node.wait_ready(settings.url)
    assert probe.ask("POST", f"{settings.url}/q/jobs", '"kept"').status == 201
    bytes_now = (Path(settings["data"]) / "data.mdb").stat().st_size
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (bytes_now, bytes_now))
    answer = probe.ask("POST", f"{settings.url}/q/jobs", f'"{"x" * 100_000}"', seconds=10)
    assert (answer.status, answer.json()["applied"]) == (503, "unknown")
    code, lines = node.end()
    assert code == Exit.COMMIT_FAILED
    last = json.loads(lines[-1])
    assert (last["level"], last["exit_code"]) == ("critical", Exit.COMMIT_FAILED)
    assert settings["data"] in last["event"]
    assert "exception" not in last

    start(settings.flags).wait_ready(settings.url)
    assert probe.ask("GET", f"{settings.url}/q/jobs").text == '"kept"'


def test_a_file_size_limit_at_the_start(start: Start, settings: Settings) -> None:
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    assert_ends(start(settings.flags, preexec_fn=limit), Exit.COMMIT_FAILED, settings["data"])


def test_an_unknown_flag(start: Start) -> None:
    assert_ends(start(["--nodeid=n1"]), Exit.USAGE, "--nodeid", "--help")


def test_a_library_that_is_not_installed(settings: Settings) -> None:
    """As when raftq is installed without [server]."""
    code = "import sys; sys.modules['lmdb'] = None; from raftq.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", code, "node", *settings.flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (Exit.CONFIG, 1), ended.stderr
    assert "raftq[server]" in ended.stderr


def test_what_nobody_thought_of_is_one_line_too(settings: Settings, environ: dict[str, str]) -> None:
    code = "import raftq.node.identity as i; i.begin = None; from raftq.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", code, "node", *settings.flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (Exit.UNEXPECTED, 1), ended.stderr
    assert "TypeError" in json.loads(ended.stderr)["exception"]


@pytest.mark.parametrize("version", ["3.7", "3.8", "3.9", "3.10"])
def test_a_python_too_old(version: str) -> None:
    """With the real old interpreter where there is one, which must be able to read what comes before the check."""
    python = shutil.which(f"python{version}")
    found = python and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    if not found:
        pytest.skip(f"there is no Python {version}")
    source = Path(__file__).parents[2] / "src"
    environ = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-c", "from raftq.cli.main import main; main()", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (Exit.PYTHON_TOO_OLD, 1), ended.stderr
    assert "3.11" in ended.stderr


@pytest.mark.parametrize(
    ("pretence", "code"),
    [
        ("sys.version_info = (3, 10, 2)", Exit.PYTHON_TOO_OLD),
        ("sys.platform = 'win32'", Exit.UNSUPPORTED_SYSTEM),
        ("sys.maxsize = 2**31 - 1", Exit.UNSUPPORTED_SYSTEM),
    ],
)
def test_a_python_or_system_that_will_not_do(pretence: str, code: Exit) -> None:
    script = f"import sys; from raftq.cli.main import main; {pretence}; main()"
    command = [sys.executable, "-P", "-c", script, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (code, 1), ended.stderr
