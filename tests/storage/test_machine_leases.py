"""Leases: what they hold, who settles what, and what passes."""

from __future__ import annotations

import pytest

from raftq.storage.machine import keys
from raftq.storage.machine.commands import (
    Ack,
    DefineQueue,
    DeleteQueue,
    Expire,
    Extend,
    Nack,
    QueueSettings,
    Release,
    Request,
    Slots,
)
from raftq.storage.machine.replies import DONE, GONE, Leased, QueueReady, Range
from tests.storage.conftest import QUEUE, Hands

BODIES = [b"%d" % at for at in range(10)]


def test_nothing_ready_is_an_empty_lease(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings()))
    assert hands.lease() == Leased(1, 0, [], 0)
    assert hands.machine.next_due() == (None, None)


def test_priorities_then_numbers(hands: Hands) -> None:
    hands.enqueue(b"low", b"low")
    hands.enqueue(b"high", priority=9)
    hands.enqueue(b"low")
    leased = hands.lease(3)
    assert leased.ranges == [Range(9, 3, 1, 1, 0), Range(0, 1, 2, 1, 0)]
    assert leased.deadline_ms == hands.wall_ms + 30_000
    assert hands.lease().ranges == [Range(0, 4, 1, 1, 0)]


def test_ranges_do_not_show_batches(hands: Hands) -> None:
    for body in BODIES:
        hands.enqueue(body)
    assert hands.lease().ranges == [Range(0, 1, 10, 1, 0)]


def test_a_lease_is_bounded_in_bytes_but_never_empty(hands: Hands) -> None:
    hands.enqueue(b"x" * 100, b"x" * 100, b"x" * 100)
    hands.enqueue(b"x" * 500)
    assert hands.lease(max_bytes=208).ranges == [Range(0, 1, 2, 1, 0)]
    assert hands.lease(max_bytes=1).ranges == [Range(0, 3, 1, 1, 0)]
    assert hands.lease(max_bytes=1).ranges == [Range(0, 4, 1, 1, 0)]


def test_returned_messages_are_bounded_in_bytes_too(hands: Hands) -> None:
    hands.enqueue(b"x" * 100, b"x" * 100, b"x" * 100)
    hands.settle(hands.lease(), 0, 1, 2, kind=Release)
    assert hands.lease(max_bytes=208).ranges == [Range(0, 1, 2, 2, 0)]
    assert hands.lease(max_bytes=208).ranges == [Range(0, 3, 1, 2, 0)]


def test_a_paused_queue_gives_nothing_and_wakes_nobody_until_it_is_resumed(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(paused=True)))
    hands.enqueue(b"a")
    assert hands.effects == []
    assert hands.lease().ranges == []
    assert hands.machine.view().ready(QUEUE) == 0
    hands.do(DefineQueue(QUEUE, QueueSettings()))
    assert hands.effects == [QueueReady(QUEUE, 1)]
    assert hands.bodies(hands.lease()) == [b"a"]


def test_a_whole_batch_acked_leaves_nothing(hands: Hands) -> None:
    hands.enqueue(*BODIES)
    leased = hands.lease()
    assert hands.settle(leased, *range(10)) == [DONE] * 10
    assert hands.keys(keys.BATCH) == hands.keys(keys.GONE) == []
    assert (hands.info().acked, hands.info().bytes) == (10, 0)


def test_the_last_of_a_batch_deletes_it(hands: Hands) -> None:
    hands.enqueue(*BODIES)
    leased = hands.lease()
    hands.settle(leased, 3, 5, 4, 0)
    assert len(hands.keys(keys.GONE)) == 1
    hands.settle(leased, 1, 2, 6, 7, 8, 9)
    assert hands.keys(keys.BATCH) == hands.keys(keys.GONE) == []


def test_a_repeated_ack_is_done_until_the_deadline_and_then_gone(hands: Hands) -> None:
    hands.enqueue(b"a")
    leased = hands.lease(lease_ms=1_000)
    assert hands.settle(leased, 0) == [DONE]
    hands.lease_ms += 999
    hands.do(Expire())
    hands.restart()
    assert hands.settle(leased, 0) == [DONE]
    hands.lease_ms += 1
    hands.do(Expire())
    assert hands.settle(leased, 0) == [GONE]
    assert hands.keys(keys.LEASE) == hands.keys(keys.DEADLINE) == []


