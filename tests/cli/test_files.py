from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from raftq.node.exits import Exit
from tests.cli.conftest import Raftq

CONTENT = b"one\n\n" + "zwölf\r\n".encode() + b"\xff\x00\n" + b"x" * 2_000_000 + b"\nthe end"


@pytest.fixture
def source(raftq: Raftq) -> Path:
    path = raftq.folder / "in"
    path.write_bytes(CONTENT)
    return path


async def test_a_file_goes_through_a_queue(raftq: Raftq, source: Path) -> None:
    assert await raftq("write", "jobs", "in") == (0, "wrote 6 lines of in into jobs\n", "")
    assert await raftq("read", "jobs", "out", "--until-empty", "0") == (0, "out has 6 lines of jobs\n", "")
    assert (raftq.folder / "out").read_bytes() == CONTENT
    again = await raftq("write", "jobs", "in")
    assert again == (0, "in is in jobs already, 6 lines: --again writes it once more\n", "")
    assert (await raftq("write", "jobs", "in", "--again", "--json")).json["lines"] == 6
    ended = await raftq("read", "jobs", "out", "--until-empty", "0", "--json")
    assert ended.json == {"lines": 12, "bytes": 2 * len(CONTENT) + 1}


async def test_killed_and_started_again(raftq: Raftq) -> None:
    """SIGKILL at random instants, of the real processes."""
    rng = random.Random(2)
    lines = [b"%d " % number + b"z" * rng.randrange(300) for number in range(400)]
    (raftq.folder / "in").write_bytes(b"\n".join(lines) + b"\n")
    for command in (("write", "jobs", "in"), ("read", "jobs", "out", "--until-empty", "0")):
        kills = 0
        while not await _ended(raftq, *command, "--batch", "5", seconds=rng.uniform(0.35, 0.55) + kills / 20):
            kills += 1
    assert (raftq.folder / "out").read_bytes() == (raftq.folder / "in").read_bytes()


async def _ended(raftq: Raftq, *arguments: str, seconds: float) -> bool:
    process = await raftq.start(*arguments)
    try:
        await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
    assert process.returncode == 0
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_read_ends_well_when_it_is_asked_to(raftq: Raftq, source: Path, number: signal.Signals) -> None:
    process = await raftq.start("read", "jobs", "out")
    await raftq("write", "jobs", "in")
    while True:
        counts = raftq.node.shard.stale().queue("default/jobs")
        if counts is not None and counts.acked == 6:
            break
        await asyncio.sleep(0.01)
    process.send_signal(number)
    out, error = await process.communicate()
    assert (process.returncode, out, error) == (0, b"out has 6 lines of jobs\n", b"")
    assert (raftq.folder / "out").read_bytes() == CONTENT


async def test_a_write_that_is_asked_to_stop_says_that_it_is_not_done(raftq: Raftq, source: Path) -> None:
    raftq.node.shard.gate = asyncio.Event()
    process = await raftq.start("write", "jobs", "in")
    while not raftq.node.shard._tasks:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    raftq.node.shard.gate.set()
    _, error = await process.communicate()
    assert (process.returncode, error) == (
        Exit.UNFINISHED,
        b"raftq: stopped after 4 lines of in: the same command goes on\n",
    )
    assert (await raftq("write", "jobs", "in")).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("write jobs nowhere", Exit.FILE_REFUSED, "No such file or directory: nowhere"),
        ("write jobs -", Exit.USAGE, "name a file"),
        ("read jobs -", Exit.USAGE, "name a file"),
        ("write ../name in", Exit.USAGE, "is no name for a queue"),
        ("read .. out", Exit.USAGE, "is no name for a queue"),
        ("read jobs in", Exit.FILE_REFUSED, "in is there already"),
        ("read jobs no/folder", Exit.FILE_REFUSED, "No such file or directory"),
    ],
)
async def test_errors_are_one_line_and_an_exit_code(
    raftq: Raftq, source: Path, arguments: str, code: Exit, line: str
) -> None:
    ended = await raftq(*arguments.split())
    assert (ended.code, ended.out, ended.error.count("\n")) == (code, "", 1), ended
    assert line in ended.error


async def test_a_cluster_that_is_away(raftq: Raftq, source: Path) -> None:
    raftq.environment["RAFTQ_URL"] = "http://127.0.0.1:1"
    ended = await raftq("write", "jobs", "in", "--timeout", "1")
    assert ended.code == Exit.UNAVAILABLE
    assert ended.error.endswith("start the same command again, it goes on where it was\n")
