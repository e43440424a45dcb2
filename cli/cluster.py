"""`raftq stats` and `raftq cluster`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from raftq.cli.connection import ask, connection_options, say_json
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
    totals = counts.pop("totals", {})
    _table([(name, _shown(value)) for name, value in counts.items()])
    click.echo("since the queue was created" if queue else "since the queues were created")
    _table([(f"  {name}", _shown(value)) for name, value in totals.items()])


@click.command()
@connection_options
def cluster(url: str | None, as_json: bool) -> None:
    """Show the nodes, and which one leads."""
    found = ask(url, lambda client: client.cluster())
    if as_json:
        say_json(found)
        return
    leader = f"{found.leader} leads in term {found.term}" if found.leader else f"no leader in term {found.term}"
    click.echo(f"cluster {found.cluster_id}: {leader}")
    _table([("node", "url", "role", "applied", "version"), *map(_row, found.nodes)])


def _row(node: ClusterNode) -> tuple[str, ...]:
    role = node.role if node.reachable else "not reachable"
    return node.id, node.api_url, role, _shown(node.applied_index), node.version or "-"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
