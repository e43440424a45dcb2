"""Messages that go without being leased: purges, deletions by id."""

from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine import keys
from raftq.storage.machine.commands import (
    Ack,
    DefineQueue,
    DeleteMessage,
    DeleteQueue,
    Enqueue,
    Expire,
    Lease,
    Nack,
    Part,
    PurgeQueue,
    QueueSettings,
    Request,
)
from raftq.storage.machine.replies import DONE, GONE, Enqueued, Expired, MessageDeleted, Purged, Range, Refused
from tests.storage.conftest import QUEUE, Hands, blob

LEASED = Refused("leased", "the message is leased: ack it, or wait until its lease has passed")
UNKNOWN = Refused("unknown_message", "there is no such message")


def delete(hands: Hands, number: int, priority: int = 0, queue_number: int | None = None) -> Any:
    found = hands.info().number if queue_number is None else queue_number
    return hands.do(DeleteMessage(QUEUE, found, priority, number))


def test_long_records_cost_the_steps_after_a_purge_more(hands: Hands) -> None:
    """All of a record is read, whether it is needed or not."""
    for _ in range(6):
        hands.enqueue(b"x" * 4_096)
    hands.do(PurgeQueue(QUEUE))
    assert [hands.do(Expire(6)) for _ in range(4)] == [
        Expired(0, 0, 2, more=True),
        Expired(0, 0, 2, more=True),
        Expired(0, 0, 2, more=True),
        Expired(0, 0, 0, more=False),
    ]


def test_a_purge_takes_what_is_ready_delayed_and_leased(hands: Hands) -> None:
    hands.enqueue(b"a", b"b", b"c")
    hands.enqueue(b"late", delay_ms=1_000)
    leased = hands.lease(1)
    assert hands.do(PurgeQueue(QUEUE)) == Purged(4)
    info = hands.info()
    assert (info.ready, info.leased, info.delayed, info.bytes) == (0, 0, 0, 0)
    assert (info.enqueued, info.delivered, info.removed) == (4, 1, 4)
    assert hands.settle(leased, 0) == [GONE]
    assert hands.machine.view().message(QUEUE, 0, 1) is None
    assert hands.do(PurgeQueue(QUEUE)) == Purged(0)
    hands.enqueue(b"d")
    assert hands.lease().ranges == [Range(0, 5, 1, 1, 0)]
    assert hands.do(PurgeQueue("default/none")).reason == "unknown_queue"


def test_what_a_purge_left_is_removed_in_steps(hands: Hands) -> None:
    for number in range(10):
        hands.enqueue(b"x", delay_ms=1_000 * number)
    hands.lease()
    hands.do(PurgeQueue(QUEUE))
    hands.enqueue(b"new")
    assert hands.machine.next_due()[1] == 0
    steps = 0
    while hands.machine.next_due()[1] == 0:
        assert hands.do(Expire(4)).forgotten <= 4
        hands.restart()
        steps += 1
    assert steps == 6  # 10 batches, a bitmap never, 9 delays, 1 lease, and the mark with the last of them
    assert [keys.queue_of(key) for key in hands.keys(keys.BATCH)] == [hands.info().number]
    assert hands.machine.next_due() == (None, None)


def test_settings_dedup_ids_and_requests_outlive_a_purge(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(lease_ms=7)))
    first = Enqueue(QUEUE, [Part(0, 0, blob(b"a"), None, ["id"])])
    number = hands.do(first).queue_number
    request = Enqueue(QUEUE, [Part(0, 0, blob(b"b"))], Request("r", 60_000))
    hands.do(request)
    lease = Lease(QUEUE, 1, None, Request("r", 60_000))
    leased = hands.do(lease)
    for _ in range(2):
        hands.do(PurgeQueue(QUEUE))
        assert hands.info().settings.lease_ms == 7
        assert hands.do(first) == Enqueued(hands.info().number, None, [(0, 1, True)], numbers=[number])
        assert hands.do(request).repeated
        again = hands.do(lease)
        assert (again.repeated, again.lease_id) == (True, leased.lease_id)
        assert hands.machine.deliveries(again) == [None]
        assert hands.info().ready == 0
        hands.enqueue(b"more")
        while hands.machine.next_due()[1] == 0:
            hands.do(Expire())
    hands.do(DeleteQueue(QUEUE))
    while hands.machine.next_due()[1] == 0:
        hands.do(Expire())
    assert not hands.keys(keys.DEDUP)
    assert not hands.keys(keys.REQUEST)