@pytest.mark.parametrize("kind", [Nack, Release, Extend])
def test_only_ack_is_repeatable(hands: Hands, kind: type) -> None:
    hands.enqueue(b"a", b"b")
    leased = hands.lease()
    assert hands.settle(leased, 0) == [DONE]
    assert hands.settle(leased, 0, 1, kind=kind) == [GONE, DONE]
    assert hands.settle(leased, 1, kind=kind) == ([DONE] if kind is Extend else [GONE])


def test_a_late_worker_never_settles_the_lease_of_another(hands: Hands) -> None:
    hands.enqueue(b"a")
    late = hands.lease(lease_ms=1_000)
    hands.lease_ms += 1_000
    hands.do(Expire())
    other = hands.lease()
    for kind in (Ack, Nack, Release, Extend):
        assert hands.settle(late, 0, kind=kind) == [GONE]
    assert other.lease_id > late.lease_id
    assert hands.settle(other, 0) == [DONE]


def test_receipts_that_say_anything_are_gone(hands: Hands) -> None:
    hands.enqueue(b"a")
    leased = hands.lease()
    assert hands.settle(leased, -1, 1, 10**30) == [GONE] * 3
    named = [Slots(leased.lease_id, [0]), Slots(-1, [0]), Slots(10**12, [0]), Slots(leased.lease_id, [])]
    assert hands.do(Ack(QUEUE, leased.queue_number + 1, named)).results == [b"\1", b"\1", b"\1", b""]
    assert hands.do(Ack(QUEUE, leased.queue_number, named)).results == [b"\0", b"\1", b"\1", b""]


def test_receipts_of_a_deleted_queue_are_gone_in_its_namesake(hands: Hands) -> None:
    hands.enqueue(b"a")
    leased = hands.lease()
    hands.do(DeleteQueue(QUEUE))
    assert hands.do(Ack(QUEUE, leased.queue_number, [])).reason == "unknown_queue"
    hands.enqueue(b"b")
    assert hands.settle(leased, 0) == [GONE]


def test_nack_counts_a_failure_and_release_none(hands: Hands) -> None:
    hands.enqueue(b"a", b"b", b"c")
    leased = hands.lease()
    hands.settle(leased, 0, kind=Nack)
    hands.settle(leased, 2, kind=Release)
    assert hands.lease().ranges == [Range(0, 1, 1, 2, 1), Range(0, 3, 1, 2, 0)]


def test_a_delayed_nack_returns_later_in_its_place(hands: Hands) -> None:
    hands.enqueue(*BODIES[:3])
    hands.settle(hands.lease(2), 0, kind=Nack, delay_ms=500)
    assert hands.effects == []
    assert hands.info().delayed == 1
    hands.wall_ms += 500
    hands.do(Expire())
    assert hands.bodies(hands.lease()) == [b"0", b"2"]


def test_an_expired_lease_returns_with_a_failure_in_its_place(hands: Hands) -> None:
    hands.enqueue(*BODIES[:4])
    leased = hands.lease(3, lease_ms=1_000)
    hands.settle(leased, 1)
    hands.lease_ms += 1_000
    assert hands.do(Expire()).leases == 2
    assert hands.effects == [QueueReady(QUEUE, 3)]
    assert hands.lease().ranges == [Range(0, 1, 1, 2, 1), Range(0, 3, 1, 2, 1), Range(0, 4, 1, 1, 0)]
    assert hands.info().expired == 2


