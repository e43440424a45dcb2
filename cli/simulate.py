"""`raftq simulate`: a whole cluster in one process on simulated time, one seed with its trace, or many on all cores."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from raftq.chaos.simulation.faults import MIXED, WEATHERS
from raftq.chaos.simulation.verdict import OPERATIONS_MIN, SECONDS_MIN, Options, Result

if TYPE_CHECKING:
    from raftq.chaos.simulation.workers import Run

#: Of so many failures each is made as small as it can be; of more, only the seed is told.
_MINIMISED_MAX = 3
_NEVER_MET_MAX = 200
#: Between two lines that say how far it is, where there is no terminal for a progress bar.
_TOLD_SECONDS = 30.0


@click.command("simulate")
@click.option("--seed", type=int, help="Replay this one.")
@click.option("--seeds", type=int, help="Run so many.")
@click.option("--first", type=int, default=0, help="The first of many.")
@click.option("--jobs", type=int, help="Processes to run many in.  [default: one a core]")
@click.option("--nodes", type=click.IntRange(1, 9), help="Members at the beginning.  [default: 3, 5 or 7, by the seed]")
@click.option("--seconds", type=float, default=SECONDS_MIN, show_default=True, help="Simulated, with faults.")
@click.option("--operations", type=int, default=OPERATIONS_MIN, show_default=True, help="Of clients, at least.")
@click.option("--weather", type=click.Choice([MIXED, *WEATHERS]), help="Faults.  [default: by the seed, mostly mixed]")
@click.option("--keep", help="Of the schedule, only the faults at these places: 0,3,17, or none.")
@click.option("--mutation", help="Break the engine in this way first (raftq.chaos.simulation.mutations).")
@click.option("--stock", help="Run stock pysyncobj with this fault left in (raftq.chaos.simulation.stock).")
@click.option("--trace", is_flag=True, help="Print what happens.")
@click.option("--minimise", is_flag=True, help="Of a failure, leave out the faults that it does not need.")
@click.option("--coverage", is_flag=True, help="Count how often each branch of the engine is met.")
def simulate(
    seed: int | None,
    seeds: int | None,
    first: int,
    jobs: int | None,
    nodes: int | None,
    seconds: float,
    operations: int,
    weather: str | None,
    keep: str | None,
    mutation: str | None,
    stock: str | None,
    *,
    trace: bool,
    minimise: bool,
    coverage: bool,
) -> None:
    """Simulate a cluster under faults, and judge it."""
    options = Options(
        nodes=nodes,
        seconds=seconds,
        operations=operations,
        weather=weather,
        keep=_places(keep),
        mutation=mutation,
        stock=stock,
        coverage=coverage,
    )
    if (seed is None) == (seeds is None):
        raise click.UsageError("say which seed (--seed), or how many (--seeds)")
    if seed is not None:
        failed = _one(seed, options, trace=trace, minimise=minimise)
    else:
        failed = _many(range(first, first + (seeds or 0)), options, jobs or os.cpu_count() or 1)
    if failed:
        raise SystemExit(1)


def _places(keep: str | None) -> list[int] | None:
    if keep is None:
        return None
    try:
        return [] if keep == "none" else sorted({int(place) for place in keep.split(",")})
    except ValueError as error:
        raise click.UsageError(f"--keep takes places in the schedule, as 0,3,17: {error}") from error


# One seed


def _one(seed: int, options: Options, *, trace: bool, minimise: bool) -> bool:
    from raftq.chaos.simulation import workers

    workers.prepare(options)
    began = time.perf_counter()
    result = workers.run(seed, options, click.echo if trace else None)
    _tell(result, time.perf_counter() - began)
    if result.failure is None:
        _tell_branches(result.branches)
        return False
    if minimise:
        _tell_failure(_minimised(result, workers.run))
    return True


def _tell(result: Result, took: float) -> None:
    struck = sum(1 for at in result.kept if result.schedule[at].at <= result.seconds)
    click.echo(
        f"seed {result.seed}: {result.seconds:.1f} simulated seconds, {result.steps} steps, {result.operations} "
        f"operations, {struck} of {len(result.schedule)} faults, in {took:.1f} s; trace {result.trace_hash}"
    )
    if result.failure is None:
        click.echo("no violation")
    else:
        click.echo(f"VIOLATION of {result.failure.invariant} at {result.failure.at:.3f}: {result.failure.details}")


def _minimised(result: Result, run: Run) -> Result:
    from raftq.chaos.simulation.minimise import minimise

    return minimise(result, run)


def _tell_failure(result: Result) -> None:
    assert result.failure is not None
    click.echo(f"seed {result.seed}: {result.failure.invariant} at {result.failure.at:.3f}: {result.failure.details}")
    for place in result.kept:
        click.echo(f"  {place:>3}  {result.schedule[place]}")
    click.echo(f"  replay: {msgspec.structs.replace(result.options, coverage=False).command(result.seed)} --trace")


# Many seeds


def _many(seeds: Sequence[int], options: Options, jobs: int) -> bool:
    from raftq.chaos.simulation import workers

    began = told = time.perf_counter()
    results: list[Result] = []
    interrupted = False
    try:
        with click.progressbar(length=len(seeds), label=f"{len(seeds)} seeds", show_pos=True) as progress:
            for result in workers.run_many(seeds, options, jobs):
                results.append(result)
                if result.failure is not None:
                    click.echo(f"\nseed {result.seed}: {result.failure.invariant}: {result.failure.details}")
                progress.update(1)
                if not sys.stdout.isatty() and time.perf_counter() - told > _TOLD_SECONDS:
                    told = time.perf_counter()
                    click.echo(f"{len(results)} of {len(seeds)} after {told - began:.0f} s")
    except KeyboardInterrupt:
        interrupted = True
        click.echo(f"\ninterrupted: {len(results)} of {len(seeds)} seeds have ended")
    took = time.perf_counter() - began
    failures = sorted((result for result in results if result.failure is not None), key=lambda result: result.seed)
    _tell_totals(results, took, jobs)
    if options.coverage:
        _tell_branches(_sum(result.branches for result in results))
    if failures:
        failed = ", ".join(str(failure.seed) for failure in failures)
        click.echo(f"\n{len(failures)} of {len(results)} seeds failed: {failed}")
        workers.prepare(msgspec.structs.replace(options, coverage=False))
        for failure in failures[:_MINIMISED_MAX]:
            _tell_failure(_minimised(failure, workers.run))
    return bool(failures) or interrupted


def _tell_totals(results: list[Result], took: float, jobs: int) -> None:
    simulated = sum(result.seconds for result in results)
    operations = sum(result.operations for result in results)
    click.echo(
        f"\n{len(results)} seeds in {took:.1f} s on {jobs} processes: {len(results) / took:.2f} seeds/s, "
        f"{simulated / took:.0f} simulated s per s, {operations} operations, {sum(run.steps for run in results)} steps"
    )
    click.echo("\nmet, and in how many seeds:")
    counts = _sum(result.faults for result in results)
    seeds = Counter(kind for result in results for kind, count in result.faults.items() if count)
    for kind in sorted(counts):
        click.echo(f"  {kind:<20} {counts[kind]:>9} {seeds[kind]:>7}")


def _tell_branches(counts: dict[str, int]) -> None:
    if not counts:
        return
    never = [branch for branch, count in counts.items() if not count]
    click.echo(f"\nbranches of the engine: {len(counts)}, met {len(counts) - len(never)}; the rarest:")
    rare = sorted((count, branch) for branch, count in counts.items() if count)[:20]
    for count, branch in rare:
        click.echo(f"  {count:>9}  {branch[:110]}")
    click.echo(f"never met: {len(never)}")
    for branch in never[:_NEVER_MET_MAX]:
        click.echo(f"             {branch[:110]}")


def _sum(counted: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in counted:
        for name, count in counts.items():
            total[name] += count
    return dict(total)
