"""Who may do what: every route of the table, what requests name beside their paths, streams and events."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from raftq.api import auth, token
from raftq.api.app import routes
from raftq.api.auth import Need
from raftq.api.routing import Route
from raftq.storage.machine import commands
from tests.api.conftest import Client, Reply, Serve
from tests.api.test_leases import until
from tests.api.test_streams import Sent, put, settle, take
from tests.api.tokens import ALL, bearer, guarded, header, made

FORWARDED = {"Raftq-Forwarded": "n1"}
each_route = pytest.mark.parametrize("route", routes(), ids=lambda route: f"{route.method} {route.pattern}")

#: What a request to the route holds, when no body is a good one.
BODIES: dict[str, Any] = {
    "PUT /v1/schedules/{schedule}": {"queue": "jobs", "interval_seconds": 5, "message": {"body": 1}},
    "POST /v1/queues/{queue}/messages": {"body": 1},
    "POST /v1/topics/{topic}/messages": {"body": 1},
    "POST /v1/transactions": {"operations": [{"enqueue": {"queue": "jobs", "messages": [{"body": 1}]}}]},
    "POST /v1/tokens": {"name": "t", "grants": [{"scope": "admin", "names": "*"}]},
}
#: What a route needs beside its row.
BESIDE = {
    "PUT /v1/topics/{topic}/subscriptions/{queue}": ["produce:jobs"],
    "PUT /v1/schedules/{schedule}": ["produce:jobs"],
    "POST /v1/transactions": ["produce:jobs"],
}
#: Need -> (grants that are enough, their namespace), for the name `jobs`.
ENOUGH: dict[Need, tuple[tuple[str, ...], str]] = {
    Need.TOKEN: (("consume:other",), "default"),
    Need.PRODUCE: (("produce:jobs",), "default"),
    Need.CONSUME: (("consume:jobs",), "default"),
    Need.ADMIN: (("admin:jobs",), "default"),
    Need.ANY: (("consume:jobs",), "default"),
    Need.LISTED: (("produce:*",), "default"),
    Need.HEALTH: (("produce:*",), "default"),
    Need.SUMS: (("consume:*",), "*"),
    Need.CLUSTER: (("admin:*",), "*"),
    Need.EACH: (("produce:other",), "default"),
}
#: Need -> grants that are not enough.
LACKING: dict[Need, list[tuple[tuple[str, ...], str]]] = {
    Need.PRODUCE: [(("consume:jobs", "admin:jobs"), "default"), (("produce:job", "produce:jobs2*"), "default")],
    Need.CONSUME: [(("produce:jobs", "admin:jobs"), "default"), (("consume:job", "consume:jobs.*"), "default")],
    Need.ADMIN: [(("produce:jobs", "consume:jobs"), "default"), (("admin:JOBS",), "default")],
    Need.ANY: [(("produce:other", "consume:job", "admin:j"), "default")],
    Need.LISTED: [(("produce:jobs", "consume:j*"), "default")],
    Need.HEALTH: [(("produce:jobs", "consume:j*"), "default")],
    Need.SUMS: [(("consume:*", "admin:*"), "default"), (("consume:jobs*",), "*")],
    Need.CLUSTER: [(ALL, "default"), (("admin:a*", "produce:*", "consume:*"), "*")],
}


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await guarded(serve)


def name_of(route: Route) -> str:
    return f"{route.method} {route.pattern}"


async def ask(client: Client, route: Route, headers: dict[str, str]) -> Reply:
    path = route.pattern
    for name in ("queue", "topic", "schedule"):
        path = path.replace(f"{{{name}}}", "jobs")
    path = path.replace("{receipt}", "1.1.0").replace("{asset}", "start.js").replace("{node}", "n9")
    path = path.replace("{id}", "0" * 12) + ("?queues=true" if route.needs is Need.HEALTH else "")
    return await client(route.method, path, BODIES.get(name_of(route)), headers=headers)


def kind(reply: Reply) -> str:
    if not reply.headers.get("Content-Type", "").startswith("application/problem"):
        return ""
    return str(reply.json["type"]).rpartition("/")[2] if reply.data else "?"


def other_text(given: dict[str, str]) -> dict[str, str]:
    """The same id with another secret."""
    parsed = token.parse(given["Authorization"].partition(" ")[2])
    assert parsed is not None
    return header(token.Token(parsed.id, token.new().secret))


@each_route
async def test_each_route_is_refused_without_a_good_token(client: Client, route: Route) -> None:
    good = bearer(client, *ALL, namespace="*")
    expired = bearer(client, *ALL, namespace="*", expires_ms=client.shard.clock_ms + 1)
    revoked = made(client, *ALL, namespace="*")
    client.shard.apply(commands.RevokeToken(revoked.id))
    client.shard.clock_ms += 2
    text = good["Authorization"].partition(" ")[2]
    before = client.shard.index
    for headers in (
        {},
        FORWARDED,
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": text},
        {"Authorization": f"Basic {text}"},
        {"Authorization": f"Bearer {text}x"},
        {"Authorization": f"Bearer {text[:-1]}"},
        {"Authorization": f"Bearer {text}, Bearer {text}"},
        {"Cookie": f"Authorization=Bearer {text}", "X-Authorization": f"Bearer {text}"},
        header(token.new()),
        header(token.new()) | FORWARDED,
        other_text(good),
        expired,
        header(revoked),
    ):
        reply = await ask(client, route, headers)
        if route.needs is Need.NOTHING:
            assert reply.status == 200, headers
            continue
        assert reply.status == 401, headers
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert text not in reply.data.decode()
        assert route.method == "HEAD" or (reply.json["applied"], kind(reply)) == ("no", "unauthorized")
    assert client.shard.index == before, "nothing was done"


@each_route
async def test_each_route_is_refused_with_a_token_that_lacks_what_it_needs(client: Client, route: Route) -> None:
    if route.needs is Need.NOTHING:
        return
    grants, namespace = ENOUGH[route.needs]
    lacking = [bearer(client, *lacks, namespace=of) for lacks, of in LACKING.get(route.needs, [])]
    lacking.append(bearer(client, *ALL) | {"Raftq-Namespace": "other"})
    if route.needs not in (Need.TOKEN, Need.EACH):
        lacking.append(bearer(client, "consume:other"))
    if namespace != "*":
        of_another = bearer(client, *ALL, namespace="other")
        lacking.append(of_another | {"Raftq-Namespace": "default"})
    if beside := BESIDE.get(name_of(route)):
        lacking.append(bearer(client, *grants))
        if route.needs is not Need.EACH:
            lacking.append(bearer(client, *beside))
    before = client.shard.index
    for headers in lacking:
        reply = await ask(client, route, headers)
        assert reply.status == 403, headers
        assert "WWW-Authenticate" not in reply.headers
        if route.method != "HEAD":
            assert (reply.json["applied"], kind(reply)) == ("no", "forbidden")
            assert reply.json["detail"].startswith("This token lacks ")
    assert client.shard.index == before, "nothing was done"


@each_route
async def test_each_route_is_let_in_with_what_it_needs_and_no_more(client: Client, route: Route) -> None:
    grants, namespace = ENOUGH.get(route.needs, ((), ""))
    grants += tuple(BESIDE.get(name_of(route), ()))
    tokens = [{}] if route.needs is Need.NOTHING else [bearer(client, *grants, namespace=namespace)]
    if namespace == "default":
        tokens.append(tokens[0] | {"Raftq-Namespace": "default"})
        tokens.append(bearer(client, *grants, namespace="*"))
        tokens.append(bearer(client, *grants, namespace="other"))
    for headers in tokens:
        reply = await ask(client, route, headers)
        assert reply.status not in (401, 403, 500), reply


async def test_the_scheme_is_read_in_any_case_and_blanks_are_let_be(client: Client) -> None:
    text = bearer(client, "produce:jobs")["Authorization"].partition(" ")[2]
    for given in (f"bearer {text}", f"BEARER {text}", f"Bearer   {text}", f"Bearer {text} "):
        assert (await client("GET", "/v1/cluster", headers={"Authorization": given})).status == 200


async def test_a_node_that_needs_no_tokens_looks_at_none(serve: Serve) -> None:
    client = await serve()
    for headers in ({}, header(token.new()), {"Authorization": "Basic x"}):
        assert (await client("GET", "/v1/stats", headers=headers)).status == 200


@pytest.mark.parametrize("path", ["/v1/queues", "/v1/topics", "/v1/schedules", "/healthz", "/metrics/detailed"])
async def test_a_list_needs_a_grant_on_all_that_its_prefix_takes(client: Client, path: str) -> None:
    headers = bearer(client, "consume:mail.*", "admin:mailing")
    for prefix, status in (("mail.", 200), ("mail.out", 200), ("mail", 403), ("mailing", 403), ("", 403), ("x", 403)):
        assert (await client("GET", f"{path}?prefix={prefix}", headers=headers)).status == status, prefix


async def test_a_scrape_of_one_queue_needs_a_grant_on_it(client: Client) -> None:
    headers = bearer(client, "consume:jobs")
    assert (await client("GET", "/metrics/detailed?queue=jobs", headers=headers)).status == 200
    for query in ("queue=other", "queue=other&prefix=jobs", "prefix=jobs"):
        assert (await client("GET", f"/metrics/detailed?{query}", headers=headers)).status == 403


async def test_a_problem_says_what_is_missing(client: Client) -> None:
    reply = await client("GET", "/q/jobs", headers=bearer(client, "produce:jobs", namespace="team"))
    assert reply.json["detail"] == "This token lacks consume on jobs in the namespace team. Use one that has it."


# Namespaces


async def test_a_token_of_one_namespace_stands_for_it(client: Client) -> None:
    ours, every = bearer(client, *ALL, namespace="team"), bearer(client, *ALL, namespace="*")
    await client("POST", "/v1/queues/jobs/messages", {"body": "ours"}, headers=ours)
    await client("POST", "/v1/queues/jobs/messages", {"body": "default"}, headers=every)
    for headers, body in (
        (ours, "ours"),
        (ours | {"Raftq-Namespace": "team"}, "ours"),
        (every, "default"),
        (every | {"Raftq-Namespace": "team"}, "ours"),
    ):
        found = await client("GET", "/v1/queues/jobs/messages", headers=headers)
        assert [one["body"] for one in found.json["messages"]] == [body]
    for namespace in ("default", "teams", "*"):
        reply = await client("GET", "/v1/queues/jobs", headers=ours | {"Raftq-Namespace": namespace})
        assert reply.status == (422 if namespace == "*" else 403)


async def test_the_namespace_of_a_token_does_not_stay_on_its_connection(client: Client) -> None:
    await client("PUT", "/v1/queues/theirs", headers=bearer(client, *ALL, namespace="team"))
    every = bearer(client, *ALL, namespace="*")
    assert (await client("GET", "/v1/queues/theirs", headers=every)).status == 404


# What a request names beside its path


async def test_a_dead_letter_queue_needs_produce_on_it(client: Client) -> None:
    lacks, has = bearer(client, "admin:*", "consume:dead"), bearer(client, "admin:jobs", "produce:dead")
    for method in ("PUT", "PATCH"):
        await client("PUT", "/v1/queues/jobs", {}, headers=lacks)
        given = {"dead_letter_queue": "dead"}
        reply = await client(method, "/v1/queues/jobs", given, headers=lacks)
        assert (reply.status, kind(reply)) == (403, "forbidden")
        assert "produce on dead" in reply.json["detail"]
        assert (await client(method, "/v1/queues/jobs", given, headers=has)).status == 200
    assert (await client("PATCH", "/v1/queues/jobs", {"lease_seconds": 5}, headers=lacks)).status == 200
    assert (await client("PATCH", "/v1/queues/jobs", {"dead_letter_queue": None}, headers=lacks)).status == 200


async def test_the_target_of_a_redrive_needs_produce_on_it(client: Client) -> None:
    client.shard.apply(commands.DefineQueue("default/dead", commands.QueueSettings()))
    client.shard.apply(commands.DefineQueue("default/jobs", commands.QueueSettings()))
    lacks, has = bearer(client, "admin:*", "consume:*"), bearer(client, "admin:dead", "produce:jobs")
    assert (await client("POST", "/v1/queues/dead/redrive", {"to": "jobs"}, headers=lacks)).status == 403
    assert (await client("POST", "/v1/queues/dead/redrive", {}, headers=lacks)).status == 202
    client.shard.later(60)
    assert (await client("POST", "/v1/queues/dead/redrive", {"to": "jobs"}, headers=has)).status == 202


async def test_who_subscribes_a_queue_needs_produce_on_it_and_who_publishes_none(client: Client) -> None:
    client.shard.apply(commands.DefineTopic("default/news"))
    path = "/v1/topics/news/subscriptions/victim"
    assert (await client("PUT", path, {}, headers=bearer(client, "admin:*", "consume:*"))).status == 403
    assert (await client("PUT", path, {}, headers=bearer(client, "produce:victim", "admin:victim"))).status == 403
    assert (await client("PUT", path, {}, headers=bearer(client, "admin:news", "produce:victim"))).status == 201
    publisher = bearer(client, "produce:news")
    reply = await client("POST", "/v1/topics/news/messages", {"body": 1}, headers=publisher)
    assert reply.json["messages"][0]["queues"] == 1
    assert (await client("POST", "/v1/queues/victim/messages", {"body": 1}, headers=publisher)).status == 403


@pytest.mark.parametrize("target", ["queue", "topic"])
async def test_a_schedule_needs_produce_on_its_target(client: Client, target: str) -> None:
    client.shard.apply(commands.DefineTopic("default/there"))
    given = {"interval_seconds": 5, "message": {"body": 1}, target: "there"}
    for grants, status in ((("admin:*", "consume:*"), 403), (("admin:daily", "produce:there"), 201)):
        assert (await client("PUT", "/v1/schedules/daily", given, headers=bearer(client, *grants))).status == status


async def test_an_enqueue_makes_its_queue_and_needs_no_admin(client: Client) -> None:
    headers = bearer(client, "produce:jobs")
    assert (await client("POST", "/v1/queues/jobs/messages", {"body": 1}, headers=headers)).status == 201
    assert (await client("PUT", "/v1/queues/jobs", {}, headers=headers)).status == 403


async def test_each_operation_of_a_transaction_is_asked_for(client: Client) -> None:
    headers = bearer(client, "produce:out", "consume:in")
    every = bearer(client, *ALL)
    await client("POST", "/v1/queues/in/messages", {"messages": [{"body": 1}, {"body": 2}]}, headers=every)
    leased = (await client("POST", "/v1/queues/in/lease", {"max": 2}, headers=headers)).json["messages"]
    one, other = ([message["receipt"]] for message in leased)
    put_out = {"enqueue": {"queue": "out", "messages": [{"body": 1}]}}
    for operations in (
        [put_out, {"enqueue": {"queue": "in", "messages": [{"body": 1}]}}],
        [{"ack": {"queue": "out", "receipts": one}}],
        [{"ack": {"queue": "in", "receipts": one}}, {"reject": {"queue": "other", "receipts": other}}],
    ):
        reply = await client("POST", "/v1/transactions", {"operations": operations}, headers=headers)
        assert (reply.status, kind(reply)) == (403, "forbidden")
    good = [put_out, {"ack": {"queue": "in", "receipts": one}}, {"nack": {"queue": "in", "receipts": other}}]
    assert (await client("POST", "/v1/transactions", {"operations": good}, headers=headers)).status == 200


async def test_a_request_id_of_a_transaction_is_of_the_queues_it_uses(client: Client) -> None:
    """Else one who guessed it would keep the other's transaction from being done, or read what it was answered."""
    mine, theirs = bearer(client, "produce:mine"), bearer(client, "produce:theirs")

    async def transact(queue: str, headers: dict[str, str]) -> Reply:
        operation = {"enqueue": {"queue": queue, "messages": [{"body": 1}]}}
        given = {"operations": [operation], "request_id": "r"}
        return await client("POST", "/v1/transactions", given, headers=headers)

    first, other = await transact("mine", mine), await transact("theirs", theirs)
    assert first.json["operations"] != other.json["operations"]
    assert (await client("GET", "/v1/queues/theirs/stats", headers=theirs)).json["ready"] == 1
    assert (await transact("mine", mine)).json["operations"] == first.json["operations"]
    assert (await client("GET", "/v1/queues/mine/stats", headers=mine)).json["ready"] == 1


