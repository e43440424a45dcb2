"""Requests that a follower passes on to the leader, with headers that mean to mislead the one or the other."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.attack import REFUSED, Attack, Session, request, sent
from tests.hostile.target import Target

_BODY = b'{"body":1}'
_MESSAGES = "/v1/queues/proxied/messages"


def attacks() -> Iterator[Attack]:
    proxied = {
        "Connection names Authorization": "Connection: Authorization\r\nAuthorization: Bearer x",
        "Connection names what the node adds": "Connection: Raftq-Forwarded, Content-Length, Host",
        "Connection names the namespace": "Connection: Raftq-Namespace\r\nRaftq-Namespace: default",
        "Connection names all": "Connection: *",
        "Keep-Alive": "Keep-Alive: timeout=999999, max=999999",
        "TE and Trailer": "TE: trailers\r\nTrailer: Authorization",
        "an Upgrade": "Connection: Upgrade\r\nUpgrade: h2c",
        "Proxy-Connection": "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic YTpi",
        "another method": "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE",
        "another path": "X-Original-URL: /v1/cluster/nodes/n1\r\nX-Rewrite-URL: /v1/cluster/nodes/n1",
        "another address": "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Real-IP: ::1",
        "another host": "X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https",
        "a cookie": "Cookie: " + "a=b; " * 500,
        "60 headers": "\r\n".join(f"X-{number}: y" for number in range(60)),
        "WebSocket's headers": "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
        "bytes that are no UTF-8": "X-Y: \udcff\udcfe",
        "Accept-Encoding": "Accept-Encoding: gzip, br, zstd",
        "a Range": "Range: bytes=0-0,5-\r\nIf-Match: *\r\nIf-None-Match: *",
    }
    for name, lines in proxied.items():
        data = request(
            _MESSAGES, "Raftq-Forward: proxy", lines.encode("utf-8", "surrogateescape"), method="POST", body=_BODY
        )
        yield sent("headers to a follower that proxies", name, data, {"201"})
    for name, value in {"a node": "n1", "itself": "n2", "nothing": "", "many": "n1, n2, n3"}.items():
        # It claims that another node has forwarded it: no node forwards it again, so that it never goes in circles.
        data = request(_MESSAGES, "Raftq-Forward: proxy", f"Raftq-Forwarded: {name}", method="POST", body=_BODY)
        yield sent("Raftq-Forwarded from a client", f"{name}: {value!r}", data, {"201", "503"})
    for value in ("redirect", "PROXY", "proxy, proxy", "http://evil.example/", "\u0130", "1"):
        data = request(_MESSAGES, f"Raftq-Forward: {value}", method="POST", body=_BODY)
        yield sent("Raftq-Forward of other values", repr(value), data, REFUSED)
    twice = request(_MESSAGES, "Raftq-Forward: proxy", "Raftq-Forward: x", method="POST", body=_BODY)
    yield sent("Raftq-Forward of other values", "twice", twice, REFUSED | {"201"})
    yield Attack("redirects", "a Host or path that would send elsewhere", _redirected, frozenset({"307"}))
    yield Attack(
        "redirects", "proxied, then not: no answer of another", _not_mixed_up, frozenset({"200", "201", "404", "422"})
    )


def _redirected(target: Target) -> list[str]:
    """The Location is the leader's, whatever the client says of hosts, and one line."""
    found = []
    hosts = ("evil.example", "evil.example:80@x", "[::1]", "x\tevil.example", "")
    paths = (
        "/v1/queues/a/lease",
        "/v1/queues/%0d%0aX:%20y/lease",
        "/v1/queues/a%22%3e/lease",
        "/v1/queues/a/lease?x=%0a\xe9",
    )
    leads = f"\r\nLocation: {target.cluster.url(target.leader)}/v1/queues/".encode()
    for host in hosts:
        for path in paths:
            with target.open(target.follower) as wire:
                wire.send(
                    f"POST {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.example\r\n\r\n".encode("latin-1")
                )
                answer = wire.head()
            if b" 307 " in answer:
                assert answer.count(leads) == 1, answer
                assert b"evil" not in answer.partition(b"Location:")[2].partition(b"\r\n")[0]
                assert b"\r\nX:" not in answer
                found.append("307")
    return found


def _not_mixed_up(target: Target) -> list[str]:
    """One connection of the follower to the leader serves many clients: each gets its own answer."""
    found = []
    with Session(target, target.follower) as one, Session(target, target.follower) as two:
        for number in range(50):
            bad = request("/v1/queues/../lease", "Raftq-Forward: proxy", method="POST", body=b"{" * (number % 3))
            body = b'{"body":%d}' % number
            good = request(_MESSAGES, "Raftq-Forward: proxy", method="POST", body=body)
            assert one.ask(bad)[0] in REFUSED
            status, answer = two.ask(good)
            assert status == "201", answer
            found.append(status)
    return found
