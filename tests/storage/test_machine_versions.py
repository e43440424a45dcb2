"""The version of the rules: how it is switched, what stops a node, and what versions bring: 2 rewrites sparse batches,
3 has tokens."""

from __future__ import annotations

import msgspec
import pytest

from raftq.storage.machine import audit, batches, keys, records
from raftq.storage.machine.apply import VERSION_MAX, InvariantBroken, Machine
from raftq.storage.machine.batches import SPARSE_MS, sparseness
from raftq.storage.machine.commands import (
    Ack,
    CreateToken,
    DeleteQueue,
    Enqueue,
    Expire,
    Extend,
    Grant,
    Incarnate,
    Lease,
    Nack,
    Part,
    Release,
    Request,
    RevokeToken,
    SetVersion,
    Slots,
    UnknownCommand,
    decode,
    encode,
)
from raftq.storage.machine.records import QueueRecord
from raftq.storage.machine.replies import Expired, Range, Refused, TokenCreated, VersionSet
from tests.storage.conftest import QUEUE, Hands, blob

BODIES = [b"%d" % at * 50 for at in range(100)]


@pytest.fixture
def two(hands: Hands) -> Hands:
    hands.do(SetVersion(2))
    hands.do(Expire())
    return hands


def all_but(hands: Hands, *kept: int) -> None:
    """Ack all that is ready, but for these slots."""
    leased = hands.lease(lease_ms=600_000)
    count = sum(taken.count for taken in leased.ranges)
    hands.settle(leased, *[slot for slot in range(count) if slot not in kept])


def stored(hands: Hands) -> int:
    """Bytes of batches."""
    return sum(len(value) for key, value in hands.txn.values.items() if key[:1] in (keys.BATCH, keys.ASIDE))


def test_a_new_cluster_has_version_1(hands: Hands) -> None:
    assert hands.machine.version == 1
    assert hands.do(SetVersion(1)) == VersionSet(1, changed=False)


def test_the_version_is_kept_and_never_goes_back(hands: Hands) -> None:
    assert hands.do(SetVersion(2)) == VersionSet(2, changed=True)
    hands.restart()
    assert hands.machine.version == 2
    for version in (2, 1, 0, -1):
        assert hands.do(SetVersion(version)) == VersionSet(2, changed=False)


def test_a_version_that_the_node_does_not_know_stops_it(hands: Hands) -> None:
    hands.enqueue(b"a")
    with pytest.raises(UnknownCommand, match=f"machine version {VERSION_MAX + 1}, this node knows {VERSION_MAX}"):
        hands.do(SetVersion(VERSION_MAX + 1))
    old = Machine(hands.txn, version_max=1)
    hands.machine = old
    with pytest.raises(UnknownCommand, match="version 2, this node knows 1"):
        hands.do(SetVersion(2))


def test_versions_may_be_skipped(hands: Hands) -> None:
    hands.machine = Machine(hands.txn, version_max=7)
    assert hands.do(SetVersion(5)) == VersionSet(5, changed=True)
    assert hands.do(Expire()).more is False
    assert hands.machine.version == 5


def test_tables_of_a_version_that_the_node_does_not_know_stop_it(two: Hands) -> None:
    """Its log may begin after the switch."""
    with pytest.raises(UnknownCommand, match="version 2, this node knows 1"):
        Machine(two.txn, version_max=1)


def test_the_record_of_a_cluster_from_before_versions_is_read_and_written_alike(hands: Hands) -> None:
    """Nodes of both kinds have the same tables while a cluster is upgraded."""
    hands.enqueue(b"a")
    old = msgspec.msgpack.decode(hands.txn.values[keys.CLUSTER])
    assert old == [1, 0, 1, hands.index, hands.lease_ms, hands.wall_ms]
    assert records.decode_cluster(hands.txn.values[keys.CLUSTER]).version == 1


@pytest.mark.parametrize(("version", "incarnation"), [(1, 0), (2, 0), (1, 1), (2, 256), (1, 256), (257, 0)])
def test_the_cluster_record_is_read_as_it_was_written(version: int, incarnation: int) -> None:
    cluster = records.Cluster(5, 6, 7, 8, 9, 10, version, incarnation)
    assert records.decode_cluster(records.encode_cluster(cluster)) == cluster


