from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine import keys
from raftq.storage.machine.commands import (
    Ack,
    DefineQueue,
    Enqueue,
    Expire,
    Lease,
    Nack,
    Operation,
    Part,
    QueueSettings,
    Reject,
    Release,
    Request,
    Slots,
    Transact,
    decode,
    encode,
    grows,
)
from raftq.storage.machine.replies import DONE, GONE, Enqueued, Leased, Obstacle, QueueReady, Transacted
from tests.storage.conftest import QUEUE, Hands, blob

NEXT = "default/next"


def transact(hands: Hands, *operations: Operation, **options: Any) -> Any:
    return hands.do(Transact("default", list(operations), **options))


def put(queue: str, *bodies: bytes, **options: Any) -> Enqueue:
    return Enqueue(queue, [Part(0, None, blob(*bodies))], **options)


def of(leased: Leased, *slots: int, kind: Any = Ack, queue: str = QUEUE) -> Any:
    return kind(queue, leased.queue_number, [Slots(leased.lease_id, list(slots))])


@pytest.fixture
def leased(hands: Hands) -> Leased:
    hands.enqueue(b"a", b"b", b"c", b"d")
    return hands.lease()


def test_all_of_it_is_done_in_order(hands: Hands, leased: Leased) -> None:
    reply = transact(
        hands,
        of(leased, 0),
        put(NEXT, b"x", b"y"),
        of(leased, 1, kind=Release),
        of(leased, 2, kind=Nack),
        of(leased, 3, kind=Reject),
        put(QUEUE, b"z"),
    )
    number = hands.info(NEXT).number
    assert reply == Transacted([Enqueued(number, [(0, 1, 2)]), Enqueued(leased.queue_number, [(0, 5, 1)])])
    assert hands.effects == [QueueReady(QUEUE, 3), QueueReady(NEXT, 2)]
    info = hands.info()
    assert (info.acked, info.released, info.nacked, info.discarded, info.leased) == (1, 1, 1, 1, 0)


def test_one_receipt_that_holds_nothing_refuses_all(hands: Hands, leased: Leased) -> None:
    hands.settle(leased, 1)
    before = dict(hands.txn.values)
    reply = transact(hands, put(NEXT, b"x"), of(leased, 0, 1, 9), of(leased, 2))
    assert reply == Transacted([], [Obstacle(1, "gone", "", [bytes((DONE, GONE, GONE))])])
    assert hands.effects == []
    assert {key for key in hands.txn.values if hands.txn.values[key] != before.get(key)} <= {keys.CLUSTER}
    assert hands.info(NEXT) is None


def test_a_message_that_was_acked_is_not_acked_again(hands: Hands, leased: Leased) -> None:
    """Or what was made of it would be enqueued twice."""
    transact(hands, of(leased, 0), put(NEXT, b"x"))
    assert transact(hands, of(leased, 0), put(NEXT, b"x")).obstacles[0].reason == "gone"
    assert hands.info(NEXT).ready == 1


def test_a_receipt_is_named_once(hands: Hands, leased: Leased) -> None:
    reply = transact(hands, of(leased, 0, 1), of(leased, 1, kind=Nack))
    assert reply.obstacles == [Obstacle(1, "gone", "", [bytes((GONE,))])]
    assert transact(hands, of(leased, 0, 0)).obstacles[0].results == [bytes((DONE, GONE))]


def test_every_obstacle_is_named(hands: Hands, leased: Leased) -> None:
    hands.settle(leased, 0)
    reply = transact(
        hands,
        of(leased, 0),
        put(NEXT, b"x", auto_create=False),
        of(leased, 1),
        of(leased, 0, queue="default/none"),
        Enqueue(QUEUE, [Part(0, None, b"")]),
    )
    assert [(one.operation, one.reason) for one in reply.obstacles] == [
        (0, "gone"),
        (1, "unknown_queue"),
        (3, "unknown_queue"),
        (4, "invalid"),
    ]


def test_receipts_of_another_queue_hold_nothing(hands: Hands, leased: Leased) -> None:
    hands.do(put(NEXT, b"x"))
    assert transact(hands, of(leased, 0, queue=NEXT)).obstacles == [Obstacle(0, "gone", "", [bytes((GONE,))])]


def test_a_lease_that_has_passed_refuses_it(hands: Hands, leased: Leased) -> None:
    hands.lease_ms += 30_000
    hands.do(Expire())
    assert transact(hands, of(leased, 0)).obstacles[0].reason == "gone"


