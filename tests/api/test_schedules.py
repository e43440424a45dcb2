from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.api.conftest import Client

SCHEDULE = "/v1/schedules/minutely"
GIVEN: dict[str, Any] = {"interval_seconds": 60, "queue": "jobs", "message": {"body": {"report": 1}, "priority": 3}}


async def put(client: Client, **fields: Any) -> Any:
    reply = await client("PUT", SCHEDULE, GIVEN | fields)
    assert reply.status in (200, 201), reply.json
    return reply.json


async def test_a_schedule_is_defined_read_and_removed(client: Client) -> None:
    reply = await client("PUT", SCHEDULE, GIVEN)
    now = client.shard.clock_ms
    assert (reply.status, reply.json) == (
        201,
        {
            "name": "minutely",
            "cron": None,
            "time_zone": None,
            "interval_seconds": 60,
            "queue": "jobs",
            "topic": None,
            "message": {
                "body": {"report": 1},
                "attributes": {},
                "group": None,
                "priority": 3,
                "delay_seconds": None,
                "replace_key": None,
            },
            "missed": "one",
            "paused": False,
            "next_at_ms": now + 60_000,
            "last_at_ms": None,
            "ticks": 0,
            "skipped": 0,
            "failed": 0,
            "failure": None,
        },
    )
    assert (await client("GET", SCHEDULE)).json == reply.json
    assert (await client("PUT", SCHEDULE, GIVEN)).status == 200
    assert (await client("DELETE", SCHEDULE)).status == 204
    for method in ("GET", "DELETE"):
        reply = await client(method, SCHEDULE)
        assert (reply.status, reply.json["schedule"]) == (404, "minutely")
        assert reply.json["detail"] == "There is no schedule minutely: create it with PUT /v1/schedules/minutely."


async def test_ticks(client: Client) -> None:
    first = (await put(client))["next_at_ms"]
    client.shard.later(125)
    [one, two] = await client.lease("jobs", max=9)
    assert (one["body"], one["priority"]) == ({"report": 1}, 3)
    assert one["attributes"] == {"schedule": "minutely", "tick": 1, "tick_at_ms": first}
    assert two["attributes"]["tick"] == 2
    found = (await client("GET", SCHEDULE)).json
    assert (found["ticks"], found["last_at_ms"], found["next_at_ms"]) == (2, first + 60_000, first + 120_000)
    client.shard.later(600)
    found = (await client("GET", SCHEDULE)).json
    assert (found["ticks"], found["skipped"]) == (4, 8), "one for the nine missed, and one on time"


async def test_the_message_of_a_tick_is_delivered_as_any_other(client: Client) -> None:
    await put(client)
    client.shard.later(60)
    for deliveries in (1, 2):
        [found] = await client.lease("jobs", max=9, lease_seconds=1)
        assert (found["attributes"]["tick"], found["deliveries"]) == (1, deliveries)
        client.shard.later(1)


async def test_cron_in_a_time_zone(client: Client) -> None:
    """The shard's clock stands at 23:13:20 in Berlin."""
    found = await put(client, interval_seconds=None, cron="30 2 * * *", time_zone="Europe/Berlin")
    assert (found["cron"], found["time_zone"], found["interval_seconds"]) == ("30 2 * * *", "Europe/Berlin", None)
    assert found["next_at_ms"] == client.shard.clock_ms + (3 * 60 + 16) * 60_000 + 40_000
    found = await put(client, interval_seconds=None, cron="0 0 * * *")
    assert (found["time_zone"], found["next_at_ms"] % 86_400_000) == ("UTC", 0)


async def test_pause_keeps_the_counts(client: Client) -> None:
    await put(client)
    client.shard.later(61)
    assert (await put(client, paused=True))["next_at_ms"] is None
    client.shard.later(600)
    found = await put(client)
    assert (found["ticks"], found["skipped"], found["next_at_ms"]) == (1, 0, client.shard.clock_ms + 60_000)


