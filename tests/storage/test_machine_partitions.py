from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest

from raftq.storage.machine import keys, packing, queues
from raftq.storage.machine.commands import (
    Ack,
    DefineQueue,
    DefineSchedule,
    DefineTopic,
    DeleteMessage,
    DeleteQueue,
    Enqueue,
    Expire,
    Lease,
    Nack,
    Part,
    Publish,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Reject,
    Request,
    Schedule,
    Slots,
    Subscribe,
    Tick,
    Transact,
)
from raftq.storage.machine.replies import DONE, Enqueued, Leased, Purged, QueueDefined, QueueDeleted, QueueReady
from tests.storage.conftest import QUEUE, Hands, blob

COUNT = 3
PARTITIONS = [f"{QUEUE}.{at}" for at in range(COUNT)]


@pytest.fixture
def three(hands: Hands) -> Hands:
    reply = hands.do(DefineQueue(QUEUE, QueueSettings(), partitions=COUNT))
    assert reply == QueueDefined(1, created=True, settings=QueueSettings())
    return hands


def grouped(*groups: str, **options: Any) -> Part:
    packed = [packing.pack_message(b"%d" % at, group=group.encode()) for at, group in enumerate(groups)]
    return Part(options.pop("priority", 0), None, packing.pack(packed), **options)


def counts(hands: Hands) -> list[int]:
    return [hands.info(key).ready for key in PARTITIONS]


def test_a_group_stays_within_a_partition(three: Hands) -> None:
    groups = ["a", "b", "c", "d", "a"]
    reply = three.do(Enqueue(QUEUE, [grouped(*groups)]))
    expected = [2 + crc32(group.encode()) % COUNT for group in groups]
    assert reply.numbers == expected
    assert reply.places is not None
    assert [number for queue, (_, number, _) in zip(expected, reply.places, strict=True) if queue == expected[0]]
    assert expected[0] == expected[4]
    assert reply.places[4] > reply.places[0]
    assert sum(counts(three)) == three.info().ready == 5
    assert sorted(effect.queue for effect in three.effects) == sorted({PARTITIONS[at - 2] for at in expected})


def test_what_has_no_key_goes_to_one_partition_after_the_other(three: Hands) -> None:
    for _ in range(4):
        three.enqueue(b"x", b"y")
    assert counts(three) == [4, 2, 2]
    three.restart()
    three.enqueue(b"z")
    assert counts(three) == [4, 3, 2]


@pytest.mark.parametrize("field", ["dedup_ids", "replace_keys"])
def test_an_id_stays_within_a_partition(three: Hands, field: str) -> None:
    """So a message that is sent again meets the first one."""
    for _ in range(3):
        three.do(Enqueue(QUEUE, [Part(0, None, blob(b"x"), **{field: ["same"]})]))
    assert sorted(counts(three)) == [0, 0, 1]


def test_several_parts_are_answered_in_the_order_of_the_request(three: Hands) -> None:
    parts = [grouped("a", "b", positions=[0, 2]), grouped("c", "a", priority=9, positions=[1, 3])]
    reply = three.do(Enqueue(QUEUE, parts))
    groups = ["a", "c", "b", "a"]
    assert reply.numbers == [2 + crc32(group.encode()) % COUNT for group in groups]
    assert [priority for priority, _, _ in reply.places] == [0, 9, 0, 9]


def test_an_enqueue_is_in_all_partitions_or_in_none(three: Hands) -> None:
    three.do(DefineQueue(QUEUE, QueueSettings(max_messages=1)))
    three.enqueue(b"first")
    before = dict(three.txn.values)
    reply = three.do(Enqueue(QUEUE, [grouped("a", "a", "b", "c", "d")]))
    assert (reply.reason, three.info().ready, three.effects) == ("full", 1, [])
    assert {key for key, value in three.txn.values.items() if before.get(key) != value} == {keys.CLUSTER}
    assert three.do(Enqueue(QUEUE, [Part(0, None, b"")])).reason == "invalid"


def test_a_lease_takes_from_one_partition_after_the_other(three: Hands) -> None:
    for _ in range(6):
        three.enqueue(b"x")
    numbers = [three.lease(9).queue_number for _ in range(4)]
    assert numbers == [2, 3, 4, 1]
    three.enqueue(b"y")
    assert three.lease().queue_number == 2
    assert three.do(Lease(PARTITIONS[1], 9)).ranges == []