def test_what_a_queue_gets_together_has_to_fit(hands: Hands, leased: Leased) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(max_messages=5)))
    assert transact(hands, put(QUEUE, b"x")).obstacles == []
    reply = transact(hands, put(NEXT, b"x"), put(QUEUE, b"y"), of(leased, 0))
    assert [(one.operation, one.reason) for one in reply.obstacles] == [(1, "full")]
    assert hands.settle(leased, 0) == [DONE]
    reply = transact(hands, put(QUEUE, b"y"), put(QUEUE, b"z"))
    assert [(one.operation, one.reason) for one in reply.obstacles] == [(0, "full"), (1, "full")]
    assert transact(hands, put(QUEUE, b"y")).obstacles == []


def test_a_dead_letter_takes_no_room_from_what_was_checked(hands: Hands, leased: Leased) -> None:
    hands.do(DefineQueue(NEXT, QueueSettings(max_messages=1)))
    hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue=NEXT)))
    assert transact(hands, of(leased, 0, kind=Reject), put(NEXT, b"x")).obstacles == []
    assert hands.info(NEXT).ready == 2


def test_dead_letters_go_on_and_wake_their_queue(hands: Hands, leased: Leased) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue="default/dead", max_failures=1)))
    transact(hands, of(leased, 0, kind=Nack), of(leased, 1, kind=Reject))
    assert hands.effects == [QueueReady("default/dead", 2)]


def test_dead_letters_are_bounded_together(hands: Hands, monkeypatch: pytest.MonkeyPatch, leased: Leased) -> None:
    monkeypatch.setattr("raftq.storage.machine.deadletters.MOVED_BYTES_MAX", 8)
    hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue="default/dead")))
    reply = transact(hands, of(leased, 0, kind=Reject), of(leased, 1, kind=Reject))
    assert [(one.operation, one.reason) for one in reply.obstacles] == [(1, "too_large")]
    assert hands.info("default/dead") is None


def test_too_many_queues(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.queues.QUEUES_MAX", 2)
    reply = transact(hands, put("default/1", b"x"), put("default/2", b"x"), put("default/3", b"x"))
    assert [(one.operation, one.reason) for one in reply.obstacles] == [(2, "too_many_queues")]
    assert transact(hands, put("default/1", b"x"), put("default/2", b"x"), put("default/1", b"x")).obstacles == []


def test_a_dead_letter_queue_does_not_take_the_last_place(
    hands: Hands, leased: Leased, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftq.storage.machine.queues.QUEUES_MAX", 2)
    hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue="default/dead")))
    assert transact(hands, of(leased, 0, kind=Reject), put(NEXT, b"x")).obstacles == []
    assert (hands.info("default/dead").ready, hands.info(NEXT).ready) == (1, 1)


def test_a_transaction_is_of_one_namespace(hands: Hands) -> None:
    reply = hands.do(Transact("default", [put(NEXT, b"x"), put("other/next", b"x")]))
    assert reply.reason == "invalid"
    assert hands.info(NEXT) is None


def test_a_retried_transaction_repeats_its_first_reply(hands: Hands, leased: Leased) -> None:
    request = Request("r", 1_000)
    first = transact(hands, of(leased, 0), put(NEXT, b"x"), request=request)
    again = transact(hands, of(leased, 0), put(NEXT, b"x"), request=request)
    assert (again.enqueued, again.repeated) == (first.enqueued, True)
    assert hands.info(NEXT).ready == 1
    hands.wall_ms += 1_000
    assert hands.do(Expire()).forgotten == 1
    assert transact(hands, of(leased, 0), put(NEXT, b"x"), request=request).obstacles


def test_a_refusal_is_not_remembered(hands: Hands, leased: Leased) -> None:
    request = Request("r", 1_000)
    assert transact(hands, put(NEXT, b"x", auto_create=False), request=request).obstacles
    assert not transact(hands, put(NEXT, b"x"), request=request).obstacles


def test_a_request_id_belongs_to_its_namespace(hands: Hands) -> None:
    for namespace in ("default", "other"):
        operation = put(f"{namespace}/q", b"x")
        reply = hands.do(Transact(namespace, [operation], Request("r", 1_000)))
        assert not reply.repeated


def test_a_transaction_after_a_restart(hands: Hands, leased: Leased) -> None:
    hands.restart()
    assert transact(hands, of(leased, *range(4))) == Transacted([])
    assert hands.info().acked == 4


def test_what_a_transaction_makes_of_the_tables() -> None:
    acks = Transact("default", [Ack(QUEUE, 1, [Slots(1, [0])])], Request("r", 1))
    both = Transact("default", [*acks.operations, put(QUEUE, b"x")])
    assert [decode(encode(acks)), decode(encode(both))] == [acks, both]
    assert [grows(encode(acks)), grows(encode(both))] == [False, True]
    assert not grows(encode(Lease(QUEUE, 1)))
