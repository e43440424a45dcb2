"""Dead letters: what becomes of messages that fail too often, are rejected, or are past retention; and full queues."""

from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine import deadletters, keys, packing, queues
from raftq.storage.machine.commands import (
    Backoff,
    DefineQueue,
    DeleteQueue,
    Enqueue,
    Expire,
    Incarnate,
    Lease,
    Nack,
    Part,
    QueueSettings,
    Reject,
    Release,
    Slots,
)
from raftq.storage.machine.packing import DeadLetter, Extension
from raftq.storage.machine.replies import QueueReady, Refused
from tests.storage.conftest import QUEUE, Hands, blob

DEAD = "default/dead"


def define(hands: Hands, **settings: Any) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(**settings)))


def letters(hands: Hands, key: str = DEAD) -> list[packing.Message]:
    found, _ = hands.machine.view().peek(key, "ready", 100)
    return [packing.unpack_message(one.data) for one in found]


def origins(hands: Hands) -> list[DeadLetter]:
    return [letter.extension.dead for letter in letters(hands) if letter.extension and letter.extension.dead]


def test_an_extension_is_packed_and_replaced() -> None:
    dead = DeadLetter(QUEUE, 1, 9, 7, "retention", 0, 2, 10, 20)
    plain = packing.pack_message(b"body", kind=packing.BINARY, group=b"g", attributes=b'{"a":1}')
    one = packing.extended(plain, Extension(dead, 3, "key"))
    assert packing.unpack_message(one) == packing.Message(
        packing.BINARY, "g", b'{"a":1}', b"body", Extension(dead, 3, "key")
    )
    two = packing.extended(one, Extension(redriven=1))
    assert packing.extension_of(two) == Extension(redriven=1)
    assert (packing.extended(two, Extension()), packing.extension_of(plain)) == (plain, None)
    assert packing.pack_message(b"1", extension=Extension(redriven=1)) == packing.extended(
        packing.pack_message(b"1"), Extension(redriven=1)
    )


def test_the_last_failure_moves_a_message(hands: Hands) -> None:
    define(hands, dead_letter_queue=DEAD, max_failures=2)
    message = packing.pack_message(b"x", group=b"g", attributes=b'{"a":1}')
    hands.do(Enqueue(QUEUE, [Part(4, 0, packing.pack([message, message]))]))
    at_ms = hands.wall_ms
    hands.settle(hands.lease(1), 0, kind=Nack)
    hands.wall_ms += 7
    hands.settle(hands.lease(1), 0, kind=Nack)
    assert hands.effects == [QueueReady(DEAD, 1)]
    [letter] = letters(hands)
    assert letter[:4] == packing.unpack_message(message)[:4]
    assert letter.extension == Extension(DeadLetter(QUEUE, 1, 4, 1, "max_failures", 2, 2, at_ms, hands.wall_ms))
    info, dead = hands.info(), hands.info(DEAD)
    assert (info.nacked, info.dead_lettered, info.discarded, info.ready, info.bytes) == (2, 1, 0, 1, len(message))
    assert (dead.enqueued, dead.ready, dead.settings) == (1, 1, QueueSettings())
    [peeked], _ = hands.machine.view().peek(DEAD, "ready", 9)
    assert (peeked.priority, peeked.number, peeked.failures, peeked.enqueued_at_ms) == (4, 1, 0, hands.wall_ms)


def test_there_is_a_limit_with_a_dead_letter_queue_alone() -> None:
    assert QueueSettings().failures_max() is None
    assert QueueSettings(dead_letter_queue=DEAD).failures_max() == 20
    assert QueueSettings(dead_letter_queue=DEAD, max_failures=3).failures_max() == 3


