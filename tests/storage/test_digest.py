"""The digest: equal for equal tables, different for any difference, and of one state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.storage.digest import State, digest
from raftq.storage.environment import Environment, EnvironmentDamaged, WriteBatch, u64
from raftq.storage.writer import Writer

Items = list[tuple[bytes, bytes | None]]


@pytest.fixture
def digest_of(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """The digest of an environment of its own to which the batches were committed."""
    numbers = itertools.count()

    def digest_of(*batches: WriteBatch) -> tuple[int, str]:
        environment = Environment(tmp_path / str(next(numbers)))
        writer = Writer(environment)
        for batch in batches:
            writer.write(batch)
        writer.close()
        found = digest(environment)
        environment.close()
        return found

    return digest_of


def test_does_not_depend_on_how_the_state_came_about(digest_of: Callable[..., tuple[int, str]]) -> None:
    at_once = digest_of(WriteBatch(meta={"applied": u64(9)}, tables=[(b"a", b"1"), (b"b", b"2")]))
    in_steps = digest_of(
        WriteBatch(entries=[(1, 1, b"x")], meta={"term": u64(4)}, tables=[(b"b", b"0"), (b"c", b"3")]),
        WriteBatch(meta={"applied": u64(9)}, tables=[(b"a", b"1"), (b"b", b"2"), (b"c", None)]),
    )
    assert at_once == in_steps
    assert at_once[0] == 9


def test_any_difference_shows(digest_of: Callable[..., tuple[int, str]]) -> None:
    states: list[Items] = [
        [],
        [(b"a", b"")],
        [(b"a", b"b")],
        [(b"ab", b"")],
        [(b"a", b""), (b"b", b"")],
        [(b"a", b"x" * 70_000), (b"b", b"1")],
        [(b"a", b"x" * 70_000), (b"b", b"2")],
    ]
    assert len({digest_of(WriteBatch(tables=items)) for items in states}) == len(states)


def test_a_state_is_of_one_moment(tmp_path: Path) -> None:
    """What is committed after it was taken does not show, though it is hashed later."""
    environment = Environment(tmp_path)
    writer = Writer(environment)
    writer.write(WriteBatch(meta={"applied": u64(2)}, tables=[(b"a", b"1")]))
    before, taken = digest(environment), State(environment)
    writer.write(WriteBatch(meta={"applied": u64(3)}, tables=[(b"a", b"2")]))
    assert (taken.applied, taken.digest()) == before
    assert digest(environment)[0] == 3
    assert digest(environment)[1] != before[1]
    writer.close()
    environment.close()


def test_damage_is_not_hashed(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    writer = Writer(environment)
    with environment.begin_write() as txn:
        txn.put(b"k", b"value with no checksum", db=environment.tables)
    with pytest.raises(EnvironmentDamaged, match="table 'tables'"):
        digest(environment)
    writer.close()
    environment.close()
