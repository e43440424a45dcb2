"""`raftq tokens`: who may do what. A token is printed once, when it is made, and goes nowhere else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from raftq.cli import secret
from raftq.cli.connection import Hints, ask, connection_options, say_json
from raftq.cli.tables import show as show_table
from raftq.client.models import Grant, Token

_FILE = click.Path(path_type=Path, dir_okay=False)
_SCOPES = ("produce", "consume", "admin")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_HINTS = Hints(unknown="it may have been made: see with raftq tokens list, revoke it, and make another")


def _grants(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[Grant]:
    return [_grant(text) for text in given]


def _grant(text: str) -> Grant:
    scope, _, names = text.partition(":")
    if scope not in _SCOPES or not names:
        raise click.BadParameter(f"{text!r} is no grant: give one as produce:orders, consume:orders.* or admin:*")
    return Grant(scope=scope, names=names)


def _seconds(_context: click.Context, _parameter: click.Parameter, given: str | None) -> float | None:
    if given is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhd])", given)
    if found is None:
        raise click.BadParameter(f"{given!r} is no time: give one as 90s, 30m, 12h or 30d")
    return float(found[1]) * _UNITS[found[2]]


@click.group()
def tokens() -> None:
    """Create, list, show and revoke tokens."""


@tokens.command()
@click.argument("name")
@click.option("--grant", "grants", callback=_grants, multiple=True, required=True, metavar="SCOPE:NAMES")
@click.option("--namespace", default="default", help="Where it may; * is everywhere.  [default]")
@click.option("--expires", callback=_seconds, metavar="TIME", help="Good for so long, as 30d.  [until it is revoked]")
@connection_options
def create(
    name: str, grants: list[Grant], namespace: str, expires: float | None, url: str | None, as_json: bool
) -> None:
    """Make a token, and print it: this once.

    A grant is produce, consume or admin on a queue, topic or schedule of that name, or on all whose names begin so:
    --grant 'produce:orders.*' --grant consume:invoices. What concerns the whole cluster, tokens too, takes
    --grant 'admin:*' --namespace '*'. NAME is for people.
    """
    made = ask(
        url,
        lambda client: client.create_token(name, grants, namespace=namespace, expires_seconds=expires),
        hints=_HINTS,
    )
    if as_json:
        say_json(made)
    else:
        click.echo(made.token)


@tokens.command("list")
@connection_options
def list_all(url: str | None, as_json: bool) -> None:
    """Show all tokens: whose they are, and what they may do."""
    found = ask(url, lambda client: client.tokens())
    if as_json:
        say_json({"tokens": found})
    else:
        show_table([("id", "name", "namespace", "expires", "grants"), *map(_row, found)])


@tokens.command()
@click.argument("token_id", metavar="ID")
@connection_options
def show(token_id: str, url: str | None, as_json: bool) -> None:
    """Show one token."""
    found = ask(url, lambda client: client.token(_checked(token_id)))
    if as_json:
        say_json(found)
    else:
        labels = ("id", "name", "namespace", "expires", "grants")
        show_table([*zip(labels, _row(found), strict=True), ("created", _time(found.created_at_ms))])


@tokens.command()
@click.argument("token_id", metavar="ID")
@connection_options
def revoke(token_id: str, url: str | None, as_json: bool) -> None:
    """Revoke a token: it is good for nothing any more."""
    ask(url, lambda client: client.revoke_token(_checked(token_id)), hints=Hints(unknown="see with raftq tokens list"))
    if as_json:
        say_json({"id": token_id})
    else:
        click.echo(f"{token_id} is revoked")


@tokens.command()
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def first(file: Path, as_json: bool) -> None:
    """Make the first token of a cluster, and print it: this once.

    It may do everything. FILE, which must be new, gets its id and digest: copy it to every node, and name it there:
    first_token_file. Whichever node leads puts it into the cluster, once; when it is revoked it does not come back.
    """
    from raftq.node import first_token  # what a node needs is imported when it is wanted

    text, kept = first_token.make()
    secret.write(file, kept)
    if as_json:
        say_json({"token": text, "file": str(file)})
    else:
        click.echo(text)


def _checked(token_id: str) -> str:
    """Whoever gives a whole token is told so without it: what is shown may be kept by others."""
    if not re.fullmatch(r"[0-9a-f]{12}", token_id):
        raise click.UsageError("give the id of a token, 12 hex digits, as raftq tokens list shows it; never a token")
    return token_id


def _row(token: Token) -> tuple[str, ...]:
    grants = " ".join(f"{grant.scope}:{grant.names}" for grant in token.grants)
    expires = "never" if token.expires_at_ms is None else _time(token.expires_at_ms)
    return token.id, token.name, token.namespace, expires, grants


def _time(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