def test_without_a_dead_letter_queue_a_message_is_discarded(hands: Hands) -> None:
    define(hands, max_failures=1)
    hands.enqueue(b"a", b"b")
    hands.settle(hands.lease(1), 0, kind=Nack)
    hands.settle(hands.lease(1), 0, kind=Reject)
    info = hands.info()
    assert (info.discarded, info.dead_lettered, info.rejected, info.ready, info.bytes) == (2, 0, 1, 0, 0)
    assert not hands.keys(keys.BATCH)


def test_a_lease_that_passes_counts_and_moves_in_steps(hands: Hands) -> None:
    define(hands, dead_letter_queue=DEAD, max_failures=1)
    hands.enqueue(*[b"%d" % at for at in range(5)])
    hands.lease(lease_ms=1_000)
    hands.lease_ms += 1_000
    first, second = hands.do(Expire(2)), hands.do(Expire(9))
    assert (first.leases, first.dead, first.more) == (2, 2, True)
    assert hands.effects == [QueueReady(DEAD, 5)]
    assert (second.leases, second.dead, second.more) == (3, 3, False)
    assert [letter.body for letter in letters(hands)] == [b"0", b"1", b"2", b"3", b"4"]
    assert (hands.info().expired, hands.info().dead_lettered) == (5, 5)


def test_reject_says_why_and_counts_no_failure(hands: Hands) -> None:
    define(hands, dead_letter_queue=DEAD)
    hands.enqueue(b"a", b"b", b"c")
    leased = hands.lease()
    assert hands.settle(leased, 2, 0, 0, 7, kind=Reject, reason="bad") == [0, 0, 0, 1]
    assert hands.settle(leased, 1, 0, kind=Reject) == [0, 1]
    assert [(dead.number, dead.reason, dead.failures) for dead in origins(hands)] == [
        (1, "rejected: bad", 0),
        (3, "rejected: bad", 0),
        (2, "rejected", 0),
    ]
    refused = hands.do(Reject(QUEUE, 1, [], "é" * 513))
    assert refused == Refused("invalid", "reason: give at most 1,024 bytes")


def test_release_and_a_new_incarnation_kill_nobody(hands: Hands) -> None:
    define(hands, dead_letter_queue=DEAD, max_failures=1)
    hands.enqueue(b"a")
    hands.settle(hands.lease(), 0, kind=Release)
    hands.lease()
    hands.do(Incarnate())
    assert (hands.info().ready, hands.info(DEAD)) == (1, None)


def test_a_dead_letter_queue_is_one_like_others(hands: Hands) -> None:
    """Its own limits and delay do not apply to letters, it may have a dead-letter queue, and is made anew."""
    define(hands, dead_letter_queue=DEAD, max_failures=1)
    hands.do(DefineQueue(DEAD, QueueSettings(delay_ms=9, max_messages=1, max_bytes=1, dead_letter_queue="default/end")))
    hands.enqueue(b"a", b"b")
    hands.settle(hands.lease(), 0, 1, kind=Nack)
    assert hands.info(DEAD).ready == 2
    leased = hands.do(Lease(DEAD, 1))
    hands.do(Reject(DEAD, leased.queue_number, [Slots(leased.lease_id, [0])], "again"))
    [letter] = letters(hands, "default/end")
    assert letter.extension is not None
    assert letter.extension.dead is not None
    assert (letter.extension.dead.queue, letter.body) == (DEAD, b"a")
    hands.do(DeleteQueue(DEAD))
    hands.enqueue(b"c")
    hands.settle(hands.lease(), 0, kind=Nack)
    assert [letter.body for letter in letters(hands)] == [b"c"]


def test_no_queue_is_its_own_dead_letter_queue(hands: Hands) -> None:
    refused = hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue=QUEUE)))
    assert isinstance(refused, Refused)
    assert hands.info() is None


