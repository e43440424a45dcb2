"""Single enqueues on one WebSocket, beside the same number of connections that POST them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raftq.bench import cluster, measure
from raftq.bench.bars import Bar, at_least, number
from raftq.bench.load import BODY_CHARACTERS
from raftq.bench.page import HEAD, row
from raftq.bench.report import table
from raftq.bench.scenarios import Figure, Http, median

#: Enqueues in flight, on as many connections or on one.
DEPTH = 256


@dataclass(frozen=True)
class Outcome:
    posts: Figure
    stream: Figure
    #: Of the rates in each round.
    ratios: list[float]
    bars: list[Bar]


def run(folder: Path, *, seconds: int, rounds: int, say: Callable[[str], None]) -> Outcome:
    """In turn on one new cluster under `folder`; `say` is told of each step."""
    with cluster.running(folder) as nodes:
        http = Http(nodes, "", 0, seconds, rounds, say)
        pairs = [(http.enqueue(1, DEPTH), http.stream(DEPTH)) for _ in range(rounds)]
    posts, streams = zip(*pairs, strict=True)
    ratios = [stream.rate / post.rate for post, stream in pairs]
    bar = at_least(f"stream, {DEPTH} in flight", measure.median(ratios), 3, f"times single POSTs c={DEPTH}")
    return Outcome(median(posts), median(streams), ratios, [bar])


def body(outcome: Outcome) -> str:
    """As Markdown."""
    head = (HEAD[0], "rate / POSTs", *HEAD[2:])
    posts, stream = row(outcome.posts), row(outcome.stream)
    rows = [posts, (stream[0], number(measure.median(outcome.ratios)), *stream[2:])]
    return table(head, rows) + (
        "\n\nThree node processes on this machine, replication factor 3, every answer durable on a majority, bodies "
        f"of {BODY_CHARACTERS} characters; load on the leader. POSTs: wrk, one outstanding on each of {DEPTH} "
        "connections. Stream: one connection and one process, each enqueue an operation with an id and an answer of "
        f"its own, {DEPTH} in flight; frames (msgpack) hold as many new ones as were just answered. Measured in turn, "
        f"{len(outcome.ratios)} times: each line is the round with the median rate, the ratio the median of "
        f"{', '.join(number(ratio) for ratio in outcome.ratios)}. " + measure.SYNCS_STATEMENT
    )