def test_receipts_are_settled_by_the_name(three: Hands) -> None:
    for _ in range(3):
        three.enqueue(b"x", b"y")
    for kind in (Ack, Nack, Reject):
        leased = three.lease()
        assert three.settle(leased, 0, 1, kind=kind) == [DONE, DONE]
    assert (three.info().acked, three.info().nacked, three.info().rejected) == (2, 2, 2)
    assert three.settle(leased, 0) == [1]
    assert three.settle(Leased(99, leased.lease_id, [], 0), 0) == [1]


def test_requests_for_the_name_are_answered_once(three: Hands) -> None:
    request = Request("r", 60_000)
    first, second = (three.do(Enqueue(QUEUE, [grouped("a", "b")], request)) for _ in range(2))
    assert (second.repeated, second.numbers, second.places) == (True, first.numbers, first.places)
    leases = [three.do(Lease(QUEUE, 9, None, request)) for _ in range(2)]
    assert leases[0].lease_id == leases[1].lease_id
    other = three.lease()
    assert other.ranges == [] or other.queue_number != leases[0].queue_number
    three.wall_ms += 60_000
    three.do(Expire())
    assert three.keys(keys.REQUEST) == []


def test_one_request_settles_receipts_of_several_partitions(three: Hands) -> None:
    for _ in range(3):
        three.enqueue(b"x")
    leases = [three.lease() for _ in range(3)]
    for _ in range(2):
        for leased in leases:
            assert three.settle(leased, 0, request=Request("r", 60_000)) == [DONE]
    assert three.info().acked == 3


def test_settings_are_of_all(three: Hands) -> None:
    settings = QueueSettings(lease_ms=7, paused=True)
    assert three.do(DefineQueue(QUEUE, settings, True, None, COUNT)).settings == settings
    three.enqueue(b"x")
    assert three.lease().ranges == []
    three.do(DefineQueue(QUEUE, QueueSettings(), False, ["paused"]))
    assert three.effects == [QueueReady(PARTITIONS[0], 1)]
    assert {three.info(key).settings for key in PARTITIONS} == {QueueSettings(lease_ms=7)}
    assert three.info().settings == QueueSettings(lease_ms=7)
    assert three.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue=PARTITIONS[1]))).reason == "invalid"
    reply = three.do(DefineQueue(QUEUE, QueueSettings(max_leased_per_group=1)))
    assert (reply.reason, {three.info(key).settings for key in PARTITIONS}) == (
        "not_empty",
        {QueueSettings(lease_ms=7)},
    )


@pytest.mark.parametrize("count", [0, -1, 65])
def test_too_many_partitions(hands: Hands, count: int) -> None:
    assert hands.do(DefineQueue(QUEUE, QueueSettings(), partitions=count)).reason == "invalid"