@pytest.mark.parametrize("command", [SetVersion(2), Incarnate()])
def test_new_commands_are_read_as_they_were_written(command: SetVersion | Incarnate) -> None:
    assert decode(encode(command)) == command
    assert msgspec.msgpack.decode(encode(command))[0] == (11 if isinstance(command, SetVersion) else 12)


def test_a_tag_after_the_last_stops_the_node() -> None:
    with pytest.raises(UnknownCommand):
        decode(msgspec.msgpack.encode([29]))


@pytest.mark.parametrize("version", [1, 2])
def test_tokens_wait_for_version_3_and_leave_no_trace_before_it(hands: Hands, version: int) -> None:
    """Nodes that do not know of them have the same tables."""
    hands.do(SetVersion(version))
    hands.do(Expire())
    before = dict(hands.txn.values)
    create = CreateToken("0" * 12, b"\x01" * 32, "ci", "*", [Grant("admin", "*")])
    detail = "tokens wait until every node of the cluster runs this version"
    assert hands.do(create) == Refused("conflict", detail)
    assert hands.do(RevokeToken("0" * 12)).reason == "unknown_token"
    assert {key: value for key, value in hands.txn.values.items() if before.get(key) != value}.keys() == {keys.CLUSTER}
    assert hands.machine.view().version == version
    hands.do(SetVersion(3))
    assert hands.do(create) == TokenCreated("0" * 12)
    assert hands.machine.view().version == 3


@pytest.mark.parametrize("versions", [(2, 3), (3,)])
def test_what_was_sparse_is_looked_at_whichever_version_comes_next(hands: Hands, versions: tuple[int, ...]) -> None:
    hands.enqueue(*BODIES)
    before = stored(hands)
    all_but(hands, 7)
    for version in versions:
        hands.do(SetVersion(version))
    hands.do(Expire())
    hands.lease_ms += SPARSE_MS
    hands.do(Expire())
    assert stored(hands) < before // 2


def test_version_1_keeps_what_is_gone(hands: Hands) -> None:
    hands.enqueue(*BODIES)
    before = stored(hands)
    all_but(hands, 7)
    assert hands.machine.next_due() == (hands.lease_ms + 600_000, None)
    hands.lease_ms += 2 * SPARSE_MS
    hands.do(Expire())
    assert stored(hands) == before


def test_a_sparse_batch_is_rewritten_after_a_while(two: Hands) -> None:
    two.enqueue(*BODIES)
    before = stored(two)
    all_but(two, 7, 60)
    two.do(Expire())
    assert stored(two) == before
    due_ms = two.machine.next_due()[0]
    assert due_ms is not None
    assert SPARSE_MS - 1_000 < due_ms - two.lease_ms <= SPARSE_MS
    two.lease_ms = due_ms
    two.restart()
    assert two.do(Expire()) == Expired(0, 0, 0, more=False)
    assert stored(two) < before / 10
    assert two.keys(keys.SPARSE) == []


@pytest.mark.parametrize(("kept", "sparse"), [(25, False), (24, True)])
def test_a_batch_is_sparse_when_less_than_a_quarter_lives(two: Hands, kept: int, sparse: bool) -> None:
    two.enqueue(*BODIES)
    all_but(two, *range(0, kept * 4, 4))
    assert bool(two.keys(keys.SPARSE)) == sparse


def test_what_lives_in_a_rewritten_batch_goes_on_as_before(two: Hands) -> None:
    two.enqueue(*BODIES)
    leased = two.lease(lease_ms=60_000)
    two.settle(leased, *[slot for slot in range(100) if slot not in (3, 4, 50, 98)])
    two.lease_ms += SPARSE_MS
    two.do(Expire())
    assert two.info().bytes == sum(len(BODIES[at]) + 4 for at in (3, 4, 50, 98))
    view = two.machine.view()
    assert [found.number for found in view.peek(QUEUE, "leased", 10)[0]] == [4, 5, 51, 99]
    assert two.settle(leased, 3, 4, kind=Extend, lease_ms=600_000) == [0, 0]
    assert two.settle(leased, 50, kind=Nack) == [0]
    assert two.settle(leased, 98, kind=Release) == [0]
    again = two.lease()
    assert again.ranges == [Range(0, 51, 1, 2, 1), Range(0, 99, 1, 2, 0)]
    assert two.bodies(again) == [BODIES[50], BODIES[98]]
    assert two.settle(again, 0, 1) == [0, 0]
    assert two.settle(leased, *range(100)) == [1 if slot in (50, 98) else 0 for slot in range(100)]
    assert stored(two) == two.info().bytes == 0
    assert two.keys(keys.GONE) == []


