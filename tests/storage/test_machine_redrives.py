"""Redrives: dead letters go back, in steps."""

from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine import keys, packing, redrives
from raftq.storage.machine.commands import (
    CancelRedrive,
    DefineQueue,
    DeleteQueue,
    Enqueue,
    Expire,
    Lease,
    Nack,
    Part,
    PurgeQueue,
    QueueSettings,
    Redrive,
    Request,
    Slots,
)
from raftq.storage.machine.replies import QueueReady, Range, Redriving
from tests.storage.conftest import QUEUE, Hands

DEAD = "default/dead"


def die(hands: Hands, *bodies: bytes, queue: str = QUEUE, priority: int = 0, attributes: bytes = b"") -> None:
    """Enqueue, lease and nack: dead letters in DEAD."""
    hands.do(DefineQueue(queue, QueueSettings(dead_letter_queue=DEAD, max_failures=1)))
    blob = packing.pack([packing.pack_message(body, attributes=attributes) for body in bodies])
    hands.do(Enqueue(queue, [Part(priority, 0, blob)]))
    leased = hands.do(Lease(queue, 1_000))
    slots = list(range(sum(taken.count for taken in leased.ranges)))
    hands.do(Nack(queue, leased.queue_number, [Slots(leased.lease_id, slots)]))


def run(hands: Hands, steps: int = 100) -> Any:
    """Let the redrive take its steps: how it stands."""
    for _ in range(steps):
        due_ms = hands.machine.next_due()[1]
        if due_ms is None:
            break
        hands.wall_ms = max(hands.wall_ms, due_ms)
        hands.do(Expire())
    return hands.machine.view().redrive(DEAD)


def bodies(hands: Hands, queue: str = QUEUE) -> list[bytes]:
    peeked, _ = hands.machine.view().peek(queue, "ready", 1_000)
    return [packing.unpack_message(one.data).body for one in peeked]


def test_each_goes_back_where_it_came_from(hands: Hands) -> None:
    die(hands, b"1", b"2", b"3")
    die(hands, b"other", queue="default/other")
    die(hands, b"high", priority=9, attributes=b'{"a":1}')
    begun = hands.do(Redrive(DEAD))
    assert begun == Redriving("running", None, b"{}", None, None, None, 0, 0, 5, hands.wall_ms, None)
    ended = run(hands)
    assert (ended.state, ended.moved, ended.skipped, ended.left, ended.ended_ms) == ("done", 5, 0, 0, hands.wall_ms)
    assert hands.effects == [QueueReady(QUEUE, 4), QueueReady("default/other", 1)]
    assert (hands.info(DEAD).ready, hands.info(DEAD).bytes, hands.info(DEAD).redriven) == (0, 0, 5)
    assert (bodies(hands), bodies(hands, "default/other")) == ([b"high", b"1", b"2", b"3"], [b"other"])
    leased = hands.lease()
    assert leased.ranges == [Range(9, 5, 1, 1, 0), Range(0, 6, 3, 1, 0)]
    message = packing.unpack_message(hands.machine.deliveries(leased)[0].data)  # type: ignore[union-attr]
    assert (message.attributes, message.extension) == (b'{"a":1}', packing.Extension(redriven=1))


def test_all_go_to_a_queue_that_is_named(hands: Hands) -> None:
    hands.do(DefineQueue("default/to", QueueSettings(max_messages=1, delay_ms=1_000)))
    hands.enqueue(b"no dead letter")
    hands.do(Redrive(QUEUE, "default/to"))
    die(hands, b"1", queue="default/x")
    hands.do(Redrive(DEAD, "default/to"))
    run(hands)
    assert bodies(hands, "default/to") == [b"no dead letter", b"1"]


def test_what_is_no_dead_letter_or_has_no_queue_stays(hands: Hands) -> None:
    die(hands, b"1", queue="default/gone")
    die(hands, b"2")
    hands.do(Enqueue(DEAD, [Part(0, 0, packing.pack([packing.pack_message(b"own")]))]))
    hands.do(DeleteQueue("default/gone"))
    hands.do(Redrive(DEAD))
    assert run(hands).skipped == 2
    assert bodies(hands, DEAD) == [b"1", b"own"]
    assert bodies(hands) == [b"2"]


def test_a_filter_takes_from_the_midst(hands: Hands) -> None:
    for number in range(9):
        die(hands, b"%d" % number, b"%da" % number, attributes=b'{"n":%d}' % (number % 3))
    hands.do(Redrive(DEAD, filter=b'{"n": [1]}'))
    ended = run(hands)
    assert (ended.filter, ended.moved, ended.skipped) == (b'{"n":[1]}', 6, 12)
    assert bodies(hands) == [b"1", b"1a", b"4", b"4a", b"7", b"7a"]
    assert len(bodies(hands, DEAD)) == 12


