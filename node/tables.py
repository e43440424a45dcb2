"""The tables of docs/ that follow from the code. `make docs` writes them between their marks; a test compares."""

from __future__ import annotations

import sys
from pathlib import Path

from raftq.api.app import routes
from raftq.api.auth import Need
from raftq.api.metrics import CUT, DETAILED, FAMILIES
from raftq.node import settings_table
from raftq.node.exits import Exit, needs_a_person
from raftq.node.measures import MEASURES


def exit_codes() -> str:
    lines = ["| code | what happened | start it again? |", "|---|---|---|"]
    for code in Exit:
        again = "" if code is Exit.STOPPED else "a person must look first" if needs_a_person(code) else "yes"
        lines.append(f"| {code:d} | {code.meaning} | {again} |")
    return "\n".join(lines)


def metrics() -> str:
    lines = ["| metric | kind | labels | what |", "|---|---|---|---|"]
    for name, kind, text, _, labels in FAMILIES:
        lines.append(f"| `{name}` | {kind} | {', '.join(labels)} | {text} |".replace("|  |", "| |"))
    lines += [f"| `{name}` | {kind} | | {text} |" for name, kind, text, _ in MEASURES]
    return "\n".join(lines)


def metrics_of_queues() -> str:
    lines = ["| metric | kind | what |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {text} |" for name, kind, text in (*DETAILED, CUT)]
    return "\n".join(lines)


def scopes() -> str:
    lines = ["| needs | |", "|---|---|"]
    for need in Need:
        found = [f"`{route.method} {route.pattern}`" for route in routes() if route.needs is need]
        lines.append(f"| {need.value} | {', '.join(found)} |")
    return "\n".join(lines)


#: File of docs/ and the mark in it -> the table.
TABLES = {
    ("api.md", "scopes"): scopes,
    ("configuration.md", "settings"): settings_table.markdown,
    ("operations.md", "exit codes"): exit_codes,
    ("operations.md", "metrics"): metrics,
    ("operations.md", "metrics of queues"): metrics_of_queues,
}


def with_table(text: str, mark: str, table: str) -> str:
    """`text` with what stands between its marks replaced. Raises ValueError when the marks are not there."""
    begin, end = f"<!-- {mark}: made by `make docs` -->\n", f"\n<!-- end of {mark} -->"
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    return before + begin + table + end + after


def main(folder: Path) -> None:
    for (name, mark), table in TABLES.items():
        file = folder / name
        file.write_text(with_table(file.read_text(encoding="utf-8"), mark, table()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
