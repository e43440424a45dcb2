"""The proof that the checkers bite: each fault of the stock class and each mutation of ours is run until it is found.

A row is a way to be wrong and a seed known to show it; where it does not any more, all seeds from 0 on are tried, up to
a bound. The controls run the very seeds that found something with nothing wrong, and must find nothing: so each finding
is due to what is wrong. Each row runs in a process of its own, which decides on its source before the engine is
imported.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

import click
import msgspec

from raftq.chaos.simulation import mutations, workers
from raftq.chaos.simulation.verdict import SECONDS_MIN, Options, Result

#: A row that is not found on so many seeds goes unseen.
SEEDS_MAX: Final = 60
BEGIN: Final = "<!-- teeth: begin -->"
END: Final = "<!-- teeth: end -->"


class Row(NamedTuple):
    name: str
    #: What is wrong, in one line.
    what: str
    options: Options
    #: Tried first; then all from 0 on.
    seed: int = 0
    #: Nothing is wrong, and these seeds must not show anything.
    control: tuple[int, ...] = ()

    @property
    def seeds(self) -> Iterator[int]:
        if self.control:
            yield from self.control
            return
        yield self.seed
        yield from (seed for seed in range(SEEDS_MAX) if seed != self.seed)


class Found(NamedTuple):
    row: Row
    result: Result | None
    tried: int

    @property
    def well(self) -> bool:
        """As it should be: found, or nothing to be found."""
        seen = self.result is not None and self.result.failure is not None
        return seen != bool(self.row.control)

    @property
    def line(self) -> str:
        failure = None if self.result is None else self.result.failure
        name = self.row.name
        if failure is None or self.result is None:
            return f"{'ok  ' if self.well else 'UNSEEN'} {name}: nothing on {self.tried} seeds"
        said = f"{name}: seed {self.result.seed}, {failure.at:.1f} s, {failure.steps} steps: {failure.invariant}"
        return f"{'ok  ' if self.well else 'BAD '} {said}" + ("" if self.well else f": {failure.details}")


#: Number in docs/faults.md, what is left in, a seed that finds it, and what it takes.
STOCK: Final = {
    "truncate-on-every-append": (2, "A follower cuts its log behind every append.", 0, Options()),
    "commit-without-matching": (
        3,
        "A piece of a dump raises the commit index of a log that nobody compared.",
        0,
        Options(),
    ),
    "answers-without-term": (5, "An answer of an old term raises the match index in a new one.", 6, Options(nodes=5)),
    "votes-per-message": (28, "A vote counts as often as it is heard.", 10, Options(nodes=5)),
    "silent-refusals": (
        29,
        "A refused vote is silence.",
        2,
        Options(nodes=3, seconds=15.0, operations=150, weather="elections"),
    ),
}


def rows() -> list[Row]:
    """All that is wrong."""
    of_stock = [
        Row(f"stock {number}: {name}", what, msgspec.structs.replace(takes, stock=name), seed)
        for name, (number, what, seed, takes) in STOCK.items()
    ]
    of_ours = [
        Row(each.name, each.breaks, Options(mutation=each.name, nodes=each.nodes, weather=each.weather), each.seed)
        for each in mutations.MUTATIONS.values()
    ]
    return of_stock + of_ours


def controls(found: Sequence[Found]) -> list[Row]:
    """The seeds that found something, with nothing wrong: ours, and stock with all faults corrected."""
    made: dict[str, Row] = {}
    for each in found:
        if each.result is not None and each.well:
            wrong = each.row.options
            options = msgspec.structs.replace(wrong, mutation=None, stock="none" if wrong.stock is not None else None)
            name = f"control: {_conditions(options)}"
            seeds = {each.result.seed, *(made[name].control if name in made else ())}
            made[name] = Row(name, "Nothing.", options, control=tuple(sorted(seeds)))
    return list(made.values())


def _conditions(options: Options) -> str:
    """All that tells one control from another."""
    said = ["stock, all faults corrected" if options.stock is not None else "ours, unchanged"]
    said += [f"{options.nodes} nodes"] if options.nodes is not None else []
    said += [f"{options.weather} weather"] if options.weather is not None else []
    said += [f"{options.seconds:g} s"] if options.seconds != SECONDS_MIN else []
    return ", ".join(said)


def probe(row: Row) -> Found:
    """In a process of its own."""
    workers.prepare(row.options)
    tried, result = 0, None
    for seed in row.seeds:
        tried += 1
        result = workers.run(seed, row.options)
        if result.failure is not None:
            break
    return Found(row, result, tried)


def bite(wanted: Sequence[Row], jobs: int, tell: Callable[[Found], None]) -> list[Found]:
    """In the order of `wanted`; `tell` hears of each as it ends."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, Found] = {}
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(probe, row) for row in wanted]):
            each = future.result()
            found[each.row.name] = each
            tell(each)
    return [found[row.name] for row in wanted]


def table(found: Sequence[Found]) -> str:
    """Markdown."""
    lines = [
        "| what is wrong | | seed | found at second | steps | violated | again with |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        result, row = each.result, each.row
        if row.control:
            seeds = ", ".join(map(str, row.control))
            lines.append(f"| {row.name} | {row.what} | {seeds} | never | | nothing | |")
        elif result is not None and result.failure is not None:
            failure = result.failure
            lines.append(
                f"| {row.name} | {row.what} | {result.seed} | {failure.at:.1f} | {failure.steps} | {failure.invariant} "
                f"| `{row.options.command(result.seed)}` |"
            )
    return "\n".join(lines)


def write(path: Path, found: Sequence[Found]) -> None:
    """Between the markers of the page."""
    page = path.read_text()
    if BEGIN not in page or END not in page:
        raise ValueError(f"{path} has no place for the table: {BEGIN} and {END}")
    path.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table(found)}\n\n{END}", page, flags=re.DOTALL))


@click.command()
@click.option("--name", "names", multiple=True, help="Only rows whose name has this in it.")
@click.option("--jobs", type=int, help="Processes.  [default: one a core]")
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), help="Write the table into this page.")
def main(names: tuple[str, ...], jobs: int | None, page: Path | None) -> None:
    """Run all that is wrong until it is found. Exits with 1 if something goes unseen, or a control shows something."""
    wanted = [row for row in rows() if not names or any(name in row.name for name in names)]
    jobs = jobs or os.cpu_count() or 1
    began = time.perf_counter()
    found = bite(wanted, jobs, lambda each: click.echo(each.line))
    found += bite(controls(found), jobs, lambda each: click.echo(each.line))
    bad = [each for each in found if not each.well]
    click.echo(f"{len(found) - len(bad)} of {len(found)} as they should be, in {time.perf_counter() - began:.0f} s")
    if bad:
        click.echo("not so: " + ", ".join(each.row.name for each in bad))
        sys.exit(1)
    if page is not None:
        write(page, found)


if __name__ == "__main__":
    main()
