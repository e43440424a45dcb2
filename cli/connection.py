"""How a command reaches the cluster, and how it ends when something goes wrong: one line and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.errors import Busy, FileRefused, OutcomeUnknown, Refused, Unavailable
from raftq.node.cluster_file import ClusterFile
from raftq.node.exits import Exit, Fatal

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:7701"
LOCAL_CLUSTER = Path("data")


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--url and --json."""
    url = click.option(
        "--url",
        envvar="RAFTQ_URL",
        show_envvar=True,
        help=f"A node, or several after commas.  [default: those of ./data/cluster.json, else {DEFAULT_URL}]",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    return url(as_json(command))


def urls(given: str | None) -> list[str]:
    """The nodes to ask: those given, else those of the cluster that `raftq up` runs here, else the usual address."""
    if given:
        return given.split(",")
    state = ClusterFile(LOCAL_CLUSTER).read()
    return [node.api_url for node in state.nodes] if state and state.nodes else [DEFAULT_URL]


class Hints(NamedTuple):
    """What to do, when no node could take it and when the answer was lost."""

    unavailable: str = "see whether the cluster runs, or give another --url"
    unknown: str = "look before you do it again"


def ask(
    url: str | None,
    question: Callable[[AsyncClient], Awaitable[T]],
    timeout_seconds: float = 30.0,
    hints: Hints | None = None,
) -> T:
    """What the cluster answers to `question`. Raises Fatal."""

    async def run() -> T:
        async with AsyncClient(urls(url), patience=Patience(timeout_seconds=timeout_seconds)) as client:
            return await question(client)

    with _fatal(hints or Hints()):
        return asyncio.run(run())


@contextlib.contextmanager
def _fatal(hints: Hints) -> Iterator[None]:
    """Errors of the client as the command line tells them."""
    try:
        yield
    except Busy as error:
        raise Fatal(Exit.UNAVAILABLE, str(error)) from error
    except Unavailable as error:
        raise Fatal(Exit.UNAVAILABLE, f"{error}: {hints.unavailable}") from error
    except OutcomeUnknown as error:
        raise Fatal(Exit.OUTCOME_UNKNOWN, f"{error}: {hints.unknown}") from error
    except Refused as error:
        raise Fatal(Exit.REFUSED, str(error)) from error
    except FileRefused as error:
        raise Fatal(Exit.FILE_REFUSED, str(error)) from error
    except ValueError as error:
        raise Fatal(Exit.USAGE, str(error)) from error


def say_json(value: Any) -> None:
    """`value` as one line of JSON."""
    click.echo(msgspec.json.encode(value))