async def test_a_receipt_and_an_id_of_another_queue_are_good_for_nothing(client: Client) -> None:
    every, mine = bearer(client, *ALL), bearer(client, "consume:mine", "admin:mine", "produce:mine")
    for queue in ("mine", "theirs"):
        await client("POST", f"/v1/queues/{queue}/messages", {"messages": [{"body": queue}] * 2}, headers=every)
    leased = (await client("POST", "/v1/queues/theirs/lease", {}, headers=every)).json["messages"][0]
    receipt = {"receipts": [leased["receipt"]]}
    for verb in ("ack", "nack", "release", "reject", "extend"):
        reply = await client("POST", f"/v1/queues/mine/{verb}", receipt, headers=mine)
        assert reply.json["results"][0]["status"] == "gone", verb
    assert (await client("POST", f"/q/mine/ack/{leased['receipt']}", headers=mine)).status == 410
    operations = {"operations": [{"ack": {"queue": "mine"} | receipt}]}
    assert (await client("POST", "/v1/transactions", operations, headers=mine)).status == 409
    page = (await client("GET", "/v1/queues/theirs/messages", headers=every)).json["messages"]
    for method in ("GET", "DELETE"):
        assert (await client(method, f"/v1/queues/mine/messages/{page[0]['id']}", headers=mine)).status == 404
    assert (await client("POST", "/v1/queues/theirs/ack", receipt, headers=every)).json["results"][0][
        "status"
    ] == "done"