async def test_a_topic_that_is_deleted(client: Client) -> None:
    to_topic = {"queue": None, "topic": "news"}
    reply = await client("PUT", SCHEDULE, GIVEN | to_topic)
    assert (reply.status, reply.json["topic"]) == (404, "news")
    await client("PUT", "/v1/topics/news")
    await client("PUT", "/v1/topics/news/subscriptions/a")
    await put(client, **to_topic)
    client.shard.later(61)
    await client("DELETE", "/v1/topics/news")
    client.shard.later(61)
    found = (await client("GET", SCHEDULE)).json
    assert (found["ticks"], found["failed"]) == (1, 1)
    assert found["failure"] == "unknown_topic: there is no topic default/news"
    assert len(await client.lease("a", max=9)) == 1


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
async def test_each_kind_of_message(client: Client, accept: str) -> None:
    headers = {"Accept": accept}
    for message, more in (
        ({"body": "eA==", "encoding": "base64"}, {}),
        ({"body": [1.50, "ü"], "attributes": {"k": 1.5}, "delay_seconds": 0.25, "replace_key": "r"}, {}),
    ):
        reply = await client("PUT", SCHEDULE, GIVEN | {"message": message | more}, headers=headers)
        found = (reply.json if accept.endswith("json") else reply.msgpack)["message"]
        if accept.endswith("json") or "encoding" not in message:
            assert {name: found[name] for name in message} == message
        else:
            assert found["body"] == b"x"
    body = msgspec.msgpack.encode(GIVEN | {"message": {"body": b"\0\xff"}})
    reply = await client("PUT", SCHEDULE, data=body, headers={"Content-Type": "application/msgpack"})
    assert reply.msgpack["message"]["body"] == b"\0\xff"
    client.shard.later(61)
    assert [one["body"] for one in await client.lease("jobs")] == ["AP8="]


async def test_schedules_are_listed(client: Client) -> None:
    for name in ("b", "a1", "a2"):
        await client("PUT", f"/v1/schedules/{name}", GIVEN)
    await client("PUT", "/v1/schedules/other", GIVEN, headers={"Raftq-Namespace": "apart"})
    first = (await client("GET", "/v1/schedules?prefix=a&limit=1")).json
    assert ([one["name"] for one in first["schedules"]], first["cursor"]) == (["a1"], "a1")
    rest = (await client("GET", "/v1/schedules?cursor=a1&consistency=stale")).json
    assert ([one["name"] for one in rest["schedules"]], rest["cursor"]) == (["a2", "b"], None)


@pytest.mark.parametrize(
    ("fields", "field", "detail"),
    [
        ({"cron": "* * * * *"}, "cron", "give either cron or interval_seconds"),
        ({"interval_seconds": None}, "cron", "give either cron or interval_seconds"),
        ({"interval_seconds": None, "cron": "61 * * * *"}, "cron", "has a bad minute: give minute, hour"),
        ({"interval_seconds": None, "cron": "* * * *"}, "cron", "five fields"),
        ({"interval_seconds": None, "cron": "0 0 30 2 *"}, "cron", "has a bad day-of-month"),
        ({"interval_seconds": None, "cron": "* * * * *", "time_zone": "Mars"}, "time_zone", "no time zone 'Mars'"),
        ({"time_zone": "UTC"}, "time_zone", "an interval has none"),
        ({"interval_seconds": 0.05}, "interval_seconds", ">= 0.1"),
        ({"topic": "news"}, "queue", "give either queue or topic"),
        ({"queue": None}, "queue", "give either queue or topic"),
        ({"queue": "a/b"}, "queue", "a name is"),
        ({"missed": "all"}, "missed", "Invalid enum value"),
        ({"message": {}}, "message.body", "give one"),
        ({"message": {"body": 1, "dedup_id": "x"}}, "message.dedup_id", "leave it out"),
        ({"message": {"body": 1, "attributes": {"tick": 1}}}, "message.attributes", "choose another name"),
        ({"message": {"body": 1, "what": 1}}, "message.what", "there is no such field"),
        ({"interval": 3}, "interval", "there is no such field"),
    ],
)
async def test_what_is_no_schedule_is_422(client: Client, fields: Any, field: str, detail: str) -> None:
    reply = await client("PUT", SCHEDULE, GIVEN | fields)
    assert (reply.status, reply.json["field"]) == (422, field)
    assert detail in reply.json["detail"]


async def test_a_message_that_is_too_large(client: Client) -> None:
    reply = await client("PUT", SCHEDULE, GIVEN | {"message": {"body": "x" * 65_530}})
    assert (reply.status, reply.json["field"]) == (413, "message")


async def test_too_many_schedules_are_409(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftq.storage.machine.schedules.SCHEDULES_MAX", 1)
    await put(client)
    reply = await client("PUT", "/v1/schedules/more", GIVEN)
    assert (reply.status, reply.json["reason"]) == (409, "too_many_schedules")
