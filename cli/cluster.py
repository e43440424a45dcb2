"""`raftq stats` and `raftq cluster`; what changes the cluster is in `members`."""

from __future__ import annotations

from typing import Any

import click

from raftq.cli import members
from raftq.cli.connection import ask, connection_options, say_json
from raftq.cli.tables import show
from raftq.client.models import ClusterNode


@click.command()
@click.argument("queue", required=False)
@connection_options
def stats(queue: str | None, url: str | None, as_json: bool) -> None:
    """Show the counts of one queue, or of all."""
    counts = ask(url, lambda client: client.stats(queue))
    if as_json:
        say_json(counts)
        return
    totals, rates = counts.pop("totals", {}), counts.pop("rates", {})
    show([(name, _shown(value)) for name, value in counts.items()])
    click.echo("since the queue was created" if queue else "since there is the cluster")
    near, far = rates.get("last_10_seconds", {}), rates.get("last_60_seconds", {})
    rows = [(f"  {name}", *map(_shown, (n, near.get(name), far.get(name)))) for name, n in totals.items()]
    show([("", "", "a second, for 10 s", "for 60 s"), *rows])


@click.group(invoke_without_command=True)
@connection_options
@click.pass_context
def cluster(context: click.Context, url: str | None, as_json: bool) -> None:
    """Show the nodes as the leader sees them; or change them. Without a leader they are as one node sees them."""
    if context.invoked_subcommand is not None:
        if as_json or context.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"give --url and --json after {context.invoked_subcommand}")
        return
    found = ask(url, lambda client: client.cluster(of_leader=True))
    if as_json:
        say_json(found)
        return
    leader = f"{found.leader} leads in term {found.term}" if found.leader else f"no leader in term {found.term}"
    click.echo(f"cluster {found.cluster_id}: {leader}")
    show([("node", "url", "role", "applied", "version"), *map(_row, found.nodes)])


for _command in (members.add, members.remove, members.replace, members.transfer):
    cluster.add_command(_command)


def _row(node: ClusterNode) -> tuple[str, ...]:
    role = node.role if node.reachable else "not reachable"
    return node.id, node.api_url, role, _shown(node.applied_index), node.version or "-"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
