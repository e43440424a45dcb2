"""`raftq node`: one node, with a flag for each setting of `raftq.node.config`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftq.node import settings, settings_table
from raftq.node.config import Config


def setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and a flag for each setting; `config` makes a Config of them."""
    for row in reversed(settings_table.rows()):
        command = _option(row)(command)
    kind = click.Path(path_type=Path)
    return click.option("--config", "config_file", type=kind, help="TOML file with settings.  [RAFTQ_CONFIG]")(command)


def config(config_file: Path | None, flags: dict[str, str | None]) -> Config:
    """Raises Fatal(CONFIG)."""
    given = {name: value for name, value in flags.items() if value is not None}
    return settings.load(given, os.environ, config_file)


def _option(row: settings_table.Row) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag, text = settings.flag(row.name), row.help.replace("`", "")
    if settings.is_switch(row.name):
        return click.option(flag, row.name, is_flag=True, flag_value="true", default=None, help=text)
    default = "  [required]" if row.required else f"  [{row.default}]" if row.default else ""
    return click.option(flag, row.name, metavar=_metavar(row), help=f"{text}{default}")


def _metavar(row: settings_table.Row) -> str:
    return "|".join(row.choices) if row.choices else row.kind.split()[0].rstrip(",").upper()


@click.command()
@setting_flags
@click.option("--until-stdin-closes", is_flag=True, help="Stop when standard input closes: when the parent ends.")
def node(config_file: Path | None, until_stdin_closes: bool, **flags: str | None) -> int:
    """Run one node.

    Each setting comes from --config, then a variable (RAFTQ_NODE_ID for --node-id), then a flag; the last one counts.
    """
    read = config(config_file, flags)
    from raftq.node import process  # what a node needs is imported once its settings are right

    return process.run(read, until_stdin_closes=until_stdin_closes)
