"""Operators do what operators would: what they switch off, and what they put in its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftq.chaos.simulation.simulation import Simulation
from raftq.chaos.simulation.verdict import Options


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Simulation]:
    """Five nodes, without faults, that have found a leader, n5 or not."""
    simulation = Simulation(1, Options(nodes=5), tmp_path, None)
    for name in list(simulation.nodes)[:5]:
        simulation.nodes[name].start()
    until(simulation, lambda: simulation.leader() is not None and simulation.members() != [])
    until(simulation, lambda: simulation.is_member("n5", simulation.nodes["n5"].uuid))
    yield simulation
    simulation.close()


def until(simulation: Simulation, reached: object) -> None:
    assert callable(reached)
    for _ in range(200):
        if reached():
            return
        simulation.scheduler.run(simulation.scheduler.now + 0.1)
    raise AssertionError("it did not come to that within 20 simulated seconds")


def test_the_name_of_a_member_that_was_switched_off_is_not_given_to_a_new_machine(run: Simulation) -> None:
    """Seed 775 did, removed the member, and switched off the machine that was to come in its place."""
    gone = run.nodes["n5"]
    gone.kill()
    gone.name_in_use = False
    run.nemesis._swap("n2")
    until(run, lambda: "n2" not in run.members() and run.nemesis.doing is None)
    assert not gone.up
    assert run.nodes["n6"].up
    assert sorted(run.members()) == ["n1", "n3", "n4", "n5", "n6"]


def test_a_removal_does_not_switch_off_the_folder_that_waits_to_come_back(run: Simulation) -> None:
    back = run.nodes["n5"]
    back.kill()
    back.wipe()
    back.join = True
    back.start()
    run.nemesis._shrink("n5")
    until(run, lambda: "n5" not in run.members())
    run.scheduler.run(run.scheduler.now + 5.0)  # it would be switched off within 3 s
    assert back.up
    assert back.name_in_use
