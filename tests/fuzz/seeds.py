"""The seed corpus: `python -m tests.fuzz.seeds` writes it below tests/fuzz/corpus, one file an input. Inputs that once
failed lie there too, by other names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from raftq.api.app import routes
from raftq.api.schemas import Schema
from raftq.replication import membership, wire
from raftq.replication.wire import Hello
from raftq.storage.machine import commands, entries, packing
from tests.api.test_fuzz import VALID
from tests.replication.test_wire import WHOLE

CORPUS = Path(__file__).parent / "corpus"

_SCHEDULE = {
    "cron": "*/5 9-17 * 1,2 mon-fri",
    "time_zone": "Europe/Berlin",
    "queue": "a",
    "message": {"body": 1, "attributes": {"k": "v"}},
}
_FILTER = {"filter": {"a": ["x", 1, True, {"prefix": "p"}, {"exists": False}], "b": [{"numeric": [">=", 1, "<", 2]}]}}
_STREAM = [
    {"op": "enqueue", "id": 1, "queue": "a", "body": {"x": [1]}},
    {"op": "lease", "id": "l", "queue": "a", "max": 2},
    {"op": "ack", "id": 2, "queue": "a", "receipts": ["1.1.0"]},
    {"op": "subscribe", "id": 3, "queue": "a", "credit": 10},
    {"op": "credit", "id": 4, "subscription": 3, "credit": 5},
]


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Harness, name and bytes."""
    hello = Hello(wire.PROTOCOL, "c", "a", "u", 1, "http://x", "x:1", "0", 7, 3)
    refusal = wire.Refusal("no", final=True)
    for name, value in (("hello", hello), ("refusal", refusal)):
        yield "opening", name, msgspec.msgpack.encode(value)
    for kind, fields in WHOLE.items():
        yield "message", kind, msgspec.msgpack.encode({"type": kind, **fields})
    whole = [wire.frame(hello), *(wire.frame({"type": kind, **fields}) for kind, fields in WHOLE.items())]
    for cut in (1, 7, 127):
        yield "frame", f"all-by-{cut}", bytes([0x80 | cut]) + b"".join(map(bytes, whole))
        yield "frame", f"hello-by-{cut}", bytes([cut]) + bytes(whole[0])
    takes = [route for route in routes() if isinstance(route.takes, Schema)]
    for number, route in enumerate(takes):
        for place, value in enumerate(VALID.get(route.pattern.rpartition("/")[2], [{}])):
            name = (
                f"{route.method}-{route.pattern.strip('/').replace('/', '-').translate({123: None, 125: None})}-{place}"
            )
            yield "request", f"{name}-json", bytes([number]) + msgspec.json.encode(value)
            yield "request", f"{name}-msgpack", bytes([number | 0x80]) + msgspec.msgpack.encode(value)
    for place, value in enumerate(VALID["messages"]):
        yield "enqueue", f"{place}-json", b"\0" + msgspec.json.encode(value)
        yield "enqueue", f"{place}-msgpack", b"\1" + msgspec.msgpack.encode(value)
    yield "definitions", "schedule", msgspec.json.encode(_SCHEDULE)
    yield "definitions", "interval", b'{"interval_seconds":1.5,"topic":"t","message":{"body":1}}'
    yield "definitions", "filter", msgspec.json.encode(_FILTER)
    yield "stream", "json", b"\0" + msgspec.json.encode(_STREAM)
    yield "stream", "msgpack", b"\1" + msgspec.msgpack.encode(_STREAM)
    yield "stream", "bad", b'\0[{"op":"x","id":1},{"id":[]},7]'
    yield "target", "page", b"/v1/queues?prefix=a%2Eb&limit=10&stats=true\napplication/msgpack;q=1, */*"
    yield "target", "receipt", b"/q/jobs/ack/1.2.3?\napplication/json; charset=utf-8"
    yield "target", "message", b"/v1/queues/jobs/messages/1-0-7?consistency=stale\nproxy"
    some = (
        commands.Enqueue("default/a", [commands.Part(3, 5, packing.pack([packing.pack_message(b"1"), b"\0\0\0\0{}"]))]),
        commands.Lease("default/a", 2, 1000),
        commands.Ack("default/a", 1, [commands.Slots(1, [0, 1])]),
    )
    for each in some:
        yield "command", type(each).__name__.lower(), commands.encode(each)
    yield "entry", "three", entries.encode(entries.Clocks(1, 2), [commands.encode(each) for each in some])
    yield "entry", "none", entries.encode(entries.Clocks(1, 2), [])
    yield "configuration", "three", membership.bootstrap({"a": "x:1", "b": "x:2", "c": "x:3"}).encode()


def main() -> None:
    for harness, name, data in seeds():
        file = CORPUS / harness / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


if __name__ == "__main__":
    main()
