"""`python -m raftq.bench load`, `failover`, `steady` and so on: what `make bench` and the like run.

Prints each step, then each bar with its verdict; writes the JSON and the page. The exit code is 0 whether bars are met
or not: a figure that falls short is a result. It is 1 when the cluster failed, since then there is no figure.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raftq.bench import catchup, cluster, crowd, failover, load, measure, page, scale, scenarios, stalls, steady, stream
from raftq.bench.bars import Bar
from raftq.bench.report import Report, save

#: Beyond this, other programs disturb the run.
BUSY_CORES_MAX = 0.1

#: What a benchmark gives: its outcome, its bars, and the outcome as Markdown.
Measured = tuple[Any, list[Bar], str]


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    measure.require_linux()
    load.require_wrk()
    options.data.mkdir(parents=True, exist_ok=True)
    machine = measure.machine(options.data)
    if machine.busy_cores > BUSY_CORES_MAX:
        say(f"other programs use {machine.busy_cores:.1f} of {machine.cores} cores: the figures will say little")
    try:
        outcome, bars, body = options.benchmark(options)
    except (cluster.ClusterFailed, load.LoadFailed) as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    report = Report(options.name, command(options), datetime.date.today(), machine, outcome, bars, body)
    file = save(report, options.results, options.page)
    print(report.as_markdown(), "", *bars, f"\nwritten: {file} and {options.page}", sep="\n")
    return 0


def measured_load(options: argparse.Namespace) -> Measured:
    outcome = scenarios.run(options.data, seconds=options.seconds, rounds=options.rounds, say=say)
    return outcome, outcome.bars, page.body(outcome)


def measured_failover(options: argparse.Namespace) -> Measured:
    outcome, bars = failover.run(options.data, rounds=options.rounds, say=say)
    return outcome, bars, failover.body(outcome)


def measured_steady(options: argparse.Namespace) -> Measured:
    outcome, bars = steady.run(options.data, seconds=round(options.minutes * 60), say=say)
    return outcome, bars, steady.body(outcome)


def measured_catchup(options: argparse.Namespace) -> Measured:
    outcome, bars = catchup.run(options.data, messages=options.messages, seconds=options.seconds, say=say)
    return outcome, bars, catchup.body(outcome)


def measured_stream(options: argparse.Namespace) -> Measured:
    outcome = stream.run(options.data, seconds=options.seconds, rounds=options.rounds, say=say)
    return outcome, outcome.bars, stream.body(outcome)


def measured_scale(options: argparse.Namespace) -> Measured:
    outcome, bars = scale.run(options.data, messages=options.messages, queues=options.queues, say=say)
    return outcome, bars, scale.body(outcome)


def measured_stalls(options: argparse.Namespace) -> Measured:
    outcome, bars = stalls.run(options.data, messages=options.messages, say=say)
    return outcome, bars, stalls.body(outcome)


def measured_crowd(options: argparse.Namespace) -> Measured:
    outcome, bars = crowd.run(
        options.data, connections=options.connections, polls=options.polls, seconds=options.seconds, say=say
    )
    return outcome, bars, crowd.body(outcome)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m raftq.bench", description=__doc__)
    commands = top.add_subparsers(required=True, dest="command")
    one = _command(commands, "load", "rates, latencies, fsyncs, CPU, memory, disk", measured_load)
    one.add_argument("--seconds", type=int, default=5, help="of each measurement")
    one.add_argument("--rounds", type=int, default=3, help="of echo and single POSTs in turn")
    two = _command(commands, "failover", "time without an acknowledged enqueue", measured_failover)
    two.add_argument("--rounds", type=int, default=20)
    three = _command(commands, "steady", "elections at full load without a fault", measured_steady)
    three.add_argument("--minutes", type=float, default=10.0)
    four = _command(commands, "catchup", "a follower that lacks much, or all, under load", measured_catchup)
    four.add_argument("--messages", type=int, default=1_000_000, help="that the follower lacks")
    four.add_argument("--seconds", type=int, default=10, help="of the load before and afterwards")
    five = _command(commands, "stream", "single enqueues on one WebSocket beside single POSTs", measured_stream)
    five.add_argument("--seconds", type=int, default=5, help="of each measurement")
    five.add_argument("--rounds", type=int, default=3, help="of POSTs and stream in turn")
    six = _command(commands, "scale", "a million messages, a hundred thousand queues, acks in no order", measured_scale)
    six.add_argument("--messages", type=int, default=1_000_000, help="in one queue")
    six.add_argument("--queues", type=int, default=100_000, help="of 10 messages each")
    seven = _command(commands, "stalls", "the dearest entries, applied by one node", measured_stalls)
    seven.add_argument("--messages", type=int, default=200_000, help="in one queue")
    eight = _command(commands, "crowd", "idle connections and long polls by the thousand", measured_crowd)
    eight.add_argument("--connections", type=int, default=10_000, help="that are idle")
    eight.add_argument("--polls", type=int, default=5_000)
    eight.add_argument("--seconds", type=int, default=5, help="of each measurement")
    return top


def _command(commands: Any, name: str, about: str, benchmark: Callable[..., Measured]) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.set_defaults(benchmark=benchmark)
    command.add_argument("--name", default=name, help="of the results' file and the page's section")
    command.add_argument("--data", type=Path, default=Path("data"), help="where clusters live while they are measured")
    command.add_argument("--results", type=Path, default=Path("bench/results"))
    command.add_argument("--page", type=Path, default=Path("docs/results.md"))
    return command


def command(options: argparse.Namespace) -> str:
    """What made these figures, to be typed again."""
    values = {
        name: getattr(options, name)
        for name in ("messages", "queues", "connections", "polls", "seconds", "rounds", "minutes")
        if hasattr(options, name)
    }
    flags = " ".join(f"--{name} {value}" for name, value in values.items())
    return f"python -m raftq.bench {options.command} {flags}"


if __name__ == "__main__":
    sys.exit(main())
