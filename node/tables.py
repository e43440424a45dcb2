"""The tables of docs/ that follow from the code. `make docs` writes them between their marks; a test compares."""

from __future__ import annotations

import sys
from pathlib import Path

from raftq.node import settings_table
from raftq.node.exits import Exit, needs_a_person


def exit_codes() -> str:
    lines = ["| code | what happened | start it again? |", "|---|---|---|"]
    for code in Exit:
        again = "" if code is Exit.STOPPED else "a person must look first" if needs_a_person(code) else "yes"
        lines.append(f"| {code:d} | {code.meaning} | {again} |")
    return "\n".join(lines)


#: File of docs/ and the mark in it -> the table.
TABLES = {
    ("configuration.md", "settings"): settings_table.markdown,
    ("operations.md", "exit codes"): exit_codes,
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
