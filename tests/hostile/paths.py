"""Paths and queries that mean to be elsewhere, on every route."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from raftq.api.app import routes
from raftq.api.routing import Route
from tests.hostile.attack import CLOSED, REFUSED, Attack, Session, request
from tests.hostile.target import Target

#: None is the name of anything.
SEGMENTS = (
    "..",
    ".",
    "%2e%2e",
    "%2e",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cwindows%5cwin.ini",
    "%252e%252e%252fetc%252fpasswd",
    "....%2f%2fetc",
    "..;",
    "%2fetc%2fpasswd",
    "a%2fb",
    "a%00.css",
    "%00",
    "%c0%ae%c0%ae%c0%af",
    "%e0%80%ae",
    "%f0%80%80%ae",
    "%c0%af",
    "%ff",
    "%ed%a0%80",
    "%",
    "%zz",
    "%u002e",
    "%0d%0a",
    "%e2%80%ae",
    "%ef%bc%8e%ef%bc%8e",
    "%f0%9f%92%a9",
    "*",
    "~root",
    "$HOME",
    "a" * 129,
    "%20",
    "\\",
)
_QUERIES = (
    "{}=..%2f..%2fetc%2fpasswd",
    "{}=%00",
    "{}=%ff",
    "{}=%c0%ae",
    "{}=%ed%a0%80",
    "{}=1e999",
    "{}=NaN",
    "{}=-1",
    "{0}=1&{0}=2",
    "{}[]=1",
    "{}=" + "9" * 400,
    "{}=" + "x" * 4000,
    "%ff=1",
    "x=1",
    "&".join(["x=1"] * 200),
)


def attacks() -> Iterator[Attack]:
    for route in routes():
        name = f"{route.method} {route.pattern}"
        if "{" in route.pattern:
            yield Attack("path traversal on every route", name, partial(_walk, route=route), REFUSED)
        if "GET" in route.method:
            may = REFUSED | {"200", "204"}
            yield Attack("queries on every route", name, partial(_ask, route=route), may)
    files = [
        f"/docs/{segment}{name}"
        for segment in ("../", "..//", "%2e%2e/", "")
        for name in ("app.py", "start.js/../x", "")
    ]
    files += [
        "/../../etc/passwd",
        "/./docs",
        "/docs/./start.js",
        "//docs/start.js",
        "/docs;/start.js",
        "/docs\\start.js",
    ]
    yield Attack("path traversal on every route", "dot segments", partial(_get, paths=files), REFUSED)


def _walk(target: Target, route: Route) -> list[str]:
    found = []
    with Session(target, target.leader) as leader, Session(target, target.follower) as follower:
        for segment in SEGMENTS:
            path = "/".join(segment if part.startswith("{") else part for part in route.pattern.split("/"))
            # As it is proxied: what the one takes apart the other does not put together otherwise.
            data = request(path, "Raftq-Forward: proxy", method=route.method, body=b"" if route.leader else None)
            found += [session.ask(data, route.method)[0] for session in (leader, follower)]
    return found


def _ask(target: Target, route: Route) -> list[str]:
    path = "/".join("framed" if part.startswith("{") else part for part in route.pattern.split("/"))
    found = []
    with Session(target, target.leader) as session:
        for query in _QUERIES:
            asked = [f"{path}?{query.format(name)}" for name in sorted(route.query) or ["x"]]
            found += [session.ask(request(each), route.method)[0] for each in asked]
    assert CLOSED not in found
    return found


def _get(target: Target, paths: list[str]) -> list[str]:
    with Session(target, target.follower) as session:
        return [session.ask(request(path))[0] for path in paths]
