"""The schedule: enough faults, the same for a seed, and data lost only where Raft can bear it."""

from __future__ import annotations

import inspect
from random import Random

import msgspec
import pytest

from raftq.chaos.simulation.faults import FAULTS_MIN, QUIET_SECONDS, Fault, schedule
from raftq.chaos.simulation.nemesis import Nemesis

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