def test_a_dead_letter_queue_is_made_even_when_there_are_too_many(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(hands, dead_letter_queue=DEAD, max_failures=1)
    hands.enqueue(b"a")
    monkeypatch.setattr(queues, "QUEUES_MAX", 1)
    hands.settle(hands.lease(), 0, kind=Nack)
    assert hands.info(DEAD).ready == 1


def test_a_paused_dead_letter_queue_wakes_nobody(hands: Hands) -> None:
    define(hands, dead_letter_queue=DEAD)
    hands.do(DefineQueue(DEAD, QueueSettings(paused=True)))
    hands.enqueue(b"a")
    hands.settle(hands.lease(), 0, kind=Reject)
    assert (hands.effects, hands.info(DEAD).ready) == ([], 1)


def test_backoff_grows_to_its_maximum() -> None:
    backoff = Backoff(100, 1_500, 1_000)
    assert [deadletters.delay_ms(backoff, failures) for failures in range(1, 9)] == [
        100,
        150,
        225,
        337,
        505,
        757,
        1_000,
        1_000,
    ]
    assert deadletters.delay_ms(Backoff(100, 1_000, 500), 1 << 40) == 100
    assert deadletters.delay_ms(Backoff(1, 1_001, 500), 1 << 40) == 1


def test_a_nack_without_a_delay_waits_for_the_backoff(hands: Hands) -> None:
    define(hands, backoff=Backoff(100, 2_000, 1_000))
    hands.enqueue(b"a", b"b")
    hands.settle(hands.lease(1), 0, kind=Nack)
    assert (hands.info().delayed, hands.machine.next_due()[1]) == (1, hands.wall_ms + 100)
    hands.wall_ms += 100
    hands.do(Expire())
    hands.settle(hands.lease(), 0, 1, kind=Nack)
    found, _ = hands.machine.view().peek(QUEUE, "delayed", 9)
    assert [one.due_ms for one in found] == [hands.wall_ms + 200, hands.wall_ms + 100]
    hands.wall_ms += 200
    hands.do(Expire())
    hands.settle(hands.lease(1), 0, kind=Nack, delay_ms=0)
    assert hands.info().ready == 2


def test_retention_is_judged_while_a_message_is_ready(hands: Hands) -> None:
    define(hands, retention_ms=1_000, dead_letter_queue=DEAD)
    hands.enqueue(b"leased", b"ready")
    hands.enqueue(b"delayed", delay_ms=2_000)
    leased = hands.lease(1, lease_ms=60_000)
    hands.wall_ms += 999
    hands.enqueue(b"young")
    assert hands.do(Expire()).dead == 0
    hands.wall_ms += 1
    assert hands.machine.next_due()[1] == hands.wall_ms
    assert hands.do(Expire()).dead == 1
    hands.settle(leased, 0, kind=Release)
    assert hands.machine.next_due()[1] == hands.wall_ms + 1
    hands.wall_ms += 1
    assert hands.do(Expire()).dead == 1
    hands.wall_ms += 999
    # The delayed one is ready now, and looked for in the next step.
    assert hands.do(Expire()).dead == 1
    hands.wall_ms += 1
    assert hands.do(Expire()).dead == 1
    assert [(letter.body, dead.reason) for letter, dead in zip(letters(hands), origins(hands), strict=True)] == [
        (b"ready", "retention"),
        (b"leased", "retention"),
        (b"young", "retention"),
        (b"delayed", "retention"),
    ]
    assert hands.machine.next_due()[1] is None
    assert [dead.deliveries for dead in origins(hands)] == [0, 1, 0, 0]


def test_retention_takes_bounded_steps(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    define(hands, retention_ms=1_000, dead_letter_queue=DEAD)
    for priority in (0, 9):
        hands.enqueue(*[b"x" * 96] * 6, priority=priority)
    hands.wall_ms += 1_000
    first = hands.do(Expire(4))
    assert (first.dead, first.more) == (4, True)
    hands.restart()
    monkeypatch.setattr(deadletters, "MOVED_BYTES_MAX", 250)
    # A step ends once it has moved as many bytes, with the message that went over it.
    assert [hands.do(Expire()).dead for _ in range(3)] == [3, 3, 2]
    assert hands.info().ready == 0
    assert [dead.priority for dead in origins(hands)] == [9] * 6 + [0] * 6


def test_retention_takes_bounded_steps_to_nowhere_too(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is discarded is read, to see how old it is."""
    define(hands, retention_ms=1_000)
    hands.enqueue(*[b"x" * 96] * 6)
    hands.wall_ms += 1_000
    monkeypatch.setattr(deadletters, "MOVED_BYTES_MAX", 250)
    found = [hands.do(Expire()) for _ in range(3)]
    assert [(done.dead, done.more) for done in found] == [(3, True), (3, False), (0, False)]


def test_retention_that_is_changed_counts_for_what_is_there(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.wall_ms += 1_000
    define(hands, retention_ms=5_000)
    assert hands.machine.next_due()[1] == hands.wall_ms + 4_000
    define(hands, retention_ms=1_000)
    assert hands.machine.next_due()[1] == hands.wall_ms
    define(hands)
    assert hands.machine.next_due()[1] is None
    define(hands, retention_ms=1_000)
    assert hands.do(Expire()).dead == 1
    hands.do(DeleteQueue(QUEUE))
    hands.do(Expire())
    assert not hands.keys(keys.WALL)


def test_leases_leave_the_moment_of_retention_alone(hands: Hands) -> None:
    """A busy queue moves it once a retention, not with every lease."""
    define(hands, retention_ms=1_000)
    hands.enqueue(b"a")
    due = hands.keys(keys.WALL)
    hands.wall_ms += 500
    hands.settle(hands.lease(), 0)
    hands.enqueue(b"b")
    assert hands.keys(keys.WALL) == due
    hands.wall_ms += 500
    assert hands.do(Expire()).dead == 0
    assert hands.machine.next_due()[1] == hands.wall_ms + 500


def test_a_full_queue_takes_no_part_of_a_command(hands: Hands) -> None:
    define(hands, max_messages=3, max_bytes=40)
    hands.enqueue(b"a", b"b")
    hands.enqueue(b"c", delay_ms=1_000)
    hands.lease(1)
    detail = "max_messages is 3, the queue has 3, and 1 more would come"
    assert hands.enqueue(b"d") == Refused("full", detail)
    define(hands, max_messages=9, max_bytes=20)
    assert hands.enqueue(b"x" * 2) == Refused("full", "max_bytes is 20, the queue has 15, and 6 more would come")
    assert hands.enqueue(b"x").spans == [(0, 4, 1)]


def test_a_duplicate_takes_no_room(hands: Hands) -> None:
    define(hands, max_messages=1)

    def enqueue(*ids: str | None) -> Any:
        return hands.do(Enqueue(QUEUE, [Part(0, 0, blob(*[b"x"] * len(ids)), dedup_ids=list(ids))]))

    assert enqueue("x", "x").places == [(0, 1, False), (0, 1, True)]
    assert enqueue("x").places == [(0, 1, True)]
    assert enqueue("x", None).reason == "full"


def test_more_bytes_than_one_command_may_move_are_refused(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "MOVED_BYTES_MAX", 250)
    define(hands, dead_letter_queue=DEAD, max_failures=2)
    hands.enqueue(*[b"x" * 96] * 5)
    leased = hands.lease()
    assert hands.settle(leased, 0, 1, 2, kind=Nack) == [0, 0, 0]
    again = hands.lease()
    for kind in (Nack, Reject):
        command = kind(QUEUE, 1, [Slots(again.lease_id, [0, 1]), Slots(again.lease_id, [1, 2]), Slots(7, [0])])
        assert hands.do(command).reason == "too_large"
    # The fourth and fifth do not die of this nack.
    assert hands.settle(again, 0, 1, kind=Nack) == [0, 0]
    assert hands.settle(leased, 3, 4, kind=Nack) == [0, 0]
    assert hands.info(DEAD).ready == 2