def test_their_number_is_fixed(three: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert three.do(DefineQueue(QUEUE, QueueSettings(), partitions=4)).reason == "partitions_fixed"
    three.do(DefineQueue("default/plain", QueueSettings()))
    assert three.do(DefineQueue("default/plain", QueueSettings(), partitions=1)).reason == "partitions_fixed"
    three.do(DefineQueue("default/b.1", QueueSettings()))
    assert three.do(DefineQueue("default/b", QueueSettings(), partitions=2)).reason == "partitions_fixed"
    assert three.do(DefineQueue("default/none", QueueSettings(), False, None, 2)).reason == "unknown_queue"
    assert three.do(DefineQueue(PARTITIONS[0], QueueSettings(), partitions=2)).reason == "partition"
    monkeypatch.setattr(queues, "QUEUES_MAX", 6)
    assert three.do(DefineQueue("default/more", QueueSettings(), partitions=2)).reason == "too_many_queues"


def test_a_partition_is_not_changed_or_deleted_alone(three: Hands) -> None:
    for command in (DefineQueue(PARTITIONS[0], QueueSettings()), DeleteQueue(PARTITIONS[2])):
        assert three.do(command).detail == "it is a partition: change or delete jobs, and all of its partitions with it"
    assert three.do(Redrive(QUEUE)).detail == "it has partitions: name one of them, jobs.0 to jobs.2"
    assert three.do(DefineQueue(f"{QUEUE}.3", QueueSettings())).created


def test_purge_and_delete(three: Hands) -> None:
    for _ in range(3):
        three.enqueue(b"x", b"y")
    three.do(Enqueue(QUEUE, [grouped("a")], Request("r", 60_000)))
    three.do(DefineTopic("default/news"))
    three.do(Subscribe("default/news", QUEUE))
    assert three.do(PurgeQueue(QUEUE)) == Purged(7)
    three.enqueue(b"z")
    assert three.do(DeleteQueue(QUEUE)) == QueueDeleted(1)
    assert three.do(Lease(QUEUE, 1)).reason == "unknown_queue"
    assert three.machine.view().subscriptions("default/news") == []
    three.do(Expire())
    assert [key for key in three.txn.values if key[:1] in (*keys.OF_A_QUEUE, keys.PARTITIONED, keys.DELETED)] == []
    assert three.do(DefineQueue(QUEUE, QueueSettings())).created


def test_a_message_is_deleted_by_its_id(three: Hands) -> None:
    reply = three.do(Enqueue(QUEUE, [grouped("a", "b", "c")]))
    for number, (priority, place, _) in zip(reply.numbers, reply.places, strict=True):
        three.do(DeleteMessage(QUEUE, number, priority, place))
    assert three.info().ready == 0
    assert three.do(DeleteMessage(QUEUE, 99, 0, 1)).reason == "unknown_message"


def test_a_transaction(three: Hands) -> None:
    three.enqueue(b"x")
    leased = three.lease()
    ack = Ack(QUEUE, leased.queue_number, [Slots(leased.lease_id, [0])])
    operations = [
        Enqueue(QUEUE, [grouped("a", "b", "c")]),
        ack,
        Enqueue("default/plain", [grouped("a")]),
        Enqueue(QUEUE, [grouped("", "")]),
    ]
    done = three.do(Transact("default", operations))
    assert [len(one.numbers or [0]) for one in done.enqueued] == [3, 1, 2]
    assert done.enqueued[1] == Enqueued(5, [(0, 1, 1)])
    assert (three.info().acked, three.info().ready) == (1, 5)
    refused = three.do(Transact("default", [*operations[:1], Enqueue("default/no", [grouped("")], None, False), ack]))
    assert [(one.operation, one.reason) for one in refused.obstacles] == [(1, "unknown_queue"), (2, "gone")]
    assert three.info().ready == 5


def test_a_publish_goes_by_the_same_rule(three: Hands) -> None:
    three.do(DefineTopic("default/news"))
    three.do(Subscribe("default/news", QUEUE))
    three.do(Subscribe("default/news", "default/all"))
    assert three.do(Publish("default/news", [grouped("a", "a", "b")])).queues == [2, 2, 2]
    expected = [0] * COUNT
    for group in "aab":
        expected[crc32(group.encode()) % COUNT] += 1
    assert counts(three) == expected
    for _ in range(3):
        three.do(Publish("default/news", [grouped("", "")]))
    assert counts(three) == [count + 2 for count in expected]
    assert three.info("default/all").ready == 9


def test_a_publish_to_a_name_and_its_partition_counts_both_against_the_limit(three: Hands) -> None:
    three.do(DefineQueue(QUEUE, QueueSettings(max_messages=1), False, ["max_messages"]))
    three.do(DefineTopic("default/news"))
    for queue in (QUEUE, f"{QUEUE}.0", f"{QUEUE}.1", f"{QUEUE}.2"):
        three.do(Subscribe("default/news", queue))
    assert three.do(Publish("default/news", [grouped("a")])).reason == "full"
    assert counts(three) == [0] * COUNT


def test_dead_letters_and_schedules(three: Hands) -> None:
    """Dead letters go to the first partition, ticks by turn."""
    three.do(DefineQueue("default/work", QueueSettings(dead_letter_queue=QUEUE)))
    three.do(Enqueue("default/work", [grouped("a", "b")]))
    leased = three.do(Lease("default/work", 2))
    three.do(Reject("default/work", leased.queue_number, [Slots(leased.lease_id, [0, 1])]))
    assert counts(three) == [2, 0, 0]
    given = Schedule(None, "UTC", 1_000, QUEUE, None, Part(0, None, blob(b"tick")))
    three.do(DefineSchedule("default/s", given, 1))
    for at in range(1, 4):
        three.do(Tick("default/s", at, at + 1, at))
    assert counts(three) == [3, 1, 1]
