"""The machine as a whole: entries, invariants, restarts."""

from __future__ import annotations

import pytest

from raftq.storage.machine import audit, keys, records
from raftq.storage.machine.apply import HANDLERS, InvariantBroken
from raftq.storage.machine.commands import Ack, Command, DefineQueue, Enqueue, Lease, Part, QueueSettings, Slots
from raftq.storage.machine.ports import Meta
from tests.storage.conftest import QUEUE, Hands, blob


def test_every_command_has_a_handler() -> None:
    assert set(HANDLERS) == set(Command.__args__)


def test_an_entry_is_never_applied_twice(hands: Hands) -> None:
    hands.enqueue(b"a")
    hands.restart()
    hands.index -= 1
    with pytest.raises(InvariantBroken, match="entry 1 after 1"):
        hands.enqueue(b"a")


def test_an_entry_must_be_ended(hands: Hands) -> None:
    hands.machine.apply(Meta(1, 0, 1, 0, 0), DefineQueue(QUEUE, QueueSettings()))
    with pytest.raises(InvariantBroken, match="is open"):
        hands.machine.apply(Meta(2, 0, 1, 0, 0), DefineQueue(QUEUE, QueueSettings()))


def test_an_entry_without_commands_changes_nothing(hands: Hands) -> None:
    hands.machine.end_entry(Meta(7, 0, 1, 0, 0))
    assert hands.txn.values == {}


def test_a_message_freed_twice_ends_the_process(hands: Hands) -> None:
    hands.enqueue(b"a", b"b")
    leased = hands.lease()
    hands.settle(leased, 0)
    key = hands.keys(keys.LEASE)[0]
    lease = records.decode_lease(hands.txn.values[key])
    lease.settled = lease.acked = b""
    hands.txn.values[key] = records.encode(lease)
    with pytest.raises(InvariantBroken, match="messages that are gone"):
        hands.settle(leased, 0)


def test_the_audit_sees_a_message_that_nobody_holds(hands: Hands) -> None:
    hands.enqueue(b"a", b"b")
    hands.settle(hands.lease(1), 0)
    hands.lease(1)
    hands.txn.delete(hands.keys(keys.LEASE)[1])
    with pytest.raises(InvariantBroken):
        audit.check(hands.txn)


def test_the_audit_sees_a_counter_that_is_off(hands: Hands) -> None:
    hands.enqueue(b"a")
    key = hands.keys(keys.QUEUE)[0]
    queue = records.decode_queue(hands.txn.values[key])
    queue.bytes += 1
    hands.txn.values[key] = records.encode(queue)
    with pytest.raises(InvariantBroken, match="bytes"):
        audit.check(hands.txn)


def test_caches_are_dropped_without_a_trace(hands: Hands, monkeypatch) -> None:
    """Tables are equal whether the caches hold everything or nothing."""
    other = Hands()
    for cache in ("queues._CACHE_MAX", "batches._CACHE_BYTES_MAX", "firstkey._FIRSTS_MAX"):
        monkeypatch.setattr(f"raftq.storage.machine.{cache}", 0)
    for each in (hands, other):
        for at in range(6):
            each.do(Enqueue(f"default/{at % 3}", [Part(at % 2, 0, blob(b"a", b"b", b"c"))]))
            leased = each.do(Lease(f"default/{at % 3}", 2))
            each.do(Ack(f"default/{at % 3}", leased.queue_number, [Slots(leased.lease_id, [0])]))
        if each is hands:
            monkeypatch.undo()
    assert hands.txn.values == other.txn.values
