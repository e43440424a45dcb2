"""How a command reaches the cluster, and how it ends when something goes wrong: one line and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.errors import Busy, FileRefused, OutcomeUnknown, Refused, Unauthorized, Unavailable
from raftq.node import secure_folder
from raftq.node.cluster_file import ClusterFile
from raftq.node.exits import Exit, Fatal
from raftq.node.probe import Access

T = TypeVar("T")

_FILE = click.Path(path_type=Path, dir_okay=False)
DEFAULT_URL = "http://127.0.0.1:7701"
LOCAL_CLUSTER = Path("data")


#: A token is never a flag: a command line can be read by everybody on the machine.
TOKEN_VARIABLE = "RAFTQ_TOKEN"  # noqa: S105 - its name


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--url, --json, --token-file and --ca; the last two go to `ask` by way of click's context."""
    url = click.option(
        "--url",
        envvar="RAFTQ_URL",
        show_envvar=True,
        help=f"A node, or several after commas.  [default: those of ./data/cluster.json, else {DEFAULT_URL}]",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    token = click.option(
        "--token-file",
        type=_FILE,
        callback=remember,
        expose_value=False,
        help=f"A file that holds the token.  [default: {TOKEN_VARIABLE} holds it]",
    )
    ca = click.option(
        "--ca",
        type=_FILE,
        envvar="RAFTQ_CA",
        show_envvar=True,
        callback=remember,
        expose_value=False,
        help="The authorities of the nodes' certificates.  [default: that of ./data, else the system's]",
    )
    return url(as_json(token(ca(command))))


def remember(context: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    """For `access`."""
    if file is not None:
        context.meta[f"raftq.{parameter.name}"] = file
    return file


def access() -> Access:
    """As the flags of the command that runs say, then the environment, then the cluster that `raftq up` runs here.
    Raises Fatal."""
    given = click.get_current_context().meta
    ca, data = given.get("raftq.ca"), given.get("raftq.data", LOCAL_CLUSTER)
    if ca is None and (state := ClusterFile(data).read()) is not None and state.secure:
        ca = secure_folder.authority(data)
    return Access(_token(given.get("raftq.token_file")), ca)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise Fatal(Exit.USAGE, f"cannot read the token in {file}: {why}") from error


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

    token, ca_file = access()

    async def run() -> T:
        patience = Patience(timeout_seconds=timeout_seconds)
        async with AsyncClient(urls(url), patience=patience, token=token, ca_file=ca_file) as client:
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
    except Unauthorized as error:
        hint = f"give a token: {TOKEN_VARIABLE}, or --token-file FILE"
        raise Fatal(Exit.REFUSED, f"{error} ({hint})") from error
    except Refused as error:
        raise Fatal(Exit.REFUSED, str(error)) from error
    except FileRefused as error:
        raise Fatal(Exit.FILE_REFUSED, str(error)) from error
    except ValueError as error:
        raise Fatal(Exit.USAGE, str(error)) from error


def say_json(value: Any) -> None:
    """`value` as one line of JSON."""
    click.echo(msgspec.json.encode(value))