def test_a_retried_lease_gives_what_it_holds_of_a_rewritten_batch(two: Hands) -> None:
    two.enqueue(*BODIES)
    request = Request("r", 600_000)
    leased = two.lease(request=request, lease_ms=60_000)
    two.settle(leased, *range(90))
    two.lease_ms += SPARSE_MS
    two.do(Expire())
    assert two.bodies(two.lease(request=request)) == BODIES[90:]


def test_what_lies_beyond_the_head_is_found_in_a_rewritten_batch(two: Hands) -> None:
    two.enqueue(*BODIES)
    enqueued_at_ms = two.wall_ms
    two.settle(two.lease(80), *range(80))
    two.lease_ms += SPARSE_MS
    two.wall_ms += SPARSE_MS
    two.do(Expire())
    assert stored(two) < 4 * 100 + 20 * 120
    assert two.info().oldest_ready_ms == enqueued_at_ms
    assert two.bodies(two.lease(max_bytes=210)) == BODIES[80:82]
    assert two.bodies(two.lease()) == BODIES[82:]


def test_a_batch_held_aside_is_rewritten_too(two: Hands) -> None:
    two.enqueue(*BODIES, delay_ms=1_000)
    two.wall_ms += 1_000
    two.do(Expire())
    all_but(two, 99)
    before = stored(two)
    two.lease_ms += SPARSE_MS
    two.do(Expire())
    assert stored(two) < before / 10
    assert [found.data[4:] for found in two.machine.view().peek(QUEUE, "leased", 9)[0]] == [BODIES[99]]


def test_a_batch_is_rewritten_again_at_a_sixteenth_and_so_on(two: Hands) -> None:
    """24, 6 and 1 of 100. Between them, nothing is written: what is kept is less than four times what lives."""
    two.enqueue(*BODIES)
    leased = two.lease(lease_ms=600_000)
    sizes = []
    for slots in (range(76), range(76, 93), range(93, 94), range(94, 98), range(98, 99)):
        two.settle(leased, *slots)
        two.lease_ms += SPARSE_MS
        two.do(Expire())
        sizes.append(stored(two))
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3] > sizes[4]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 1_000])
def test_sparseness_is_counted_in_quarters(count: int) -> None:
    for live in range(1, count + 1):
        found = sparseness(count, live)
        assert live * 4**found < count or found == 0
        assert live * 4 ** (found + 1) >= count


def test_a_batch_that_goes_at_once_has_no_moment(two: Hands) -> None:
    """Nor one that does so within an entry, as most do under load."""
    two.enqueue(*BODIES)
    leased = two.lease()
    two.together(*[Ack(QUEUE, 1, [Slots(leased.lease_id, [slot])]) for slot in range(100)])
    assert two.keys(keys.SPARSE) == []


def test_a_batch_worked_off_one_by_one_has_one_moment(two: Hands) -> None:
    """A moment costs a record: a quarter, a sixteenth and a 64th within a second are one."""
    two.enqueue(*BODIES)
    leased = two.lease()
    for slot in range(99):
        two.settle(leased, slot)
    assert len(two.keys(keys.SPARSE)) == 1
    two.settle(leased, 99)
    two.lease_ms += SPARSE_MS
    assert two.do(Expire()) == Expired(0, 0, 0, more=False)
    assert two.keys(keys.SPARSE) == []


def test_batches_are_rewritten_in_steps(two: Hands) -> None:
    for _ in range(3):
        two.do(Enqueue(QUEUE, [Part(0, 0, blob(*[b"x" * 600] * 100))]))
        all_but(two, 50)
    sizes = [stored(two)]
    two.lease_ms += SPARSE_MS
    for more in (True, True, False):
        assert two.do(Expire(50)).more == more
        sizes.append(stored(two))
        two.restart()
    assert sizes == sorted(set(sizes), reverse=True)


