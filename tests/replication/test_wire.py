"""Frames: however the bytes are cut, whatever they are, what is let through has its fields, each of its type."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftq.replication import peers, wire
from tests.replication.shards import Shards, enqueue, shards, until

NUMBER_MAX = (1 << 63) - 2

#: One whole message of each kind.
WHOLE: dict[str, dict[str, Any]] = {
    "append": {
        "term": 3, "round": 9, "prev_index": 7, "prev_term": 2, "commit": 7, "compact": 0,
        "entries": [(3, b"\x00one"), (3, b"\x01")], "wall": -1, "lease": 5,
    },
    "append_answer": {
        "term": 3, "round": 9, "ok": True, "match": 8, "prev_index": 7, "hint": 0, "applied": 7,
        "wall": 1, "low": False,
    },
    "prevote": {"term": 4, "last_index": 8, "last_term": 3, "transfer": False},
    "prevote_answer": {"term": 3, "asked": 4, "granted": True},
    "vote": {"term": 4, "last_index": NUMBER_MAX, "last_term": 3, "transfer": True},
    "vote_answer": {"term": 4, "asked": 4, "granted": False},
    "timeout_now": {"term": 3},
    "echo": {"term": 3, "round": 9},
    "ping": {},
    "digest": {"index": 8, "digest": "00ff"},
    "roster": {"known": {"a": ("uuid", 1, 8)}},
    "snapshot_offer": {"term": 3, "index": 8, "snapshot_term": 3, "bytes": 100, "id": "x"},
    "snapshot_ask": {"term": 3, "id": "x", "offset": 0},
    "snapshot_chunk": {"term": 3, "id": "x", "offset": 0, "data": b"\xff", "checksum": (1 << 64) - 1},
}  # fmt: skip
#: A number is out of bounds; but for that, none of these is of the type of a field unless it is of that of its value.
STRANGE = [None, -(1 << 63), 1 << 63, 1.5, True, "ü", b"\xff", [1], {"a": 1}, [[1]], [[b"", 1]]]


def payload(value: object) -> memoryview:
    return memoryview(bytes(wire.frame(value)))[4:]


def test_every_kind_is_here() -> None:
    assert WHOLE.keys() == wire.MESSAGES.keys()


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_message_arrives_as_it_was_sent(kind: str) -> None:
    message = {"type": kind, **WHOLE[kind]}
    assert wire.message(payload(message)) == message


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in WHOLE for field in WHOLE[kind]])
def test_a_field_that_is_missing_or_of_another_type_is_malformed(kind: str, field: str) -> None:
    """It ended the node: the cycle read the field, and what it raised was taken for a broken invariant."""
    message = {"type": kind, **WHOLE[kind]}
    del message[field]
    with pytest.raises(wire.Malformed):
        wire.message(payload(message))
    for value in STRANGE:
        if type(value) is type(WHOLE[kind][field]) and (type(value) is not int or field == "checksum"):
            continue
        with pytest.raises(wire.Malformed):
            wire.message(payload({**message, field: value}))


@pytest.mark.parametrize("entry", [(1,), (1, b"x", 2), (-1, b"x"), (1, "x"), (None, b"x"), (1, b""), 7])
def test_an_entry_that_is_none_is_malformed(entry: Any) -> None:
    with pytest.raises(wire.Malformed):
        wire.message(payload({"type": "append", **WHOLE["append"], "entries": [(1, b"x"), entry]}))


def test_what_a_newer_node_adds_is_left_out() -> None:
    assert wire.message(payload({"type": "ping", "news": [1]})) == {"type": "ping"}
    assert wire.message(payload({"type": "of a newer node", "term": "?"})) is None
    assert wire.message(payload({"type": "connected"})) is None  # what the cycle tells itself, nobody else does


@pytest.mark.parametrize("value", [{}, {"type": 1}, {"type": None, "term": 1}, [], "append", {1: 2}, {"kind": "hello"}])
def test_what_has_no_type_is_malformed(value: object) -> None:
    with pytest.raises(wire.Malformed):
        wire.message(payload(value))


async def test_all_that_shards_say_to_each_other_arrives_as_it_was_sent(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that `wire.MESSAGES` does not name would be lost in silence."""
    said: dict[str, int] = {}
    framing = wire.frame

    def checked(value: Any) -> bytearray:
        data = framing(value)
        if isinstance(value, dict):
            kind = value["type"]
            assert wire.message(memoryview(bytes(data))[4:]) == value
            said[kind] = said.get(kind, 0) + 1
        return data

    monkeypatch.setattr(peers.wire, "frame", checked)
    async with shards(tmp_path) as cluster:
        await _write(cluster)
        leader = await cluster.leader()
        await leader.digest()
        await leader.transfer()
        await _write(cluster)
        await cluster.kill((await cluster.leader()).config.node_id)
        await _write(cluster)
        await until(lambda: "roster" in said)
        assert not cluster.fatal
    usual = {"append", "append_answer", "prevote", "prevote_answer", "vote", "vote_answer", "timeout_now", "digest"}
    assert usual <= said.keys()