async def test_a_grant_on_a_name_is_one_on_its_partitions(client: Client) -> None:
    every = bearer(client, *ALL)
    whole, part = bearer(client, "consume:jobs", "produce:jobs"), bearer(client, "consume:jobs.1", "produce:jobs.1")
    message = {"body": 1}
    await client("POST", "/v1/queues/jobs.0/messages", message, headers=every)
    assert (await client("POST", "/v1/queues/jobs.0/messages", message, headers=whole)).status == 403, "a plain queue"
    await client("DELETE", "/v1/queues/jobs.0", headers=every)
    await client("PUT", "/v1/queues/jobs", {"partitions": 2}, headers=every)
    for name, status in (("jobs", 201), ("jobs.0", 201), ("jobs.1", 201), ("jobs.2", 403), ("jobs.01", 403)):
        reply = await client("POST", f"/v1/queues/{name}/messages", message, headers=whole)
        assert reply.status == status, name
    for name, status in (("jobs", 403), ("jobs.0", 403), ("jobs.1", 200)):
        assert (await client("POST", f"/v1/queues/{name}/lease", {}, headers=part)).status == status, name


# A token's end


async def test_a_token_is_good_until_it_expires(client: Client) -> None:
    headers = bearer(client, "produce:jobs", expires_ms=client.shard.clock_ms + 1000)
    assert (await client("GET", "/v1/cluster", headers=headers)).status == 200
    client.shard.clock_ms += 1000
    reply = await client("GET", "/v1/cluster", headers=headers)
    assert (reply.status, "expired" in reply.json["detail"]) == (401, True)


