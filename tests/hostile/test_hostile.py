"""The hostile pass in the tests: see `make hostile` for its table."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.hostile.campaign import FAMILIES, GUARDED, Tally, attacked, run
from tests.hostile.target import Target

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with attacked(tmp_path_factory.mktemp("hostile"), secure=False) as target:
        yield target


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with attacked(tmp_path_factory.mktemp("hostile"), secure=True) as target:
        yield target


def name(family: ModuleType) -> str:
    return family.__name__.rpartition(".")[2]


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_what_is_hostile_is_refused_and_the_cluster_serves_on(plain: Target, family: ModuleType) -> None:
    tally = Tally()
    run(plain, family, tally)
    assert tally.attacks.total() > 20


def test_after_it_nothing_has_leaked_and_the_nodes_are_equal(plain: Target) -> None:
    """Of what ran before on this cluster."""
    plain.check_at_the_end()


@pytest.mark.parametrize("family", GUARDED, ids=name)
def test_who_has_no_token_certificate_or_secret_gets_nowhere(secure: Target, family: ModuleType) -> None:
    tally = Tally()
    run(secure, family, tally)
    assert tally.attacks.total() > 20


def test_after_them_nothing_has_leaked_either(secure: Target) -> None:
    secure.check_at_the_end()