def test_only_what_was_there_when_it_began(hands: Hands) -> None:
    die(hands, *[b"%d" % number for number in range(300)])
    hands.do(Redrive(DEAD))
    run(hands, 1)
    die(hands, b"late", b"late too", queue="default/x")
    die(hands, b"first", queue="default/x", priority=9)
    assert run(hands).moved == 300
    assert bodies(hands, DEAD) == [b"first", b"late", b"late too"]


def test_what_was_redriven_too_often_stays(hands: Hands) -> None:
    die(hands, b"x")
    for expected in (1, 1, 0):
        hands.do(Redrive(DEAD, redrives_max=2))
        assert run(hands).moved == expected
        if expected:
            leased = hands.lease()
            hands.settle(leased, 0, kind=Nack)
    assert bodies(hands, DEAD) == [b"x"]
    peeked, _ = hands.machine.view().peek(DEAD, "ready", 1)
    extension = packing.extension_of(peeked[0].data)
    assert extension is not None
    assert (extension.redriven, extension.dead.failures) == (2, 1)  # type: ignore[union-attr]


def test_a_limit_and_a_pace(hands: Hands) -> None:
    die(hands, *[b"%d" % number for number in range(50)])
    hands.do(Redrive(DEAD, limit=7))
    assert (run(hands).moved, hands.info().ready) == (7, 7)
    began_ms = hands.wall_ms
    hands.do(Redrive(DEAD, per_second=20))
    run(hands, 5)
    assert hands.machine.view().redrive(DEAD).moved == 10  # type: ignore[union-attr]
    assert run(hands).moved == 43
    assert 2_000 <= hands.wall_ms - began_ms <= 2_200


def test_it_is_cancelled(hands: Hands) -> None:
    die(hands, *[b"%d" % number for number in range(50)])
    assert hands.do(CancelRedrive(DEAD)).reason == "unknown_redrive"
    hands.do(Redrive(DEAD, per_second=10))
    run(hands, 3)
    cancelled = hands.do(CancelRedrive(DEAD))
    assert (cancelled.state, cancelled.moved, hands.machine.next_due()[1]) == ("cancelled", 3, None)
    assert hands.do(CancelRedrive(DEAD)) == cancelled
    assert run(hands) == cancelled
    hands.do(Redrive(DEAD))
    assert run(hands).moved == 47


@pytest.mark.parametrize(
    ("command", "reason", "detail"),
    [
        (Redrive("default/none"), "unknown_queue", "none"),
        (Redrive(DEAD, DEAD), "invalid", "itself"),
        (Redrive(DEAD, "default/none"), "invalid", "to: there is no queue none"),
        (Redrive(DEAD, filter=b"{"), "invalid", "filter: "),
        (Redrive(DEAD, limit=0), "invalid", "limit"),
        (Redrive(DEAD, per_second=0), "invalid", "per_second"),
    ],
)
def test_what_is_refused(hands: Hands, command: Redrive, reason: str, detail: str) -> None:
    die(hands, b"x")
    refused = hands.do(command)
    assert refused.reason == reason
    assert detail in refused.detail
    assert hands.machine.next_due()[1] is None


def test_one_at_a_time_and_a_request_is_repeated(hands: Hands) -> None:
    die(hands, b"x")
    request = Request("r", 60_000)
    first = hands.do(Redrive(DEAD, request=request))
    assert hands.do(Redrive(DEAD, request=request)) == first
    assert hands.do(Redrive(DEAD)).reason == "redrive_runs"


@pytest.mark.parametrize("end", [PurgeQueue, DeleteQueue])
def test_it_ends_with_what_it_was_of(hands: Hands, end: type) -> None:
    die(hands, b"x", b"y")
    hands.do(Redrive(DEAD))
    hands.do(end(DEAD))
    if end is PurgeQueue:
        assert hands.machine.view().redrive(DEAD) is None
    while hands.machine.next_due()[1] is not None:
        hands.wall_ms += 10
        hands.do(Expire(1))
    assert not hands.keys(keys.REDRIVE)
    assert bodies(hands) == []


def test_a_step_is_bounded_in_messages_and_bytes(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrives, "LOOKED_BYTES_MAX", 3_000)
    die(hands, *[b"x" * 1_000] * 10)
    hands.do(Redrive(DEAD))
    assert run(hands, 1).moved == 2
    hands.wall_ms += 10
    hands.do(Expire(1))
    assert run(hands, 0).moved == 3
    hands.restart()
    assert run(hands).moved == 10


def test_one_that_was_held_up_catches_up_with_its_pace(hands: Hands) -> None:
    die(hands, *[b"%d" % number for number in range(400)])
    hands.do(Redrive(DEAD, per_second=100))
    hands.do(Expire())
    assert run(hands, 0).moved == 10
    hands.wall_ms += 500
    hands.do(Expire())
    assert run(hands, 0).moved == 60
    hands.wall_ms += 10_000
    hands.do(Expire())
    assert run(hands, 0).moved == 60 + 10 + 110
