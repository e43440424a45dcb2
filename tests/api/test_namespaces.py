"""A namespace holds queues and topics of its own: nothing of a request is ever of another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.api.conftest import Client, Reply

In = Callable[..., Awaitable[Reply]]


@pytest.fixture
def other(client: Client) -> In:
    def send(method: str, path: str, json: Any = None, **options: Any) -> Awaitable[Reply]:
        return client(method, path, json, headers={"Raftq-Namespace": "other"}, **options)

    return send


async def test_queues_of_a_name_are_apart(client: Client, other: In) -> None:
    await client.enqueue("mine")
    assert (await other("GET", "/v1/queues/jobs")).status == 404
    await other("POST", "/v1/queues/jobs/messages", {"body": "theirs"})
    assert [one["body"] for one in await client.lease(max=9)] == ["mine"]
    leased = (await other("POST", "/v1/queues/jobs/lease", {"max": 9})).json["messages"]
    assert [one["body"] for one in leased] == ["theirs"]
    receipts = {"receipts": [leased[0]["receipt"]]}
    assert (await client("POST", "/v1/queues/jobs/ack", receipts)).json["results"][0]["status"] == "gone"
    assert (await other("POST", "/v1/queues/jobs/ack", receipts)).json["results"][0]["status"] == "done"


async def test_the_default_comes_back_on_the_same_connection(client: Client, other: In) -> None:
    await other("PUT", "/v1/queues/theirs")
    assert (await client("GET", "/v1/queues/theirs")).status == 404
    assert (await client("GET", "/v1/queues/theirs", headers={"Raftq-Namespace": "default"})).status == 404


async def test_lists_are_of_one_namespace(client: Client, other: In) -> None:
    for name in ("a", "b"):
        await client("PUT", f"/v1/queues/{name}")
        await client("PUT", f"/v1/topics/{name}")
    await other("PUT", "/v1/queues/c")
    await other("PUT", "/v1/topics/c")
    for what in ("queues", "topics"):
        assert [one["name"] for one in (await other("GET", f"/v1/{what}")).json[what]] == ["c"]
        assert [one["name"] for one in (await client("GET", f"/v1/{what}")).json[what]] == ["a", "b"]
    assert list((await other("GET", "/healthz?queues=true")).json["queues"]) == ["c"]


async def test_stats_of_all_are_over_all_namespaces(client: Client, other: In) -> None:
    await other("POST", "/v1/queues/jobs/messages", {"body": 1})
    stats = (await client("GET", "/v1/stats")).json
    assert (stats["queues"], stats["ready"]) == (1, 1)
    assert stats["oldest_ready_seconds"] is not None


async def test_topics_and_transactions_stay_within(client: Client, other: In) -> None:
    await other("PUT", "/v1/topics/news")
    await other("PUT", "/v1/topics/news/subscriptions/jobs")
    await client.enqueue("mine")
    assert (await client("POST", "/v1/topics/news/messages", {"body": 1})).status == 404
    assert (await other("POST", "/v1/topics/news/messages", {"body": 1})).json["messages"][0]["queues"] == 1
    [mine] = await client.lease()
    operation = {"ack": {"queue": "jobs", "receipts": [mine["receipt"]]}}
    for send, status in ((other, 409), (client, 200)):
        assert (await send("POST", "/v1/transactions", {"operations": [operation], "request_id": "r"})).status == status


async def test_dead_letters_stay_within(client: Client, other: In) -> None:
    await other("PUT", "/v1/queues/jobs", {"dead_letter_queue": "dead"})
    await other("POST", "/v1/queues/jobs/messages", {"body": 1})
    [leased] = (await other("POST", "/v1/queues/jobs/lease", {})).json["messages"]
    await other("POST", "/v1/queues/jobs/reject", {"receipts": [leased["receipt"]]})
    assert (await other("GET", "/v1/queues/dead/stats")).json["ready"] == 1
    assert (await client("GET", "/v1/queues/dead")).status == 404


async def test_curl_names_one_too(client: Client, other: In) -> None:
    await other("POST", "/q/jobs", data=b"x")
    assert (await client("GET", "/q/jobs")).status == 404
    assert (await other("GET", "/q/jobs")).data == b"x"


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 129])
async def test_a_bad_namespace_is_422(client: Client, name: str) -> None:
    reply = await client("GET", "/v1/queues", headers={"Raftq-Namespace": name})
    assert (reply.status, reply.json["field"]) == (422, "Raftq-Namespace")


async def test_a_stream_is_of_one_namespace(client: Client, other: In) -> None:
    await client.enqueue("mine")
    url = f"{client.node.url}/v1/stream"
    async with client.session.ws_connect(url, headers={"Raftq-Namespace": "other"}) as socket:
        await socket.send_json(
            [
                {"op": "enqueue", "id": 1, "queue": "jobs", "body": "theirs"},
                {"op": "subscribe", "id": 2, "queue": "jobs", "credit": 5},
            ]
        )
        found: list[Any] = []
        while not _bodies(found):
            found += await socket.receive_json(timeout=5)
        await other("POST", "/v1/queues/jobs/messages", {"body": "more"})
        while len(_bodies(found)) < 2:
            found += await socket.receive_json(timeout=5)
    assert _bodies(found) == ["theirs", "more"]
    assert [one["body"] for one in await client.lease(max=9)] == ["mine"]


def _bodies(frames: list[Any]) -> list[Any]:
    return [message["body"] for one in frames if "push" in one for message in one["push"]["messages"]]


async def test_events_are_of_one_namespace(client: Client, other: In) -> None:
    url = f"{client.node.url}/v1/events"
    async with client.session.ws_connect(url, headers={"Raftq-Namespace": "other"}) as socket:
        found: list[Any] = await socket.receive_json(timeout=5)
        await client.enqueue("mine")
        await other("PUT", "/v1/queues/theirs")
        while not any(one["event"] == "queue-defined" for one in found):
            found += await socket.receive_json(timeout=5)
    assert [one["queue"] for one in found if "queue" in one] == ["theirs"]
