"""Each promise of a queue, once kept and once broken in one way.

Method: commands go through the real machine; the rules are told its replies, or those that a test puts in their place.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from raftq.chaos.simulation.checkers import queue
from raftq.chaos.simulation.checkers.queue import Digests, Replica
from raftq.chaos.simulation.checkers.rules import Rules
from raftq.chaos.simulation.history import History, Violation
from raftq.replication.engine import NO_OP
from raftq.storage.digest import digest
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.machine import keys, packing
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.commands import (
    Ack,
    Backoff,
    Command,
    DefineQueue,
    DefineSchedule,
    DefineTopic,
    DeleteMessage,
    DeleteQueue,
    Enqueue,
    Expire,
    Extend,
    Incarnate,
    Lease,
    Nack,
    Part,
    Publish,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Reject,
    Release,
    Request,
    Schedule,
    Slots,
    Subscribe,
    Tick,
    Transact,
)
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Leased, MessageDeleted, Range
from raftq.storage.writer import fill
from tests.simulation.seen import WALL_MS, FakeNode, entry, put

Q = "default/q"


class Run:
    def __init__(self) -> None:
        self.rules = Rules()
        self.machine = Machine(MemoryTxn())
        self.index = 1
        self.ms = 0

    def do(self, command: Command, after_ms: int = 0, **wrong: Any) -> Any:
        """The command in an entry of its own. Its reply is told with the fields in `wrong`."""
        self.index += 1
        self.ms += after_ms
        meta = Meta(self.index, 0, 1, 1_000 + self.ms, WALL_MS + self.ms)
        reply, _ = self.machine.apply(meta, command)
        given = self.machine.deliveries(reply) if isinstance(reply, Leased) else ()
        self.machine.end_entry(meta)
        if wrong:
            reply = msgspec.structs.replace(reply, **wrong)
        self.rules.judge(meta, command, reply, given)
        return reply

    def rest(self, *more: bytes, less: bytes = b"") -> None:
        """Judge what is there at the end, with these bodies more, and this one less."""
        found = Counter(queue.bodies(self.machine.view()))
        self.rules.judge_rest(found + Counter(more) - Counter([less]))

    def loses(self, *more: bytes, less: bytes = b"") -> None:
        with pytest.raises(Violation) as caught:
            self.rest(*more, less=less)
        assert caught.value.invariant == "nothing is lost or doubled"

    def breaks(self, invariant: str, command: Command, after_ms: int = 0, **wrong: Any) -> str:
        with pytest.raises(Violation) as caught:
            self.do(command, after_ms, **wrong)
        assert caught.value.invariant == invariant
        return caught.value.details


@pytest.fixture
def run() -> Run:
    return Run()


def slots(leased: Leased, *numbers: int) -> list[Slots]:
    return [Slots(leased.lease_id, list(numbers))]


def named(*ids: str, priority: int = 0, body: str = "x") -> Enqueue:
    """With dedup ids."""
    messages = [packing.pack_message(b'"%s"' % body.encode()) for _ in ids]
    return Enqueue(Q, [Part(priority, 0, packing.pack(messages), None, list(ids))])


def test_an_ordinary_life_of_messages_is_no_violation(run: Run) -> None:
    run.do(DefineQueue(Q, QueueSettings(lease_ms=500, delay_ms=100, dedup_window_ms=1_000)))
    run.do(put("a", count=5))
    run.do(put("urgent", priority=9))
    run.do(Enqueue(Q, [Part(3, None, put("late").parts[0].blob)], Request("r", 1_000)))
    assert run.do(Enqueue(Q, [Part(3, None, put("late").parts[0].blob)], Request("r", 1_000))).repeated
    one = run.do(Lease(Q, 3, request=Request("l", 1_000)))
    assert run.do(Lease(Q, 3, request=Request("l", 1_000))).repeated
    run.do(Ack(Q, one.queue_number, slots(one, 0, 2)))
    run.do(Ack(Q, one.queue_number, slots(one, 0)))
    two = run.do(Lease(Q, 2), 200)
    run.do(Nack(Q, two.queue_number, slots(two, 0), 300))
    run.do(Release(Q, two.queue_number, slots(two, 1)))
    run.do(Lease(Q, 1))
    run.do(Expire(), 400)
    three = run.do(Lease(Q, 9))
    assert sum(taken.count for taken in three.ranges) == 4
    run.do(Extend(Q, three.queue_number, slots(three, 0, 1), 5_000))
    run.do(Expire(), 600)
    run.do(Lease(Q, 9, settle=True))
    run.do(Ack(Q, three.queue_number, slots(three, 0, 1, 2)))
    run.do(named("x", "y", "x"))
    assert [place[2] for place in run.do(named("y", "z")).places] == [True, False]
    assert [place[2] for place in run.do(named("x"), 1_001).places] == [False]
    run.do(Lease(Q, 2))
    run.do(Incarnate())
    run.do(Lease(Q, 2))
    run.do(DeleteQueue(Q))
    run.do(put("new"))
    assert run.do(Lease(Q, 1)).ranges


def test_parts_that_alternate_in_a_request(run: Run) -> None:
    """Messages are added part by part, and answered in the order of the request."""
    blob = put("a", count=2).parts[0].blob
    parts = [Part(0, 0, blob, [1, 2], ["x", "y"]), Part(0, 0, blob, [0, 3], ["x", None])]
    places = run.do(Enqueue(Q, parts)).places
    assert places == [(0, 1, True), (0, 1, False), (0, 2, False), (0, 3, False)]
    assert run.do(Lease(Q, 5)).ranges == [Range(0, 1, 3, 1, 0)]


def test_a_message_in_two_leases(run: Run) -> None:
    run.do(put("a", count=2))
    run.do(Lease(Q, 1, 500))
    run.breaks("one live lease a message", Lease(Q, 1), 499, ranges=[Range(0, 1, 1, 2, 0)])


def test_an_extended_lease_lives_longer(run: Run) -> None:
    run.do(put("a", count=2))
    leased = run.do(Lease(Q, 1, 500))
    run.do(Extend(Q, leased.queue_number, slots(leased, 0), 1_000))
    run.breaks("one live lease a message", Lease(Q, 1), 600, ranges=[Range(0, 1, 1, 2, 1)])


def test_a_message_after_its_ack(run: Run) -> None:
    run.do(put("a", count=2))
    leased = run.do(Lease(Q, 1))
    run.do(Ack(Q, leased.queue_number, slots(leased, 0)))
    run.breaks("acked is gone", Lease(Q, 1), 60_000, ranges=[Range(0, 1, 1, 2, 0)])


def test_a_message_after_a_lease_that_settled_it(run: Run) -> None:
    run.do(put("a", count=2))
    run.do(Lease(Q, 1, settle=True))
    run.breaks("acked is gone", Lease(Q, 1), ranges=[Range(0, 1, 1, 2, 0)])


@pytest.mark.parametrize("lease_id", [1, 0])
def test_a_fence_that_does_not_grow(run: Run, lease_id: int) -> None:
    run.do(put("a", count=2))
    run.do(Lease(Q, 1))
    run.breaks("fences grow", Lease(Q, 1), lease_id=lease_id)


def test_a_later_message_before_an_earlier_one(run: Run) -> None:
    run.do(put("a", count=3))
    run.breaks("delivery order", Lease(Q, 1), ranges=[Range(0, 2, 1, 1, 0)])


def test_a_lower_priority_before_a_higher_one(run: Run) -> None:
    run.do(put("a"))
    run.do(put("b", priority=4))
    run.breaks("delivery order", Lease(Q, 1), ranges=[Range(0, 1, 1, 1, 0)])


def test_a_delayed_message_too_early(run: Run) -> None:
    run.do(Enqueue(Q, [Part(0, 1_000, put("a").parts[0].blob)]))
    run.do(put("b"))
    run.breaks("delays", Lease(Q, 1), 999, ranges=[Range(0, 1, 1, 1, 0)])


def test_a_message_too_early_after_a_nack(run: Run) -> None:
    run.do(put("a", count=2))
    leased = run.do(Lease(Q, 1))
    run.do(Nack(Q, leased.queue_number, slots(leased, 0), 1_000))
    run.breaks("delays", Lease(Q, 1), 999, ranges=[Range(0, 1, 1, 2, 1)])


@pytest.mark.parametrize(("again", "deliveries"), [(False, 2), (True, 1)])
def test_a_wrong_count_of_deliveries(run: Run, again: bool, deliveries: int) -> None:
    run.do(put("a"))
    if again:
        leased = run.do(Lease(Q, 1))
        run.do(Release(Q, leased.queue_number, slots(leased, 0)))
    run.breaks("deliveries", Lease(Q, 1), ranges=[Range(0, 1, 1, deliveries, 0)])


def test_a_message_that_was_never_enqueued(run: Run) -> None:
    run.do(put("a"))
    run.breaks("replies", Lease(Q, 1), ranges=[Range(0, 7, 1, 1, 0)])


def test_an_enqueue_number_given_twice(run: Run) -> None:
    run.do(put("a"))
    run.breaks("enqueue numbers", put("b"), spans=[(0, 1, 1)])


def test_fewer_places_than_messages(run: Run) -> None:
    run.breaks("replies", put("a", count=2), spans=[(0, 1, 1)])


def test_an_ack_of_a_lease_that_has_passed(run: Run) -> None:
    run.do(put("a"))
    late = run.do(Lease(Q, 1, 500))
    run.do(Expire(), 500)
    run.do(Lease(Q, 1))
    run.breaks("only the holder settles", Ack(Q, late.queue_number, slots(late, 0)), results=[b"\0"])


def test_a_nack_of_what_was_acked(run: Run) -> None:
    run.do(put("a"))
    leased = run.do(Lease(Q, 1))
    run.do(Ack(Q, leased.queue_number, slots(leased, 0)))
    run.breaks("only the holder settles", Nack(Q, leased.queue_number, slots(leased, 0)), results=[b"\0"])


def test_an_ack_of_a_slot_that_there_is_not(run: Run) -> None:
    run.do(put("a"))
    leased = run.do(Lease(Q, 1))
    run.breaks("only the holder settles", Ack(Q, leased.queue_number, slots(leased, 3)), results=[b"\0"])


def test_a_lease_of_before_an_incarnation(run: Run) -> None:
    run.do(put("a"))
    leased = run.do(Lease(Q, 1))
    run.do(Incarnate())
    run.breaks("only the holder settles", Ack(Q, leased.queue_number, slots(leased, 0)), results=[b"\0"])


def test_a_dedup_id_that_enqueues_twice_within_the_window(run: Run) -> None:
    run.do(named("x"))
    run.breaks("dedup ids", named("x"), 299_999, places=[(0, 2, False)])


def test_a_dedup_id_that_names_another_message(run: Run) -> None:
    run.do(named("x", "y"))
    run.breaks("dedup ids", named("x"), places=[(0, 2, True)])


def test_a_dedup_id_that_is_known_after_the_window(run: Run) -> None:
    run.do(named("x"))
    run.breaks("dedup ids", named("x"), 300_000, places=[(0, 1, True)])


def test_a_request_that_is_done_again(run: Run) -> None:
    command = Enqueue(Q, put("a").parts, Request("r", 1_000))
    run.do(command)
    run.breaks("request ids", command, 999, spans=[(0, 2, 1)], repeated=False)


def test_a_request_that_is_answered_otherwise(run: Run) -> None:
    command = Enqueue(Q, put("a").parts, Request("r", 1_000))
    run.do(command)
    run.breaks("request ids", command, spans=[(0, 2, 1)])


def test_a_settling_request_that_is_answered_otherwise(run: Run) -> None:
    run.do(put("a"))
    leased = run.do(Lease(Q, 1))
    command = Nack(Q, leased.queue_number, slots(leased, 0), None, Request("r", 1_000))
    run.do(command)
    run.breaks("request ids", command, results=[b"\1"])


def test_a_request_that_is_repeated_and_was_not_kept(run: Run) -> None:
    command = Enqueue(Q, put("a").parts, Request("r", 1_000))
    run.breaks("request ids", command, repeated=True)


# Dead letters, groups, topics and transactions

DEAD, TOPIC = "default/dead", "default/t"


def leased_one(run: Run, key: str = Q) -> Leased:
    leased = run.do(Lease(key, 1))
    assert leased.ranges
    return leased


def test_a_life_with_dead_letters_is_no_violation(run: Run) -> None:
    backoff = Backoff(100, 2_000, 1_000)
    run.do(DefineQueue(Q, QueueSettings(dead_letter_queue=DEAD, max_failures=2, backoff=backoff, retention_ms=60_000)))
    for body in ("rejected", "nacked", "acked", "old", "older"):
        run.do(put(body))
    run.do(Reject(Q, 1, slots(leased_one(run), 0), "no"))
    for _ in range(2):
        run.do(Nack(Q, 1, slots(leased_one(run), 0)), 0)
        run.do(Expire(), 100)
    run.do(Ack(Q, 1, slots(leased_one(run), 0)))
    run.do(Expire(), 60_000)
    run.do(put("new"))
    assert leased_one(run).ranges[0].first == 6
    run.rest()
    run.loses(b'"acked0"')
    run.loses(b'"old0"')
    run.loses(less=b'"rejected0"')
    run.do(Redrive(DEAD))
    run.do(Expire())
    run.do(Lease(Q, 9))
    run.rest()
    run.loses(less=b'"rejected0"')


@pytest.mark.parametrize("kind", [Reject, Nack])
def test_a_message_after_it_was_dead_lettered(run: Run, kind: Any) -> None:
    run.do(DefineQueue(Q, QueueSettings(dead_letter_queue=DEAD, max_failures=1)))
    run.do(put("a", count=2))
    run.do(kind(Q, 1, slots(leased_one(run), 0)))
    run.breaks("dead is gone", Lease(Q, 1), ranges=[Range(0, 1, 1, 2, 0)])


@pytest.mark.parametrize(("failures", "delay_ms"), [(1, 100), (2, 200), (3, 250)])
def test_a_message_before_its_backoff(run: Run, failures: int, delay_ms: int) -> None:
    run.do(DefineQueue(Q, QueueSettings(backoff=Backoff(100, 2_000, 250))))
    run.do(put("a", count=5))
    for _ in range(failures - 1):
        run.do(Nack(Q, 1, slots(leased_one(run), 0), 0))
    run.do(Nack(Q, 1, slots(leased_one(run), 0)))
    run.breaks("delays", Lease(Q, 1), delay_ms - 1, ranges=[Range(0, 1, 1, failures + 1, failures)])


def test_a_message_that_was_passed_over_comes_after_all(run: Run) -> None:
    run.do(DefineQueue(Q, QueueSettings(dead_letter_queue=DEAD, retention_ms=1_000)))
    run.do(put("a", count=3))
    run.do(Lease(Q, 1), ranges=[Range(0, 2, 1, 1, 0)])
    run.breaks("passed over is gone", Lease(Q, 1), ranges=[Range(0, 1, 1, 1, 0)])


def test_a_discarded_or_deleted_message_is_gone(run: Run) -> None:
    run.do(put("a", count=3))
    run.do(Reject(Q, 1, slots(leased_one(run), 0)))
    run.do(DeleteMessage(Q, 1, 0, 2))
    run.rest()
    run.loses(b'"a0"')
    run.loses(b'"a1"')
    run.loses(less=b'"a2"')
    run.breaks("deleted is gone", Lease(Q, 1), ranges=[Range(0, 2, 1, 1, 0)])


def test_a_leased_message_that_is_deleted(run: Run) -> None:
    run.do(put("a", count=2))
    leased_one(run)
    with pytest.raises(Violation) as caught:
        run.rules.judge(Meta(9, 0, 1, 1_000, WALL_MS), DeleteMessage(Q, 1, 0, 1), MessageDeleted())
    assert caught.value.invariant == "only what is free is deleted"


def test_what_a_purge_removes_may_be_anything_but_doubled(run: Run) -> None:
    run.do(put("a", count=2))
    late = leased_one(run)
    run.do(PurgeQueue(Q))
    run.do(put("b"))
    run.rest()
    run.loses(b'"b0"')
    run.breaks("only the holder settles", Ack(Q, late.queue_number, slots(late, 0)), results=[b"\0"])


def test_a_purge_of_nothing_changes_nothing(run: Run) -> None:
    """What was acked is acked again: seed 466 took that for a violation."""
    run.do(put("a"))
    late = leased_one(run)
    for _ in range(2):
        assert run.do(Ack(Q, late.queue_number, slots(late, 0))).results == [b"\0"]
        assert run.do(PurgeQueue(Q)).messages == 0


def test_more_of_a_group_than_may_be_leased(run: Run) -> None:
    run.do(DefineQueue(Q, QueueSettings(max_leased_per_group=1)))
    blob = packing.pack([packing.pack_message(b'"%d"' % at, group=b"g%d" % (at % 2)) for at in range(4)])
    run.do(Enqueue(Q, [Part(0, 0, blob)]))
    assert sum(taken.count for taken in run.do(Lease(Q, 1)).ranges) == 1
    run.breaks("leases of a group", Lease(Q, 4), ranges=[Range(0, 2, 2, 1, 0)])


def test_a_later_message_of_a_group_before_an_earlier_one(run: Run) -> None:
    run.do(DefineQueue(Q, QueueSettings(max_leased_per_group=1)))
    blob = packing.pack([packing.pack_message(b'"%d"' % at, group=b"g") for at in range(2)])
    run.do(Enqueue(Q, [Part(0, 0, blob)]))
    run.breaks("delivery order", Lease(Q, 1), ranges=[Range(0, 2, 1, 1, 0)])


def test_what_is_published_is_in_each_queue(run: Run) -> None:
    run.do(DefineTopic(TOPIC))
    run.do(Subscribe(TOPIC, Q))
    run.do(Subscribe(TOPIC, DEAD))
    command = Publish(TOPIC, put("a", count=2).parts, Request("p", 1_000))
    run.do(command)
    assert run.do(command).repeated
    run.rest()
    run.loses(less=b'"a1"')
    run.do(Ack(Q, run.machine.view().queue(Q).number, slots(leased_one(run), 0)))  # type: ignore[union-attr]
    run.rest()
    run.breaks("request ids", command, repeated=False)
    run.breaks("replies", Publish(TOPIC, command.parts), queues=[3, 0])


def test_a_transaction_settles_and_enqueues(run: Run) -> None:
    run.do(put("a", count=2))
    leased = leased_one(run)
    command = Transact("default", [Ack(Q, 1, slots(leased, 0)), Enqueue(DEAD, put("b").parts)], Request("t", 1_000))
    run.do(command)
    assert run.do(command).repeated
    assert run.do(Transact("default", [Ack(Q, 1, slots(leased, 0))])).obstacles
    run.rest()
    run.loses(b'"a0"')
    run.loses(less=b'"b0"')
    run.breaks("only the holder settles", Transact("default", [Nack(Q, 1, slots(leased, 0))]), obstacles=[])


def test_a_tick_that_is_done_twice(run: Run) -> None:
    schedule = Schedule(None, "UTC", 1_000, Q, None, put("beat").parts[0])
    run.do(DefineSchedule("default/s", schedule, 1_000))
    run.do(Tick("default/s", 1_000, 2_000, 1_000))
    run.do(Tick("default/s", 1_000, 2_000, 1_000))
    run.rest()
    run.loses(b'"beat0"')
    run.breaks("a tick once", Tick("default/s", 1_000, 2_000, 1_000), number=2)


def test_what_nobody_enqueued(run: Run) -> None:
    run.do(put("a"))
    run.loses(b'"x"')


def parted(run: Run) -> tuple[Enqueue, int]:
    """Two messages of each of six groups in a queue of two partitions; and the number of the first partition."""
    run.do(DefineQueue(Q, QueueSettings(max_leased_per_group=1, dead_letter_queue=DEAD), partitions=2))
    blob = packing.pack([packing.pack_message(b'"%d"' % at, group=b"g%d" % (at % 6)) for at in range(12)])
    ids = [f"id{at}" for at in range(12)]
    number = run.machine.view().queue(f"{Q}.0").number  # type: ignore[union-attr]
    return Enqueue(Q, [Part(0, 0, blob, None, ids)], Request("r", 1_000)), number


def test_an_ordinary_life_in_partitions_is_no_violation(run: Run) -> None:
    command, _ = parted(run)
    assert len(set(run.do(command).numbers)) == 2
    assert run.do(command).repeated
    assert all(place[2] for place in run.do(msgspec.structs.replace(command, request=None)).places)
    one, two = leased_one(run), leased_one(run)
    assert one.queue_number != two.queue_number
    run.do(Ack(Q, one.queue_number, slots(one, 0)))
    run.do(Transact("default", [Nack(Q, two.queue_number, slots(two, 0)), Enqueue(Q, put("b").parts)]))
    run.do(Reject(Q, two.queue_number, slots(leased_one(run), 0)))
    run.do(Incarnate())
    while run.do(Lease(Q, 9, settle=True)).ranges:
        pass
    run.rest()
    run.loses(b'"b0"')


def test_partitions_count_for_themselves(run: Run) -> None:
    command, _ = parted(run)
    run.do(command)
    one, two = leased_one(run), leased_one(run)
    wrong = Ack(Q, two.queue_number, slots(one, 0))
    run.breaks("only the holder settles", wrong, results=[b"\0"])


def test_a_message_of_a_partition_in_two_leases(run: Run) -> None:
    command, _ = parted(run)
    run.do(command)
    one, _ = leased_one(run), leased_one(run)
    again = [Range(0, one.ranges[0].first, 1, 2, 0)]
    run.breaks("one live lease a message", Lease(Q, 1), ranges=again, queue_number=one.queue_number)


def test_a_number_of_a_partition_given_twice(run: Run) -> None:
    command, number = parted(run)
    run.do(command)
    other = Enqueue(Q, put("b").parts)
    run.breaks("enqueue numbers", other, spans=None, places=[(0, 1, False)], numbers=[number])


def test_a_message_that_leaves_its_partition(run: Run) -> None:
    """Its dedup id is known in one partition alone."""
    command, number = parted(run)
    numbers = run.do(command).numbers
    again = msgspec.structs.replace(command, request=None)
    elsewhere = [sum({*numbers}) - each for each in numbers]
    run.breaks("dedup ids", again, numbers=elsewhere)
    assert number in numbers


# At rest


def history(*given: bytes) -> History:
    found = History()
    for index, command in enumerate(given, 2):
        found.commit(index, 1, command, "n1", 1)
    return found


LOG = (entry(put("a", count=3)), NO_OP, entry(Lease(Q, 2), lease_ms=5), b"\2members", entry(put("b"), lease_ms=9))


def replica(*given: bytes) -> Replica:
    found = Replica()
    for index, command in enumerate(given, 2):
        found.apply(index, 1, command)
    return found


def node_with(tables: MemoryTxn) -> FakeNode:
    node = FakeNode("n1")
    node.txn, node.applied_index = tables, 6
    return node


def test_equal_tables_at_rest() -> None:
    digests = Digests()
    for index in (4, 6):
        for name in ("n1", "n2"):
            digests.told(name, index, queue.digest(replica(*LOG[: index - 1]).tables))
    queue.at_rest(history(*LOG), digests, [node_with(replica(*LOG).tables)])


def test_the_digest_is_the_one_that_nodes_take(tmp_path: Any) -> None:
    found = replica(*LOG)
    environment = Environment(tmp_path, map_bytes=1 << 24)
    fill(environment, WriteBatch(meta={"applied": u64(6)}, tables=sorted(found.tables.values.items()))).commit()
    assert digest(environment) == (6, queue.digest(found.tables))
    environment.close()


def test_two_digests_of_one_index() -> None:
    digests = Digests()
    digests.told("n1", 4, "aa")
    digests.told("n2", 5, "bb")
    with pytest.raises(Violation, match="equal digests: at index 4 the digest of n2 is bb, that of n1 is aa"):
        digests.told("n2", 4, "bb")


def test_a_digest_that_all_nodes_agree_on_and_the_log_does_not_give() -> None:
    digests = Digests()
    digests.told("n1", 4, queue.digest(replica(*LOG[:1]).tables))
    with pytest.raises(Violation, match="equal digests: at index 4 the digest of the canonical log"):
        queue.at_rest(history(*LOG), digests, [])


def test_the_rules_judge_the_whole_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gives the second message first, on all nodes alike."""
    apply = Machine.apply

    def wrong(self: Machine, meta: Meta, command: Command) -> Any:
        reply, effects = apply(self, meta, command)
        return (msgspec.structs.replace(reply, ranges=[Range(0, 2, 1, 1, 0)]) if meta.index == 4 else reply), effects

    monkeypatch.setattr(Machine, "apply", wrong)
    with pytest.raises(Violation, match="delivery order: lease 1 at"):
        queue.at_rest(history(*LOG), Digests(), [])


def test_a_message_with_two_holders() -> None:
    tables = replica(*LOG).tables
    [(key, value)] = [(key, value) for key, value in tables.values.items() if key[:1] == keys.LEASE]
    twin = keys.lease(keys.queue_of(key), 99)
    tables.put(twin, value)
    [moment] = [key for key in tables.values if key[:1] == keys.DEADLINE]
    tables.put(moment.replace(key, twin), b"")
    with pytest.raises(Violation, match=r"one holder a message: tables of n1: .* holders in default/q"):
        queue.at_rest(history(*LOG), Digests(), [node_with(tables)])


def test_two_nodes_with_different_tables() -> None:
    one, two = node_with(replica(*LOG).tables), node_with(replica(*LOG[:2]).tables)
    two.id = "n2"
    with pytest.raises(Violation, match="equal digests: at index 6 the digest of n2"):
        queue.at_rest(history(*LOG), Digests(), [one, two])
