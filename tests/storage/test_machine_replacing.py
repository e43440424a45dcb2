"""Replace keys: the newest message of a key alone stays."""

from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine import keys
from raftq.storage.machine.commands import Ack, DefineQueue, Enqueue, Expire, Nack, Part, QueueSettings, Reject, Release
from raftq.storage.machine.replies import DONE, Leased
from tests.storage.conftest import QUEUE, Hands, blob


def put(hands: Hands, *bodies: bytes, key: str | None = "k", delay_ms: int = 0, priority: int = 0) -> Any:
    part = Part(priority, delay_ms, blob(*bodies), None, None, [key] * len(bodies))
    return hands.do(Enqueue(QUEUE, [part]))


def left(hands: Hands) -> list[bytes]:
    return hands.bodies(hands.lease())


def nothing_is_kept(hands: Hands) -> bool:
    return not hands.keys(keys.KEYED) and not hands.keys(keys.NEWEST)


@pytest.mark.parametrize("delay_ms", [0, 1_000])
def test_a_waiting_message_goes(hands: Hands, delay_ms: int) -> None:
    hands.enqueue(b"first")
    put(hands, b"old", delay_ms=delay_ms)
    hands.enqueue(b"between")
    put(hands, b"new", priority=4)
    assert (hands.info().ready, hands.info().delayed, hands.info().removed) == (3, 0, 1)
    leased = hands.lease()
    assert hands.bodies(leased) == [b"new", b"first", b"between"]
    hands.settle(leased, 0, 1, 2)
    assert nothing_is_kept(hands)


def test_within_one_request_the_last_stays(hands: Hands) -> None:
    put(hands, b"1", b"2", b"3")
    keyed = [None, "a", None, None, "b", "a"]
    hands.do(Enqueue(QUEUE, [Part(0, 0, blob(b"4", b"5", b"6", b"7", b"8", b"9"), None, None, keyed)]))
    assert left(hands) == [b"3", b"4", b"6", b"7", b"8", b"9"]


def test_a_duplicate_replaces_nothing(hands: Hands) -> None:
    for body in (b"1", b"2"):
        hands.do(Enqueue(QUEUE, [Part(0, 0, blob(body), None, ["id"], ["k"])]))
    assert left(hands) == [b"1"]


@pytest.mark.parametrize("kind", [Nack, Release, Reject])
def test_a_leased_one_is_dropped_when_it_returns(hands: Hands, kind: type) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue="default/dead", max_failures=1)))
    put(hands, b"old")
    leased = hands.lease()
    put(hands, b"new")
    assert hands.settle(leased, 0, kind=kind) == [DONE]
    info = hands.info()
    assert (info.ready, info.leased, info.removed, info.dead_lettered) == (1, 0, 1, 0)
    assert hands.info("default/dead") is None
    assert left(hands) == [b"new"]


def test_a_leased_one_is_dropped_when_its_lease_passes_or_its_nack_waits(hands: Hands) -> None:
    put(hands, b"old")
    leased = hands.lease(lease_ms=10)
    put(hands, b"newer")
    hands.lease_ms += 10
    hands.do(Expire())
    assert (hands.info().ready, hands.info().expired, hands.info().removed) == (1, 1, 1)
    leased = hands.lease()
    put(hands, b"newest")
    hands.settle(leased, 0, kind=Nack, delay_ms=1_000)
    assert hands.info().delayed == 0
    assert left(hands) == [b"newest"]


def test_a_leased_one_may_be_acked_and_the_newer_is_known(hands: Hands) -> None:
    put(hands, b"old")
    leased = hands.lease()
    put(hands, b"new")
    assert hands.settle(leased, 0, kind=Ack) == [DONE]
    put(hands, b"newest")
    assert left(hands) == [b"newest"]
    assert hands.info().removed == 1


def test_a_returned_one_is_still_replaced(hands: Hands) -> None:
    put(hands, b"old")
    hands.settle(hands.lease(), 0, kind=Release)
    hands.restart()
    put(hands, b"new")
    leased = hands.lease()
    assert hands.bodies(leased) == [b"new"]
    hands.settle(leased, 0)
    assert nothing_is_kept(hands)


def test_a_dead_letter_has_no_key_any_more(hands: Hands) -> None:
    hands.do(DefineQueue(QUEUE, QueueSettings(dead_letter_queue="default/dead", max_failures=1)))
    for _ in range(2):
        put(hands, b"x")
        leased = hands.lease()
        assert isinstance(leased, Leased)
        hands.settle(leased, 0, kind=Nack)
    assert hands.info("default/dead").ready == 2
    assert nothing_is_kept(hands)
