"""`raftq node`: one node, with a flag for each setting of `raftq.node.config`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftq.node import settings, settings_table


def _setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for row in reversed(settings_table.rows()):
        default = "  [required]" if row.required else f"  [{row.default}]" if row.default else ""
        text = f"{row.help.replace('`', '')}{default}"
        command = click.option(settings.flag(row.name), row.name, metavar=_metavar(row), help=text)(command)
    return command


def _metavar(row: settings_table.Row) -> str:
    return "|".join(row.choices) if row.choices else row.kind.split()[0].rstrip(",").upper()


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings.  [RAFTQ_CONFIG]")
@_setting_flags
@click.option("--until-stdin-closes", is_flag=True, help="Stop when standard input closes: when the parent ends.")
def node(file: Path | None, until_stdin_closes: bool, **flags: str | None) -> int:
    """Run one node.

    Each setting comes from --config, then a variable (RAFTQ_NODE_ID for --node-id), then a flag; the last one counts.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    config = settings.load(given, os.environ, file)
    from raftq.node import process  # what a node needs is imported once its settings are right

    return process.run(config, until_stdin_closes=until_stdin_closes)
