"""Requests that are not HTTP, or are framed so that two readers could disagree where they end."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.attack import BROKEN, CLOSED, REFUSED, Attack, request, sent

#: Of a head that is over a limit.
_TOO_MUCH = BROKEN | {"414", "431"}
BODY = b'{"body":1}'
#: Done, it would make a queue that must not be there at the end.
SMUGGLED = request("/v1/queues/smuggled/messages", method="POST", body=BODY)
_ENQUEUE = b"POST /v1/queues/framed/messages HTTP/1.1\r\nHost: x\r\n"
_GET = b"GET /healthz HTTP/1.1\r\n"


def attacks() -> Iterator[Attack]:
    yield from _lines()
    yield from _headers()
    yield from _truncated()
    yield from _huge()
    yield from _lengths()
    yield from _codings()
    yield from _chunks()
    yield from _other_protocols()


def _lines() -> Iterator[Attack]:
    lines = {
        "a method in small letters": b"get /healthz HTTP/1.1",
        "a method of symbols": b"G@T /healthz HTTP/1.1",
        "no target": b"GET HTTP/1.1",
        "no version": b"GET /healthz",
        "tabs between": b"GET\t/healthz\tHTTP/1.1",
        "a vertical tab between": b"GET\x0b/healthz HTTP/1.1",
        "a space in the target": b"GET /health z HTTP/1.1",
        "NUL in the target": b"GET /health\0z HTTP/1.1",
        "NUL in the method": b"GE\0T /healthz HTTP/1.1",
        "DEL in the target": b"GET /health\x7fz HTTP/1.1",
        "version 1.2": b"GET /healthz HTTP/1.2",
        "version 3.0": b"GET /healthz HTTP/3.0",
        "version 1.10": b"GET /healthz HTTP/1.10",
        "a negative version": b"GET /healthz HTTP/-1.1",
        "another protocol's name": b"GET /healthz ICY/1.1",
        "a space before": b" GET /healthz HTTP/1.1",
        "BOM before": b"\xef\xbb\xbfGET /healthz HTTP/1.1",
    }
    for name, line in lines.items():
        yield sent("malformed request lines", name, line + b"\r\nHost: x\r\n\r\n", BROKEN)
    targets = {
        "absolute form of another host": (b"http://evil.example/healthz", {"200"}),
        "absolute form without a path": (b"http://evil.example", {"200", "404"}),
        "absolute form, port out of range": (b"http://x:99999999/healthz", BROKEN),
        "absolute form, open bracket": (b"http://[::1/healthz", BROKEN),
        "absolute form, a file": (b"file:///etc/passwd", REFUSED),
        "user and password": (b"http://a:b@x/healthz", {"200", "400"}),
        "asterisk": (b"*", REFUSED),
        "two slashes": (b"//evil.example/healthz", REFUSED),
        "backslashes": (b"\\healthz", REFUSED),
        "no slash": (b"healthz", REFUSED),
    }
    for name, (target, may) in targets.items():
        yield sent("targets in other forms", name, request(target), may)
    for name, line in {
        "authority form": b"CONNECT evil.example:443",
        "CONNECT with a path": b"CONNECT /healthz",
    }.items():
        yield sent("targets in other forms", name, line + b" HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED)


def _headers() -> Iterator[Attack]:
    lines = {
        "no colon": b"X-Y",
        "no name": b": y",
        "a space before the colon": b"X-Y : y",
        "a tab before the colon": b"X-Y\t: y",
        "a space in the name": b"X Y: y",
        "a line folded": b"X-Y: y\r\n z",
        "a line folded with a tab": b"X-Y: y\r\n\tz",
        "a bare line feed": b"X-Y: y\nX-Z: z",
        "a bare carriage return": b"X-Y: y\rX-Z: z",
        "NUL in a value": b"X-Y: a\0b",
        "NUL in a name": b"X\0Y: b",
        "control characters in a value": b"X-Y: \x01\x02\x1b[2J",
        "invalid UTF-8 in a name": b"X-\xff: y",
        "a second Host": b"Host: y",
        "an old WebSocket's key": b"Sec-WebSocket-Key1: 1",
    }
    for name, line in lines.items():
        data = _GET + b"Host: x\r\n" + line + b"\r\n\r\n"
        yield sent("malformed headers", name, data, BROKEN)
    yield sent("malformed headers", "a fold before the first", _GET + b" X: y\r\nHost: x\r\n\r\n", BROKEN)
    yield sent("malformed headers", "no Host", _GET + b"\r\n", BROKEN)
    yield sent("malformed headers", "bare line feeds alone", b"GET /healthz HTTP/1.1\nHost: x\n\n", BROKEN)
    values = {
        "a namespace that is a path": b"Raftq-Namespace: ../../etc",
        "a namespace in invalid UTF-8": b"Raftq-Namespace: \xff\xfe",
        "an empty namespace": b"Raftq-Namespace:",
        "a long namespace": b"Raftq-Namespace: " + b"n" * 129,
        "Raftq-Forward of another value": b"Raftq-Forward: http://evil.example/",
        "Raftq-Forward in invalid UTF-8": b"Raftq-Forward: \xff",
    }
    for name, line in values.items():
        yield sent("malformed headers", name, request("/v1/queues", line), REFUSED)


def _truncated() -> Iterator[Attack]:
    """What is cut off and goes no further; the front cuts what stays silent by its own clock."""
    head = _ENQUEUE + b"Content-Length: 10\r\nContent-Type: application/json\r\n\r\n"
    for cut in range(0, len(head), 6):
        yield sent("truncated heads", f"{cut} bytes", head[:cut], BROKEN, cut=True)
    for cut in range(len(BODY)):
        yield sent("truncated bodies", f"{cut} bytes of 10", head + BODY[:cut], {CLOSED}, cut=True)
    chunked = _ENQUEUE + b"Transfer-Encoding: chunked\r\n\r\n"
    for rest in (
        b"",
        b"a",
        b"a\r\n",
        b"a\r\n{",
        b"a\r\n" + BODY,
        b"a\r\n" + BODY + b"\r\n",
        b"a\r\n" + BODY + b"\r\n0\r\n",
    ):
        yield sent("truncated bodies", f"chunked, ends in {rest!r}", chunked + rest, {CLOSED}, cut=True)


def _huge() -> Iterator[Attack]:
    for size in (20_000, 100_000, 2_000_000):
        yield sent("huge heads", f"a target of {size}", b"GET /" + b"a" * size, _TOO_MUCH, last=False)
        yield sent("huge heads", f"a value of {size}", _GET + b"X: " + b"a" * size, _TOO_MUCH, last=False)
        yield sent("huge heads", f"a name of {size}", _GET + b"X" * size, _TOO_MUCH, last=False)
        yield sent("huge heads", f"a method of {size}", b"A" * size, _TOO_MUCH, last=False)
    for count in (200, 20_000):
        data = _GET + b"Host: x\r\n" + b"X: y\r\n" * count
        yield sent("huge heads", f"{count} headers", data, _TOO_MUCH, cut=True)
    yield sent("huge heads", "500,000 empty lines", b"\r\n" * 500_000, _TOO_MUCH, cut=True)
    over = {"1 byte over": 8 * 1024 * 1024 + 1, "a terabyte": 1 << 40, "the most that fits": (1 << 63) - 1}
    for name, size in over.items():
        data = _ENQUEUE + b"Content-Length: %d\r\n\r\n" % size + BODY
        yield sent("huge bodies", f"announced: {name}", data, {"413"}, last=False)
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    data = _ENQUEUE + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 9
    yield sent("huge bodies", "9 MiB in chunks, without an end", data, {"413"}, last=False)
    body = b'{"body":"' + b"x" * (1 << 20) + b'"}'
    yield sent("huge bodies", "a message 1 MiB and over", _with_length(len(body)) + body, {"413"})


def _with_length(size: int) -> bytes:
    return _ENQUEUE + b"Content-Length: %d\r\n\r\n" % size


def _lengths() -> Iterator[Attack]:
    wrong = (
        "-1",
        "+10",
        "0x0a",
        "1e1",
        "10.0",
        "1_0",
        "",
        " ",
        "ten",
        "10, 10",
        "10,0",
        "10 10",
        "\uff11\uff10",
        "9" * 30,
        "18446744073709551626",
    )
    for text in wrong:
        data = _ENQUEUE + b"Content-Length: " + text.encode() + b"\r\n\r\n" + BODY + SMUGGLED
        yield sent("Content-Length that lies", f"{text[:30]!r}", data, BROKEN)
    for first, second in ((10, 0), (0, 10), (10, 10)):
        data = _ENQUEUE + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (first, second) + BODY + SMUGGLED
        yield sent("Content-Length that lies", f"{first} and {second}", data, BROKEN)
    yield sent("Content-Length that lies", "too long", _with_length(1000) + BODY, {CLOSED}, cut=True)
    # What is over is a request of its own, and no good one.
    yield sent("Content-Length that lies", "too short", _with_length(9) + BODY, {"400"})
    yield sent("Content-Length that lies", "none", _ENQUEUE + b"\r\n" + BODY, {"400", "422"})


def _codings() -> Iterator[Attack]:
    end = b"\r\n\r\n0\r\n\r\n" + SMUGGLED
    lines = {
        "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked",
        "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        "CL.TE with a tab": b"Content-Length: 6\r\nTransfer-Encoding:\tchunked",
        "CL.0 beside TE": b"Content-Length: 0\r\nTransfer-Encoding: chunked",
        "twice, identity last": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "twice, identity first": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "twice the same": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "chunked, identity": b"Transfer-Encoding: chunked, identity",
        "chunked, chunked": b"Transfer-Encoding: chunked, chunked",
        "gzip, chunked": b"Transfer-Encoding: gzip, chunked",
        "identity, chunked": b"Transfer-Encoding: identity, chunked",
        "an empty one, chunked": b"Transfer-Encoding: , chunked",
        "identity": b"Transfer-Encoding: identity",
        "xchunked": b"Transfer-Encoding: xchunked",
        "chunkedx": b"Transfer-Encoding: chunkedx",
        "chunked;": b"Transfer-Encoding: chunked;q=1",
        "quoted": b'Transfer-Encoding: "chunked"',
        "a space before the colon": b"Transfer-Encoding : chunked",
        "a space before the name": b"X: y\r\n Transfer-Encoding: chunked",
        "a vertical tab": b"Transfer-Encoding:\x0bchunked",
        "NUL after": b"Transfer-Encoding: chunked\0",
        "folded": b"Transfer-Encoding:\r\n chunked",
        "an underscore": b"Content-Length: 5\r\nTransfer_Encoding: chunked\r\nTransfer-Encoding: x",
        "a bare line feed": b"X: y\nTransfer-Encoding: chunked",
        "a bare carriage return": b"X: y\rTransfer-Encoding: chunked",
        "empty": b"Transfer-Encoding:",
        "a zero-width space": "Transfer-Encoding: \u200bchunked".encode(),
    }
    for name, line in lines.items():
        yield sent("smuggling", name, _ENQUEUE + line + end, BROKEN)
    old = _ENQUEUE.replace(b"1.1", b"1.0")
    chunked = b"Transfer-Encoding: chunked\r\n\r\na\r\n" + BODY + b"\r\n0\r\n\r\n"
    yield sent("smuggling", "chunked in HTTP/1.0", old + chunked + SMUGGLED, BROKEN)
    kept = old + b"Connection: keep-alive\r\n" + chunked
    yield sent("smuggling", "chunked in HTTP/1.0, kept alive", kept + SMUGGLED, BROKEN)
    for method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        # A body where none is due is read as one, and what is in it is no request.
        data = request("/v1/queues/framed", method=method, body=SMUGGLED)
        yield sent("smuggling", f"a request as the body of {method}", data, {"200", "404", "405"})
    upgrade = request("/healthz", "Connection: Upgrade", "Upgrade: websocket", body=SMUGGLED)
    yield sent("smuggling", "a request as the body of an Upgrade", upgrade, {"200"})
    inner = request("/v1/queues/framed/messages?\r\nX: " + "y", method="POST", body=BODY)
    yield sent("smuggling", "a line break in the target", inner, BROKEN)
    for text in ("%0d%0aX:%20y", "%0d%0a%0d%0aGET%20/v1/queues/smuggled", "\u560d\u560a"):
        may = {"400", "404", "422"}
        yield sent("smuggling", f"a line break as {text!r}", request(f"/v1/queues/a{text}/stats"), may)


def _chunks() -> Iterator[Attack]:
    good = b"a\r\n" + BODY + b"\r\n0\r\n\r\n"
    bodies = {
        "a negative size": b"-a\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a size of 17 digits": b"fffffffffffffffff\r\n" + BODY,
        "a size in 0x": b"0xa\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a size with a sign": b"+a\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a size with an underscore": b"0_a\r\n" + BODY + b"\r\n0\r\n\r\n",
        "no size": b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a space before the size": b" a\r\n" + BODY + b"\r\n0\r\n\r\n",
        "bare line feeds": good.replace(b"\r\n", b"\n"),
        "a bare carriage return": good.replace(b"a\r\n", b"a\r"),
        "an extension with a bare line feed": b"a;x\ny\r\n" + BODY + b"\r\n0\r\n\r\n",
        "an extension with NUL": b"a;\0\r\n" + BODY + b"\r\n0\r\n\r\n",
        "longer than its size": b"9\r\n" + BODY + b"\r\n0\r\n\r\n",
        "shorter than its size": b"b\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a trailer that is a length": b"a\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n",
        "a trailer without a colon": b"a\r\n" + BODY + b"\r\n0\r\nX\r\n\r\n",
    }
    chunked = _ENQUEUE + b"Transfer-Encoding: chunked\r\n\r\n"
    for name, body in bodies.items():
        # A follower may have answered before the body came.
        yield sent("malformed chunks", name, chunked + body + SMUGGLED, BROKEN)
    long = b"a;" + b"x" * 100_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    yield sent("malformed chunks", "an extension of 100,000", chunked + long, {*BROKEN, "201"})
    tiny = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"body":"' + b"x" * 20_000 + b'"}') + b"0\r\n\r\n"
    yield sent("malformed chunks", "20,000 of one byte", chunked + tiny, {"201"})
    trailers = good[:-2] + b"X: y\r\n" * 20_000 + b"\r\n"
    yield sent("malformed chunks", "20,000 trailers", chunked + trailers, {*_TOO_MUCH, "201"})


def _other_protocols() -> Iterator[Attack]:
    tls = bytes.fromhex("16030102000100 01fc0303") + bytes(500)
    protocols = {
        "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "TLS 1.3's hello": tls,
        "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
        "Redis": b"*1\r\n$4\r\nPING\r\n",
        "AMQP": b"AMQP\0\0\x09\x01",
        "PostgreSQL": bytes.fromhex("0000000804d2162f"),
        "a frame of a peer": b"\0\0\0\x10" + bytes(16),
        "all zeros": bytes(100_000),
        "all ones": b"\xff" * 100_000,
        "HTTP/0.9": b"GET /v1/queues\r\n\r\n",
        "SMTP": b"EHLO evil.example\r\nMAIL FROM:<a@b>\r\n",
    }
    for name, data in protocols.items():
        yield sent("other protocols at the API", name, data, BROKEN, cut=True)
    h2c = request("/healthz", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    yield sent("other protocols at the API", "an upgrade to h2c", h2c, {"200"})
    for name in ("TLS/1.0", "websocket, h2c", "tcp", "\u0130"):
        data = request("/healthz", "Connection: Upgrade", f"Upgrade: {name}")
        yield sent("other protocols at the API", f"an upgrade to {name!r}", data, {"200", "400"})
