"""Messages come in: places, batches, delays, dedup ids and requests."""

from __future__ import annotations

from raftq.storage.machine import keys, packing
from raftq.storage.machine.commands import (
    DefineQueue,
    DeleteQueue,
    Enqueue,
    Expire,
    Lease,
    Part,
    QueueSettings,
    Request,
)
from raftq.storage.machine.replies import Enqueued, QueueReady, Refused
from tests.storage.conftest import QUEUE, Hands, blob


def one(body: bytes, **options: object) -> Enqueue:
    return Enqueue(QUEUE, [Part(0, 0, blob(body))], **options)  # type: ignore[arg-type]


def with_ids(*ids: str | None) -> Enqueue:
    bodies = [b"%d" % at for at in range(len(ids))]
    return Enqueue(QUEUE, [Part(0, 0, blob(*bodies), None, list(ids))])


def test_the_first_enqueue_creates_the_queue(hands: Hands) -> None:
    assert hands.enqueue(b"a", b"b") == Enqueued(1, [(0, 1, 2)])
    assert hands.effects == [QueueReady(QUEUE, 2)]
    assert hands.info().settings == QueueSettings()


def test_an_enqueue_may_refuse_to_create(hands: Hands) -> None:
    reply = hands.do(one(b"a", auto_create=False))
    assert isinstance(reply, Refused)
    assert reply.reason == "unknown_queue"
    assert hands.info() is None


def test_a_new_queue_of_the_same_name_has_another_number(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.do(DeleteQueue(QUEUE))
    assert hands.enqueue(b"b") == Enqueued(2, [(0, 1, 1)])
    assert hands.bodies(hands.lease()) == [b"b"]


def test_more_queues_than_the_limit_are_refused(hands: Hands, monkeypatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.queues.QUEUES_MAX", 1)
    hands.enqueue(b"a")
    for command in (DefineQueue("default/b", QueueSettings()), Enqueue("default/b", [Part(0, 0, blob(b"x"))])):
        assert hands.do(command).reason == "too_many_queues"
    hands.do(DeleteQueue(QUEUE))
    assert hands.do(DefineQueue("default/b", QueueSettings())).created


def test_small_enqueues_of_one_entry_are_one_batch(hands: Hands) -> None:
    replies = hands.together(*[one(b"%d" % at) for at in range(5)])
    assert [reply.spans for reply in replies] == [[(0, at, 1)] for at in range(1, 6)]
    assert len(hands.keys(keys.BATCH)) == 1
    assert hands.bodies(hands.lease()) == [b"0", b"1", b"2", b"3", b"4"]


def test_joined_enqueues_stay_within_a_blob(hands: Hands) -> None:
    hands.together(*[one(b"x" * 4_000) for _ in range(40)])
    values = [hands.txn.values[key] for key in hands.keys(keys.BATCH)]
    assert len(values) == 3
    assert max(map(len, values)) <= packing.BLOB_BYTES_MAX + 8


def test_a_large_blob_is_stored_as_it_came(hands: Hands) -> None:
    large = blob(*[b"x" * 100] * 100)
    hands.together(one(b"a"), Enqueue(QUEUE, [Part(0, 0, large)]), one(b"b"))
    assert [hands.txn.values[key][8:] for key in hands.keys(keys.BATCH)].count(large) == 1
    assert len(hands.keys(keys.BATCH)) == 3


def test_a_lease_in_the_same_entry_sees_what_was_enqueued_in_it(hands: Hands) -> None:
    leased = hands.together(one(b"a"), one(b"b"), Lease(QUEUE, 5), one(b"c"))[2]
    assert leased.ranges[0].count == 2
    assert hands.info().ready == 1


def test_places_are_in_the_order_of_the_request(hands: Hands) -> None:
    parts = [Part(9, 0, blob(b"1", b"3"), [1, 3]), Part(0, 0, blob(b"0", b"2"), [0, 2])]
    reply = hands.do(Enqueue(QUEUE, parts))
    assert reply == Enqueued(1, None, [(0, 3, False), (9, 1, False), (0, 4, False), (9, 2, False)])
    assert hands.bodies(hands.lease()) == [b"1", b"3", b"0", b"2"]


def test_a_malformed_part_is_refused_and_nothing_is_done(hands: Hands) -> None:
    good = Part(0, 0, blob(b"a"))
    for bad in (
        Part(10, 0, blob(b"a")),
        Part(-1, 0, blob(b"a")),
        Part(0, 0, b""),
        Part(0, 0, packing.pack([])),
        Part(0, 0, blob(b"a") + b"x"),
        Part(0, 0, b"\xff" * 12),
        Part(0, 0, blob(b"a"), None, ["x", "y"]),
    ):
        assert hands.do(Enqueue(QUEUE, [good, bad])).reason == "invalid"
    assert hands.info() is None


def test_a_dedup_id_enqueues_once_within_its_window(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(dedup_window_ms=1_000)))
    assert hands.do(with_ids("x", None, "x")).places == [(0, 1, False), (0, 2, False), (0, 1, True)]
    hands.wall_ms += 999
    assert hands.do(with_ids("x")).places == [(0, 1, True)]
    hands.wall_ms += 1
    assert hands.do(with_ids("x")).places == [(0, 3, False)]
    assert hands.info().duplicates == 2


def test_a_dedup_id_outlives_its_message_and_a_restart(hands: Hands) -> None:
    hands.do(with_ids("x"))
    hands.lease(settle=True)
    hands.restart()
    assert hands.do(with_ids("x")).places == [(0, 1, True)]
    assert hands.info().ready == 0


def test_a_window_of_nothing_knows_no_duplicates(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(dedup_window_ms=0)))
    assert hands.do(with_ids("x", "x")).places == [(0, 1, False), (0, 2, False)]
    assert hands.keys(keys.DEDUP) == []


