"""`raftq tls dev`: certificates for tests."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import click

from raftq.node import settings
from raftq.node.exits import Exit, Fatal

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def tls() -> None:
    """Make certificates for tests."""


@tls.command()
@click.argument("folder", type=_FOLDER)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    required=True,
    metavar="NODE=HOST[,HOST]",
    help="A node, and the names and addresses under which it is reached. Once for each.",
)
def dev(folder: Path, nodes: tuple[str, ...]) -> None:
    """Make a test authority in FOLDER, and certificates of nodes.

    With the authority that is in FOLDER already, if there is one: so a node is added, or gets a new certificate. The
    private key of the authority stays there unprotected, so this is for testing: who can read FOLDER can be a node.
    """
    wanted = [_node(text) for text in nodes]
    from raftq.node.authority import NODE_DAYS, Authority  # takes a tenth of a second

    try:
        authority = Authority(folder)
        for node, hosts in wanted:
            authority.issue(node, hosts)
    except (OSError, ValueError) as error:
        raise Fatal(Exit.FILE_REFUSED, f"cannot make certificates in {folder}: {error}") from error
    click.echo(f"{authority.certificate}: the authority, for everybody; {folder / 'ca.key'}: its key, for nobody")
    for node, hosts in wanted:
        names = ", ".join([*hosts, "localhost"])
        click.echo(f"{authority.certificate_of(node)}, {authority.key_of(node)}: {node}, reached at {names}")
    click.echo(f"For testing: the keys lie here unprotected. The certificates of nodes end in {NODE_DAYS} days.")


def _node(text: str) -> tuple[str, list[str]]:
    name, equals, hosts = text.partition("=")
    found = [host for host in hosts.split(",") if host]
    if not equals or not found:
        raise click.UsageError(f"--node takes NODE=HOST, as n1=10.0.0.1, not {text!r}")
    if not all(_HOST.fullmatch(host) or _is_ip(host) for host in found):
        raise click.UsageError(f"--node takes names of hosts and IP addresses, without a port, not {hosts!r}")
    return settings.checked("node_id", name, "--node"), found


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
