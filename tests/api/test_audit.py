"""The audit log: a line for each admin operation, and for who was refused; floods are joined."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from raftq.api import audit, token
from raftq.api.app import routes
from raftq.api.auth import Need
from tests.api.conftest import Client, Serve
from tests.api.test_auth import BODIES, ask, name_of, open_stream
from tests.api.test_streams import put
from tests.api.tokens import ALL, bearer, guarded, header, made

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await guarded(serve)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as logs:
        yield logs


def told(lines: Lines, event: str = "operation") -> Lines:
    return [line for line in lines if line["event"] == event]


async def test_an_operation_is_told_with_who_what_and_what_came_of_it(client: Client, lines: Lines) -> None:
    mine = made(client, *ALL, namespace="team")
    await client("PUT", "/v1/queues/jobs", {}, headers=header(mine))
    await client("DELETE", "/v1/queues/none", headers=header(mine))
    await client("PUT", "/v1/topics/news/subscriptions/jobs", {}, headers=header(mine))
    [defined, removed, subscribed] = told(lines)
    assert defined == {
        "event": "operation",
        "log_level": "info",
        "token": mine.id,
        "token_name": "tests",
        "remote": "127.0.0.1",
        "method": "PUT",
        "route": "/v1/queues/{queue}",
        "namespace": "team",
        "resource": "jobs",
        "status": 201,
    }
    assert (removed["resource"], removed["status"]) == ("none", 404)
    assert (subscribed["resource"], subscribed["status"]) == ("news/jobs", 404)


async def test_it_is_told_where_no_tokens_are_needed_too(serve: Serve, lines: Lines) -> None:
    client = await serve()
    await client("PUT", "/v1/queues/jobs", {}, headers={"Raftq-Namespace": "team"})
    [line] = told(lines)
    assert (line["token"], line["token_name"], line["namespace"]) == ("-", "-", "team")


async def test_every_route_that_administers_is_told_and_no_other(client: Client, lines: Lines) -> None:
    headers = bearer(client, *ALL, namespace="*")
    for route in routes():
        before = len(told(lines))
        await ask(client, route, headers)
        assert len(told(lines)) - before == (route.needs in (Need.ADMIN, Need.CLUSTER)), name_of(route)
    assert set(BODIES) <= {name_of(route) for route in routes()}


async def test_who_is_refused_is_told(client: Client, lines: Lines) -> None:
    lacks, unknown = made(client, "produce:other"), token.new()
    await client("POST", "/v1/queues/jobs/messages", {"body": 1}, headers=header(lacks))
    await client("GET", "/v1/queues/jobs", headers=header(unknown))
    await client("DELETE", "/v1/queues/jobs")
    forbidden, wrong, none = told(lines, "refused")
    assert (forbidden["token"], forbidden["token_name"], forbidden["status"]) == (lacks.id, "tests", 403)
    assert (wrong["token"], wrong["claims"], wrong["status"]) == ("-", unknown.id, 401)
    assert (none["token"], none["status"], "claims" in none) == ("-", 401, False)
    assert (none["method"], none["route"], none["resource"]) == ("DELETE", "/v1/queues/{queue}", "jobs")
    assert not told(lines)


async def test_an_operation_of_a_stream_that_is_refused_is_told(client: Client, lines: Lines) -> None:
    mine = made(client, "produce:jobs")
    stream = await open_stream(client, header(mine))
    await stream.ask(put(1), put(2, queue="other"))
    await stream.socket.close()
    [line] = told(lines, "refused")
    assert (line["token"], line["method"], line["route"]) == (mine.id, "enqueue", "/v1/stream")
    assert (line["resource"], line["status"]) == ("other", 403)


async def test_what_is_sent_on_is_told_by_the_leader_alone(serve: Serve, lines: Lines) -> None:
    follower, leader = await guarded(serve), await guarded(serve)
    follower.node.follow(leader.node.url)
    mine = made(leader, *ALL)
    assert (await follower("PUT", "/v1/queues/jobs", {}, headers=header(mine))).status == 201
    assert (await follower("PUT", "/v1/queues/jobs", {}, headers=header(token.new()))).status == 401
    [line] = told(lines)
    assert (line["token"], line["forwarded_by"], line["remote"]) == (mine.id, "n1", "127.0.0.1")
    [refused] = told(lines, "refused")
    assert refused["forwarded_by"] == "n1"


async def test_a_flood_of_refusals_is_joined(client: Client, lines: Lines) -> None:
    lacks = bearer(client, "produce:other")
    for _ in range(50):
        await client("GET", "/v1/cluster")
    await client("GET", "/q/jobs", headers=lacks)
    refused = told(lines, "refused")
    assert len([line for line in refused if line["status"] == 401]) <= 2 * audit.LINES_A_SECOND
    assert [line["status"] for line in refused].count(403) == 1, "one kind of refusal does not hide the other"
    client.node.api.audit.close()
    joined = told(lines, "more refused")
    assert sum(line["requests"] for line in joined) + len(refused) == 51
    assert joined[0] == {
        "event": "more refused",
        "log_level": "info",
        "status": 401,
        "requests": joined[0]["requests"],
        "addresses": ["127.0.0.1"],
    }
    await client("GET", "/v1/cluster")
    assert len(told(lines, "refused")) == len(refused) + 1, "the next second begins anew"


async def test_what_was_joined_is_told_when_the_second_is_over(client: Client, lines: Lines) -> None:
    for _ in range(audit.LINES_A_SECOND + 1):
        await client("GET", "/v1/cluster")
    async with asyncio.timeout(10):
        while not told(lines, "more refused"):
            await asyncio.sleep(0.01)
    assert sum(line["requests"] for line in told(lines, "more refused")) <= 1


async def test_names_and_headers_cannot_forge_a_line(client: Client, lines: Lines) -> None:
    headers = bearer(client, *ALL) | {"Raftq-Forwarded": "n1\tstatus=200" + "x" * 500}
    await client("DELETE", "/v1/queues/a%0Astatus=200%1B%5B2J%E2%80%AE" + "y" * 500, headers=headers)
    [line] = told(lines)
    assert line["status"] == 422
    assert line["resource"].startswith(r"a\nstatus=200\x1b[2J\u202e")
    assert line["forwarded_by"].startswith(r"n1\tstatus=200")
    assert all(len(line[name]) < 200 for name in ("resource", "forwarded_by"))


async def test_the_namespace_of_the_request_before_is_not_told(client: Client, lines: Lines) -> None:
    await client("GET", "/v1/cluster", headers=bearer(client, *ALL, namespace="team"))
    await client("GET", "/v1/cluster")
    assert told(lines, "refused")[0]["namespace"] == "default"
