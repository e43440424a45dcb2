"""Any bytes over any route: an answer that is no 500, in time, from a node that serves on.

Requests are drawn near to valid ones (every route, real bodies with a few bytes changed) and far from them, and sent
raw to a leader and to a follower that redirects or proxies to it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftq.api.app import routes
from raftq.api.ports import Limits
from raftq.api.routing import Route
from tests.api import conformance
from tests.api.shard import LocalNode

LIMITS = Limits(
    wait_seconds=0.02,
    read_seconds=0.02,
    linger_seconds=0.01,
    batch_bytes=20_000,
    request_bytes=10_000,
    body_bytes=5_000,
)
MESSAGE = {"body": {"a": [1, "é"]}, "attributes": {"k": 1.5}, "priority": 3, "delay_seconds": 0.5, "dedup_id": "d"}
RECEIPTS = {"receipts": ["1.1.0", "1.1.1", "2.1.0"], "request_id": "r", "request_seconds": 5}
QUEUE = {
    "lease_seconds": 1,
    "delay_seconds": 0,
    "dedup_window_seconds": 9,
    "paused": False,
    "retention_seconds": None,
    "dead_letter_queue": "dead",
    "max_failures": 1,
    "backoff": {"initial_seconds": 0.001, "factor": 1.5, "max_seconds": 1},
    "max_messages": 50,
    "max_bytes": 5_000,
}
BATCH = {"messages": [MESSAGE, {"body": None}, {"body": "eA==", "encoding": "base64"}], "request_id": "e"}
#: By the last segment of a route.
VALID: dict[str, list[Any]] = {
    "messages": [MESSAGE, BATCH],
    "lease": [{"max": 3, "lease_seconds": 0.5, "wait_seconds": 0.01, "request_id": "l"}, {"max": 2}, {"groups": ["a"]}],
    "ack": [RECEIPTS],
    "nack": [RECEIPTS | {"delay_seconds": 1, "request_id": "n"}],
    "release": [RECEIPTS | {"request_id": "s"}],
    "reject": [RECEIPTS | {"request_id": "j", "reason": "bad é"}],
    "extend": [RECEIPTS | {"lease_seconds": 1, "request_id": "x"}],
    "leader": [{"node": None}],
    "{queue}": [QUEUE, MESSAGE],
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def _body(draw: st.DrawFn, route: Route, content_type: str) -> bytes:
    kind = draw(st.sampled_from(["valid", "valid", "valid", "changed", "changed", "random", "empty"]))
    if kind == "random":
        return draw(st.binary(max_size=200))
    values = VALID.get(route.pattern.rpartition("/")[2])
    if kind == "empty" or values is None:
        return b""
    value = draw(st.sampled_from(values))
    if draw(st.integers(0, 4)) == 0:
        value = value | {draw(st.sampled_from([*value, "group", "groups", "zz"])): draw(JSON_VALUES)}
    encode = msgspec.msgpack.encode if content_type == "application/msgpack" else msgspec.json.encode
    try:
        data = encode(value)
    except (OverflowError, UnicodeEncodeError):
        return b"{}"
    return _changed(draw, data) if kind == "changed" else data


def _changed(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(changed)


def _target(draw: st.DrawFn, route: Route) -> bytes:
    if draw(st.integers(0, 19)) == 0:
        return b"/" + draw(st.binary(max_size=40)).translate(None, b" \r\n\0#")
    target = route.pattern
    texts = {"{queue}": ["jobs", "jobs", "jobs", "other"], "{id}": ["1-0-1", "1-3-1"], "{receipt}": ["1.1.0", "2.1.9"]}
    for parameter, good in texts.items():
        bad = draw(st.integers(0, 9)) == 0
        text = draw(st.sampled_from(["a%20b", "%ff", "%2E", "x" * 129, ""] if bad else good))
        target = target.replace(parameter, text)
    names = [*sorted(route.query) * 3, "zz", "%ff"]
    values = ["0.01", "1", "0", "-1", "ready", "leased", "delayed", "true", "stale", "1-1", "9-9", "x", "%ff", "9" * 30]
    query = draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(values)), max_size=2))
    return (target + ("?" if query else "") + "&".join("=".join(pair) for pair in query)).encode()


TYPES = ["application/json", "application/msgpack", "text/plain", "*/*", "application/json; charset=utf-8", "é", ";,"]
HEADERS = st.tuples(
    st.sampled_from(
        ["Accept", "Raftq-Forward", "Raftq-Forwarded", "Authorization", "X-Y", "Expect", "Content-Encoding"]
    ),
    st.sampled_from([*TYPES, "proxy", "proxy", "100-continue", "Bearer x", ""]),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    route = draw(st.sampled_from(routes()))
    other = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"])
    method = draw(other) if draw(st.integers(0, 19)) == 0 else route.method
    content_type = draw(st.sampled_from([*TYPES, *TYPES[:2] * 5]))
    body, target = _body(draw, route, content_type), _target(draw, route)
    lines = [f"{method} ".encode() + target + b" HTTP/1.1", b"Host: x", b"Connection: close"]
    lines.append(f"Content-Type: {content_type}".encode())
    lines += [f"{name}: {value}".encode() for name, value in draw(st.lists(HEADERS, max_size=2))]
    framing = draw(st.integers(0, 9))
    if framing == 0:
        lines.append(b"Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    else:
        # Now and then it says that more is to come than does.
        lines.append(b"Content-Length: %d" % (len(body) + (5 if framing == 1 else 0)))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


#: An answer of ours, and its content type: what is no HTTP is answered by aiohttp.
_AS_ANSWERED = re.compile(rb"Server: raftq\r\nContent-Type: ([^\r]*)")


class Fuzzed:
    """A leader with something in its queues, and a follower."""

    async def start(self) -> None:
        self.leader, self.follower = LocalNode(limits=LIMITS), LocalNode("n2", limits=LIMITS)
        self.follower.follow(await self.leader.start())
        await self.follower.start()
        for path, value in (("messages", BATCH), ("lease", {"max": 2})):
            data = msgspec.json.encode(value)
            head = f"POST /v1/queues/jobs/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
            await self.send(self.leader, head.encode() + b"Connection: close\r\n\r\n" + data)

    async def stop(self) -> None:
        await self.follower.api.stop()
        await self.leader.api.stop()

    async def send(self, node: LocalNode, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[tuple[asyncio.Runner, Fuzzed]]:
    nodes = Fuzzed()
    with asyncio.Runner() as runner:
        runner.run(_start(nodes))
        yield runner, nodes
        runner.run(nodes.stop())


async def _start(nodes: Fuzzed) -> None:
    await nodes.start()


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=requests(), to_leader=st.booleans())
def test_any_request_is_answered(fuzzed: tuple[asyncio.Runner, Fuzzed], data: bytes, to_leader: bool) -> None:
    runner, nodes = fuzzed
    node = nodes.leader if to_leader else nodes.follower
    answer = runner.run(nodes.send(node, data))
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12])
    assert 200 <= status < 600, answer
    assert status != 500, answer
    if found := _AS_ANSWERED.search(head):
        method, target, _ = data.split(b" ", 2)
        conformance.check(method.decode(), target.decode("latin-1"), status, found[1].decode(), body)
    if b"application/problem+json" in head and not data.startswith(b"HEAD"):
        problem = msgspec.json.decode(body)
        assert problem["status"] == status
        assert problem["applied"] in ("no", "unknown")
    assert nodes.leader.api.in_flight == nodes.follower.api.in_flight == 0
