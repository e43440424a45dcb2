"""A data folder keeps its uuid and counts its starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftq.node import identity
from raftq.node.exits import Exit, Fatal
from raftq.storage.environment import Environment, EnvironmentDamaged, WriteBatch


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    opened = Environment(tmp_path / "n1")
    yield opened
    opened.close()


def test_each_start_is_counted_and_the_uuid_stays(environment: Environment) -> None:
    found = [identity.begin(environment, "c1", "n1") for _ in range(3)]
    assert [each.boot for each in found] == [1, 2, 3]
    assert len({each.node_uuid for each in found}) == 1


def test_another_folder_has_another_uuid(environment: Environment, tmp_path: Path) -> None:
    other = Environment(tmp_path / "n2")
    mine, others = (identity.begin(each, "c1", "n1").node_uuid for each in (environment, other))
    other.close()
    assert mine != others


@pytest.mark.parametrize(("cluster", "node"), [("c2", "n1"), ("c1", "n2")])
def test_anothers_folder_is_refused_and_left_as_it_is(environment: Environment, cluster: str, node: str) -> None:
    identity.begin(environment, "c1", "n1")
    before = environment.meta(identity.META)
    with pytest.raises(Fatal) as caught:
        identity.begin(environment, cluster, node)
    assert caught.value.code is Exit.FOREIGN_DATA
    assert environment.meta(identity.META) == before


def test_an_identity_that_makes_no_sense_is_damage(environment: Environment) -> None:
    identity.commit(environment, WriteBatch(meta={identity.META: b"\xc1"}))
    with pytest.raises(EnvironmentDamaged, match="identity"):
        identity.begin(environment, "c1", "n1")
