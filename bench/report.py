"""Results as they are committed: JSON for machines, a table in a Markdown page between two markers for people.

Everything else on the page is written by hand and left alone.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raftq.bench import measure
from raftq.bench.bars import Bar, number, ratio


@dataclass(frozen=True)
class Report:
    """What one benchmark gave. `name` tells benchmarks and, after a dash, variants of one apart."""

    name: str
    command: str
    date: datetime.date
    machine: measure.Machine
    outcome: Any
    bars: list[Bar]
    #: The Markdown of `outcome`.
    body: str

    def as_json(self) -> str:
        verdicts = [{**asdict(bar), "verdict": bar.verdict} for bar in self.bars]
        content = {
            "name": self.name,
            "command": self.command,
            "date": self.date.isoformat(),
            "machine": asdict(self.machine),
            "outcome": asdict(self.outcome) | {"bars": verdicts},
        }
        return json.dumps(content, indent=2) + "\n"

    def as_markdown(self) -> str:
        return "\n\n".join((f"`{self.command}`, {self.date}. {facts(self.machine)}", bars_table(self.bars), self.body))


def save(report: Report, results: Path, page: Path) -> Path:
    """The JSON file, and the section `report.name` of `page` anew. Gives the JSON file's path."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{report.date.isoformat()}-{report.name}.json"
    file.write_text(report.as_json())
    before = page.read_text() if page.exists() else "# Results\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(with_section(before, report.name, report.as_markdown()))
    return file


def with_section(page: str, name: str, content: str) -> str:
    """`page` with `content` between the markers of section `name`, which come at its end when they are not there."""
    begin, end = f"<!-- {name}: generated, do not edit -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{content}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: section, page)
    return f"{page.rstrip()}\n\n## {name.capitalize()}\n\n{section}\n"


def facts(machine: measure.Machine) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    sync = machine.sync
    return (
        f"{machine.cores} cores ({machine.processor}) for everything, the load included, "
        f"{machine.busy_cores:.2f} of them busy before the run, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, {machine.system}, {machine.file_system}; "
        f"append of 4 KiB + fdatasync: p50 {sync.p50_ms:.3f} ms, p99 {sync.p99_ms:.3f} ms, "
        f"{sync.per_second:,.0f} a second. Python {machine.python}, {versions}; commit {machine.commit}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, numbers to the right."""
    line = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, line, *rows))


def bars_table(bars: Sequence[Bar]) -> str:
    rows = [(bar.what, ratio(bar.ratio), bar.verdict, number(bar.value), bar.wanted) for bar in bars]
    return table(("bar", "ratio to the bar", "verdict", "measured", "wanted"), rows)


def or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)