async def _write(cluster: Shards) -> None:
    leader = await cluster.leader()
    await until(lambda: leader._engine.own_term_committed)
    await leader.propose(enqueue(b"1"))


@given(numbers=st.lists(st.integers(0, NUMBER_MAX)), cuts=st.lists(st.integers(1, 40)))
def test_frames_are_the_same_however_the_bytes_are_cut(numbers: list[int], cuts: list[int]) -> None:
    messages = [{"type": "digest", "index": number, "digest": str(number)} for number in numbers]
    data = b"".join(wire.frame(message) for message in messages)
    splitter, found = wire.Splitter(1 << 20), []
    for cut in [*cuts, len(data) + 1]:
        found += [wire.message(payload) for payload in splitter.feed(data[:cut])]
        data = data[cut:]
    assert found == messages


@pytest.mark.parametrize("piece", [bytes(256 << 10), bytes([0, 0, 0, 1, 0xC0]) * 50_000])
def test_who_is_not_known_says_one_thing_and_waits_for_the_answer(piece: bytes) -> None:
    """256 KiB of zeros are 65,536 frames of nothing. They were all cut before the first was looked at, which took a
    leader up to 0.8 s, and leadership."""
    with pytest.raises(wire.Malformed, match="before it is known"):
        wire.Splitter(wire.HELLO_BYTES_MAX).feed(piece)
    assert len(wire.Splitter(wire.FRAME_BYTES_MAX).feed(piece)) > 50_000 - 1


_KIND = st.sampled_from([kind.encode() for kind in WHOLE])


@given(st.one_of(st.binary(max_size=300), st.tuples(_KIND, st.binary(max_size=100)).map(lambda pair: _typed(*pair))))
def test_what_is_no_message_is_malformed_and_nothing_else(data: bytes) -> None:
    for decode in (wire.opening, wire.message):
        with contextlib.suppress(wire.Malformed):
            decode(memoryview(data))


def _typed(kind: bytes, rest: bytes) -> bytes:
    """A map of two, of which the first is the kind."""
    return b"\x82\xa4type" + bytes([0xA0 | len(kind)]) + kind + rest


@pytest.mark.parametrize(
    "rest",
    [
        b"\xa4term\xdd\xff\xff\xff\xff",  # an array that says it has 4 billion elements
        b"\xa7entries" + b"\x91" * 100_000,  # deeper than any stack
        b"\xa2id\xa1\xff",  # text that is not UTF-8
        b"\xa4term\xd4\x05\x00",  # an extension type
        b"\x01\x01",  # a key that is no text
        b"\xa4term\x01\x01",  # more than one value
        b"\xa4term",  # less than one
        b"",
    ],
)
@pytest.mark.parametrize("kind", [b"append", b"timeout_now", b"snapshot_ask"])
def test_a_hostile_message_is_malformed(kind: bytes, rest: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.message(memoryview(_typed(kind, rest)))


@given(st.text(min_size=513), st.sampled_from(["cluster_id", "node_id", "node_uuid", "api_url", "peer_address", "to"]))
def test_a_hello_of_long_names_is_malformed(text: str, field: str) -> None:
    hello = wire.Hello(2, "c", "a", "u", 1, "", "", "0", 0, 0)
    assert wire.opening(payload(hello)) == hello
    with pytest.raises(wire.Malformed):
        wire.opening(payload(msgspec.structs.replace(hello, **{field: text})))


def test_the_longest_hello_and_the_refusal_that_repeats_it_fit() -> None:
    long = "\U0001f41b" * 512
    hello = wire.Hello(2, long, long, long, NUMBER_MAX, long, long, long, 0, 0, to=long)
    assert len(payload(hello)) <= wire.HELLO_BYTES_MAX
    assert len(payload(wire.Refusal(repr(long) * 3, final=True, config_index=1))) <= wire.HELLO_BYTES_MAX


def test_a_hello_of_protocol_1_can_be_read() -> None:
    fields = ["protocol", "cluster_id", "node_id", "node_uuid", "boot", "api_url", "peer_address", "version"]
    values = [1, "c", "a", "u", 1, "", "", "0"]
    old = {"kind": "hello", **dict(zip(fields, values, strict=True)), "last_index": 0, "term": 0}
    hello = wire.opening(payload(old))
    assert isinstance(hello, wire.Hello)
    assert (hello.protocol, hello.lane, hello.config_index) == (1, "main", 0)


def test_a_message_too_long_to_be_received_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 100)
    assert len(wire.frame({"d": bytes(90)})) <= 104
    with pytest.raises(ValueError, match="over the 100 of a frame"):
        wire.frame({"d": bytes(101)})