async def test_a_long_poll_gets_nothing_once_its_token_is_revoked(client: Client) -> None:
    client.shard.apply(commands.DefineQueue("default/jobs", commands.QueueSettings()))
    mine = made(client, "consume:jobs")
    polls = [
        asyncio.ensure_future(client("POST", "/v1/queues/jobs/lease", {"wait_seconds": 30}, headers=header(mine))),
        asyncio.ensure_future(client("GET", "/q/jobs?wait=30", headers=header(mine))),
    ]
    await until(lambda: client.node.api.waiters.waiting() == 2)
    client.shard.apply(commands.RevokeToken(mine.id))
    every = bearer(client, *ALL)
    await client("POST", "/v1/queues/jobs/messages", {"messages": [{"body": 1}, {"body": 2}]}, headers=every)
    for poll in polls:
        assert (await poll).status == 401
    assert (await client("GET", "/v1/queues/jobs/stats", headers=every)).json["ready"] == 2


# Streams and events


async def open_stream(client: Client, headers: dict[str, str]) -> Sent:
    return Sent(await client.session.ws_connect(f"{client.node.url}/v1/stream", headers=headers))


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/events"])
async def test_the_handshake_needs_a_token(client: Client, path: str) -> None:
    for headers, status in (
        ({}, 401),
        (header(token.new()), 401),
        (bearer(client, *ALL) | {"Raftq-Namespace": "other"}, 403),
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.session.ws_connect(client.node.url + path, headers=headers)
        assert refused.value.status == status


async def test_each_operation_of_a_stream_is_asked_for_by_itself(client: Client) -> None:
    stream = await open_stream(client, bearer(client, "produce:jobs", "consume:done"))
    answers = await stream.ask(
        put(1),
        put(2, queue="other"),
        put(3, queue="other"),
        take(),
        take(queue="done"),
        settle("ack", {"receipt": "1.1.0"}),
        settle("extend", {"receipt": "1.1.0"}, request_id="r"),
        {"op": "subscribe", "queue": "jobs", "credit": 1},
        put(4, queue="a/b"),
        put(5),
    )
    kinds = [answer.get("type", "").rpartition("/")[2] for answer in answers]
    refused = "forbidden"
    assert kinds == ["", refused, refused, refused, "unknown-queue", refused, refused, refused, refused, ""]
    assert answers[1]["applied"] == "no"
    assert answers[1]["detail"] == "This token lacks produce on other in the namespace default. Use one that has it."
    assert client.node.api.forbidden == 7
    scrape = (await client("GET", "/metrics", headers=bearer(client, "produce:x"))).data
    assert b"raftq_stream_forbidden_total 7.0" in scrape
    await stream.socket.close()


async def test_a_stream_ends_when_its_token_is_revoked_or_expires(client: Client) -> None:
    revoked = made(client, "produce:jobs")
    expires = bearer(client, "produce:jobs", expires_ms=client.shard.clock_ms + 1000)
    streams = [await open_stream(client, header(revoked)), await open_stream(client, expires)]
    good = await open_stream(client, bearer(client, "produce:jobs"))
    for stream in (*streams, good):
        assert "messages" in (await stream.ask(put(1)))[0]
    client.node.api.watch_of_tokens.look()
    client.shard.apply(commands.RevokeToken(revoked.id))
    client.shard.clock_ms += 1000
    for stream in streams:
        assert await stream.ended_with() == aiohttp.WSCloseCode.POLICY_VIOLATION
    client.node.api.watch_of_tokens.look()
    assert "messages" in (await good.ask(put(1)))[0]
    await good.socket.close()


async def test_a_subscription_pushes_nothing_once_its_token_is_revoked(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_SECONDS", 60)
    client.shard.apply(commands.DefineQueue("default/jobs", commands.QueueSettings()))
    mine = made(client, "consume:jobs")
    stream = await open_stream(client, header(mine))
    await stream.ask({"op": "subscribe", "queue": "jobs", "credit": 5})
    await until(lambda: client.node.api.waiters.waiting() == 1)
    client.shard.apply(commands.RevokeToken(mine.id))
    await client("POST", "/v1/queues/jobs/messages", {"body": 1}, headers=bearer(client, "produce:jobs"))
    await until(lambda: bool(stream.ended))
    assert [problem["type"].rpartition("/")[2] for problem in stream.ended.values()] == ["unauthorized"]
    assert not stream.pushed
    await stream.socket.close()


async def test_events_tell_what_the_token_may_see_and_end_with_it(client: Client) -> None:
    mine = made(client, "consume:mine.*", "admin:parts")
    events: list[Any] = []

    async def watch() -> None:
        async for message in socket:
            events.extend(msgspec.json.decode(message.data))

    socket = await client.session.ws_connect(f"{client.node.url}/v1/events", headers=header(mine))
    reader = asyncio.ensure_future(watch())
    await until(lambda: any(event["event"] == "cluster" for event in events))
    for key in ("default/theirs", "default/mine", "other/mine.a", "default/mine.a"):
        client.shard.apply(commands.DefineQueue(key, commands.QueueSettings()))
    client.shard.apply(commands.DefineQueue("default/parts", commands.QueueSettings(), partitions=1))
    await until(lambda: sum(event["event"] == "queue-defined" for event in events) == 2)
    assert {event["queue"] for event in events if "queue" in event} == {"mine.a", "parts.0"}
    client.shard.apply(commands.RevokeToken(mine.id))
    async with asyncio.timeout(10):
        await reader
    assert socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION


async def test_nothing_is_looked_at_once_there_are_no_streams(client: Client) -> None:
    watch = client.node.api.watch_of_tokens
    stream = await open_stream(client, bearer(client, "produce:jobs"))
    assert watch._timer is not None
    await stream.socket.close()
    await until(lambda: not client.node.api.connections)
    watch.look()
    assert watch._timer is None


# A node that does not lead


@pytest.fixture
async def pair(serve: Serve) -> tuple[Client, Client]:
    """A follower that has applied less than its leader."""
    follower, leader = await guarded(serve), await guarded(serve)
    follower.node.follow(leader.node.url)
    return follower, leader


async def test_the_leader_decides_of_a_token_that_the_follower_does_not_know_yet(pair: tuple[Client, Client]) -> None:
    follower, leader = pair
    known, unknown = bearer(leader, *ALL), header(token.new())
    for method, path, body in (
        ("POST", "/v1/queues/jobs/messages", {"body": 1}),
        ("POST", "/q/jobs", None),
        ("GET", "/v1/queues/jobs", None),
        ("GET", "/q/jobs", None),
    ):
        assert (await follower(method, path, body, headers=known)).status in (200, 201), path
        assert (await follower(method, path, body, headers=unknown)).status == 401, path
        assert (await follower(method, path, body, headers=unknown | FORWARDED)).status in (401, 503), path
    for path in ("/v1/cluster", "/v1/queues/jobs?consistency=stale"):
        assert (await follower("GET", path, headers=known)).status == 401, path
    stream = await open_stream(follower, known)
    assert "messages" in (await stream.ask(put(1)))[0]
    await stream.socket.close()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await open_stream(follower, unknown)


async def test_a_follower_refuses_what_no_leader_would_take(pair: tuple[Client, Client]) -> None:
    follower, leader = pair
    lacks = bearer(follower, "consume:other")
    expired = bearer(follower, *ALL, expires_ms=follower.shard.clock_ms + 1)
    follower.shard.clock_ms += 2
    before = sum(sum(route.answered.values()) for route in leader.node.api.routes.all)
    for headers, status in (({}, 401), ({"Authorization": "Bearer x"}, 401), (expired, 401), (lacks, 403)):
        assert (await follower("POST", "/v1/queues/jobs/messages", {"body": 1}, headers=headers)).status == status
        assert (await follower("POST", "/q/jobs", headers=headers)).status == status
    assert sum(sum(route.answered.values()) for route in leader.node.api.routes.all) == before


async def test_the_leader_asks_again_whoever_forwarded_it(pair: tuple[Client, Client]) -> None:
    """What a follower let in, by a token that was revoked meanwhile, the leader does not."""
    follower, _ = pair
    revoked = bearer(follower, *ALL)
    assert (await follower("POST", "/q/jobs", headers=revoked)).status == 401


async def test_a_stream_by_way_of_a_follower_ends_with_its_token(pair: tuple[Client, Client]) -> None:
    follower, leader = pair
    mine = made(leader, "produce:jobs")
    stream = await open_stream(follower, header(mine))
    assert "messages" in (await stream.ask(put(1)))[0]
    leader.shard.apply(commands.RevokeToken(mine.id))
    assert await stream.ended_with() == aiohttp.WSCloseCode.POLICY_VIOLATION


# Browsers


async def test_no_other_origin_is_allowed_anything(client: Client) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    asked = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for method, headers in (("OPTIONS", asked), ("GET", origin), ("GET", origin | bearer(client, *ALL))):
        reply = await client(method, "/v1/queues", headers=headers)
        assert reply.status == {"OPTIONS": 405}.get(method, reply.status)
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]
