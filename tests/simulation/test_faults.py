"""The schedule: enough faults, the same for a seed, and data lost only where Raft can bear it; and the storms."""

from __future__ import annotations

import inspect
from random import Random

import msgspec
import pytest

from raftq.chaos.simulation.faults import (
    FAULTS_MIN,
    MIXED,
    QUIET_SECONDS,
    STORMS,
    WEATHERS,
    Fault,
    schedule,
    storm,
    weather_of,
)
from raftq.chaos.simulation.nemesis import Nemesis
from raftq.replication.progress import Flow
from raftq.replication.shard_config import ShardConfig

NAMES = ["n1", "n2", "n3", "n4", "n5"]
LOSSES = {"wipe", "old_copy", "exchange"}


def made(seed: int, seconds: float = 60.0) -> list[Fault]:
    return schedule(Random(seed), NAMES, seconds)


@pytest.mark.parametrize("seconds", [10.0, 60.0, 120.0])
def test_there_are_enough_and_each_is_known_to_the_nemesis(seconds: float) -> None:
    for seed in range(100):
        faults = made(seed, seconds)
        assert len(faults) >= FAULTS_MIN
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        for fault in faults:
            inspect.signature(getattr(Nemesis, f"_{fault.kind}")).bind(None, **fault.arguments)


@pytest.mark.parametrize("name", WEATHERS)
def test_a_storm_has_enough_faults_of_its_kinds_and_none_loses_data(name: str) -> None:
    weather = WEATHERS[name]
    assert set(weather.flow) <= set(Flow.__struct_fields__)
    assert set(weather.limits) <= set(ShardConfig.__struct_fields__)
    for seed in range(20):
        faults = storm(Random(seed), NAMES, 60.0, weather)
        assert faults == storm(Random(seed), NAMES, 60.0, weather) != storm(Random(seed + 1), NAMES, 60.0, weather)
        assert sum(fault.at < 60.0 for fault in faults) >= FAULTS_MIN
        assert not {fault.kind for fault in faults} & LOSSES
        for fault in faults:
            inspect.signature(getattr(Nemesis, f"_{fault.kind}")).bind(None, **fault.arguments)
        lasting = {fault.kind: fault.arguments["lasts"] for fault in faults if fault.at == faults[0].at}
        assert lasting.get("lossy", 0.0) > 90.0 or not weather.chances
        assert lasting.get("slow_network", 0.0) > 90.0 or weather.slow == 1.0


def test_most_seeds_have_the_ordinary_schedule_and_every_weather_is_drawn() -> None:
    drawn = [weather_of(Random(seed)) for seed in range(1000)]
    assert set(drawn) == {MIXED, *WEATHERS}
    assert 0.9 - STORMS < drawn.count(MIXED) / len(drawn) < 1.1 - STORMS


def test_a_seed_makes_one_schedule_of_plain_values() -> None:
    assert made(7) == made(7) != made(8)
    assert msgspec.json.decode(msgspec.json.encode(made(7)), type=list[Fault]) == made(7)


def test_every_kind_is_drawn() -> None:
    kinds = {fault.kind for seed in range(60) for fault in made(seed)}
    known = {name for name, _ in inspect.getmembers(Nemesis, inspect.isfunction)}
    assert {f"_{kind}" for kind in kinds} <= known
    assert kinds >= LOSSES


def test_data_is_lost_alone_in_a_quiet_period() -> None:
    lost = 0
    for seed in range(200):
        faults = made(seed)
        for loss in (fault for fault in faults if fault.kind in LOSSES):
            lost += 1
            end = loss.at + QUIET_SECONDS
            assert [fault for fault in faults if loss.at <= fault.at < end] == [loss]
            for fault in faults:
                if fault.at < loss.at:
                    assert fault.at + fault.arguments.get("lasts", 0.0) <= loss.at + 0.06, fault
    assert lost > 100
