"""The Markdown of what `make bench` measured."""

from __future__ import annotations

from raftq.bench import measure
from raftq.bench.load import BODY_CHARACTERS
from raftq.bench.measure import MIB
from raftq.bench.report import or_dash, table
from raftq.bench.scenarios import BATCH, Figure, Footprint, Outcome

NOTES = (
    f"Three node processes on this machine, replication factor 3, every answer durable on a majority; bodies of "
    f"{BODY_CHARACTERS} characters, batches of {BATCH}. Rates are messages a second, of the echo (one aiohttp process "
    f"that returns the body) requests a second. Load: wrk in a closed loop, on the leader; its percentiles correct for "
    f"coordinated omission. Percentiles are of one request, of a cycle from the enqueue sent to the ack answered. A "
    f"single POST and the echo at the same concurrency are measured in turn: each line is the round with the median "
    f"rate, the ratio the median of the rounds' ratios. In process, the leader and its load share one process and one "
    f"core. CPU is of the server processes together (in process: load included). " + measure.SYNCS_STATEMENT
)

HEAD = (
    "scenario",
    "rate / echo",
    "rate",
    "p50 ms",
    "p99 ms",
    "fsyncs / message",
    "commit ms",
    "CPU us / message",
    "load, cores",
)


def body(outcome: Outcome) -> str:
    figures = table(HEAD, [row(figure) for figure in outcome.figures])
    return "\n\n".join((figures, footprint_table(outcome.footprint), NOTES))


def row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        or_dash(figure.echo_ratio),
        f"{figure.rate:,.0f}",
        or_dash(figure.p50_ms),
        or_dash(figure.p99_ms),
        or_dash(figure.fsyncs_per_message),
        or_dash(figure.commit_ms),
        or_dash(figure.cpu_us_per_message),
        or_dash(figure.load_cores),
    )


def footprint_table(footprint: Footprint) -> str:
    waiting = f"{footprint.waiting_messages:,} messages waiting"
    disk = f"{footprint.disk_bytes_per_message:,.0f} bytes a message"
    rows = [
        ("idle", *memory_cells(footprint.idle), mib(footprint.disk_bytes_empty)),
        (waiting, *memory_cells(footprint.waiting), f"{mib(footprint.disk_bytes_waiting)} ({disk})"),
    ]
    return table(("three nodes", "PSS MiB", "of which data file", "RSS MiB", "disk MiB (allocated)"), rows)


def memory_cells(memory: measure.Memory) -> tuple[str, str, str]:
    return mib(memory.pss), mib(memory.pss_file), mib(memory.rss)


def mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
