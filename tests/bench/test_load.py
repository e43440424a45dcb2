"""What wrk's scripts print is taken as it is, and a load in which anything failed gives no figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raftq.bench import load

RESULT = {
    "requests": 300,
    "duration_us": 2_000_000,
    "p50_us": 500,
    "p99_us": 1500,
    "socket_errors": 0,
    "status_errors": 0,
}
CYCLE = RESULT | {
    "acked": 10_000,
    "failed": 0,
    "failure": "",
    "steps": {
        "ack": {"p50_us": 400, "p99_us": 700, "count": 100},
        "cycle": {"p50_us": 1600, "p99_us": 3000, "count": 100},
    },
}


def parsed(result: dict[str, Any]) -> load.Load:
    return load.parse(f"Running 2s test\n  Latency 1ms\n\nRESULT {json.dumps(result)}\n", cpu_seconds=0.5)


def test_requests() -> None:
    seen = parsed(RESULT)
    assert (seen.rate, seen.cores, seen.latency) == (150.0, 0.25, load.Latency(0.5, 1.5))


def test_latency_of_a_cycle_is_of_all_its_steps() -> None:
    seen = parsed(CYCLE)
    assert seen.latency == load.Latency(1.6, 3.0)
    assert seen.steps == {"ack": load.Latency(0.4, 0.7)}
    assert seen.acked == 10_000


@pytest.mark.parametrize(
    "wrong", [{"socket_errors": 1}, {"status_errors": 1}, {"failed": 1, "failure": "lease answered 503"}]
)
def test_one_failure_is_no_figure(wrong: dict[str, Any]) -> None:
    with pytest.raises(load.LoadFailed, match=str(wrong.get("failure", next(iter(wrong))))):
        parsed(CYCLE | wrong)


def test_nothing_answered_is_no_figure() -> None:
    with pytest.raises(load.LoadFailed, match="no request"):
        parsed(RESULT | {"requests": 0})


def test_output_without_a_result_is_shown() -> None:
    with pytest.raises(load.LoadFailed, match="unable to connect"):
        load.parse("unable to connect to 127.0.0.1:1", cpu_seconds=0.0)
