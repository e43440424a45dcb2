"""Message groups: at most so many of a key are leased at once, in their order."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftq.storage.machine import audit, groups, keys, packing, places
from raftq.storage.machine.commands import (
    Ack,
    Command,
    DefineQueue,
    DeleteMessage,
    DeleteQueue,
    Enqueue,
    Expire,
    Incarnate,
    Lease,
    Nack,
    Part,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Reject,
    Release,
    Slots,
    Transact,
)
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Leased, QueueReady, Refused, Reply
from tests.storage.conftest import QUEUE, Hands


def of(*names: str) -> bytes:
    """A blob of messages whose group key is the first letter of each, "-" for none."""
    return packing.pack(
        [packing.pack_message(name.encode(), group=b"" if name[0] == "-" else name[:1].encode()) for name in names]
    )


def put(hands: Hands, *names: str, queue: str = QUEUE, **part: Any) -> Any:
    return hands.do(Enqueue(queue, [Part(part.pop("priority", 0), part.pop("delay_ms", 0), of(*names), **part)]))


def limited(hands: Hands, limit: int | None, **others: Any) -> Any:
    return hands.do(DefineQueue(QUEUE, QueueSettings(max_leased_per_group=limit, **others)))


def take(hands: Hands, count: int = 1_000, **options: Any) -> tuple[Leased, list[str]]:
    leased = hands.lease(count, **options)
    return leased, [body.decode() for body in hands.bodies(leased)]


def names(hands: Hands, count: int = 1_000, **options: Any) -> list[str]:
    return take(hands, count, **options)[1]


def nothing_is_kept(hands: Hands) -> bool:
    return not any(hands.keys(table) for table in (keys.MEMBER, keys.ELIGIBLE, keys.GROUP, keys.ASIDE, keys.GONE))


@pytest.fixture
def one(hands: Hands) -> Hands:
    limited(hands, 1)
    return hands


def test_one_of_each_key_and_all_without(one: Hands) -> None:
    put(one, "a1", "a2", "-1", "b1", "a3", "-2", "b2")
    leased, first = take(one)
    assert first == ["a1", "-1", "b1", "-2"]
    assert (one.info().ready, one.machine.view().ready(QUEUE)) == (3, 0)
    assert one.lease() == Leased(leased.queue_number, 0, [], 0)
    one.settle(leased, 2)
    assert one.effects == [QueueReady(QUEUE, 1)]
    assert names(one) == ["b2"]
    one.settle(leased, 0, 1, 3)
    leased, second = take(one)
    assert second == ["a2"]
    one.settle(leased, 0)
    assert names(one) == ["a3"]


def test_nothing_is_left_of_what_was_settled(one: Hands) -> None:
    put(one, "a1", "a2", "b1", "-1")
    while one.info().ready:
        leased, _ = take(one, 1)
        one.settle(leased, 0)
    assert nothing_is_kept(one)


def test_a_higher_limit(hands: Hands) -> None:
    limited(hands, 2)
    put(hands, "a1", "a2", "a3", "a4", "b1")
    leased, first = take(hands)
    assert first == ["a1", "a2", "b1"]
    hands.settle(leased, 1)
    assert names(hands) == ["a3"]


@pytest.mark.parametrize("kind", [Nack, Release])
def test_what_comes_back_is_the_first_of_its_key_again(one: Hands, kind: type) -> None:
    put(one, "a1", "a2", "b1")
    leased, _ = take(one, 1)
    one.settle(leased, 0, kind=kind)
    assert one.effects == [QueueReady(QUEUE, 2)]
    leased, again = take(one)
    assert again == ["a1", "b1"]
    assert leased.ranges[0].deliveries == 2


def test_a_lease_that_passes(one: Hands) -> None:
    put(one, "a1", "a2")
    take(one, lease_ms=100)
    one.lease_ms += 100
    one.do(Expire())
    assert one.effects == [QueueReady(QUEUE, 1)]
    assert names(one) == ["a1"]


def test_a_delayed_nack_holds_its_key_back_at_a_limit_of_1(one: Hands) -> None:
    put(one, "a1", "a2", "b1")
    leased, _ = take(one, 1)
    one.settle(leased, 0, kind=Nack, delay_ms=500)
    assert (one.effects, names(one)) == ([], ["b1"])
    one.wall_ms += 500
    one.do(Expire())
    assert one.effects == [QueueReady(QUEUE, 1)]
    assert names(one) == ["a1"]


def test_a_delayed_nack_gives_way_at_a_higher_limit(hands: Hands) -> None:
    limited(hands, 2)
    put(hands, "a1", "a2", "a3")
    leased, _ = take(hands)
    hands.settle(leased, 0, kind=Nack, delay_ms=500)
    assert hands.effects == [QueueReady(QUEUE, 1)]
    assert names(hands) == ["a3"]


def test_a_message_enqueued_with_a_delay_holds_nothing_back(one: Hands) -> None:
    put(one, "a1", "a2", "b1", "b2", delay_ms=500)
    put(one, "a3")
    leased, first = take(one)
    assert first == ["a3"]
    one.wall_ms += 500
    assert one.do(Expire(3)).delays == 3
    assert names(one) == ["b1"]
    one.settle(leased, 0)
    assert names(one) == ["a1"]
    one.do(Expire())
    assert one.info().delayed == 0


def test_a_delayed_nack_that_is_deleted_or_replaced_frees_its_key(one: Hands) -> None:
    put(one, "a1", "a2")
    leased, _ = take(one)
    one.settle(leased, 0, kind=Nack, delay_ms=500)
    one.do(DeleteMessage(QUEUE, leased.queue_number, 0, 1))
    assert one.effects == [QueueReady(QUEUE, 1)]
    leased, second = take(one)
    assert second == ["a2"]
    put(one, "a3", replace_keys=["k"])
    one.settle(leased, 0)
    leased, third = take(one)
    assert third == ["a3"]
    one.settle(leased, 0, kind=Nack, delay_ms=500)
    put(one, "a4")
    assert one.effects == []
    put(one, "b1", replace_keys=["k"])
    assert one.effects == [QueueReady(QUEUE, 2)]
    assert names(one) == ["a4", "b1"]


def test_higher_priorities_go_first_within_a_key_too(one: Hands) -> None:
    put(one, "a1", "a2")
    put(one, "a3", priority=9)
    put(one, "b1", priority=9)
    leased, first = take(one)
    assert first == ["a3", "b1"]
    put(one, "a4", priority=4)
    one.settle(leased, 0)
    assert names(one) == ["a4"]


def test_some_keys_alone(one: Hands) -> None:
    put(one, "a1", "-1", "c1", "b1", "a2")
    view = one.machine.view()
    assert [view.ready(QUEUE, groups) for groups in (None, ["a"], ["x"], ["a", "a", "b"])] == [4, 1, 0, 2]
    assert names(one, groups=["x"]) == []
    leased, first = take(one, groups=["b", "a", "a"])
    assert first == ["a1", "b1"]
    assert (names(one, groups=["a"]), one.machine.view().ready(QUEUE, ["a"])) == ([], 0)
    one.settle(leased, 0)
    assert names(one, groups=["a"]) == ["a2"]
    assert names(one) == ["-1", "c1"]


def test_some_keys_alone_up_to_the_limits_of_the_lease(hands: Hands) -> None:
    limited(hands, 9)
    put(hands, "a1", "b1", "a2", "b2", "a3")
    assert names(hands, 3, groups=["a", "b"]) == ["a1", "b1", "a2"]
    assert names(hands, groups=["a", "b"], max_bytes=1) == ["b2"]


def test_without_a_limit_keys_mean_nothing_and_cannot_be_asked_for(hands: Hands) -> None:
    put(hands, "a1", "a2")
    refused = hands.do(Lease(QUEUE, 1, groups=["a"]))
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.detail.partition(":")[0]) == ("invalid", "groups")
    assert names(hands) == ["a1", "a2"]
    assert not hands.keys(keys.MEMBER)


def test_a_limit_comes_and_goes_while_the_queue_is_empty(one: Hands) -> None:
    put(one, "a1", "a2")
    leased, _ = take(one)
    refused = limited(one, None)
    assert isinstance(refused, Refused)
    assert refused.reason == "not_empty"
    for limit in (0, 1_001):
        assert limited(one, limit) == Refused("invalid", "max_leased_per_group: is a number from 1 to 1,000")
    one.settle(leased, 0)
    one.do(PurgeQueue(QUEUE))
    limited(one, None)
    put(one, "a1", "a2")
    assert names(one) == ["a1", "a2"]
    assert limited(one, 1).reason == "not_empty"


def test_a_higher_limit_counts_at_once(one: Hands) -> None:
    put(one, "a1", "a2", "a3", "a4")
    take(one)
    limited(one, 3)
    assert one.effects == [QueueReady(QUEUE, 2)]
    assert names(one) == ["a2", "a3"]


def test_a_lower_limit_counts_at_once(hands: Hands) -> None:
    limited(hands, 3)
    put(hands, "a1", "a2", "a3", "a4")
    leased, _ = take(hands, 2)
    limited(hands, 1)
    assert names(hands) == []
    hands.settle(leased, 0)
    assert names(hands) == []
    hands.settle(leased, 1)
    assert names(hands) == ["a3"]


@pytest.mark.parametrize("limit", [1, 3])
def test_a_change_of_the_limit_goes_through_many_keys_in_steps(
    hands: Hands, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "REGROUPED_MAX", 2)
    limited(hands, 2)
    put(hands, *[f"{letter}{at}" for at in range(4) for letter in "abcdefg"])
    leased, _ = take(hands, 7)
    limited(hands, limit)
    assert hands.machine.next_due()[1] == hands.wall_ms
    if limit == 1:
        # Nobody gets more than the limit meanwhile.
        assert names(hands, 3, groups=["a", "e", "g"]) == []
        hands.settle(leased, 6)
        assert names(hands) == ["g1"]
    hands.restart()
    assert hands.do(Expire(2)).more
    assert not hands.do(Expire(20)).more
    assert hands.machine.next_due()[1] is None
    if limit == 3:
        assert names(hands) == [f"{letter}{at}" for at in (1, 2) for letter in "abcdefg"]


def test_a_change_of_the_limit_moves_a_bounded_number_of_messages(one: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many one key has."""
    monkeypatch.setattr(groups, "REGROUPED_MAX", 3)
    put(one, *[f"a{at}" for at in range(12)], "b1")

    def ready_in_steps(limit: int, count: int) -> list[int]:
        limited(one, limit)
        found = [one.machine.view().ready(QUEUE)]
        more = True
        while more:
            one.restart()
            more = one.do(Expire(count)).more
            found.append(one.machine.view().ready(QUEUE))
        return found

    assert ready_in_steps(1_000, 4) == [5, 9, 13, 13]
    assert ready_in_steps(2, 5) == [10, 5, 3]
    assert names(one) == ["a0", "a1", "b1"]


