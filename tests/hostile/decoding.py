"""Bodies that are not what their route takes: wrong types in every field, text that is none, bombs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
from msgspec import inspect

from raftq.api.app import routes
from raftq.api.routing import Route
from raftq.api.schemas import Schema
from tests.hostile.attack import REFUSED, Attack, Session, request
from tests.hostile.target import Target

DONE = frozenset({"200", "201", "202"})
JSON, MSGPACK = "application/json", "application/msgpack"
_QUEUE = "/v1/queues/decoded"

#: Of the values in msgpack, every so many; `make hostile` sends all.
EACH_OF_MSGPACK = 4

#: What no field of any type takes in all of its places.
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    (1 << 53) + 1,
    (1 << 63) - 1,
    1 << 63,
    -(1 << 63) - 1,
    1 << 64,
    10**400,
    "",
    "1",
    "true",
    "x" * 5000,
    "../../etc/passwd",
    "\0",
    "\u202etxt",
    [],
    [[]],
    [None],
    {},
    {"$ne": None},
    {"__proto__": {"a": 1}},
)
_MSGPACK_ONLY: tuple[Any, ...] = (b"\xff\0", msgspec.msgpack.Ext(5, b"x"), msgspec.msgpack.Ext(-1, bytes(12)))


def attacks() -> Iterator[Attack]:
    yield from _typed()
    yield from _texts()
    yield from _documents()
    yield from _msgpack()
    yield from _encodings()


def _post(path: str, body: bytes, content_type: str = JSON, *headers: str, method: str = "POST") -> bytes:
    headers = (f"Content-Type: {content_type}", "Raftq-Forward: proxy", *headers)
    return request(path, *headers, method=method, body=body)


# Wrong types

Place = tuple[str, Callable[[Any], Any]]


def _typed() -> Iterator[Attack]:
    for route in routes():
        if isinstance(route.takes, Schema):
            name = f"{route.method} {route.pattern}"
            yield Attack("wrong types in every field", name, partial(_walk, route=route), REFUSED | DONE)


def _walk(target: Target, route: Route) -> list[str]:
    """JSON to the leader, msgpack through a follower. What the schema does not take must be refused; what it takes may
    be done, but not where it would change the cluster or wait."""
    assert isinstance(route.takes, Schema)
    path = "/".join("decoded" if part.startswith("{") else part for part in route.pattern.split("/"))
    whole: Place = ("the whole", lambda value: value)
    found = []
    with Session(target, target.leader) as leader, Session(target, target.follower) as follower:
        for name, made in (whole, *_places(inspect.type_info(route.takes.struct), whole[1])):
            harmless = not path.startswith("/v1/cluster") and name != "wait_seconds"
            sent = [(leader, JSON, value) for value in WRONG]
            sent += [(follower, MSGPACK, value) for value in (*WRONG[::EACH_OF_MSGPACK], *_MSGPACK_ONLY)]
            for session, content_type, value in sent:
                body = _encoded(made(value), content_type)
                if body is None:
                    continue
                fits = _fits(route.takes, body, content_type)
                if fits and not harmless:
                    continue
                status, answer = session.ask(_post(path, body, content_type, method=route.method), route.method)
                assert fits or status in REFUSED, (name, status, body[:100], answer)
                found.append(status)
    return found


def _encoded(value: Any, content_type: str) -> bytes | None:
    try:
        return json.dumps(value).encode() if content_type is JSON else msgspec.msgpack.encode(value)
    except (TypeError, OverflowError):
        return None


def _fits(schema: Schema[Any], body: bytes, content_type: str) -> bool:
    try:
        (schema.json if content_type is JSON else schema.msgpack).decode(body)
    except msgspec.DecodeError:
        return False
    return True


def _places(kind: inspect.Type, whole: Callable[[Any], Any], name: str = "") -> Iterator[Place]:
    """Every place of a value of this kind, and what makes a whole document with a value there."""
    match kind:
        case inspect.StructType():
            base = _least(kind)
            for field in kind.fields:
                inner = lambda value, field=field: whole({**base, field.encode_name: value})  # noqa: E731
                path = f"{name}.{field.encode_name}" if name else field.encode_name
                yield path, inner
                yield from _places(field.type, inner, path)
        case inspect.ListType():
            yield f"{name}[0]", lambda value: whole([value])
            yield from _places(kind.item_type, lambda value: whole([value]), f"{name}[0]")
        case inspect.DictType():
            yield f"{name}.k", lambda value: whole({"k": value})
            yield from _places(kind.value_type, lambda value: whole({"k": value}), f"{name}.k")
        case inspect.UnionType():
            for each in kind.types:
                yield from _places(each, whole, name)


def _least(kind: inspect.Type) -> Any:
    """The least that a schema takes."""
    match kind:
        case inspect.StructType():
            return {field.encode_name: _least(field.type) for field in kind.fields if field.required}
        case inspect.ListType():
            return [_least(kind.item_type)]
        case inspect.StrType():
            return "a"
        case _:
            return 1


# Texts

_TEXTS = {
    "a lone surrogate, escaped": rb'"\ud800"',
    "surrogates the wrong way round": rb'"\udc00\ud800"',
    "a lone surrogate, raw": b'"\xed\xa0\x80"',
    "CESU-8": b'"\xed\xa0\xbd\xed\xb2\xa9"',
    "an overlong slash": b'"\xc0\xaf"',
    "an overlong NUL": b'"\xc0\x80"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "cut off": b'"\xe2\x82"',
    "a byte that is none": b'"\xff"',
    "a continuation alone": b'"\x80"',
    "a control character": b'"\x01"',
    "a line break": b'"\n"',
    "a bad escape": rb'"\x41"',
    "an escape cut off": rb'"\u12"',
}
#: What is text, however odd, comes back as it was.
_ODD = {
    "NUL, escaped": "\0",
    "right to left": "\u202etxt.exe\u2066",
    "4 bytes": "\U0001f4a9" * 3,
    "a noncharacter": "\uffff\U0010ffff",
    "a BOM within": "a\ufeffb",
    "zero width": "a\u200b\u200db",
    "combining": "e" + "\u0301" * 50,
    "line separators": "\u2028\u2029",
}


def _texts() -> Iterator[Attack]:
    places = (
        b'{"body":%b}',
        b'{"body":1,"attributes":{"k":%b}}',
        b'{"body":1,"attributes":{%b:1}}',
        b'{"body":1,"dedup_id":%b}',
    )
    for name, text in _TEXTS.items():
        bodies = [place % text for place in places]
        yield _each("text that is none", name, f"{_QUEUE}/messages", bodies, REFUSED)
    for name, odd in _ODD.items():
        yield Attack("odd text, back as it was", name, partial(_back, text=odd), frozenset({"201"}))
    yield Attack("odd text, back as it was", "twins of NFC and NFD", _twins, frozenset({"201"}))
    for coding in ("utf-16", "utf-16-le", "utf-32", "cp037", "utf-8-sig"):
        body = '{"body":"é"}'.encode(coding)
        yield _each("text that is none", f"a document in {coding}", f"{_QUEUE}/messages", [body], REFUSED)


def _back(target: Target, text: str) -> list[str]:
    given = {"body": text, "attributes": {f"k{text}": text}, "dedup_id": text}
    assert target.ask("POST", f"{_QUEUE}-odd/messages", given).status == 201
    [message] = target.ask("POST", f"{_QUEUE}-odd/lease", {"wait_seconds": 5}).json()["messages"]
    assert (message["body"], message["attributes"]) == (text, {f"k{text}": text})
    assert target.ask("POST", f"{_QUEUE}-odd/ack", {"receipts": [message["receipt"]]}).status == 200
    return ["201"]


def _twins(target: Target) -> list[str]:
    """They look alike, and are two."""
    found = []
    for text in ("\u00e9", "e\u0301", "\ufb01", "fi", "\u212b", "\u00c5"):
        answer = target.ask("POST", f"{_QUEUE}-twins/messages", {"body": 1, "dedup_id": text})
        assert answer.json()["messages"][0]["duplicate"] is False, text
        found.append(str(answer.status))
    return found


# Documents


def _documents() -> Iterator[Attack]:
    messages = f"{_QUEUE}/messages"
    bad = {
        "nothing": [b" ", b"\n\n", b"\0"],
        "not closed": [b"{", b'{"body"', b'{"body":', b'{"body":1', b'{"body":1,', b'{"body":"', b"[" * 1000],
        "more than one": [b'{"body":1}{"body":2}', b'{"body":1} x', b'{"body":1}\0', b'{"body":1},'],
        "not JSON": [
            b"{'body':1}",
            b"{body:1}",
            b'{"body":1,}',
            b'{"body":0x1}',
            b'{"body":01}',
            b'{"body":+1}',
            b'{"body":.5}',
            b'{"body":1.}',
            b'{"body":NaN}',
            b'{"body":-Infinity}',
            b'{"body":undefined}',
            b'{"body":1}//',
            b'{"body":1/**/}',
            b"<a/>",
            b"body=1",
            b"!!python/object/apply:os.system [id]",
            b"\x80\x04cos\nsystem\n",
        ],
        "deep": [b'{"body":' + b"[" * n + b"]" * n + b"}" for n in (65, 1_000, 100_000)]
        + [b'{"body":' + b'{"a":' * n + b"1" + b"}" * n + b"}" for n in (65, 100_000)]
        + [b"[" * n + b"]" * n for n in (100, 400_000)]
        + [b'{"zz":' + b"[" * n + b"]" * n + b"}" for n in (100_000,)],
        "numbers for fields": [
            b'{"body":1,"priority":%b}' % number
            for number in (b"1e999", b"-1e999", b"9" * 400, b"1e-400", b"1E400", b"9." + b"9" * 400)
        ],
        "a key of 100,000 characters": [b'{"' + b"k" * 100_000 + b'":1}'],
        "20,000 fields that there are not": [b"{" + b",".join(b'"k%d":1' % n for n in range(20_000)) + b"}"],
        "20,000 attributes": [b'{"body":1,"attributes":{' + b",".join(b'"k%d":1' % n for n in range(20_000)) + b"}}"],
        "20,000 messages": [b'{"messages":[' + b",".join([b'{"body":1}'] * 20_000) + b"]}"],
    }
    for name, bodies in bad.items():
        yield _each("documents", name, messages, bodies, REFUSED)
    # The last one counts, as for most readers; what another reader did with the first is not known here.
    twice = [b'{"body":1,"body":2}', b'{"body":1,"priority":1,"priority":2}', b'{"body":{"a":1,"a":2}}']
    yield _each("documents", "keys given twice", messages, twice, DONE)
    numbers = [b'{"body":%b}' % number for number in (b"1e999", b"-1e-999", b"9" * 5000, b"1." + b"9" * 5000, b"-0")]
    yield _each("documents", "numbers for bodies", messages, numbers, DONE | REFUSED)
    yield Attack("documents", "numbers for bodies, leased", _drained, frozenset({"200"}))
    hashes = b"{" + b",".join(b'"%d":1' % ((1 << 61) - 1) for _ in range(20_000)) + b"}"
    yield _each("documents", "keys that collide", messages, [b'{"body":%b}' % hashes], DONE)


def _drained(target: Target) -> list[str]:
    """What was taken in can be handed out, in both encodings: a number that not every reader can hold stays as it came,
    in msgpack a JSON text."""
    found = []
    for accept in (JSON, MSGPACK):
        with Session(target, target.leader) as session:
            headers = (f"Accept: {accept}",)
            status, answer = session.ask(_post(f"{_QUEUE}/lease", b'{"max":1000,"lease_seconds":0.05}', JSON, *headers))
            if accept is JSON:
                msgspec.json.decode(answer, type=msgspec.Raw)
            else:
                msgspec.msgpack.decode(answer)
            found.append(status)
            found.append(session.ask(request(f"{_QUEUE}/messages?state=ready", *headers))[0])
    return found


# msgpack


def _msgpack() -> Iterator[Attack]:
    body = b"\x81\xa4body"
    bombs = {
        "an array of 4 billion": [
            b"\xdd\xff\xff\xff\xff",
            body + b"\xdd\xff\xff\xff\xff",
            b"\x81\xa8messages\xdd\xff\xff\xff\xff",
            b"\x81\xa8messages\xdc\xff\xff",
        ],
        "a map of 4 billion": [
            b"\xdf\xff\xff\xff\xff",
            body + b"\xdf\xff\xff\xff\xff",
            b"\x82\xa4body\x01\xaaattributes\xdf\xff\xff\xff\xff",
        ],
        "a text of 4 GiB": [b"\xdb\xff\xff\xff\xff", body + b"\xdb\xff\xff\xff\xffx", b"\x81\xdb\xff\xff\xff\xffx"],
        "bytes of 4 GiB": [b"\xc6\xff\xff\xff\xff", body + b"\xc6\xff\xff\xff\xffx"],
        "extension types": [
            b"\xd4\x05x",
            body + b"\xd4\x05x",
            body + b"\xc7\xff\x05" + bytes(255),
            body + b"\xc9\xff\xff\xff\xff\x05",
            body + b"\xd7\xff" + b"\xff" * 8,
            b"\x82\xa4body\x01\xa5group\xd4\x05x",
        ],
        "deep arrays": [b"\x91" * n + b"\x01" for n in (1_000, 400_000)]
        + [body + b"\x91" * n + b"\x01" for n in (65, 1_000, 400_000)],
        "deep maps": [b"\x81\xa1a" * n + b"\x01" for n in (1_000, 130_000)]
        + [body + b"\x81\xa1a" * n + b"\x01" for n in (65, 130_000)],
        "the byte that is none": [b"\xc1", body + b"\xc1"],
        "cut off": [(body + b"\xcf" + bytes(8))[:n] for n in range(1, 14)],
        "more than one": [body + b"\x01" + body + b"\x01", body + b"\x01\xc0"],
        "keys that are no text": [
            b"\x81\x01\x01",
            b"\x81\xc0\x01",
            b"\x81\x90\x01",
            body + b"\x81\x90\x01",
            body + b"\x81\x80\x01",
        ],
        "text that is no UTF-8": [
            b"\x81\xa4bod\xff\x01",
            body + b"\xa2\xc0\xaf",
            b"\x82\xa4body\x01\xa8dedup_id\xa3\xed\xa0\x80",
        ],
        "NaN and infinity": [
            body + b"\xcb\x7f\xf8" + bytes(6),
            body + b"\x91\xcb\xff\xf0" + bytes(6),
            b"\x82\xa4body\x01\xaaattributes\x81\xa1k\xcb\x7f\xf0" + bytes(6),
        ],
        "a number past its field": [
            b"\x82\xa4body\x01\xa8priority\xcf" + b"\xff" * 8,
            b"\x82\xa4body\x01\xaaattributes\x81\xa1k\xcf" + b"\xff" * 8,
        ],
    }
    for name, bodies in bombs.items():
        yield _each("msgpack", name, f"{_QUEUE}/messages", bodies, REFUSED, MSGPACK)


# Encodings


def _encodings() -> Iterator[Attack]:
    messages, body = f"{_QUEUE}/messages", b'{"body":1}'
    bomb = gzip.compress(bytes(64 << 20), 9)
    for name, encoded in {
        "gzip": gzip.compress(body),
        "gzip of 64 MiB": bomb,
        "deflate": zlib.compress(body),
        "br": body,
        "zstd": body,
        "identity": body,
        "gzip, gzip": gzip.compress(bomb),
        "\u0130": body,
    }.items():
        coding = name.partition(" of")[0]
        data = _post(messages, encoded, JSON, f"Content-Encoding: {coding}")
        yield _raw("compressed bodies", name, data, {"415"})
    for name in ("200-ok", "100-continue, x", "\u0130", "x" * 1000):
        yield _raw("Expect", name[:30], _post(messages, body, JSON, f"Expect: {name}"), {"417", "201"})
    types = (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/xml",
        "application/x-python-pickle",
        "",
        ";",
        "x" * 4000,
    )
    for name in types:
        yield _raw("other content types", name[:30] or "empty", _post(messages, body, name), {"415"})


# Of all


def _each(row: str, name: str, path: str, bodies: list[bytes], may: frozenset[str], content_type: str = JSON) -> Attack:
    def run(target: Target) -> list[str]:
        found = []
        with Session(target, target.leader) as leader, Session(target, target.follower) as follower:
            for body in bodies:
                for session in (leader, follower):
                    status, answer = session.ask(_post(path, body, content_type))
                    assert status in may, (status, body[:60], answer[:300])
                    found.append(status)
        return found

    return Attack(row, name, run, may)


def _raw(row: str, name: str, data: bytes, may: set[str]) -> Attack:
    def run(target: Target) -> list[str]:
        found = []
        for node in (target.leader, target.follower):
            with Session(target, node) as session:
                found.append(session.ask(data)[0])
        return found

    return Attack(row, name, run, frozenset(may))
