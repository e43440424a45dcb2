"""The steps of what passes with time are bounded, and finish."""

from __future__ import annotations

import pytest

from raftq.storage.machine import expiry, keys
from raftq.storage.machine.commands import (
    Ack,
    DefineQueue,
    DeleteQueue,
    Enqueue,
    Expire,
    Nack,
    Part,
    QueueSettings,
    Request,
    Slots,
)
from raftq.storage.machine.replies import Expired, QueueReady, Range
from tests.storage.conftest import QUEUE, Hands, blob


def test_nothing_due_does_nothing(hands: Hands) -> None:
    assert hands.do(Expire()) == Expired(0, 0, 0, more=False)
    assert hands.effects == []


def test_a_lease_is_returned_in_steps(hands: Hands) -> None:
    hands.enqueue(*[b"x"] * 10)
    leased = hands.lease(lease_ms=1_000)
    hands.lease_ms += 1_000
    assert hands.do(Expire(4)) == Expired(4, 0, 0, more=True)
    assert hands.lease(2).ranges == [Range(0, 1, 2, 2, 1)]
    assert hands.settle(leased, 3, 4) == [1, 0]
    assert hands.do(Expire(100)) == Expired(5, 0, 0, more=False)
    assert hands.info().ready == 7


def test_a_settled_lease_costs_a_step_too(hands: Hands) -> None:
    """Most leases that pass are settled: removing thousands of them at once would stop the loop."""
    hands.enqueue(b"a", b"b", b"c")
    for _ in range(3):
        hands.settle(hands.lease(1), 0)
    hands.lease_ms += 30_000
    assert hands.do(Expire(2)) == Expired(0, 0, 0, more=True)
    assert len(hands.keys(keys.LEASE)) == 1
    assert hands.do(Expire(2)) == Expired(0, 0, 0, more=False)


def test_a_long_lease_costs_a_step_more(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of messages with replace keys names each for itself."""
    monkeypatch.setattr(expiry, "LEASE_BYTES", 50)
    hands.do(Enqueue(QUEUE, [Part(0, 0, blob(*[b"x"] * 40), replace_keys=[f"k{at}" for at in range(40)])]))
    for _ in range(2):
        hands.settle(hands.lease(20), *range(19))
    hands.lease_ms += 30_000
    assert hands.do(Expire(4)) == Expired(1, 0, 0, more=True)
    assert hands.do(Expire(4)) == Expired(1, 0, 0, more=False)


def test_a_delay_passes_in_steps(hands: Hands) -> None:
    hands.enqueue(*[b"x"] * 5, delay_ms=1_000)
    hands.wall_ms += 1_000
    assert hands.do(Expire(2)) == Expired(0, 2, 0, more=True)
    assert (hands.info().ready, hands.info().delayed) == (2, 3)
    hands.restart()
    assert hands.do(Expire(10)) == Expired(0, 3, 0, more=False)
    assert hands.lease().ranges == [Range(0, 1, 5, 1, 0)]


def test_every_queue_that_got_messages_is_told(hands: Hands) -> None:
    for key in ("default/b", "default/a"):
        hands.do(Enqueue(key, [Part(0, 1_000, blob(b"x"))]))
    hands.wall_ms += 1_000
    hands.do(Expire())
    assert hands.effects == [QueueReady("default/b", 1), QueueReady("default/a", 1)]


def test_dedup_ids_and_requests_are_forgotten(hands: Hands) -> None:
    hands.do(Enqueue(QUEUE, [Part(0, 0, blob(b"x"), None, ["id"])], Request("r", 400_000)))
    assert hands.machine.next_due() == (None, hands.wall_ms + 300_000)
    hands.wall_ms += 400_000
    assert hands.do(Expire(1)) == Expired(0, 0, 1, more=True)
    assert hands.do(Expire(1)) == Expired(0, 0, 1, more=False)
    assert hands.keys(keys.DEDUP) == hands.keys(keys.REQUEST) == hands.keys(keys.WALL) == []


def test_the_remains_of_a_deleted_queue_are_removed_in_steps(hands: Hands) -> None:
    for at in range(4):
        hands.do(Enqueue(QUEUE, [Part(0, 0, blob(b"x", b"y"), None, [f"{at}", None])], Request(f"{at}", 60_000)))
        hands.enqueue(b"late", delay_ms=1_000)
    leased = hands.lease(3)
    hands.settle(leased, 0)
    hands.settle(leased, 1, kind=Nack)
    assert hands.do(DeleteQueue(QUEUE)).messages == 11
    assert hands.machine.next_due()[1] == 0
    steps = 0
    while hands.do(Expire(3)).more:
        steps += 1
    assert steps > 5
    assert hands.machine.next_due() == (None, None)
    assert [key for key in hands.txn.values if key[:1] != keys.CLUSTER] == []


def test_a_deleted_queues_lease_passes_without_a_trace(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.lease(lease_ms=1_000)
    hands.do(DeleteQueue(QUEUE))
    hands.enqueue(b"b")
    hands.lease_ms += 1_000
    assert hands.do(Expire()).leases == 0
    assert hands.info().ready == 1


def test_a_queue_deleted_in_the_entry_of_an_ack_leaves_no_bitmap(hands: Hands) -> None:
    """The bitmap waits in memory for the end of the entry; it must not be written after its batch was removed."""
    hands.enqueue(b"a", b"b")
    leased = hands.lease()
    ack = Ack(QUEUE, leased.queue_number, [Slots(leased.lease_id, [0])])
    hands.together(ack, DeleteQueue(QUEUE), Expire())
    assert hands.keys(keys.GONE) == hands.keys(keys.BATCH) == []


def test_a_shorter_window_is_for_what_comes(hands: Hands) -> None:
    hands.do(Enqueue(QUEUE, [Part(0, 0, blob(b"x"), None, ["old"])]))
    hands.do(DefineQueue(QUEUE, QueueSettings(dedup_window_ms=10)))
    hands.wall_ms += 20
    assert hands.do(Expire()).forgotten == 0
    assert hands.do(Enqueue(QUEUE, [Part(0, 0, blob(b"x"), None, ["old"])])).places == [(0, 1, True)]
