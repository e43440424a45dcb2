"""What is read without leasing."""

from __future__ import annotations

import pytest

from raftq.storage.machine import packing, views
from raftq.storage.machine.commands import Ack, DefineQueue, Enqueue, Nack, Part, QueueSettings
from raftq.storage.machine.views import Peeked
from tests.storage.conftest import QUEUE, Hands, blob


def bodies(page: list[Peeked]) -> list[bytes]:
    return [packing.unpack_message(message.data).body for message in page]


def test_queues_are_listed_in_pages_of_one_namespace(hands: Hands) -> None:
    for key in ("default/b", "default/a1", "default/a2", "default/a3", "other/a", "default-x/a"):
        hands.do(DefineQueue(key, QueueSettings()))
    view = hands.machine.view()
    page, cursor = view.queues("default", "a", 2)
    assert [info.key for info in page] == ["default/a1", "default/a2"]
    page, cursor = view.queues("default", "a", 2, cursor)
    assert ([info.key for info in page], cursor) == (["default/a3"], None)
    assert [info.key for info in view.queues("other")[0]] == ["other/a"]
    assert view.queues("nobody") == ([], None)


def test_ready_messages_are_shown_in_order_of_delivery(hands: Hands) -> None:
    hands.enqueue(b"1", b"2", b"3", b"4")
    hands.enqueue(b"high", priority=9)
    hands.settle(hands.lease(3), 1, kind=Nack)
    page, cursor = hands.machine.view().peek(QUEUE, "ready", 2)
    assert (bodies(page), cursor) == ([b"1", b"3"], "0-4")
    assert (page[0].deliveries, page[0].failures) == (1, 1)
    page, cursor = hands.machine.view().peek(QUEUE, "ready", 2, cursor)
    assert (bodies(page), cursor) == ([b"4"], None)


def test_a_message_is_found_in_every_state(hands: Hands) -> None:
    hands.enqueue(b"acked", b"leased", b"ready")
    hands.enqueue(b"delayed", delay_ms=1_000)
    leased = hands.lease(2)
    hands.settle(leased, 0)
    view = hands.machine.view()
    assert view.message(QUEUE, 0, 1) is None
    assert view.message(QUEUE, 0, 5) is None
    assert view.message(QUEUE, 1, 2) is None
    assert view.message(QUEUE, 77, -2) is None
    found = [view.message(QUEUE, 0, number) for number in (2, 3, 4)]
    assert [message.state for message in found if message] == ["leased", "ready", "delayed"]
    assert (found[0].deadline_ms, found[2].due_ms) == (leased.deadline_ms, hands.wall_ms + 1_000)


def test_leased_messages_are_shown_by_lease(hands: Hands) -> None:
    hands.enqueue(*[b"%d" % at for at in range(6)])
    hands.settle(hands.lease(3), 1)
    hands.lease(3)
    page, cursor = hands.machine.view().peek(QUEUE, "leased", 3)
    assert (bodies(page), cursor) == ([b"0", b"2", b"3"], "2-1")
    page, cursor = hands.machine.view().peek(QUEUE, "leased", 3, cursor)
    assert (bodies(page), cursor) == ([b"4", b"5"], None)


def test_a_page_looks_through_so_many_leases_and_goes_on(hands: Hands, monkeypatch) -> None:
    """Settled leases stay until their deadline; a page must not read all of them in one go of the loop."""
    monkeypatch.setattr(views, "LEASES_SEEN_MAX", 2)
    hands.enqueue(*[b"%d" % at for at in range(4)])
    for _ in range(3):
        hands.settle(hands.lease(1), 0)
    hands.lease(1)
    page, cursor = hands.machine.view().peek(QUEUE, "leased", 10)
    assert (page, cursor) == ([], "3-0")
    page, cursor = hands.machine.view().peek(QUEUE, "leased", 10, cursor)
    assert (bodies(page), cursor) == ([b"3"], None)


def test_a_message_whose_lease_is_not_found_is_still_leased(hands: Hands, monkeypatch) -> None:
    monkeypatch.setattr(views, "LEASES_SEEN_MAX", 1)
    hands.enqueue(b"a", b"b")
    hands.lease(1)
    hands.settle(hands.lease(1), 0, kind=Ack)
    found = hands.machine.view().message(QUEUE, 0, 1)
    assert found is not None
    assert (found.state, found.deliveries, found.deadline_ms) == ("leased", 0, None)


def test_long_leases_are_looked_through_by_their_bytes(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of messages with replace keys names each for itself."""
    monkeypatch.setattr(views, "LEASES_BYTES_MAX", 200)
    hands.do(Enqueue(QUEUE, [Part(0, 0, blob(*[b"x"] * 30), replace_keys=[f"k{at}" for at in range(30)])]))
    for _ in range(3):
        hands.settle(hands.lease(10), 0, 7)
    view = hands.machine.view()
    pages, cursor = [], None
    for _ in range(2):
        page, cursor = view.peek(QUEUE, "leased", 100, cursor)
        pages.append([message.number for message in page])
    assert (pages, cursor) == ([[*range(2, 8), 9, 10, *range(12, 18), 19, 20], [*range(22, 28), 29, 30]], None)
    found = [view.message(QUEUE, 0, number) for number in (3, 12, 18, 29)]
    assert [message and (message.state, message.deliveries) for message in found] == [
        ("leased", 0),
        ("leased", 1),
        None,
        ("leased", 1),
    ]


@pytest.mark.parametrize("cursor", ["", "x", "1", "-", "1-", "-1-2", "1-2-3", "10-1", "0-99999999999999999999", "٣-٢"])
def test_a_bad_cursor_is_an_error(hands: Hands, cursor: str) -> None:
    hands.enqueue(b"a")
    with pytest.raises(ValueError, match="no such cursor"):
        hands.machine.view().peek(QUEUE, "ready", 10, cursor)


def test_an_unknown_queue_is_an_error(hands: Hands) -> None:
    with pytest.raises(KeyError):
        hands.machine.view().peek(QUEUE, "ready", 10)


def test_the_oldest_ready_message_may_be_a_returned_one_of_any_priority(hands: Hands) -> None:
    first_ms = hands.wall_ms
    hands.enqueue(b"old")
    leased = hands.lease()
    hands.wall_ms += 1_000
    hands.enqueue(b"new", priority=9)
    assert hands.info().oldest_ready_ms == first_ms + 1_000
    hands.settle(leased, 0, kind=Nack)
    assert hands.info().oldest_ready_ms == first_ms
