"""The commands' names, their help, and errors of the command line in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from raftq.cli.commands import COMMANDS, raftq
from raftq.cli.main import run
from raftq.node.exits import Exit, Fatal


def test_help_lists_every_command_and_exit_code() -> None:
    said = CliRunner().invoke(raftq, ["--help"]).output
    for name in COMMANDS:
        assert f"\n  {name} " in said
    for code in Exit:
        assert f"\n  {code:d} " in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_where_the_table_says_and_says_the_same(name: str) -> None:
    result = CliRunner().invoke(raftq, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert COMMANDS[name].summary in " ".join(result.output.split())


def test_help_imports_no_command_and_no_server() -> None:
    code = """
import sys
from raftq.cli.main import run
run(["--help"])
print(*sorted(name for name in sys.modules if name.startswith(("raftq.", "aiohttp", "lmdb", "msgspec", "structlog"))))
"""
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    ours = "raftq.cli raftq.cli.commands raftq.cli.main raftq.node raftq.node.exits"
    assert said.stdout.splitlines()[-1] == ours


@pytest.mark.parametrize(
    "arguments", [["nope"], ["--nope"], ["kill"], ["up", "--nodes=0"], ["up", "--tour", "--nodes=1"]]
)
def test_a_wrong_command_line_is_one_line(arguments: list[str]) -> None:
    with pytest.raises(Fatal) as caught:
        run(arguments)
    assert caught.value.code is Exit.USAGE
    assert "\n" not in str(caught.value)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    script = f'"{sys.executable}" -P -m raftq.cli --help | true; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in ended.stderr
