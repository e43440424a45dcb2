"""A new incarnation: what was leased is ready again, and no receipt or fence from before counts."""

from __future__ import annotations

import pytest

from raftq.storage.machine import keys
from raftq.storage.machine.commands import (
    Ack,
    DefineQueue,
    DeleteQueue,
    Enqueue,
    Expire,
    Extend,
    Incarnate,
    Lease,
    Nack,
    Part,
    QueueSettings,
    Release,
    Request,
)
from raftq.storage.machine.incarnation import IDS_SKIPPED, first_free
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.replies import GONE, Incarnated, QueueReady, Range
from tests.storage.conftest import QUEUE, Hands, blob

EXACT_IN_JSON = 1 << 53
KINDS = [Ack, Nack, Release, Extend]


def test_what_was_leased_is_ready_in_its_place_without_a_failure(hands: Hands) -> None:
    hands.enqueue(b"a", b"b", b"c", b"d")
    hands.settle(hands.lease(1), 0, kind=Nack)
    leased = hands.lease(3)
    hands.settle(leased, 1)
    assert hands.do(Incarnate()) == Incarnated(1, 2)
    assert hands.effects == [QueueReady(QUEUE, 3)]
    assert hands.keys(keys.LEASE) == hands.keys(keys.DEADLINE) == []
    assert hands.machine.next_due() == (None, None)
    info = hands.info()
    assert (info.ready, info.leased, info.released, info.expired) == (3, 0, 2, 0)
    again = hands.lease()
    assert again.ranges == [Range(0, 1, 1, 3, 1), Range(0, 3, 1, 2, 0), Range(0, 4, 1, 1, 0)]
    assert hands.bodies(again) == [b"a", b"c", b"d"]


@pytest.mark.parametrize("kind", KINDS)
def test_receipts_from_before_are_gone_settled_or_not(hands: Hands, kind: type) -> None:
    hands.enqueue(b"a", b"b")
    leased = hands.lease()
    hands.settle(leased, 0)
    hands.do(Incarnate())
    hands.restart()
    assert hands.settle(leased, 0, 1, kind=kind) == [GONE, GONE]
    assert hands.lease().ranges == [Range(0, 2, 1, 2, 0)]
    assert hands.settle(leased, 0, 1, kind=kind) == [GONE, GONE]


def test_every_queue_also_a_later_one_goes_on_with_new_ids(hands: Hands) -> None:
    hands.do(Enqueue("default/a", [Part(0, 0, blob(b"x", b"y"))]))
    first = hands.do(Lease("default/a", 1))
    seen = [first.lease_id]
    for incarnation in (1, 2):
        assert hands.do(Incarnate()).incarnation == incarnation
        hands.restart()
        hands.do(Enqueue(f"default/new{incarnation}", [Part(0, 0, blob(b"x"))]))
        for key in ("default/a", f"default/new{incarnation}"):
            seen.append(hands.do(Lease(key, 1)).lease_id)
            assert incarnation << 32 < seen[-1] < EXACT_IN_JSON
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("elapsed_ms", [1, 60_000, 3_600_000])
def test_a_backup_restored_twice_never_gives_a_receipt_twice(hands: Hands, elapsed_ms: int) -> None:
    """A worker of the first restored cluster must not settle what another holds in the second."""
    hands.enqueue(b"a", b"b")
    hands.lease(1)
    backup, index = dict(hands.txn.values), hands.index
    hands.do(Incarnate())
    late = hands.lease()
    hands.txn, hands.index = MemoryTxn(), index
    for key, value in backup.items():
        hands.txn.put(key, value)
    hands.restart()
    hands.wall_ms += elapsed_ms
    hands.do(Incarnate())
    again = hands.lease()
    assert again.lease_id > late.lease_id
    assert hands.settle(late, 0) == [GONE]


def test_lease_ids_stay_exact_in_json_for_a_million_incarnations() -> None:
    last_lease = 0
    for _ in range(1 << 20):
        last_lease = first_free(last_lease, 1 << 60)
    assert last_lease < EXACT_IN_JSON


def test_a_clock_that_is_wrong_leaves_a_gap_all_the_same() -> None:
    assert first_free(7, 0) == 7 + IDS_SKIPPED
    assert first_free(1 << 52, 1_700_000_000_000) == (1 << 52) + IDS_SKIPPED


def test_a_retried_lease_from_before_holds_nothing(hands: Hands) -> None:
    hands.enqueue(b"a")
    request = Request("r", 600_000)
    before = hands.lease(request=request)
    hands.do(Incarnate())
    again = hands.lease(request=request)
    assert (again.lease_id, again.repeated) == (before.lease_id, True)
    assert hands.machine.deliveries(again) == [None]
    assert hands.info().ready == 1


def test_a_paused_queue_wakes_nobody(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.lease()
    hands.do(DefineQueue(QUEUE, QueueSettings(paused=True)))
    assert hands.do(Incarnate()).released == 1
    assert hands.effects == []


def test_leases_of_a_deleted_queue_are_removed_too(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.lease()
    hands.do(DeleteQueue(QUEUE))
    assert hands.do(Incarnate()) == Incarnated(1, 0)
    while hands.do(Expire(1)).more:
        pass
    assert [key for key in hands.txn.values if key[:1] != keys.CLUSTER] == []


def test_an_extended_lease_ends_with_all_its_deadlines(hands: Hands) -> None:
    hands.enqueue(b"a", b"b", b"c")
    leased = hands.lease()
    hands.settle(leased, 1, kind=Extend, lease_ms=90_000)
    assert hands.do(Incarnate()).released == 3
    assert hands.keys(keys.DEADLINE) == []


def test_delays_go_on(hands: Hands) -> None:
    hands.enqueue(b"a", delay_ms=1_000)
    hands.do(Incarnate())
    assert hands.info().delayed == 1
    hands.wall_ms += 1_000
    assert hands.do(Expire()).delays == 1
