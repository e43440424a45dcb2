"""What is known of a command before it is applied."""

from __future__ import annotations

import msgspec
import pytest

from raftq.storage.machine import packing
from raftq.storage.machine.commands import (
    Ack,
    Command,
    DefineQueue,
    Enqueue,
    Expire,
    Extend,
    Lease,
    Nack,
    Part,
    Publish,
    PurgeQueue,
    QueueSettings,
    Slots,
    Transact,
    UnknownCommand,
    decode,
    encode,
    weight,
)

QUEUE = "default/jobs"
NAMES = [f"name-{at}" for at in range(1_000)]
BLOB = packing.pack([packing.pack_message(b"1")] * 1_000)
PLAIN = Enqueue(QUEUE, [Part(0, None, BLOB)])
WITH_IDS = Enqueue(QUEUE, [Part(0, None, BLOB, dedup_ids=list(NAMES))])
WITH_KEYS = Enqueue(QUEUE, [Part(0, None, BLOB, replace_keys=list(NAMES))])
SINGLES = [Slots(lease, [0]) for lease in range(1, 1_001)]


@pytest.mark.parametrize(
    ("command", "least", "most"),
    [
        (Enqueue(QUEUE, [Part(0, None, packing.pack([packing.pack_message(b"1")]))]), 1, 1),
        (PLAIN, 200, 300),
        (WITH_IDS, 400, 600),
        (WITH_KEYS, 2_000, 2_400),
        (Ack(QUEUE, 1, [Slots(1, [0])]), 1, 2),
        (Ack(QUEUE, 1, SINGLES), 1_000, 1_300),
        (Nack(QUEUE, 1, [Slots(1, list(range(0, 1_000, 2)))]), 200, 300),
        (Extend(QUEUE, 1, [Slots(1, list(range(0, 1_000, 2)))]), 1, 20),
        (Lease(QUEUE, 1), 1, 1),
        (Lease(QUEUE, 1_000), 200, 300),
        (Publish("default/t", [Part(0, None, packing.pack([packing.pack_message(b"1")]))]), 10, 20),
        (Publish("default/t", PLAIN.parts), 2_000, 5_000),
        (Publish("default/t", WITH_KEYS.parts), 60_000, 80_000),
        (Transact("default", [Ack(QUEUE, 1, SINGLES), WITH_IDS]), 1_500, 2_000),
        (PurgeQueue(QUEUE), 10, 50),
        (DefineQueue(QUEUE, QueueSettings()), 10, 50),
        (DefineQueue(QUEUE, QueueSettings(max_leased_per_group=2)), 200, 500),
        (Expire(), 200, 500),
    ],
)
def test_a_command_weighs_what_it_names(command: Command, least: int, most: int) -> None:
    """As much as it may cost: nothing of the queues is known. Bodies weigh nothing, their bytes are bounded."""
    assert least <= weight(encode(command)) <= most


@pytest.mark.parametrize("nested", [False, True])
def test_a_field_that_is_not_known_stops_the_node(nested: bool) -> None:
    """Else this node would do something other than those that know it."""
    fields = msgspec.msgpack.decode(encode(PLAIN))
    (fields[2][0] if nested else fields).append("new")
    with pytest.raises(UnknownCommand, match="Upgrade this node"):
        decode(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("name", [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_a_name_that_is_no_text_stops_the_node_as_any_command_that_it_does_not_know(name: bytes) -> None:
    """Found by the fuzzer: msgspec has an error of its own for that, which the node did not expect."""
    with pytest.raises(UnknownCommand, match="Upgrade this node"):
        decode(encode(Lease("x" * len(name), 1)).replace(b"x" * len(name), name))