def test_an_id_used_again_after_its_window_has_one_moment(hands: Hands) -> None:
    """The first one's moment must go with it, else the new record is forgotten too early."""
    hands.do(DefineQueue(QUEUE, QueueSettings(dedup_window_ms=1_000)))
    hands.do(with_ids("x"))
    hands.wall_ms += 1_500
    hands.do(with_ids("x"))
    assert len(hands.keys(keys.WALL)) == 1
    assert hands.do(Expire()).forgotten == 0
    assert hands.do(with_ids("x")).places == [(0, 2, True)]


def test_a_repeated_request_gets_its_first_reply(hands: Hands) -> None:
    command = one(b"a", request=Request("r", 1_000))
    first = hands.do(command)
    hands.restart()
    again = hands.do(command)
    assert (again.spans, first.repeated, again.repeated) == (first.spans, False, True)
    assert hands.effects == []
    assert hands.info().enqueued == 1
    hands.wall_ms += 1_000
    assert hands.do(command).spans == [(0, 2, 1)]


def test_a_refused_request_is_tried_again(hands: Hands) -> None:
    command = one(b"a", request=Request("r", 60_000), auto_create=False)
    assert isinstance(hands.do(command), Refused)
    hands.do(DefineQueue(QUEUE, QueueSettings()))
    assert hands.do(command) == Enqueued(1, [(0, 1, 1)])


def test_a_delayed_message_keeps_its_place(hands: Hands) -> None:
    hands.enqueue(b"late", delay_ms=1_000)
    hands.enqueue(b"a")
    hands.enqueue(b"b", priority=9, delay_ms=1_000)
    assert hands.machine.next_due() == (None, hands.wall_ms + 1_000)
    assert (hands.info().ready, hands.info().delayed) == (1, 2)
    hands.wall_ms += 1_000
    assert hands.do(Expire()).delays == 2
    assert hands.effects == [QueueReady(QUEUE, 3)]
    assert hands.bodies(hands.lease()) == [b"b", b"late", b"a"]


def test_the_queues_delay_is_taken_when_none_is_given(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(delay_ms=1_000)))
    hands.enqueue(b"late")
    hands.enqueue(b"now", delay_ms=0)
    assert hands.bodies(hands.lease()) == [b"now"]


def test_a_delay_beyond_all_time_is_kept_at_the_end_of_it(hands: Hands) -> None:
    hands.enqueue(b"never", delay_ms=1 << 63)
    assert hands.machine.next_due() == (None, keys.MS_MAX)