def test_wall_time_ends_no_lease(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.lease()
    hands.wall_ms += 10**9
    assert hands.do(Expire()).leases == 0


def test_the_deadline_that_is_told_is_wall_time_and_ends_nothing(hands: Hands) -> None:
    hands.enqueue(b"a")
    leased = hands.lease(lease_ms=1_000)
    assert leased.deadline_ms == hands.wall_ms + 1_000 != hands.lease_ms + 1_000
    hands.wall_ms = leased.deadline_ms + 1
    hands.do(Expire())
    assert hands.settle(leased, 0) == [DONE]


def test_extending_all_moves_the_one_deadline(hands: Hands) -> None:
    hands.enqueue(*BODIES)
    leased = hands.lease(lease_ms=1_000)
    hands.settle(leased, 0)
    assert hands.settle(leased, *range(1, 10), kind=Extend, lease_ms=5_000) == [DONE] * 9
    assert hands.machine.next_due() == (hands.lease_ms + 5_000, None)
    assert len(hands.keys(keys.DEADLINE)) == 1


def test_extending_some_lets_the_others_expire_at_their_time(hands: Hands) -> None:
    hands.enqueue(*BODIES[:4])
    leased = hands.lease(lease_ms=1_000)
    hands.settle(leased, 1, 2, kind=Extend, lease_ms=5_000)
    hands.lease_ms += 1_000
    assert hands.do(Expire()).leases == 2
    assert hands.settle(leased, 0, 1, 2, 3) == [GONE, DONE, DONE, GONE]
    assert hands.bodies(hands.lease()) == [b"0", b"3"]


def test_a_settled_slot_is_remembered_as_long_as_the_last_extended_one(hands: Hands) -> None:
    hands.enqueue(*BODIES[:3])
    leased = hands.lease(lease_ms=1_000)
    hands.settle(leased, 0)
    hands.settle(leased, 1, kind=Extend, lease_ms=5_000)
    hands.lease_ms += 1_000
    hands.do(Expire())
    assert hands.settle(leased, 0, 1, 2) == [DONE, DONE, GONE]
    assert hands.machine.next_due()[0] == hands.lease_ms + 4_000


def test_a_group_that_was_settled_needs_no_deadline_of_its_own(hands: Hands) -> None:
    """Extending one by one must not leave a deadline for every group that once was."""
    hands.enqueue(*BODIES[:3])
    leased = hands.lease(lease_ms=1_000)
    hands.settle(leased, 0, kind=Extend, lease_ms=2_000)
    hands.settle(leased, 0)
    hands.settle(leased, 1, 2, kind=Extend, lease_ms=5_000)
    assert hands.machine.next_due()[0] == hands.lease_ms + 5_000


def test_every_slot_has_a_deadline_while_groups_pass_one_after_the_other(hands: Hands) -> None:
    hands.enqueue(*BODIES[:3])
    leased = hands.lease(lease_ms=1_000)
    hands.settle(leased, 1, kind=Extend, lease_ms=3_000)
    hands.settle(leased, 2, kind=Extend, lease_ms=5_000)
    for left_ms in (2_000, 2_000, None):
        hands.lease_ms = hands.machine.next_due()[0]
        assert hands.do(Expire()).leases == 1
        assert hands.machine.next_due()[0] == (left_ms and hands.lease_ms + left_ms)
    assert hands.keys(keys.LEASE) == []


def test_a_deadline_may_be_moved_forward(hands: Hands) -> None:
    hands.enqueue(b"a", b"b")
    leased = hands.lease()
    hands.settle(leased, 1, kind=Extend, lease_ms=0)
    assert hands.do(Expire()).leases == 1
    assert hands.settle(leased, 0, 1) == [DONE, GONE]


def test_settle_acks_in_the_same_step_and_still_gives_the_bodies(hands: Hands) -> None:
    hands.enqueue(*BODIES)
    leased = hands.lease(3, settle=True)
    assert hands.bodies(leased) == BODIES[:3]
    assert (hands.info().acked, hands.info().leased, hands.info().ready) == (3, 0, 7)
    assert hands.settle(leased, 0) == [GONE]
    assert hands.bodies(hands.lease(settle=True)) == BODIES[3:]
    assert hands.keys(keys.BATCH) == hands.keys(keys.LEASE) == []


def test_a_retried_lease_is_the_same_lease(hands: Hands) -> None:
    hands.enqueue(*BODIES[:3])
    request = Request("r", 60_000)
    first = hands.lease(2, request=request)
    again = hands.lease(2, request=request)
    assert (again.lease_id, again.ranges, again.repeated) == (first.lease_id, first.ranges, True)
    assert hands.bodies(again) == BODIES[:2]


def test_a_retried_lease_gives_only_what_it_still_holds(hands: Hands) -> None:
    hands.enqueue(*BODIES[:3])
    request = Request("r", 60_000)
    hands.settle(hands.lease(request=request), 1)
    again = hands.lease(request=request)
    assert [got and got.number for got in hands.machine.deliveries(again)] == [1, None, 3]


def test_a_long_poll_may_ask_again_with_its_request(hands: Hands) -> None:
    """An empty lease is no answer to repeat: the message may come while the request waits."""
    hands.do(DefineQueue(QUEUE, QueueSettings()))
    request = Request("r", 60_000)
    assert hands.lease(request=request).ranges == []
    hands.enqueue(b"a")
    assert hands.bodies(hands.lease(request=request)) == [b"a"]


def test_a_repeated_nack_request_repeats_its_answer(hands: Hands) -> None:
    hands.enqueue(b"a")
    leased = hands.lease()
    for _ in range(2):
        assert hands.settle(leased, 0, kind=Nack, request=Request("r", 1_000)) == [DONE]
    assert hands.info().nacked == 1