def test_a_purge_that_is_repeated_spares_what_came_since(hands: Hands) -> None:
    hands.enqueue(b"a")
    purge = PurgeQueue(QUEUE, Request("p", 60_000))
    assert hands.do(purge) == Purged(1)
    hands.enqueue(b"b")
    assert hands.do(purge) == Purged(1)
    assert hands.info().ready == 1


def test_a_purge_in_the_entry_of_its_messages(hands: Hands) -> None:
    enqueue = Enqueue(QUEUE, [Part(0, 0, blob(b"a", b"b"))])
    replies = hands.together(enqueue, Lease(QUEUE, 1), PurgeQueue(QUEUE), enqueue)
    assert replies[2] == Purged(2)
    assert hands.lease().ranges == [Range(0, 3, 2, 1, 0)]


@pytest.mark.parametrize("number", range(1, 10))
def test_one_message_goes_from_wherever_it_waits(hands: Hands, number: int) -> None:
    for first in (1, 4, 7):
        hands.enqueue(*[b"%d" % at for at in range(first, first + 3)])
    assert delete(hands, number) == MessageDeleted()
    assert delete(hands, number) == UNKNOWN
    info = hands.info()
    assert (info.ready, info.removed) == (8, 1)
    left = [at for at in range(1, 10) if at != number]
    assert [int(body) for body in hands.bodies(hands.lease(4))] == left[:4]
    assert [int(body) for body in hands.bodies(hands.lease())] == left[4:]


@pytest.mark.parametrize("number", range(1, 10))
def test_one_message_goes_from_behind_and_beyond_the_head(hands: Hands, number: int) -> None:
    for first in (1, 4, 7):
        hands.enqueue(*[b"%d" % at for at in range(first, first + 3)])
    leased = hands.lease(5)
    hands.settle(leased, 1, 2, 4, kind=Nack)
    held = (1, 4)
    assert delete(hands, number) == (LEASED if number in held else MessageDeleted())
    gone = () if number in held else (number,)
    left = [at for at in range(1, 10) if at not in held and at not in gone]
    assert [int(body) for body in hands.bodies(hands.lease())] == left
    assert hands.settle(leased, 0, 3) == [DONE, DONE]


def test_many_go_one_by_one(hands: Hands) -> None:
    hands.enqueue(*[b"%d" % at for at in range(1, 51)])
    hands.enqueue(*[b"%d" % at for at in range(51, 101)], priority=3)
    for number in range(2, 101, 3):
        assert delete(hands, number, 3 if number > 50 else 0) == MessageDeleted()
    assert sorted(int(body) for body in hands.bodies(hands.lease())) == [
        number for number in range(1, 101) if (number - 2) % 3
    ]


def test_a_delayed_message_is_cancelled(hands: Hands) -> None:
    hands.enqueue(b"a", b"b", b"c", delay_ms=1_000)
    assert delete(hands, 2) == MessageDeleted()
    assert (hands.info().delayed, hands.machine.next_due()) == (2, (None, hands.wall_ms + 1_000))
    for number in (1, 3):
        delete(hands, number)
    assert (hands.info().delayed, hands.info().bytes, hands.machine.next_due()) == (0, 0, (None, None))


def test_ids_that_mean_nothing(hands: Hands) -> None:
    hands.enqueue(b"a")
    assert delete(hands, 1, priority=1) == UNKNOWN
    assert delete(hands, 2) == UNKNOWN
    assert delete(hands, 0) == UNKNOWN
    assert delete(hands, 1, priority=-1) == UNKNOWN
    assert delete(hands, 1, priority=10) == UNKNOWN
    assert delete(hands, 1, queue_number=2) == UNKNOWN
    assert hands.do(DeleteMessage("default/none", 1, 0, 1)).reason == "unknown_queue"
    hands.settle(hands.lease(), 0, kind=Ack)
    assert delete(hands, 1) == UNKNOWN
