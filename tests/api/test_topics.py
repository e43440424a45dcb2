from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raftq.api.ports import Limits
from tests.api.conftest import Client, Serve

TOPIC = "/v1/topics/news"
RED = {"color": ["red", {"prefix": "dark-"}], "size": [{"numeric": [">=", 1, "<", 10]}]}


@pytest.fixture
async def news(client: Client) -> Client:
    """Queue `all` gets all, `red` what its filter takes."""
    await client("PUT", TOPIC)
    await client("PUT", f"{TOPIC}/subscriptions/all")
    reply = await client("PUT", f"{TOPIC}/subscriptions/red", {"filter": RED})
    assert (reply.status, reply.json) == (201, {"queue": "red", "filter": RED})
    return client


def message(body: Any, **attributes: Any) -> dict[str, Any]:
    return {"body": body, "attributes": attributes}


async def test_a_topic_is_defined_read_and_removed(client: Client) -> None:
    assert [(await client("PUT", TOPIC)).status for _ in range(2)] == [201, 200]
    assert (await client("GET", TOPIC)).json == {"name": "news", "published": 0, "partitions": None}
    await client("PUT", f"{TOPIC}/subscriptions/all")
    reply = await client("DELETE", TOPIC)
    assert (reply.status, reply.json) == (200, {"subscriptions": 1})
    assert (await client("GET", TOPIC)).status == 404
    assert (await client("GET", "/v1/queues/all")).status == 200


async def test_topics_are_listed(client: Client) -> None:
    for name in ("b", "a1", "a2"):
        await client("PUT", f"/v1/topics/{name}")
    first = (await client("GET", "/v1/topics?prefix=a&limit=1")).json
    assert first == {"topics": [{"name": "a1", "published": 0, "partitions": None}], "cursor": "a1"}
    rest = (await client("GET", "/v1/topics?limit=2&cursor=a1&consistency=stale")).json
    assert ([topic["name"] for topic in rest["topics"]], rest["cursor"]) == (["a2", "b"], None)


async def test_each_queue_gets_what_its_filter_takes(news: Client) -> None:
    given = [message(1, color="red", size=3), message(2, color="blue", size=3), message(3, color="dark-red", size=9.5)]
    reply = await news("POST", f"{TOPIC}/messages", {"messages": given})
    assert reply.status == 201
    assert [one["queues"] for one in reply.json["messages"]] == [2, 1, 2]
    assert reply.json["index"] == news.shard.index
    assert [one["body"] for one in await news.lease("red", max=9)] == [1, 3]
    assert [one["attributes"] for one in await news.lease("all", max=9)] == [one["attributes"] for one in given]
    assert (await news("GET", TOPIC)).json["published"] == 3


async def test_one_message_is_published_as_it_is_enqueued(news: Client) -> None:
    reply = await news("POST", f"{TOPIC}/messages", {"body": b"\0".hex(), "priority": 3, "dedup_id": "x"})
    assert reply.json["messages"] == [{"queues": 1, "duplicates": 0}]
    reply = await news("POST", f"{TOPIC}/messages", {"body": 1, "dedup_id": "x"})
    assert reply.json["messages"] == [{"queues": 0, "duplicates": 1}]


async def test_a_retried_publish_is_answered_alike(news: Client) -> None:
    replies = [await news("POST", f"{TOPIC}/messages", {"body": 1, "request_id": "r"}) for _ in range(2)]
    assert replies[0].json["messages"] == replies[1].json["messages"] == [{"queues": 1, "duplicates": 0}]
    assert len(await news.lease("all", max=9)) == 1


async def test_publish_in_msgpack(news: Client) -> None:
    headers = {"Content-Type": "application/msgpack"}
    data = msgspec.msgpack.encode({"messages": [{"body": b"\0\xff", "attributes": {"color": "red", "size": 1}}]})
    reply = await news("POST", f"{TOPIC}/messages", data=data, headers=headers)
    assert reply.msgpack["messages"] == [{"queues": 2, "duplicates": 0}]
    data = msgspec.msgpack.encode({"filter": RED})
    reply = await news("PUT", f"{TOPIC}/subscriptions/red", data=data, headers=headers)
    assert (reply.status, reply.msgpack) == (200, {"queue": "red", "filter": RED})


async def test_subscriptions_are_read_changed_and_removed(news: Client) -> None:
    listed = (await news("GET", f"{TOPIC}/subscriptions")).json["subscriptions"]
    assert listed == [{"queue": "all", "filter": {}}, {"queue": "red", "filter": RED}]
    assert (await news("PUT", f"{TOPIC}/subscriptions/red", {"filter": {}})).status == 200
    assert (await news("GET", f"{TOPIC}/subscriptions/red")).json == {"queue": "red", "filter": {}}
    assert (await news("DELETE", f"{TOPIC}/subscriptions/red")).status == 204
    assert (await news("GET", f"{TOPIC}/subscriptions/red")).json["type"].endswith("/unknown-subscription")
    assert (await news("DELETE", f"{TOPIC}/subscriptions/red")).json["queue"] == "red"


