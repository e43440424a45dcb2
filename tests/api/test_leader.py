from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from raftq.api import problems
from raftq.api.problems import Problem
from raftq.replication.shard import DiskReserve, NotLeader, OutcomeUnknown, Overloaded, ShardError, Stopping
from tests.api.conftest import Client, Serve
from tests.api.test_leases import Raw, until

MESSAGES = "/v1/queues/jobs/messages"
PROXY = {"Raftq-Forward": "proxy"}


@pytest.fixture
async def pair(serve: Serve) -> tuple[Client, Client]:
    """A follower, and the leader that it knows."""
    follower, leader = await serve(), await serve()
    follower.node.follow(leader.node.url)
    return follower, leader


async def test_a_follower_redirects_with_path_and_query(pair: tuple[Client, Client]) -> None:
    follower, leader = pair
    for method, path in (
        ("POST", MESSAGES),
        ("GET", f"{MESSAGES}?limit=5&state=ready"),
        ("PUT", "/v1/queues/a%2Fb"),
        ("GET", "/v1/stats"),
        ("GET", "/v1/cluster/digest"),
    ):
        reply = await follower(method, path)
        assert (reply.status, reply.headers["Location"]) == (307, leader.node.url + path)
        assert reply.json["type"] == "https://raftq.dev/problems/not-leader"


async def test_what_a_follower_answers_itself(pair: tuple[Client, Client]) -> None:
    follower, _ = pair
    for path in ("/v1/queues?consistency=stale", "/v1/stats?consistency=stale", "/v1/cluster", "/metrics", "/readyz"):
        assert (await follower("GET", path)).status == 200, path


async def test_a_follower_proxies_for_those_that_cannot_follow(pair: tuple[Client, Client]) -> None:
    follower, leader = pair
    for headers in (PROXY, {"Authorization": "Bearer x"}):
        reply = await follower("POST", MESSAGES, {"body": "x" * 900_000}, headers=headers)
        assert (reply.status, reply.headers["Content-Type"]) == (201, "application/json")
    large = {"messages": [{"body": "x" * 900_000}] * 5}
    assert (await follower("POST", MESSAGES, large, headers=PROXY)).status == 201
    assert (await follower("POST", "/q/jobs", data=b"hello")).status == 201
    assert (await follower("GET", "/v1/queues/jobs/stats", headers=PROXY)).json["ready"] == 8
    assert (await follower("GET", "/v1/queues/none", headers=PROXY)).status == 404
    assert len(await leader.lease(max=7)) == 7
    taken = await follower("GET", "/q/jobs?lease=5")
    assert (taken.data, taken.headers["Raftq-Receipt"].count(".")) == (b"hello", 2)
    assert (await follower("POST", f"/q/jobs/ack/{taken.headers['Raftq-Receipt']}")).data == b"done\n"


async def test_a_forwarded_request_is_never_forwarded_again(serve: Serve) -> None:
    one, other = await serve(), await serve()
    one.node.follow(other.node.url)
    other.node.follow(one.node.url)
    reply = await one("POST", MESSAGES, {"body": 1}, headers=PROXY)
    assert (reply.status, reply.json["type"]) == (503, "https://raftq.dev/problems/no-leader")
    assert (reply.json["applied"], reply.headers["Retry-After"]) == ("no", "1")


async def test_without_a_known_leader_there_is_503(client: Client) -> None:
    client.node.follow(None)
    for path in (MESSAGES, "/q/jobs"):
        reply = await client("POST", path, data=b'{"body":1}')
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


async def test_a_shard_that_was_deposed_unnoticed_redirects(client: Client) -> None:
    client.node.believes = True
    client.shard.refuse = NotLeader("n2")
    client.node.url_of_leader = "http://127.0.0.1:1"
    assert (await client("POST", MESSAGES, {"body": 1})).status == 307
    assert (await client("POST", MESSAGES, {"body": 1}, headers=PROXY)).json["applied"] == "no"


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (NotLeader(None), 503, "no-leader"),
        (Overloaded(), 429, "overloaded"),
        (DiskReserve(), 507, "disk-reserve"),
        (Stopping(), 503, "stopping"),
    ],
)
async def test_what_the_shard_refuses(client: Client, error: ShardError, status: int, slug: str) -> None:
    client.shard.refuse = error
    reply = await client("POST", MESSAGES, {"body": 1})
    assert (reply.status, reply.json["type"]) == (status, f"https://raftq.dev/problems/{slug}")
    assert reply.json["applied"] == "no"
    assert int(reply.headers["Retry-After"]) > 0


async def test_an_unknown_outcome_is_told_as_unknown(client: Client) -> None:
    client.shard.unsure = OutcomeUnknown()
    reply = await client("POST", MESSAGES, {"body": 1})
    assert (reply.status, reply.json["applied"]) == (503, "unknown")


