"""`raftq write` and `raftq read`: the command line of `raftq.client.files`, where what they do is explained."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from raftq.cli.connection import Hints, ask, connection_options, say_json
from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound
from raftq.client.files.reading import LINES_MAX, FileReader, ReadState
from raftq.client.files.source import Limits
from raftq.client.files.writing import FileWriter, Written
from raftq.node.exits import Exit, Fatal

T = TypeVar("T")

_GO_ON = "start the same command again, it goes on where it was"

#: Of one request, retries included. Far below how long the cluster remembers a request (`files.sidecar`).
TIMEOUT_SECONDS_MAX = 36_000


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(1, TIMEOUT_SECONDS_MAX),
        default=60.0,
        metavar="SECONDS",
        help="Go on trying so long while the cluster has no leader.  [60]",
    )
    batch = click.option(
        "--batch",
        type=click.IntRange(1, LINES_MAX),
        default=LINES_MAX,
        metavar="LINES",
        help=f"Lines of one request at most.  [{LINES_MAX}]",
    )
    file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False), callback=_no_pipe)
    return click.argument("queue")(file(batch(timeout(connection_options(command)))))


def _no_pipe(_context: click.Context, _parameter: click.Parameter, file: Path) -> Path:
    if str(file) == "-":
        raise click.BadParameter("standard input and output cannot be gone on with after a crash: name a file")
    return file


@click.command()
@_file_options
@click.option("--again", is_flag=True, help="Begin anew, also when the file is written already, or half.")
def write(queue: str, file: Path, again: bool, batch: int, timeout: float, url: str | None, as_json: bool) -> None:
    """Write a file into a queue, a message a line.

    In order, each line once. Killed and started again, it goes on where it was: FILE.raftq-write-QUEUE remembers. When
    that says that the same file is written, it is not written again but with --again.
    """

    async def move(client: AsyncClient) -> Written:
        with _bar(f"{file} -> {queue}", _size(file)) as show:
            writer = FileWriter(client, queue, file, limits=Limits(batch_lines=batch), progress=show)
            return await _stoppable(writer.run(again=again), writer.stop)

    written = _moved(move, url, timeout)
    if as_json:
        say_json(written)
    elif written.already:
        click.echo(f"{file} is in {queue} already, {written.lines:,} lines: --again writes it once more")
    elif written.finished:
        click.echo(f"wrote {written.lines:,} lines of {file} into {queue}")
    if not written.finished:
        raise Fatal(Exit.UNFINISHED, f"stopped after {written.lines:,} lines of {file}: the same command goes on")


@click.command()
@_file_options
@click.option(
    "--until-empty",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End when nothing came for so long and the queue is empty, others' leases included.  [default: at Ctrl-C]",
)
def read(
    queue: str, file: Path, until_empty: float | None, batch: int, timeout: float, url: str | None, as_json: bool
) -> None:
    """Read a queue into a file, a line a message.

    In order, each line once, also when several read the same queue into files of their own. Killed and started again,
    it goes on where it was: FILE.raftq-read remembers.
    """

    async def move(client: AsyncClient) -> ReadState:
        with _bar(f"{queue} -> {file}", await _waiting(client, queue)) as show:
            reader = FileReader(
                client,
                queue,
                file,
                until_empty=until_empty,
                lines_max=batch,
                progress=lambda _offset, lines: show(lines),
            )
            return await _stoppable(reader.run(), reader.stop)

    state = _moved(move, url, timeout)
    if as_json:
        say_json({"lines": state.lines, "bytes": state.offset})
    else:
        click.echo(f"{file} has {state.lines:,} lines of {queue}")


def _moved(move: Callable[[AsyncClient], Awaitable[T]], url: str | None, timeout: float) -> T:
    try:
        return ask(url, move, timeout, Hints(_GO_ON, _GO_ON))
    except OSError as error:
        raise Fatal(Exit.FILE_REFUSED, f"{error.strerror or error}: {error.filename or 'the disk'}") from error


async def _stoppable(moving: Awaitable[T], stop: Callable[[], None]) -> T:
    """The first SIGINT or SIGTERM stops in good order, the second one at once; neither loses anything."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return await moving


def _size(file: Path) -> int:
    return file.stat().st_size


async def _waiting(client: AsyncClient, queue: str) -> int:
    """About how many lines there are to come, for the bar."""
    if not sys.stderr.isatty():
        return 0
    try:
        return int((await client.stats(queue))["ready"])
    except NotFound:
        return 0


@contextmanager
def _bar(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Shows how far it is, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _position: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, show_pos=True) as bar:

        def show(position: int) -> None:
            bar.length = max(bar.length or 0, position)
            bar.update(position - bar.pos)

        yield show