async def test_a_removed_queue_is_subscribed_no_more(news: Client) -> None:
    await news("DELETE", "/v1/queues/all")
    assert [one["queue"] for one in (await news("GET", f"{TOPIC}/subscriptions")).json["subscriptions"]] == ["red"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/subscriptions"),
        ("PUT", "/subscriptions/q"),
        ("GET", "/subscriptions/q"),
        ("DELETE", "/subscriptions/q"),
        ("POST", "/messages"),
    ],
)
async def test_an_unknown_topic_is_404(client: Client, method: str, path: str) -> None:
    body = {"body": 1} if method == "POST" else {} if method == "PUT" else None
    reply = await client(method, f"{TOPIC}{path}", body)
    assert (reply.status, reply.json["topic"]) == (404, "news")
    assert reply.json["detail"] == "There is no topic news: create it with PUT /v1/topics/news."


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"a": "x"}, "filter[...]"),
        ({"a": []}, "filter"),
        ({"a": [None]}, "filter[...][0]"),
        ({"a": [{"prefix": 1}]}, "filter[...][0].prefix"),
        ({"a": [{"suffix": "x"}]}, "filter[...][0].suffix"),
        ({"a": [{}]}, "filter"),
        ({"a": [{"numeric": ["!", 1]}]}, "filter"),
        ({f"a{at}": [1] for at in range(11)}, "filter"),
    ],
)
async def test_a_bad_filter_is_422_and_says_where(news: Client, given: Any, field: str) -> None:
    reply = await news("PUT", f"{TOPIC}/subscriptions/red", {"filter": given})
    assert (reply.status, reply.json["field"]) == (422, field)
    assert (await news("GET", f"{TOPIC}/subscriptions/red")).json["filter"] == RED


async def test_what_a_publish_does_not_take(serve: Serve) -> None:
    client = await serve(Limits(batch_messages=2))
    await client("PUT", TOPIC)
    for body, status in (
        ({}, 422),
        ({"messages": []}, 422),
        ({"messages": [{"body": 1}] * 3}, 413),
        ({"body": 1, "auto_create": False}, 422),
        ({"body": 1, "dedup_id": ""}, 422),
    ):
        assert (await client("POST", f"{TOPIC}/messages", body)).status == status
    assert (await client("PUT", "/v1/topics/a%2Fb")).json["field"] == "topic"
    assert (await client("PUT", f"{TOPIC}/subscriptions/a%2Fb")).json["field"] == "queue"
    assert (await client("PUT", TOPIC, {"partitions": 0})).json["field"] == "partitions"


async def test_a_full_queue_refuses_the_publish(news: Client) -> None:
    await news("PUT", "/v1/queues/all", {"max_messages": 1})
    await news.enqueue("one", queue="all")
    reply = await news("POST", f"{TOPIC}/messages", message(1, color="red", size=3))
    assert (reply.status, reply.json["queue"], reply.json["applied"]) == (429, "all", "no")
    assert await news.lease("red") == []


async def test_too_many_copies_are_413(news: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.publishing.COPIES_MAX", 3)
    reply = await news("POST", f"{TOPIC}/messages", {"messages": [{"body": 1}] * 2})
    assert reply.status == 413
    assert "2 subscriptions" in reply.json["detail"]


async def test_too_many_subscriptions_are_409(news: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.topics.SUBSCRIPTIONS_MAX", 2)
    reply = await news("PUT", f"{TOPIC}/subscriptions/more")
    assert (reply.status, reply.json["reason"]) == (409, "too_many_subscriptions")


async def test_what_subscribes_to_a_topic_with_partitions_has_them(client: Client) -> None:
    assert (await client("PUT", TOPIC, {"partitions": 3})).json["partitions"] == 3
    assert (await client("PUT", TOPIC)).json["partitions"] == 3
    await client("PUT", "/v1/queues/plain")
    for queue in ("workers", "plain"):
        assert (await client("PUT", f"{TOPIC}/subscriptions/{queue}")).status == 201
    assert (await client("GET", "/v1/queues/workers")).json["partitions"] == 3
    assert (await client("GET", "/v1/queues/plain")).json["partitions"] is None
    groups = [{"body": at, "group": f"g{at}"} for at in range(9)]
    assert (await client("POST", f"{TOPIC}/messages", {"messages": groups})).status == 201
    ready = [(await client("GET", f"/v1/queues/workers.{at}/stats")).json["ready"] for at in range(3)]
    assert (sum(ready), min(ready) > 0) == (9, True)
    assert (await client("PUT", TOPIC, {"partitions": 65})).status == 422
    await client("PUT", "/v1/queues/late.1")
    reply = await client("PUT", f"{TOPIC}/subscriptions/late")
    assert (reply.status, reply.json["reason"]) == (409, "partitions_fixed")
    assert (await client("GET", "/v1/queues/late")).status == 404
