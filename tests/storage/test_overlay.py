"""The overlay: what was applied is seen, wherever it lies: current, in flight or on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raftq.storage.environment import Environment, WriteBatch
from raftq.storage.overlay import Overlay
from raftq.storage.writer import Writer


class Store:
    """An overlay with a writer below it."""

    def __init__(self, folder: Path) -> None:
        self.environment = Environment(folder)
        self.writer = Writer(self.environment)
        self.overlay = Overlay(self.environment)

    def commit(self) -> None:
        self.writer.write(WriteBatch(tables=self.overlay.take()))
        self.overlay.landed()

    def close(self) -> None:
        self.overlay.close()
        self.writer.close()
        self.environment.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def overlay(store: Store) -> Overlay:
    """On disk a and b; in flight b changed, c new, d new; current d deleted, e new."""
    overlay = store.overlay
    for key in (b"a", b"b"):
        overlay.put(key, b"disk")
    store.commit()
    for key in (b"b", b"c", b"d"):
        overlay.put(key, b"flight")
    overlay.take()
    overlay.delete(b"d")
    overlay.put(b"e", b"current")
    return overlay


SEEN = [(b"a", b"disk"), (b"b", b"flight"), (b"c", b"flight"), (b"e", b"current")]


def test_sees_through_all_generations(overlay: Overlay) -> None:
    assert [overlay.get(key) for key in (b"a", b"b", b"c", b"d", b"e", b"f")] == [
        b"disk",
        b"flight",
        b"flight",
        None,
        b"current",
        None,
    ]
    assert list(overlay.scan(b"a", b"z")) == SEEN
    assert list(overlay.scan(b"a", b"z", reverse=True)) == SEEN[::-1]
    assert list(overlay.scan(b"b", b"e")) == SEEN[1:3]
    assert list(overlay.scan(b"b", b"e", reverse=True)) == SEEN[2:0:-1]


def test_a_scan_sees_changes_ahead_of_it(overlay: Overlay) -> None:
    items = overlay.scan(b"a", b"z")
    assert next(items) == SEEN[0]
    overlay.delete(b"b")
    overlay.put(b"c", b"changed")
    overlay.put(b"aa", b"new")
    overlay.put(b"0", b"behind")
    assert list(items) == [(b"aa", b"new"), (b"c", b"changed"), (b"e", b"current")]


def test_a_scan_goes_on_over_a_commit(store: Store) -> None:
    for key in (b"a", b"b", b"c"):
        store.overlay.put(key, b"1")
    items = store.overlay.scan(b"a", b"z")
    assert next(items) == (b"a", b"1")
    store.commit()
    assert list(items) == [(b"b", b"1"), (b"c", b"1")]


def test_take_gives_the_changes_in_order(overlay: Overlay) -> None:
    overlay.landed()
    overlay.put(b"0", b"")
    assert overlay.pending_bytes == len(b"d") + len(b"ecurrent") + len(b"0")
    assert overlay.take() == [(b"0", b""), (b"d", None), (b"e", b"current")]
    assert overlay.pending_bytes == 0


def test_a_rollback_undoes_and_a_release_keeps(overlay: Overlay) -> None:
    overlay.put(b"kept", b"1")
    outer = overlay.savepoint()
    overlay.put(b"e", b"changed")
    inner = overlay.savepoint()
    overlay.delete(b"e")
    overlay.put(b"d", b"again")
    overlay.put(b"a", b"changed")
    overlay.rollback(inner)
    assert list(overlay.scan(b"a", b"z")) == [*SEEN[:3], (b"e", b"changed"), (b"kept", b"1")]
    inner = overlay.savepoint()
    overlay.put(b"f", b"released")
    overlay.release(inner)
    overlay.rollback(outer)
    assert list(overlay.scan(b"a", b"z")) == [*SEEN, (b"kept", b"1")]
    assert list(overlay.scan(b"a", b"z", reverse=True)) == [(b"kept", b"1"), *SEEN[::-1]]


def test_a_drained_head_is_passed_once(store: Store) -> None:
    """Searches from the head of what was deleted do not pass all of it each time: ten times the deletions make about
    ten times the steps on disk, not a hundred times."""

    def steps_to_drain(prefix: bytes, count: int) -> int:
        for number in range(count):
            store.overlay.put(prefix + b"%05d" % number, b"")
        store.commit()
        steps = 0
        below = store.overlay._snapshot.first

        class Counting:
            @staticmethod
            def first(low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
                nonlocal steps
                steps += 1
                return below(low, high)

        snapshot, store.overlay._snapshot = store.overlay._snapshot, Counting()  # type: ignore[assignment]
        while (item := next(store.overlay.scan(prefix, prefix + b"z"), None)) is not None:
            store.overlay.delete(item[0])
        store.overlay._snapshot = snapshot
        return steps

    assert steps_to_drain(b"b", 500) <= 11 * steps_to_drain(b"a", 50)


def test_a_rollback_shows_again_what_a_search_had_passed(store: Store) -> None:
    store.overlay.put(b"a", b"1")
    store.commit()
    mark = store.overlay.savepoint()
    store.overlay.delete(b"a")
    assert store.overlay.first(b"a", b"z") is None
    store.overlay.rollback(mark)
    assert store.overlay.first(b"a", b"z") == (b"a", b"1")


def test_a_key_put_again_on_disk_is_found_where_a_search_had_passed(store: Store) -> None:
    store.overlay.put(b"a", b"1")
    store.commit()
    store.overlay.delete(b"a")
    assert store.overlay.first(b"a", b"z") is None
    store.overlay.put(b"a", b"2")
    store.commit()
    assert store.overlay.first(b"a", b"z") == (b"a", b"2")


KEYS = st.binary(
    min_size=1,
    max_size=2,
).map(lambda key: bytes(byte % 5 for byte in key))
VALUES = st.binary(max_size=3)


class OverlayIsADict(RuleBasedStateMachine):
    """Whatever is in flight, landed or rolled back, the overlay reads like one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name))
        self.expected: dict[bytes, bytes] = {}
        self.savepoints: list[tuple[int, dict[bytes, bytes]]] = []
        self.flight: list[tuple[bytes, bytes | None]] | None = None

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        self.store.overlay.put(key, value)
        self.expected[key] = value

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.store.overlay.delete(key)
        self.expected.pop(key, None)

    @rule()
    def savepoint(self) -> None:
        self.savepoints.append((self.store.overlay.savepoint(), dict(self.expected)))

    @precondition(lambda self: self.savepoints)
    @rule(undo=st.booleans())
    def end_savepoint(self, undo: bool) -> None:
        mark, before = self.savepoints.pop()
        if undo:
            self.store.overlay.rollback(mark)
            self.expected = before
        else:
            self.store.overlay.release(mark)

    @precondition(lambda self: self.flight is None and not self.savepoints)
    @rule()
    def take(self) -> None:
        self.flight = self.store.overlay.take()
        assert self.store.overlay.pending_bytes == 0

    @precondition(lambda self: self.flight is not None)
    @rule()
    def land(self) -> None:
        assert self.flight is not None
        self.store.writer.write(WriteBatch(tables=self.flight))
        self.store.overlay.landed()
        self.flight = None

    @rule(low=KEYS, high=KEYS, reverse=st.booleans())
    def scan(self, low: bytes, high: bytes, reverse: bool) -> None:
        expected = sorted(item for item in self.expected.items() if low <= item[0] < high)
        assert list(self.store.overlay.scan(low, high, reverse=reverse)) == (expected[::-1] if reverse else expected)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.store.overlay.get(key) == self.expected.get(key)

    @invariant()
    def first_and_last_are_right(self) -> None:
        low, high = b"\1", b"\4"
        inside = sorted(item for item in self.expected.items() if low <= item[0] < high)
        assert self.store.overlay.first(low, high) == (inside[0] if inside else None)
        assert self.store.overlay.last(low, high) == (inside[-1] if inside else None)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestOverlayIsADict = OverlayIsADict.TestCase
TestOverlayIsADict.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
