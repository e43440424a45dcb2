"""WebSockets: handshakes that are none, frames that are none, and operations that are none."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

from tests.hostile.attack import BROKEN, CLOSED, REFUSED, Attack, request, sent
from tests.hostile.target import Target, Wire

#: Nothing was wrong enough to end it: the attacker goes.
OPEN = "stays open"
_KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
_HANDSHAKE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", _KEY)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
#: The last that is said: a stream answers it, be it by way of the leader.
_LAST = b'{"id":"last","op":"credit","subscription":"none","credit":1}'


def frame(
    payload: bytes, opcode: int = TEXT, *, first: int = 0x80, masked: bool = True, length: bytes | None = None
) -> bytes:
    """One frame; `first` has the FIN bit and the reserved ones, `length` what is said instead of the length."""
    if length is None:
        size = len(payload)
        length = (
            bytes([size])
            if size < 126
            else struct.pack(">BH", 126, size)
            if size < 1 << 16
            else struct.pack(">BQ", 127, size)
        )
    mask = b"\x01\x02\x03\x04"
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    hidden = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")
    head = bytes([first | opcode, length[0] | (0x80 if masked else 0)]) + length[1:]
    return head + (mask + hidden if masked else payload)


def attacks() -> Iterator[Attack]:
    yield from _handshakes()
    for name, data, may in (*_frames(), *_operations()):
        row = "WebSocket frames" if (name, data, may) in _FRAMES else "operations of a stream"
        yield Attack(row, name, partial(_exchanged, data=data), may)
    for name, data in _BOMBS.items():
        yield Attack(
            "operations of a stream", f"msgpack: {name}", partial(_in_msgpack, data=data), frozenset({"1007", "1003"})
        )
    yield Attack(
        "WebSocket frames", "said to a watcher of events", _said_to_events, frozenset({"1003", "1002", "1009"})
    )
    yield Attack("WebSocket frames", "100 that are left without a word", _left, frozenset({OPEN}))


def _handshakes() -> Iterator[Attack]:
    wrong = {
        "no version": (_HANDSHAKE[0], _HANDSHAKE[1], _KEY),
        "version 12": (_HANDSHAKE[0], _HANDSHAKE[1], "Sec-WebSocket-Version: 12", _KEY),
        "no key": _HANDSHAKE[:3],
        "a short key": (*_HANDSHAKE[:3], "Sec-WebSocket-Key: YQ=="),
        "a key that is no base64": (*_HANDSHAKE[:3], "Sec-WebSocket-Key: ../../etc/passwd!!!!!!!!="),
        "no Upgrade": (_HANDSHAKE[0], *_HANDSHAKE[2:]),
        "an Upgrade to others": (_HANDSHAKE[0], "Upgrade: websocketx", *_HANDSHAKE[2:]),
        "no Connection": _HANDSHAKE[1:],
        "an unknown subprotocol": (*_HANDSHAKE, "Sec-WebSocket-Protocol: mqtt, \u0130"),
        "Raftq-Namespace that is a path": (*_HANDSHAKE, "Raftq-Namespace: ../x"),
    }
    for name, headers in wrong.items():
        for path in ("/v1/stream", "/v1/events"):
            yield sent("WebSocket handshakes", f"{name}, {path}", request(path, *headers), REFUSED)
    for method in ("POST", "HEAD", "DELETE"):
        yield sent("WebSocket handshakes", method, request("/v1/stream", *_HANDSHAKE, method=method), REFUSED)
    line = request("/v1/stream", *_HANDSHAKE).replace(b"1.1", b"1.0", 1)
    yield sent("WebSocket handshakes", "HTTP/1.0", line, BROKEN | {"101"}, last=False)


def _frames() -> list[tuple[str, bytes, frozenset[str]]]:
    ends = frozenset({"1002", "1007", "1009", CLOSED})
    found: list[tuple[str, bytes, frozenset[str]]] = []

    def add(name: str, data: bytes, may: frozenset[str] = ends) -> None:
        found.append((name, data, may))

    for bit in (0x40, 0x20, 0x10, 0x70):
        add(f"reserved bits {bit:#x}", frame(b"[]", first=0x80 | bit))
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        add(f"opcode {opcode}", frame(b"x", opcode))
    for opcode in (CLOSE, PING, PONG):
        add(f"control frame {opcode}, fragmented", frame(b"x", opcode, first=0))
        add(f"control frame {opcode} of 126 bytes", frame(bytes(126), opcode))
    add("a length of 2**64 - 1", frame(b"", length=struct.pack(">BQ", 127, (1 << 64) - 1)))
    add("a length of 2**63 - 1", frame(b"", length=struct.pack(">BQ", 127, (1 << 63) - 1)))
    add("a length of 9 MiB", frame(b"", length=struct.pack(">BQ", 127, 9 << 20)))
    add("9 MiB in fragments", frame(bytes(1 << 20), first=0) + frame(bytes(1 << 20), 0, first=0) * 8)
    add("a fragment of nothing", frame(b"x", 0))
    add("a new message within a fragmented one", frame(b"[", first=0) + frame(b"[]"))
    add("invalid UTF-8", frame(b'{"op":"\xff"}'))
    add("overlong UTF-8", frame(b'"\xc0\xaf"'))
    add("a lone surrogate", frame(b'"\xed\xa0\x80"'))
    add("a close of one byte", frame(b"\x03", CLOSE))
    for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535):
        add(f"a close with code {code}", frame(struct.pack(">H", code), CLOSE), ends | {"1000", str(code)})
    add("a close with a reason in invalid UTF-8", frame(b"\x03\xe8\xff\xff", CLOSE), ends | {"1000"})
    add("random bytes", bytes((n * n * 31 + 7) % 256 for n in range(5000)))
    # Not refused by aiohttp, and nothing that it protects is here: a mask keeps caches from reading what a page sends.
    add("without a mask", frame(b"[]", masked=False), ends | {OPEN})
    add("a length longer written than it must be", frame(b"[]", length=struct.pack(">BQ", 127, 2)), ends | {OPEN})
    add("10,000 pings", frame(b"x", PING) * 10_000, frozenset({OPEN}))
    add("10,000 pongs that nobody asked for", frame(b"x", PONG) * 10_000, frozenset({OPEN}))
    add(
        "10,000 fragments of one byte",
        frame(b"[", first=0) + frame(b" ", 0, first=0) * 10_000 + frame(b"]", 0),
        frozenset({OPEN}),
    )
    add("a message within which another begins", frame(b"[", first=0) + frame(b" " * 1000, 0, first=0) * 1000)
    return found


_FRAMES = _frames()


def _operations() -> Iterator[tuple[str, bytes, frozenset[str]]]:
    """A bad one is answered by its id, what is no document ends it."""
    answered = frozenset({OPEN})
    documents = {
        "no object": b"1",
        "no id": b'{"op":"enqueue","queue":"a","body":1}',
        "no op": b'{"id":1}',
        "an unknown op": b'{"id":1,"op":"eval"}',
        "an id past 2**53": b'{"id":9007199254740994,"op":"enqueue","queue":"a","body":1}',
        "a long id": b'{"id":"%b","op":"enqueue","queue":"a","body":1}' % (b"x" * 129),
        "an id that is none": b'{"id":[],"op":"enqueue","queue":"a","body":1}',
        "a queue that is a path": b'{"id":1,"op":"enqueue","queue":"../../etc","body":1}',
        "a queue of another namespace": b'{"id":1,"op":"enqueue","queue":"other/a","body":1}',
        "credit of a billion": b'{"id":1,"op":"subscribe","queue":"a","credit":1000000000}',
        "negative credit": b'{"id":1,"op":"subscribe","queue":"a","credit":-1}',
        "credit for nobody": b'{"id":1,"op":"credit","subscription":7,"credit":1}',
        "a receipt that is none": b'{"id":1,"op":"ack","queue":"a","receipts":["x"]}',
        "an empty list": b"[]",
        "2,000 bad ones": b"[" + b",".join([b'{"id":1,"op":"zz"}'] * 2_000) + b"]",
    }
    for name, data in documents.items():
        yield name, frame(data), answered
    broken = frozenset({"1007"})
    for name, data in {"no JSON": b"{", "deep": b"[" * 500_000, "nothing": b"", "NaN": b"NaN"}.items():
        yield name, frame(data), broken
    yield "msgpack on a stream of JSON", frame(b"\x90", BINARY), frozenset({"1003"})


#: In msgpack; each ends it.
_BOMBS = {
    "text that is no UTF-8": b"\x84\xa2op\xa7en\x9eue\xa2id\x01",
    "an id that is no UTF-8": b"\x91\x81\xa2id\xa1\xff",
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a text of 4 GiB": b"\x81\xa2id\xdb\xff\xff\xff\xff",
    "deep arrays": b"\x91" * 500_000,
    "cut off": b"\x92\x81",
    "the byte that is none": b"\xc1",
    "JSON in a frame of bytes": b'{"id":1}',
}


def _exchanged(target: Target, data: bytes) -> list[str]:
    return [_ended(target, node, "/v1/stream", data) for node in (target.leader, target.follower)]


def _in_msgpack(target: Target, data: bytes) -> list[str]:
    said = frame(data, BINARY)
    return [_ended(target, node, "/v1/stream", said, "raftq.v1.msgpack") for node in (target.leader, target.follower)]


def _said_to_events(target: Target) -> list[str]:
    sayings = (frame(b"[]"), frame(b"x", 3), frame(b"", length=struct.pack(">BQ", 127, 1 << 62)), frame(bytes(2000)))
    return [_ended(target, target.follower, "/v1/events", data) for data in sayings]


def _ended(target: Target, node: str, path: str, data: bytes, protocol: str = "raftq.v1.json") -> str:
    """The code with which the node ends the WebSocket; OPEN when it answers what comes after all of it."""
    with target.open(node) as wire:
        _shake(wire, path, protocol)
        wire.send(data + frame(_LAST))
        while (received := _receive(wire)) is not None:
            opcode, payload = received
            if opcode == CLOSE:
                return str(int.from_bytes(payload[:2], "big"))
            # A follower tells what the leader left without an answer, as it closed, as unknown.
            if b'"id":"last"' in payload and b"outcome-unknown" not in payload:
                return OPEN
        return CLOSED


def _left(target: Target) -> list[str]:
    wires = [target.open(node) for node in (target.leader, target.follower) for _ in range(50)]
    for wire in wires:
        _shake(wire, "/v1/stream")
    target.check()
    for wire in wires:
        wire.socket.close()
    return [OPEN] * len(wires)


def _shake(wire: Wire, path: str, protocol: str = "raftq.v1.json") -> None:
    wire.send(request(path, *_HANDSHAKE, f"Sec-WebSocket-Protocol: {protocol}"))
    answer = wire.answer()
    assert answer is not None
    assert answer[0] == 101, answer


def _receive(wire: Wire) -> tuple[int, bytes] | None:
    head = wire.exactly(2)
    if head is None:
        return None
    size = head[1] & 0x7F
    if size > 125:
        longer = wire.exactly(2 if size == 126 else 8)
        if longer is None:
            return None
        size = int.from_bytes(longer, "big")
    payload = wire.exactly(size)
    return None if payload is None else (head[0] & 0xF, payload)
