"""A run as a whole: it replays exactly, it tells what it finds, and a failure is made small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from raftq.chaos.simulation import simulation
from raftq.chaos.simulation.checkers import Checkers, Violation
from raftq.chaos.simulation.faults import MIXED, WEATHERS, Fault, weather_of
from raftq.chaos.simulation.loop import Scheduler
from raftq.chaos.simulation.minimise import minimise
from raftq.chaos.simulation.verdict import Failure, Options, Result
from raftq.cli.simulate import simulate

SHORT = Options(seconds=12.0, operations=250)


def in_a_process(*arguments: str, hash_seed: str = "0") -> str:
    command = [sys.executable, "-m", "raftq.cli", "simulate", "--seconds", "12", "--operations", "250", *arguments]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [3, 4])
def test_two_processes_replay_a_seed_exactly(seed: int) -> None:
    traces = [in_a_process("--seed", str(seed), "--trace", hash_seed=hash_seed) for hash_seed in ("1", "2")]
    lines = [trace.splitlines() for trace in traces]
    assert lines[0][:-2] == lines[1][:-2]
    hashes = [line[-2].rpartition(" ")[2] for line in lines]
    assert hashes[0] == hashes[1]
    assert len(lines[0]) > 1000


@pytest.mark.timeout(300)
def test_a_run_meets_faults_and_ends_well_and_leaves_nothing_behind() -> None:
    result = simulation.run(11, SHORT)
    assert result.failure is None
    assert result.operations >= 250
    assert result.seconds >= 12.0
    assert sum(result.faults.values()) >= 20
    assert simulation.run(11, SHORT).trace_hash == result.trace_hash
    assert simulation.run(12, SHORT).trace_hash != result.trace_hash


@pytest.mark.timeout(300)
@pytest.mark.parametrize("weather", WEATHERS)
def test_a_weather_is_had_for_the_asking_and_replays(weather: str) -> None:
    options = msgspec.structs.replace(SHORT, weather=weather)
    result = simulation.run(11, options)
    assert result.failure is None
    assert simulation.run(11, options).trace_hash == result.trace_hash
    assert {fault.kind for fault in result.schedule} <= {*WEATHERS[weather].weights, "lossy", "slow_network"}


def test_a_weather_of_the_seeds_own_is_the_one_that_can_be_asked_for() -> None:
    seed = next(seed for seed in range(100) if weather_of(Scheduler(seed).dice_for("weather")) == "stalls")
    asked = msgspec.structs.replace(SHORT, weather="stalls")
    assert simulation.run(seed, SHORT).trace_hash == simulation.run(seed, asked).trace_hash
    ordinary = msgspec.structs.replace(SHORT, weather=MIXED)
    assert simulation.run(seed, ordinary).trace_hash == simulation.run(seed, ordinary).trace_hash
    assert simulation.run(seed, ordinary).schedule != simulation.run(seed, asked).schedule


def test_a_violation_ends_the_run_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def stepped(_self: Checkers, node: Any) -> None:
        if node.commit_index > 50:
            raise Violation("no log is long", f"{node.id} has {node.commit_index}")

    monkeypatch.setattr(Checkers, "stepped", stepped)
    result = simulation.run(1, SHORT)
    assert result.failure is not None
    assert result.failure.invariant == "no log is long"
    assert result.seconds < 12.0
    ended = CliRunner().invoke(simulate, ["--seed", "1", "--seconds", "12", "--operations", "250"])
    assert ended.exit_code == 1
    assert "VIOLATION of no log is long" in ended.output


def test_a_node_that_ends_by_itself_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_self: Any, *_arguments: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("raftq.replication.engine.SyncObj.advance", failing)
    result = simulation.run(1, SHORT)
    assert result.failure is not None
    assert result.failure.invariant == "no node ends by itself"
    assert "a mistake of ours" in result.failure.details


def test_a_mistake_of_the_simulator_is_told_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_self: Any, *_arguments: Any) -> None:
        raise RuntimeError("a mistake of the simulator")

    monkeypatch.setattr("raftq.chaos.simulation.nemesis.Nemesis.heal", failing)
    result = simulation.run(1, SHORT)
    assert result.failure is not None
    assert "a mistake of the simulator" in result.failure.details


def test_kept_faults_alone_strike() -> None:
    result = simulation.run(1, msgspec.structs.replace(SHORT, keep=[]))
    assert result.failure is None
    assert not {fault.kind for fault in result.schedule} & set(result.faults)
    kept = simulation.run(1, msgspec.structs.replace(SHORT, keep=[2]))
    assert result.schedule[2].kind in kept.faults


def failed(kept: list[int] | None, faults: int = 30) -> Result:
    schedule = [Fault(float(at), "crash") for at in range(faults)]
    options = Options(keep=kept)
    return Result(
        seed=1, options=options, trace_hash="", seconds=60.0, steps=1, operations=1,
        schedule=schedule, faults={}, failure=Failure("x", "", 25.0, 1),
    )  # fmt: skip


def test_a_failure_is_minimised_to_what_it_needs() -> None:
    runs: list[list[int]] = []

    def run(_seed: int, options: Options) -> Result:
        assert options.keep is not None
        runs.append(options.keep)
        result = failed(options.keep)
        if not {3, 17} <= set(options.keep):
            result.failure = Failure("another", "", 25.0, 1) if 3 in options.keep else None
        return result

    assert minimise(failed(None), run).kept == [3, 17]
    assert len(runs) <= 60
    assert len(minimise(failed(None), run, tries=3).kept) < 30


def test_a_command_replays_what_was_asked_for() -> None:
    options = Options(nodes=5, seconds=12.0, keep=[1, 4], mutation="m")
    assert options.command(9) == "raftq simulate --seed 9 --nodes 5 --seconds 12 --keep 1,4 --mutation m"
    options = Options(weather="stalls", stock="none")
    assert options.command(9) == "raftq simulate --seed 9 --weather stalls --stock none"
    assert Options(keep=[]).command(9) == "raftq simulate --seed 9 --keep none"


@pytest.mark.timeout(300)
def test_many_seeds_are_counted_with_the_branches_that_they_met() -> None:
    out = in_a_process("--seeds", "2", "--jobs", "2", "--coverage")
    assert "2 seeds in" in out
    assert "never met" in out
    assert "engine:" in out


@pytest.mark.timeout(300)
def test_what_had_run_is_told_when_it_is_interrupted() -> None:
    command = [sys.executable, "-u", "-m", "raftq.cli", "simulate", "--seeds", "1000", "--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1000 seeds\n"
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 1
    assert "interrupted: 0 of 1000 seeds have ended" in said
    assert "0 seeds in" in said
    assert "Traceback" not in said
