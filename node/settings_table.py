"""The table of settings as people read it: in docs/configuration.md and in `raftq node --help`."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from raftq.node.config import ByteCount
from raftq.node.settings import FIELDS, choices, flag, kind, says, variable


class Row(NamedTuple):
    name: str
    kind: str
    choices: list[str]
    #: Empty when the setting is required, or empty by default.
    default: str
    required: bool
    help: str


def rows() -> list[Row]:
    return [_row(name) for name in FIELDS]


def markdown() -> str:
    """The table of docs/configuration.md."""
    lines = ["| setting (TOML) | variable | flag | type | default | what |", "|---|---|---|---|---|---|"]
    for row in rows():
        default = "required" if row.required else f"`{row.default}`" if row.default else ""
        cells = (f"`{row.name}`", f"`{variable(row.name)}`", f"`{flag(row.name)}`", row.kind, default, row.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(name: str) -> Row:
    field = FIELDS[name]
    return Row(name, kind(name), choices(name), _shown(field.default), field.required, says(name, "description"))


def _shown(default: Any) -> str:
    if default is msgspec.NODEFAULT:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, ByteCount):
        return f"{default >> 20}MiB" if default >= 1 << 20 else f"{default >> 10}KiB"
    return f"{default:g}" if isinstance(default, float) else str(default)