async def test_a_leader_that_cannot_be_reached_applied_nothing(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client.node.follow(f"http://127.0.0.1:{unused.getsockname()[1]}")
        reply = await client("POST", MESSAGES, {"body": 1}, headers=PROXY)
    assert (reply.status, reply.json["applied"]) == (503, "no")


@asynccontextmanager
async def breaking_leader(client: Client, *, dies: bool) -> AsyncIterator[list[bytes]]:
    """The heads of the requests that a leader reads before it breaks their connections; `dies`: and listens no more."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        if dies:
            server.close()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    client.node.follow(f"http://{host}:{port}")
    yield seen
    server.close()


@pytest.mark.parametrize("dies", [False, True], ids=["breaks the connection", "dies"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", MESSAGES, None),
        ("POST", MESSAGES, {"body": 1}),
        ("PUT", "/v1/queues/jobs", None),
        ("PUT", "/v1/queues/jobs", {"lease_seconds": 5}),
        ("PATCH", "/v1/queues/jobs", {}),
        ("DELETE", "/v1/queues/jobs", None),
        ("DELETE", f"{MESSAGES}/1-0-1", None),
        ("GET", "/q/jobs", None),
    ],
)
async def test_what_a_leader_read_is_sent_once_and_told_as_unknown(
    client: Client, method: str, path: str, body: object, dies: bool
) -> None:
    async with breaking_leader(client, dies=dies) as seen:
        reply = await client(method, path, body, headers=PROXY)
    assert (reply.status, reply.json["type"]) == (503, "https://raftq.dev/problems/outcome-unknown")
    assert reply.json["applied"] == "unknown"
    assert len(seen) == 1, "what may take effect is sent once"


@pytest.mark.parametrize("dies", [False, True])
async def test_a_read_that_a_leader_does_not_answer_has_no_effect(client: Client, dies: bool) -> None:
    async with breaking_leader(client, dies=dies):
        reply = await client("GET", "/v1/stats", headers=PROXY)
    assert (reply.status, reply.json["applied"]) == (503, "no")


async def test_proxied_requests_say_their_length_once_and_share_a_connection(client: Client) -> None:
    connections: list[list[str]] = []
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append([])
        with suppress(asyncio.IncompleteReadError):  # the end
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                lengths = re.findall(r"\n(?:content-length|transfer-encoding): (\S+)\r", head)
                connections[-1].append(" ".join([head.split()[0], *lengths]))
                await reader.readexactly(int(lengths[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        ended.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    client.node.follow(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for method, body in (("DELETE", b""), ("PUT", b""), ("PUT", b"{}"), ("POST", b"x" * 600_000), ("GET", b"")):
        path = MESSAGES if method == "POST" else "/v1/queues/jobs"
        async with client.session.request(method, client.node.url + path, data=body or None, headers=PROXY) as response:
            assert response.status == 200
    assert connections == [["delete 0", "put 0", "put 2", "post 600000", "get 0"]]
    await client.node.api.leader.close()
    await ended.wait()
    server.close()


async def test_a_client_that_leaves_a_proxied_wait_leases_nothing(pair: tuple[Client, Client]) -> None:
    follower, leader = pair
    await leader("PUT", "/v1/queues/jobs", {})
    raw = Raw(follower)
    await raw.send("/q/jobs/take?wait=30&lease=10", {})
    await until(leader.node.api.waiters.waiting)
    await raw.vanish()
    await until(lambda: not leader.node.api.waiters.waiting())


async def test_headers_of_one_connection_are_not_passed_on(client: Client) -> None:
    seen: list[web.BaseRequest] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        headers = {"Retry-After": "7", "Connection": "close", "Content-Type": problems.CONTENT_TYPE}
        return web.Response(status=429, headers=headers, body=Problem("overloaded", "Slow down.").body())

    server = await asyncio.get_running_loop().create_server(web.Server(handler), "127.0.0.1", 0)
    client.node.follow(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    headers = PROXY | {"Accept": "application/msgpack", "Connection": "close, x", "TE": "trailers"}
    reply = await client("POST", MESSAGES, {"body": 1}, headers=headers)
    assert (reply.status, reply.json["detail"], reply.headers["Retry-After"]) == (429, "Slow down.", "7")
    [request] = seen
    assert (request.headers["Accept"], request.headers["Raftq-Forwarded"]) == ("application/msgpack", "n1")
    assert "TE" not in request.headers
    server.close()


async def test_a_body_without_a_type_is_json_on_its_way_to_the_leader_too(pair: tuple[Client, Client]) -> None:
    """Found by schemathesis: the proxy gave it the type octet-stream, and the leader answered 415."""
    follower, leader = pair
    assert (await follower("PUT", "/v1/queues/jobs", headers=PROXY)).status == 201
    assert (await follower("POST", MESSAGES, data=b'{"body":1}', headers=PROXY)).status == 201
    assert [message["body"] for message in await leader.lease()] == [1]


@pytest.mark.parametrize("wish", ["", "redirect", "Proxy", "{}"])
async def test_another_wish_than_proxy_is_refused(pair: tuple[Client, Client], wish: str) -> None:
    """Found by schemathesis: it was ignored, and answered by a redirect."""
    for client in pair:
        reply = await client("POST", MESSAGES, {"body": 1}, headers={"Raftq-Forward": wish})
        assert (reply.status, reply.json["detail"]) == (422, "Raftq-Forward: is proxy, or left out.")