def test_what_was_sparse_before_the_switch_is_rewritten_after_it(hands: Hands) -> None:
    for at in range(3):
        hands.do(Enqueue(f"default/{at}", [Part(0, 0, blob(*BODIES))]))
        leased = hands.do(Lease(f"default/{at}", 100))
        acked = range(98) if at < 2 else range(50)
        hands.do(Ack(f"default/{at}", leased.queue_number, [Slots(leased.lease_id, list(acked))]))
    before = stored(hands)
    hands.do(SetVersion(2))
    assert hands.machine.next_due()[0] == hands.lease_ms
    steps = 0
    while hands.do(Expire(1)).more:
        hands.restart()
        steps += 1
    assert steps >= 2
    assert before / 3 < stored(hands) < before / 2
    assert hands.keys(keys.SPARSE) == []


def test_an_ack_in_the_entry_of_the_switch_is_not_overlooked(hands: Hands) -> None:
    """Bitmaps wait in memory for the end of the entry."""
    hands.enqueue(*BODIES)
    leased = hands.lease()
    hands.together(Ack(QUEUE, 1, [Slots(leased.lease_id, list(range(98)))]), SetVersion(2), Expire())
    assert stored(hands) < 100 * 4 + 4 * len(BODIES[0]) * 2


def test_a_step_in_the_entry_of_an_ack_rewrites_what_lives_after_it(two: Hands) -> None:
    two.enqueue(*BODIES)
    leased = two.lease(lease_ms=600_000)
    two.settle(leased, *range(90))
    two.lease_ms += SPARSE_MS
    two.together(Ack(QUEUE, 1, [Slots(leased.lease_id, list(range(90, 98)))]), Expire())
    assert stored(two) < 4 * 100 + 3 * (len(BODIES[99]) + 4)
    assert [found.data[4:] for found in two.machine.view().peek(QUEUE, "leased", 9)[0]] == BODIES[98:]


def test_a_deleted_queue_leaves_no_batch_to_rewrite(two: Hands) -> None:
    two.enqueue(*BODIES)
    all_but(two, 1)
    two.do(DeleteQueue(QUEUE))
    two.lease_ms += 600_000
    while two.do(Expire(7)).more:
        pass
    assert [key for key in two.txn.values if key[:1] != keys.CLUSTER] == []


def test_the_audit_sees_a_sparse_batch_that_nobody_will_rewrite(two: Hands) -> None:
    two.enqueue(*BODIES)
    all_but(two, 1)
    two.txn.delete(two.keys(keys.SPARSE)[0])
    with pytest.raises(InvariantBroken, match="of 100 keeps 100 messages for 1 that live"):
        audit.check(two.txn)


def test_a_bitmap_without_its_batch_ends_the_process(two: Hands) -> None:
    two.enqueue(*BODIES)
    all_but(two, 1)
    two.txn.delete(two.keys(keys.BATCH)[0])
    two.restart()
    two.lease_ms += SPARSE_MS
    with pytest.raises(InvariantBroken, match="has no batch"):
        two.do(Expire())


def test_a_rewritten_batch_is_not_read_from_the_cache_as_it_was(two: Hands) -> None:
    two.enqueue(*BODIES)
    all_but(two, 7)
    two.lease_ms += SPARSE_MS
    two.do(Expire())
    state = two.machine._state
    assert state.batches._cache == {}
    assert state.batches._cache_bytes == 0
    assert batches.SPARSE_VERSION == 2


def test_records_of_before_purges_keep_the_ids_of_each_queue(hands: Hands) -> None:
    """They say nothing of the number that dedup ids are kept under: it is the queue's own."""
    one, two = "default/one", "default/two"
    part = Part(0, None, blob(b"1"), dedup_ids=["x"])
    hands.do(Enqueue(one, [part]))
    fields = [field.name for field in msgspec.structs.fields(QueueRecord)]
    for key in hands.keys(keys.QUEUE):
        record = msgspec.msgpack.decode(hands.txn.values[key])
        hands.txn.values[key] = msgspec.msgpack.encode(record[: fields.index("ids")])
    hands.restart()
    assert hands.do(Enqueue(one, [part])).places == [(0, 1, True)]
    assert hands.do(Enqueue(two, [part])).places == [(0, 1, False)]
