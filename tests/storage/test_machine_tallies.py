"""What all queues hold together, kept without a scan; and how fast totals grow. The model test compares replicas, and
the audit after each entry compares the sums with the queues."""

from __future__ import annotations

import pytest

from raftq.storage.machine import keys, records, tallies
from raftq.storage.machine.commands import DeleteQueue, Enqueue, Incarnate, Nack, Part, SetVersion
from raftq.storage.machine.tallies import PIECE_MS
from tests.storage.conftest import QUEUE, Hands, blob

OTHER = "default/other"


@pytest.fixture
def two(hands: Hands) -> Hands:
    hands.do(SetVersion(2))
    return hands


def sums(hands: Hands) -> dict[str, int]:
    """Those that are not 0."""
    return {name: value for name, value in hands.machine.view().sums().items() if value}


def growth(hands: Hands, key: str | None = QUEUE, seconds: int = 10) -> tuple[dict[str, int], int]:
    grown, took_ms = hands.machine.view().growth(key, seconds * 1000, hands.wall_ms)
    return {name: value for name, value in grown.items() if value}, took_ms


def test_the_sums_follow_every_queue(two: Hands) -> None:
    two.enqueue(b"a", b"b", b"c")
    two.do(Enqueue(OTHER, [Part(0, 5_000, blob(b"later"))]))
    leased = two.lease(2)
    two.settle(leased, 0)
    two.settle(leased, 1, kind=Nack)
    size = two.info().bytes + two.info(OTHER).bytes
    found = {"queues": 2, "ready": 2, "delayed": 1, "bytes": size, "enqueued": 4, "delivered": 2, "acked": 1}
    assert sums(two) == found | {"nacked": 1}
    two.restart()
    assert sums(two) == found | {"nacked": 1}


def test_totals_of_a_deleted_queue_stay(two: Hands) -> None:
    two.enqueue(b"a", b"b")
    two.settle(two.lease(1), 0)
    two.do(DeleteQueue(QUEUE))
    assert sums(two) == {"enqueued": 2, "delivered": 1, "acked": 1}
    two.restart()
    two.enqueue(b"c")
    assert sums(two) == {"queues": 1, "ready": 1, "bytes": two.info().bytes} | {
        "enqueued": 3,
        "delivered": 1,
        "acked": 1,
    }


def test_in_one_entry_a_queue_may_be_made_filled_and_deleted(two: Hands) -> None:
    two.together(Enqueue(QUEUE, [Part(0, None, blob(b"a"))]), DeleteQueue(QUEUE))
    assert sums(two) == {"enqueued": 1}
    enqueue = Enqueue(QUEUE, [Part(0, None, blob(b"a"))])
    two.together(enqueue, DeleteQueue(QUEUE), enqueue)
    assert sums(two) == {"queues": 1, "ready": 1, "enqueued": 3, "bytes": two.info().bytes}


def test_version_1_sums_what_there_is_and_writes_nothing_of_it(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.do(Enqueue(OTHER, [Part(0, None, blob(b"b"))]))
    hands.do(DeleteQueue(QUEUE))
    for _ in range(2):
        assert sums(hands) == {"queues": 1, "ready": 1, "bytes": hands.info(OTHER).bytes, "enqueued": 1}
        assert records.decode_cluster(hands.txn.values[keys.CLUSTER]).sums == []
        hands.restart()
    hands.do(SetVersion(2))
    assert records.decode_cluster(hands.txn.values[keys.CLUSTER]).sums[:1] == [1]


@pytest.mark.parametrize("kept", [0, len(tallies.COUNTS) + 3])
def test_tables_with_no_sums_or_fewer_are_read(two: Hands, kept: int) -> None:
    two.enqueue(b"a", b"b")
    before = sums(two)
    cluster = records.decode_cluster(two.txn.values[keys.CLUSTER])
    cluster.sums = cluster.sums[:kept]
    two.txn.put(keys.CLUSTER, records.encode_cluster(cluster))
    two.restart()
    assert sums(two) == before


def test_sums_survive_a_restore(two: Hands) -> None:
    two.enqueue(b"a", b"b")
    two.lease(1)
    two.do(Incarnate())
    assert sums(two)["ready"] == 2


def test_records_that_leave_memory_are_counted_on(two: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.queues._CACHE_MAX", 1)
    for key in (QUEUE, OTHER, QUEUE, OTHER):
        two.do(Enqueue(key, [Part(0, None, blob(b"a"))]))
    assert sums(two)["ready"] == 4


# Growth


def test_growth_is_of_the_window_and_says_how_long_it_was(two: Hands) -> None:
    two.wall_ms = 1_700_000_000_000
    two.enqueue(b"a", b"b")
    two.wall_ms += 30_000
    two.enqueue(b"c")
    two.settle(two.lease(3), 0, 1)
    two.wall_ms += 2_000
    assert growth(two, seconds=10) == ({"enqueued": 1, "delivered": 3, "acked": 2}, 12_000)
    assert growth(two, seconds=60) == ({"enqueued": 3, "delivered": 3, "acked": 2}, 62_000)
    assert growth(two, None, 60) == growth(two, QUEUE, 60)


def test_growth_ends_without_another_entry(two: Hands) -> None:
    two.enqueue(b"a")
    two.wall_ms += 10_000 + PIECE_MS
    assert growth(two)[0] == {}
    assert growth(two, seconds=60)[0] == {"enqueued": 1}
    two.wall_ms += 60_000
    assert growth(two, seconds=60)[0] == {}


def test_growth_counts_each_change_once_over_many_pieces(two: Hands) -> None:
    for _ in range(100):
        two.wall_ms += 1_000
        two.enqueue(b"a")
    assert two.wall_ms % PIECE_MS == 0
    assert growth(two) == ({"enqueued": 11}, 10_000)
    assert growth(two, seconds=60) == ({"enqueued": 61}, 60_000)


def test_after_a_restart_growth_is_of_what_was_seen_since(two: Hands) -> None:
    two.enqueue(b"a")
    two.restart()
    two.wall_ms += 2_000
    two.enqueue(b"b")
    assert growth(two, seconds=60) == ({"enqueued": 1}, 2_000)


def test_a_moment_after_a_restart_growth_is_told_over_a_second(two: Hands) -> None:
    two.restart()
    two.enqueue(b"a")
    assert growth(two) == ({"enqueued": 1}, 1_000)


def test_a_queue_made_anew_begins_anew(two: Hands) -> None:
    two.enqueue(b"a", b"b", b"c")
    two.do(DeleteQueue(QUEUE))
    assert growth(two, None)[0] == {"enqueued": 3}
    two.enqueue(b"d")
    assert growth(two)[0] == {"enqueued": 1}
    with pytest.raises(KeyError):
        growth(two, "default/none")


def test_what_is_remembered_is_bounded(two: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "_REMEMBERED_MAX", 5)
    for _ in range(10):
        two.wall_ms += PIECE_MS
        for key in (QUEUE, OTHER, "default/third"):
            two.do(Enqueue(key, [Part(0, None, blob(b"a"))]))
    # Two pieces with three queues each, and the sums: the newest, and one before.
    assert growth(two, seconds=60) == ({"enqueued": 2}, PIECE_MS)
