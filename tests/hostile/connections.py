"""Connections that are held, flooded, cut or repeated."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from functools import partial

import msgspec

from tests.hostile.attack import CLOSED, WAITING, Attack, Session, request
from tests.hostile.target import Target, Wire

_BODY = b'{"body":1}'
_ENQUEUE = request("/v1/queues/held/messages", method="POST", body=_BODY)
_FLOOD = 100


def attacks() -> Iterator[Attack]:
    slow = {
        "heads that come byte by byte": _ENQUEUE[:20],
        "heads that never end": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 50,
        "bodies that come byte by byte": _ENQUEUE[:-5],
        "connections that say nothing": b"",
        "a lease of a minute": request("/v1/queues/waited/lease", method="POST", body=b'{"wait_seconds":60}'),
        "100-continue, and no body": request("/q/held", "Expect: 100-continue", "Content-Length: 9", method="POST"),
    }
    yield Attack("slow clients", "(made)", _make_waited, frozenset({"201"}))
    for name, data in slow.items():
        run = partial(_hold, data=data)
        yield Attack("slow clients", f"{_FLOOD} {name}", run, frozenset({WAITING}))
    for name, path in {
        "1,000 small answers": "/healthz",
        "1,000 large answers": "/openapi.json",
        "1,000 pages": "/docs/swagger-ui-bundle.js",
    }.items():
        run = partial(_never_read, path=path)
        yield Attack("pipelined and never read", name, run, frozenset({WAITING}))
    yield Attack("pipelined and never read", "500 enqueues", _pipelined_enqueues, frozenset({"201", "307"}))
    for at in (1, 30, 80, len(_ENQUEUE) - 5, len(_ENQUEUE)):
        yield Attack(
            "resets",
            f"after {at} bytes, 50 times",
            partial(_reset, data=_ENQUEUE[:at]),
            frozenset({CLOSED}),
        )
    waiting = slow["a lease of a minute"]
    yield Attack("resets", "in a lease that waits, 50 times", partial(_reset, data=waiting), frozenset({CLOSED}))
    proxied = waiting.replace(b"Host: x\r\n", b"Host: x\r\nRaftq-Forward: proxy\r\n")
    yield Attack(
        "resets",
        "in a lease that waits, proxied, 50 times",
        partial(_reset, data=proxied),
        frozenset({CLOSED}),
    )
    yield Attack("resets", "connections that close at once, 500", _close, frozenset({CLOSED}))
    yield Attack(
        "half-closed connections", "after a whole request", _half_closed, frozenset({CLOSED, "201", "200", "307"})
    )
    yield Attack("replayed requests", "an enqueue, 20 times at each node", _replay_enqueue, frozenset({"201"}))
    yield Attack("replayed requests", "an enqueue with a dedup id", _replay_dedup, frozenset({"201"}))
    yield Attack("replayed requests", "a lease and its ack", _replay_lease, frozenset({"200"}))
    yield Attack("replayed requests", "an ack of another queue", _replay_elsewhere, frozenset({"200", "404", "422"}))


def _make_waited(target: Target) -> list[str]:
    return [str(target.ask("PUT", "/v1/queues/waited", {}).status)]


def _hold(target: Target, data: bytes) -> list[str]:
    """Many at once, that go on byte by byte between requests of others."""
    wires = [target.open(node) for node in (target.leader, target.follower) for _ in range(_FLOOD // 2)]
    for wire in wires:
        wire.send(data)
    target.check()
    for wire in wires:
        wire.send(b" " if data else b"")
    target.check()
    for wire in wires:
        wire.socket.close()
    return [WAITING] * len(wires)


def _never_read(target: Target, path: str) -> list[str]:
    """The node stops reading when nobody takes its answers, so that a send comes to its end."""
    wires = []
    for node in (target.leader, target.follower):
        wire = target.open(node)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.socket.settimeout(0.05)
        wire.send(request(path) * 1000)
        wires.append(wire)
    target.check()
    for wire in wires:
        wire.socket.close()
    return [WAITING] * 2000


def _pipelined_enqueues(target: Target) -> list[str]:
    with target.open(target.leader) as wire:
        wire.send(_ENQUEUE * 500 + request("/healthz", "Connection: close"))
        found = wire.answers()
    assert found == [201] * 500 + [200]
    return ["201"] * 500


def _reset(target: Target, data: bytes) -> list[str]:
    for node in (target.leader, target.follower):
        for _ in range(25):
            wire = target.open(node)
            wire.send(data)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.socket.close()
    return [CLOSED] * 50


def _close(target: Target) -> list[str]:
    for _ in range(250):
        for node in (target.leader, target.follower):
            Wire(target.ports[node]).socket.close()
    return [CLOSED] * 500


def _half_closed(target: Target) -> list[str]:
    found = []
    for node in (target.leader, target.follower):
        for data in (
            _ENQUEUE,
            request("/healthz"),
            request("/v1/queues/waited/lease", method="POST", body=b'{"wait_seconds":60}'),
        ):
            with target.open(node) as wire:
                wire.send(data)
                wire.end_sending()
                found += [str(status) for status in wire.answers()] or [CLOSED]
    return found


def _replay_enqueue(target: Target) -> list[str]:
    captured = request(
        "/v1/queues/replayed/messages",
        "Raftq-Forward: proxy",
        method="POST",
        body=b'{"body":"once","request_id":"captured"}',
    )
    found, answers = [], set()
    for node in target.ports:
        with Session(target, node) as session:
            for _ in range(20):
                status, answer = session.ask(captured)
                found.append(status)
                answers.add(msgspec.json.decode(answer)["messages"][0]["id"])
    assert len(answers) == 1, answers
    assert target.ask("GET", "/v1/queues/replayed/stats").json()["ready"] == 1
    return found


def _replay_dedup(target: Target) -> list[str]:
    given = {"body": "once", "dedup_id": "captured"}
    answers = [target.ask("POST", "/v1/queues/replayed-dedup/messages", given) for _ in range(20)]
    assert len({answer.json()["messages"][0]["id"] for answer in answers}) == 1
    assert target.ask("GET", "/v1/queues/replayed-dedup/stats").json()["ready"] == 1
    return [str(answer.status) for answer in answers]


def _replay_lease(target: Target) -> list[str]:
    queue = "/v1/queues/replayed"
    leases = [target.ask("POST", f"{queue}/lease", {"request_id": "captured"}) for _ in range(5)]
    [receipt] = {lease.json()["messages"][0]["receipt"] for lease in leases}
    acks = [target.ask("POST", f"{queue}/ack", {"receipts": [receipt]}) for _ in range(5)]
    assert {ack.json()["results"][0]["status"] for ack in acks} <= {"done", "gone"}
    assert target.ask("POST", f"{queue}/nack", {"receipts": [receipt]}).json()["results"][0]["status"] != "done"
    stats = target.ask("GET", f"{queue}/stats").json()
    assert (stats["ready"], stats["leased"]) == (0, 0)
    return [str(answer.status) for answer in (*leases, *acks)]


def _replay_elsewhere(target: Target) -> list[str]:
    """A receipt is no key to another queue, nor is one that was made up."""
    assert target.ask("POST", "/v1/queues/mine/messages", {"body": 1}).status == 201
    [message] = target.ask("POST", "/v1/queues/mine/lease", {}).json()["messages"]
    receipt = message["receipt"]
    number, lease, slot = (int(part) for part in receipt.split("."))
    assert target.ask("PUT", "/v1/queues/other", {}).status == 201
    guesses = [f"{number}.{lease + 1}.{slot}", f"{number}.{lease}.{slot + 1}", f"{number + 1}.{lease}.{slot}"]
    found = []
    for queue, receipts in (("other", [receipt]), ("mine", guesses[:1]), ("mine", guesses[1:2]), ("mine", guesses[2:])):
        answer = target.ask("POST", f"/v1/queues/{queue}/ack", {"receipts": receipts})
        if answer.status == 200:
            assert [result["status"] for result in answer.json()["results"]] == ["gone"]
        found.append(str(answer.status))
    assert target.ask("POST", "/v1/queues/mine/ack", {"receipts": [receipt]}).json()["results"][0]["status"] == "done"
    return found
