"""What the fuzzers call: each decoder that bytes of others reach, with what it may raise and what must hold of what it
lets through.

A harness returns for what is refused as documented, and raises for anything else.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import msgspec

from raftq.api import bodies, frames, messages, names, reads, schedules, schemas, topics
from raftq.api.app import routes
from raftq.api.call import MSGPACK, Call
from raftq.api.parts import parts_of
from raftq.api.ports import Limits
from raftq.api.problems import Problem
from raftq.api.routing import Routes
from raftq.api.schemas import Schema
from raftq.replication import cron, membership, wire
from raftq.storage.machine import commands, entries, packing

JSON = "application/json"
_LIMITS = Limits(batch_bytes=100_000, request_bytes=100_000, body_bytes=50_000)
_ROUTES = Routes(routes())
_SCHEMAS = [route.takes for route in routes() if isinstance(route.takes, Schema)]


def frame(data: bytes) -> None:
    """Frames of a peer that is known or not, cut as the first byte says: Malformed, and nothing kept beyond what was
    announced."""
    if not data:
        return
    known, cut, data = data[0] & 0x80, data[0] & 0x7F or 1, data[1:]
    splitter = wire.Splitter(1 << 20 if known else wire.HELLO_BYTES_MAX)
    with contextlib.suppress(wire.Malformed):
        for at in range(0, len(data), cut):
            for payload in splitter.feed(data[at : at + cut]):
                assert len(payload) <= splitter.limit
                _opening(payload)
                _message(payload)
            assert len(splitter._partial) <= splitter.limit + 4 + cut


def message(data: bytes) -> None:
    """A frame of a peer that was let in."""
    _message(memoryview(data))


def opening(data: bytes) -> None:
    """The first frame of anybody."""
    _opening(memoryview(data))


def _message(payload: memoryview) -> None:
    with contextlib.suppress(wire.Malformed):
        found = wire.message(payload)
        if found is not None:
            assert found.keys() == {"type", *wire.MESSAGES[found["type"]]}
            assert wire.message(memoryview(wire.frame(found))[4:]) == found


def _opening(payload: memoryview) -> None:
    with contextlib.suppress(wire.Malformed):
        found = wire.opening(payload)
        assert wire.opening(memoryview(wire.frame(found))[4:]) == found


def request(data: bytes) -> None:
    """The body of any route, in JSON or msgpack as the first byte says: a Problem that can be told, or the struct."""
    if data:
        schema = _SCHEMAS[data[0] % len(_SCHEMAS)]
        call = _call(data[1:], MSGPACK if data[0] & 0x80 else JSON)
        _told(lambda: _ended(call.decode(schema)))


def enqueue(data: bytes) -> None:
    """Messages on their way to the log: what is stored can be read again, in both encodings."""
    if not data:
        return
    call = _call(data[1:], MSGPACK if data[0] & 1 else JSON)
    packed = _told(lambda: _packed(call))
    for one in packed or ():
        assert packing.unpack_message(one).kind in (packing.JSON, packing.BINARY)
        msgspec.json.decode(b"{%b}" % bodies.json_fields(one), type=dict[str, msgspec.Raw])
        msgspec.msgpack.encode(bodies.msgpack_fields(one))


def _packed(call: Call) -> list[bytes]:
    given = _ended(call.decode(schemas.ENQUEUE, large=True))
    batch = [given] if given.messages is None else messages.batch(call, given)
    packed = messages.packed(call, batch, given)
    for part in parts_of(batch, packed):
        assert packing.count_valid(part.blob)
    return packed


def definitions(data: bytes) -> None:
    """Filters, schedules and their time zones: languages of their own. What is taken has a next tick, or none."""
    call = _call(data, JSON)

    def schedule() -> None:
        made = schedules._schedule(call, _ended(call.decode(schemas.SCHEDULE)))
        cron.next_after(made, 1_800_000_000_000)

    _told(lambda: topics.filter_text(_ended(call.decode(schemas.SUBSCRIPTION)).filter))
    _told(schedule)


def stream(data: bytes) -> None:
    """Frames of `/v1/stream`, in JSON or msgpack: operations, each bad one with its problem."""
    if not data:
        return
    form = list(frames.FORMATS.values())[data[0] & 1]
    for operation in _told(lambda: form.decode(data[1:])) or ():
        if isinstance(operation, frames.Bad):
            form.frame([form.problem(operation.id, operation.problem)])


def target(data: bytes) -> None:
    """A request line's path and query, and the headers that are read."""
    text = data.decode("utf-8", "surrogateescape")
    path, _, rest = text.partition("?")
    query, _, header = rest.partition("\n")
    call = _call(b"", JSON)
    call.target = f"{path}?{query}"
    for method in ("GET", "POST", "PUT", "DELETE"):
        found = _told(lambda method=method: _ROUTES.find(method, path))
        if found is None:
            continue
        route, call.parameters = found
        call.query = {}
        _told(lambda route=route: call.take_query(route.query))
        for name in call.query:
            _told(lambda name=name: reads.whole_number(call, name, 1, least=0, most=500))
            _told(lambda name=name: reads.seconds(call, name, least=0, most=60))
            _told(lambda name=name: reads.name_text(call, name))
        for parameter in call.parameters:
            _told(lambda parameter=parameter: names.queue_key(parameter))
            names.parse_message_id(parameter)
            _told(lambda parameter=parameter: names.parse_receipts([parameter]))
    headers = ("Accept", "Content-Type", "Raftq-Forward", "Raftq-Namespace")
    call.request = SimpleNamespace(headers={name: header for name in headers if header})
    _told(call.negotiate)


def entry(data: bytes) -> None:
    """An entry of the log, and the commands in it: they come from a leader's append."""
    with contextlib.suppress(ValueError, struct.error):
        _, found = entries.decode(data)
        for command in found:
            _command(bytes(command))


def command(data: bytes) -> None:
    """A command, its weight and whether it adds messages."""
    _command(data)


def configuration(data: bytes) -> None:
    """The members, as an entry holds them."""
    with contextlib.suppress(ValueError):
        membership.decode(data)


def _command(data: bytes) -> None:
    with contextlib.suppress(commands.UnknownCommand):
        found = commands.decode(data)
        assert commands.decode(commands.encode(found)) == found


def _call(body: bytes, content_type: str) -> Call:
    """One whose body has been read."""
    call = Call.__new__(Call)
    call.node = SimpleNamespace(limits=_LIMITS)
    call.request = SimpleNamespace(body_exists=True, headers={})
    call.content_type = call.answer_type = content_type
    call._body, call.parameters, call.query = body, ["q"], {}
    return call


def _ended(waiting: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        waiting.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("it waits")


def _told(done: Callable[[], Any]) -> Any:
    """Its result; None when it was refused with a Problem, which can be written and says what to do."""
    try:
        return done()
    except Problem as problem:
        refused = problem
    assert refused.status < 500, refused
    assert msgspec.json.decode(refused.body())["detail"]
    return None


HARNESSES: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        frame, message, opening, request, enqueue, definitions, stream, target, entry, command, configuration,
    )
}  # fmt: skip
