"""Requests without a token, with one that is none, and with one that may not do what it is used for."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from functools import partial

import msgspec

from raftq.api import token
from raftq.api.app import routes
from raftq.api.auth import Need
from raftq.api.routing import Route
from raftq.node.waiting import wait_until
from tests.hostile.attack import Attack, Session, request
from tests.hostile.target import Target

UNAUTHORIZED, FORBIDDEN = frozenset({"401"}), frozenset({"403"})
_STRANGE = {
    "no Authorization": (),
    "an empty one": ("Authorization:",),
    "no token": ("Authorization: Bearer",),
    "another scheme": (f"Authorization: Basic {base64.b64encode(b'admin:admin').decode()}",),
    "a token that is none": ("Authorization: Bearer admin",),
    "a token that never was": (f"Authorization: Bearer {token.text(token.new())}",),
    "a token in a cookie": (f"Cookie: token={token.text(token.new())}",),
    "bytes that are no text": (b"Authorization: Bearer rq_\xff\xfe_\xc0\xaf",),
    "a long one": ("Authorization: Bearer rq_" + "a" * 4000,),
    "forwarded, as by a node": ("Raftq-Forwarded: n1", "X-Forwarded-For: 127.0.0.1"),
}


def attacks() -> Iterator[Attack]:
    guarded = [route for route in routes() if route.needs not in (Need.NOTHING, Need.HEALTH)]
    for route in guarded:
        name = f"{route.method} {route.pattern}"
        # A follower leaves a token that it does not know to the leader, and no WebSocket is opened for it here.
        may = UNAUTHORIZED | {"400"} if route.pattern == "/v1/stream" else UNAUTHORIZED
        yield Attack("no token, or none that is one", name, partial(_strangers, route=route), may)
    yield Attack("tokens changed a little", "of the first token", _changed, UNAUTHORIZED)
    yield Attack("tokens changed a little", "in the query, and elsewhere", _elsewhere, UNAUTHORIZED)
    yield Attack("tokens after their time", "revoked, and used again", _revoked, UNAUTHORIZED)
    yield Attack("tokens after their time", "expired", _expired, UNAUTHORIZED)
    for route in guarded:
        if route.needs not in (Need.TOKEN, Need.EACH):
            name = f"{route.method} {route.pattern}"
            yield Attack("tokens that may do less", name, partial(_lesser, route=route), FORBIDDEN)
    yield Attack("tokens that may do less", "names beside the path", _beside, FORBIDDEN)
    yield Attack("tokens that may do less", "names almost theirs", _almost, frozenset({"403", "404", "422"}))
    yield Attack("tokens that may do less", "another namespace", _namespaces, FORBIDDEN)
    yield Attack("secrets", "are in no log, answer or process list", _untold, frozenset({"200"}))


def _path(route: Route, name: str = "guarded") -> str:
    return "/".join(name if part.startswith("{") else part for part in route.pattern.split("/"))


def _strangers(target: Target, route: Route) -> list[str]:
    """Sent with a body, which must not be looked at, to the leader and by way of a follower."""
    found = []
    with Session(target, target.leader) as leader, Session(target, target.follower) as follower:
        for headers in _STRANGE.values():
            data = request(_path(route), "Raftq-Forward: proxy", *headers, method=route.method, body=b"{")
            found += [session.ask(data, route.method)[0] for session in (leader, follower)]
    return found


def _make(target: Target, **given: object) -> str:
    answer = target.ask("POST", "/v1/tokens", {"name": "hostile", "namespace": "default", **given})
    assert answer.status == 201, answer
    made: str = answer.json()["token"]
    return made


def _used(target: Target, text: str | bytes, path: str, body: bytes = b"{}", method: str = "POST") -> list[str]:
    """To the leader, and by way of a follower."""
    shown = text if isinstance(text, bytes) else text.encode()
    data = request(path, "Raftq-Forward: proxy", b"Authorization: Bearer " + shown, method=method, body=body)
    found = []
    for node in (target.leader, target.follower):
        with Session(target, node) as session:
            found.append(session.ask(data, method)[0])
    return found


_CONSUME = [{"scope": "consume", "names": "mine"}]


def _changed(target: Target) -> list[str]:
    good = target.cluster.access.token
    assert good is not None
    other = "A" if good[-2] != "A" else "B"
    texts = (
        good[:-1],
        good + "A",
        good[:-2] + other + good[-1],
        good[:4] + secrets.token_hex(5) + good[14:],
        good.upper(),
        good.replace("rq_", "RQ_"),
        good + " x",
        f"{good},{good}",
        good.encode()[:-1] + "\uff21".encode(),
        good[:16],
    )
    return [status for text in texts for status in _used(target, text, "/v1/cluster/digest", method="GET")]


def _elsewhere(target: Target) -> list[str]:
    good = target.cluster.access.token
    queries = ("token", "access_token", "authorization", "Authorization")
    headers = ("X-Authorization", "Proxy-Authorization", "X-Api-Key", "Authorization2", "Sec-WebSocket-Protocol")
    requests = [request(f"/v1/queues?{query}={good}") for query in queries]
    requests += [request("/v1/queues", f"{header}: Bearer {good}") for header in headers]
    with Session(target, target.leader) as session:
        return [session.ask(data)[0] for data in requests]


def _revoked(target: Target) -> list[str]:
    text = _make(target, grants=_CONSUME)
    assert target.ask("PUT", "/v1/queues/mine", {}).status in (200, 201)
    assert _used(target, text, "/v1/queues/mine/lease") == ["200", "200"]
    answer = target.ask("DELETE", f"/v1/tokens/{token.Token(*text.split('_', 2)[1:]).id}")
    assert answer.status in (200, 204), answer
    return [status for _ in range(3) for status in _used(target, text, "/v1/queues/mine/lease")]


def _expired(target: Target) -> list[str]:
    text = _make(target, grants=_CONSUME, expires_seconds=1)
    wait_until(lambda: _used(target, text, "/v1/queues/mine/lease")[0] == "401", 10, "the end of a token")
    return _used(target, text, "/v1/queues/mine/lease")


def _lesser(target: Target, route: Route) -> list[str]:
    """Every scope on one name is none on another, nor on the cluster."""
    every = [{"scope": scope, "names": "mine*"} for scope in ("produce", "consume", "admin")]
    text = _remembered(target, every)
    return _used(target, text, _path(route, "guarded"), method=route.method)


def _remembered(target: Target, grants: list[dict[str, str]]) -> str:
    """One token of these grants, made once: there may be 10,000."""
    key = (target.cluster.folder, msgspec.json.encode(grants))
    if key not in _made:
        _made[key] = _make(target, grants=grants)
    return _made[key]


_made: dict[object, str] = {}


def _beside(target: Target) -> list[str]:
    text = _remembered(target, [{"scope": scope, "names": "mine*"} for scope in ("produce", "consume", "admin")])
    one = b'{"enqueue":{"queue":"%b","messages":[{"body":1}]}}'
    both = b'{"operations":[%b,%b]}' % (one % b"mine", one % b"guarded")
    asked = (
        ("PUT", "/v1/queues/mine", b'{"dead_letter_queue":"guarded"}'),
        ("POST", "/v1/queues/mine/redrive", b'{"to":"guarded"}'),
        ("POST", "/v1/transactions", both),
        ("PUT", "/v1/schedules/mine", b'{"cron":"* * * * *","queue":"guarded","message":{"body":1}}'),
        ("PUT", "/v1/topics/mine/subscriptions/guarded", b"{}"),
    )
    assert target.ask("PUT", "/v1/queues/guarded", {}).status in (200, 201)
    assert target.ask("PUT", "/v1/topics/mine", {}).status in (200, 201)
    return [status for method, path, body in asked for status in _used(target, text, path, body, method)]


def _almost(target: Target) -> list[str]:
    text = _remembered(target, [{"scope": "consume", "names": "mine"}])
    almost = (
        "mine2",
        "Mine",
        "mine.0",
        "mine.",
        "min",
        "mine%2f..%2fguarded",
        "mine%00",
        "%6dine2",
        "mine%20",
        "..%2fguarded",
    )
    found = [status for name in almost for status in _used(target, text, f"/v1/queues/{name}/lease")]
    assert _used(target, text, "/v1/queues/%6dine/lease") == ["200", "200"]
    return found


def _namespaces(target: Target) -> list[str]:
    text = _remembered(target, [{"scope": "consume", "names": "*"}])
    found = []
    with Session(target, target.leader) as leader, Session(target, target.follower) as follower:
        for path in ("/v1/queues/mine/lease", "/v1/queues/guarded/lease"):
            data = request(
                path,
                "Raftq-Forward: proxy",
                "Raftq-Namespace: other",
                f"Authorization: Bearer {text}",
                method="POST",
                body=b"{}",
            )
            found += [session.ask(data)[0] for session in (leader, follower)]
    return found


def _untold(target: Target) -> list[str]:
    """Neither the secrets of tokens nor the cluster's stand where others may read."""
    secure = target.cluster.secure
    assert secure is not None
    texts = [target.cluster.access.token or "", *_made.values()]
    found = [text.split("_", 2)[2].encode() for text in texts] + [(secure.path / "cluster.secret").read_bytes().strip()]
    places = [target.read_log(node) for node in target.ports] + [target.command_line(node) for node in target.ports]
    asked = ("/metrics", "/v1/tokens", "/v1/cluster", "/openapi.json", "/v1/queues")
    answers = [target.ask("GET", path) for path in asked]
    places += [answer.text.encode() for answer in answers]
    for secret in found:
        assert len(secret) > 30
        assert not any(secret in place for place in places)
    return [str(answer.status) for answer in answers]