def test_what_a_change_of_the_limit_has_not_come_to_is_moved_by_what_a_command_does_itself(
    one: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "REGROUPED_MAX", 1)
    put(one, *[f"{letter}{at}" for at in range(6) for letter in "abc"])
    leased, _ = take(one)
    limited(one, 5)
    assert one.machine.view().ready(QUEUE) == 1
    one.settle(leased, 2)
    assert one.effects == [QueueReady(QUEUE, 2)]
    put(one, "c9", priority=9)
    assert names(one) == ["c9", "a1", "c1"]
    while one.do(Expire(1)).more:
        pass
    assert names(one) == ["b1", "a2", "b2", "c2", "a3", "b3", "c3", "a4", "b4", "c4"]


def test_a_lease_passes_over_a_bounded_number_of_keys_without_room(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when all are set right, who waits is told of what it did not come to."""
    monkeypatch.setattr(groups, "REGROUPED_MAX", 1)
    monkeypatch.setattr(places, "PASSED_MAX", 2)
    limited(hands, 2)
    put(hands, *[f"{letter}{at}" for letter in "abcdef" for at in (1, 2)])
    for letter in "abcdef":
        assert names(hands, 1, groups=[letter]) == [f"{letter}1"]
    put(hands, "z1", "z2")
    limited(hands, 1)
    assert names(hands, groups=["b", "c", "d", "z"]) == []
    assert names(hands, 1) == []
    assert hands.machine.view().ready(QUEUE, ["e", "f"]) == 0
    told = []
    while hands.do(Expire(3)).more:
        hands.restart()
        told += hands.effects
    assert [*told, *hands.effects] == [QueueReady(QUEUE, 1)]
    assert names(hands) == ["z1"]


def test_a_limit_that_changes_again_tells_of_what_a_lease_did_not_come_to(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "REGROUPED_MAX", 1)
    monkeypatch.setattr(places, "PASSED_MAX", 1)
    limited(hands, 2)
    put(hands, "a1", "a2", "b1", "b2", "z1")
    for letter in "ab":
        take(hands, 1, groups=[letter])
    limited(hands, 1)
    assert names(hands) == []
    monkeypatch.setattr(groups, "REGROUPED_MAX", 9)
    limited(hands, 3)
    assert hands.effects == [QueueReady(QUEUE, 3)]


class Twins(Hands):
    """Beside it one that never restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Hands()

    def together(self, *commands: Command) -> list[Reply]:
        self.other.lease_ms, self.other.wall_ms = self.lease_ms, self.wall_ms
        replies = super().together(*commands)
        assert replies == self.other.together(*commands)
        assert (self.effects, self.txn.values) == (self.other.effects, self.other.txn.values)
        return replies


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["enqueue", "enqueue", "lease", "ack", "nack", "release", "limit", "step", "restart"]),
            st.integers(0, 11),
        ),
        max_size=50,
    )
)
@settings(max_examples=60, deadline=None)
def test_limits_that_change_all_the_time(steps: list[tuple[str, int]]) -> None:
    """Never are more of a key given than the limit says, whatever a change has not come to; in the end all are. And
    the tables are the same with restarts and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "REGROUPED_MAX", 1)
        patch.setattr(places, "PASSED_MAX", 1)
        hands = Twins()
        limited(hands, 2)
        limit, held = 2, []
        for what, at in steps:
            if what == "enqueue":
                put(hands, *[f"{'abc'[at % 3]}{count}" for count in range(at)] or "-", priority=at % 4)
            elif what == "lease":
                leased, found = take(hands, at, lease_ms=1_000)
                held += [(leased, slot, name[0]) for slot, name in enumerate(found)]
                for letter in {name[0] for name in found} - {"-"}:
                    assert sum(other == letter for _, _, other in held) <= limit
            elif what == "limit":
                limit = 1 + at % 5
                limited(hands, limit)
            elif what == "step":
                hands.do(Expire(1 + at % 3))
            elif what == "restart":
                hands.restart()
            elif held:
                leased, slot, _ = held.pop(at % len(held))
                kind = {"ack": Ack, "release": Release}.get(what, Nack)
                hands.settle(leased, slot, kind=kind, **({"delay_ms": 100} if kind is Nack else {}))
        for leased, slot, _ in held:
            hands.settle(leased, slot)
        hands.wall_ms += 1_000
        while hands.do(Expire(2)).more:
            pass
        while hands.info().ready:
            leased, found = take(hands)
            assert found
            hands.settle(leased, *range(len(found)))
        assert nothing_is_kept(hands)


@pytest.mark.parametrize("what", [DeleteQueue, PurgeQueue])
def test_a_queue_goes_while_its_limit_changes(hands: Hands, what: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "REGROUPED_MAX", 1)
    limited(hands, 2)
    put(hands, "a1", "b1", "c1")
    limited(hands, 1)
    limited(hands, 3)
    hands.do(what(QUEUE))
    while hands.do(Expire(2)).more:
        pass
    assert nothing_is_kept(hands)
    assert hands.machine.next_due() == (None, None)


def test_blocked_messages_are_looked_at_deleted_and_past_retention(hands: Hands) -> None:
    limited(hands, 1, retention_ms=1_000)
    put(hands, "a1", "-1", "a2", "b1")
    view = hands.machine.view()
    page, cursor = view.peek(QUEUE, "ready", 2)
    rest, _ = view.peek(QUEUE, "ready", 10, cursor)
    assert [message.number for message in page + rest] == [1, 2, 3, 4]
    found = view.message(QUEUE, 0, 3)
    assert found is not None
    assert found.state == "ready"
    leased, _ = take(hands, 1)
    hands.do(DeleteMessage(QUEUE, leased.queue_number, 0, 3))
    hands.wall_ms += 500
    put(hands, "a4", "b2")
    hands.wall_ms += 500
    assert hands.do(Expire()).dead == 2
    assert hands.info().oldest_ready_ms == hands.wall_ms - 500
    assert names(hands) == ["b2"]
    hands.wall_ms += 500
    assert hands.do(Expire()).dead == 1
    hands.settle(leased, 0)
    assert hands.info().ready == 0


def test_letters_and_redriven_messages_keep_to_the_limit(hands: Hands) -> None:
    dead = "default/dead"
    hands.do(DefineQueue(dead, QueueSettings(max_leased_per_group=1)))
    limited(hands, 2, dead_letter_queue=dead)
    put(hands, "a1", "a2", "a3")
    for _ in range(2):
        leased, _ = take(hands)
        hands.settle(leased, *range(len(hands.bodies(leased))), kind=Reject)
    letters = hands.do(Lease(dead, 10))
    assert hands.bodies(letters) == [b"a1"]
    hands.do(Redrive(dead, QUEUE))
    hands.do(Expire())
    assert names(hands) == ["a2", "a3"]
    assert hands.info(dead).ready == 0


def test_acked_in_the_same_step_one_of_a_key_at_a_time(one: Hands) -> None:
    put(one, "a1", "a2")
    assert [names(one, settle=True) for _ in range(3)] == [["a1"], ["a2"], []]
    assert nothing_is_kept(one)


def test_incarnate_and_transact(one: Hands) -> None:
    put(one, "a1", "a2")
    take(one)
    one.do(Incarnate())
    leased, first = take(one)
    assert first == ["a1"]
    ack = Ack(QUEUE, leased.queue_number, [Slots(leased.lease_id, [0])])
    one.do(Transact("default", [ack, Enqueue(QUEUE, [Part(0, 0, of("a3"))])]))
    assert one.effects == [QueueReady(QUEUE, 1)]
    assert names(one) == ["a2"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enqueue", "lease", "lease", "ack", "ack", "nack", "delay", "release", "expire", "restart"]),
        st.integers(0, 7),
    ),
    max_size=60,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_at_a_limit_of_1_acks_come_in_the_order_of_enqueue(steps: list[tuple[str, int]]) -> None:
    """Whatever is nacked, delayed, released and passes: and never are two of a key leased at once."""
    hands = Hands()
    limited(hands, 1)
    held: list[tuple[Leased, int, str]] = []
    acked: dict[str, list[int]] = {"a": [], "b": []}
    count = 0

    def end(verb: type, at: int, **options: Any) -> None:
        leased, slot, name = held.pop(at % len(held))
        assert hands.settle(leased, slot, kind=verb, **options) == [0]
        if verb is Ack:
            acked[name[0]].append(int(name[1:]))

    def lease(most: int) -> None:
        leased, found = take(hands, most, lease_ms=1_000)
        held.extend((leased, slot, name) for slot, name in enumerate(found))
        assert len({name[0] for _, _, name in held}) == len(held)

    for what, at in steps:
        if what == "enqueue":
            count += 2
            put(hands, f"{'ab'[at % 2]}{count}", f"{'aab'[at % 3]}{count + 1}")
        elif what == "lease":
            lease(at)
        elif what == "expire":
            hands.lease_ms += 600
            hands.wall_ms += 300 * at
            before = hands.info().expired
            hands.do(Expire())
            # The oldest leases pass first.
            del held[: hands.info().expired - before]
        elif what == "restart":
            hands.restart()
        elif held:
            kind = {"ack": Ack, "release": Release}.get(what, Nack)
            end(kind, at, **({"delay_ms": 100 * at} if what == "delay" else {}))
    while hands.info().ready + hands.info().delayed + hands.info().leased:
        hands.wall_ms += 1_000
        hands.do(Expire())
        lease(1)
        if held:
            end(Ack, 0)
    for numbers in acked.values():
        assert numbers == sorted(numbers)
    assert sum(map(len, acked.values())) == count
    assert nothing_is_kept(hands)


def test_the_cost_does_not_grow_with_what_waits_behind(one: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in what is read, so that it does not depend on the machine."""
    monkeypatch.setattr(audit, "check", lambda txn: None)
    read = 0
    get, scan = one.txn.get, one.txn.scan

    def counted_get(key: bytes) -> bytes | None:
        nonlocal read
        read += 1
        return get(key)

    def counted_scan(*args: Any, **options: Any) -> Any:
        nonlocal read
        for item in scan(*args, **options):
            read += 1
            yield item

    one.txn.get, one.txn.scan = counted_get, counted_scan  # type: ignore[method-assign]
    costs = []
    for more in (10, 3_000):
        put(one, *["a"] * more)
        read = 0
        for _ in range(5):
            leased, _ = take(one, 1)
            one.settle(leased, 0)
        costs.append(read)
    assert costs[1] <= costs[0] + 5


def test_a_batch_of_many_keys_is_quick(one: Hands) -> None:
    """Some 12 ms on a machine of 2 cores; far more is a mistake."""
    blob = packing.pack([packing.pack_message(b"x" * 100, group=b"key%d" % at) for at in range(1_000)])
    begun = time.process_time()
    one.machine.apply(Meta(one.index + 1, 0, 1, one.lease_ms, one.wall_ms), Enqueue(QUEUE, [Part(0, 0, blob)]))
    assert time.process_time() - begun < 0.5
