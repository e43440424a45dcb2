from __future__ import annotations

import base64
import math
from typing import Any

import msgspec
import pytest

from raftq.api.ports import Limits
from raftq.storage.machine import packing
from tests.api.conftest import Client, Serve

MESSAGES = "/v1/queues/jobs/messages"
MSGPACK = {"Content-Type": "application/msgpack"}


async def send(client: Client, data: bytes, **headers: str) -> Any:
    return await client("POST", MESSAGES, data=data, headers={"Content-Type": "application/json"} | headers)


async def send_msgpack(client: Client, value: Any) -> Any:
    return await client("POST", MESSAGES, data=msgspec.msgpack.encode(value), headers=MSGPACK)


async def test_one_message_comes_back_as_it_was_given(client: Client) -> None:
    given = {"body": {"a": [1, None]}, "attributes": {"kind": "x", "n": 1, "f": 1.5, "b": True}, "priority": 3}
    reply = await client("POST", MESSAGES, given)
    assert (reply.status, reply.json["index"]) == (201, 1)
    [message] = await client.lease(lease_seconds=10)
    assert message == given | {
        "id": reply.json["messages"][0]["id"],
        "receipt": message["receipt"],
        "fence": 1,
        "group": None,
        "deliveries": 1,
        "failures": 0,
        "enqueued_at_ms": client.shard.clock_ms,
        "deadline_ms": client.shard.clock_ms + 10_000,
        "dead_letter": None,
    }


async def test_a_json_body_is_kept_as_the_bytes_that_came(client: Client) -> None:
    bodies = [b'{ "b":1, "a" : 2.50,"a":3}', b"1e400", b"9" * 5000, b'"\\u00e9\\n"', '"é\u2028"'.encode(), b"null"]
    data = b'{"messages":[' + b",".join(b'{"body":%b}' % body for body in bodies) + b"]}"
    assert (await send(client, data)).status == 201
    leased = await client("POST", "/v1/queues/jobs/lease", data=b'{"max":10}')
    for body in bodies:
        assert b'"body":%b,' % body in leased.data


async def test_binary_bodies_in_both_encodings(client: Client) -> None:
    raw = bytes(range(256))
    text = base64.b64encode(raw).decode()
    assert (await client("POST", MESSAGES, {"body": text, "encoding": "base64"})).status == 201
    assert (await send_msgpack(client, {"body": raw})).status == 201
    as_json = await client.lease(max=2)
    assert [(m["body"], m["encoding"]) for m in as_json] == [(text, "base64")] * 2
    await client("POST", "/v1/queues/jobs/release", {"receipts": [m["receipt"] for m in as_json]})
    given = msgspec.msgpack.encode({"max": 2})
    as_msgpack = (await client("POST", "/v1/queues/jobs/lease", data=given, headers=MSGPACK)).msgpack["messages"]
    assert [(m["body"], "encoding" in m) for m in as_msgpack] == [(raw, False)] * 2


async def test_msgpack_values_are_converted_to_json_once(client: Client) -> None:
    values = [{"a": [1, 2.5, None, True]}, "é", 2**63, [], {1: 2}]
    assert (await send_msgpack(client, {"messages": [{"body": value} for value in values]})).status == 201
    assert [m["body"] for m in await client.lease(max=9)] == [*values[:4], {"1": 2}]


async def test_the_answer_is_in_the_accepted_encoding(client: Client) -> None:
    data = b'{"body":1,"dedup_id":"a"}'
    reply = await send(client, data, Accept="application/msgpack")
    assert reply.headers["Content-Type"] == "application/msgpack"
    assert reply.msgpack == {"messages": [{"id": "1-0-1", "duplicate": False}], "index": 1}
    again = await send_msgpack(client, {"body": 1, "dedup_id": "a"})
    assert again.msgpack == {"messages": [{"id": "1-0-1", "duplicate": True}], "index": 2}
    text = await client("GET", MESSAGES, headers={"Accept": "text/html, */*;q=0.8"})
    assert text.headers["Content-Type"] == "application/json"


async def test_a_json_number_that_msgpack_cannot_hold_stays_text(client: Client) -> None:
    await send(client, b'{"body":123456789012345678901234567890}')
    reply = await client("POST", "/v1/queues/jobs/lease", data=b"\x80", headers=MSGPACK)
    [message] = reply.msgpack["messages"]
    assert (message["body"], message["encoding"]) == ("123456789012345678901234567890", "json")


async def test_a_batch_is_grouped_by_priority_and_delay_and_answered_in_order(client: Client) -> None:
    given = [
        {"body": 0},
        {"body": 1, "priority": 9},
        {"body": 2, "delay_seconds": 0.0125},
        {"body": 3, "priority": 9, "dedup_id": "x"},
        {"body": 4},
        {"body": 5, "dedup_id": "x"},
    ]
    reply = await client("POST", MESSAGES, {"messages": given})
    ids = [(m["id"], m["duplicate"]) for m in reply.json["messages"]]
    [enqueue] = client.shard.applied
    assert [(part.priority, part.delay_ms, part.positions) for part in enqueue.parts] == [
        (0, None, [0]),
        (9, None, [1, 3]),
        (0, 12, [2]),
        (0, None, [4, 5]),
    ]
    assert ids[3][1] != ids[5][1], "one of the two is the duplicate"
    for (id_, duplicate), message in zip(ids, given, strict=True):
        if not duplicate and message["body"] != 2:
            assert (await client("GET", f"{MESSAGES}/{id_}")).json["body"] == message["body"]


async def test_messages_of_one_request_stand_in_its_order_whatever_their_delays(client: Client) -> None:
    delays = [None, 0, None, 0, 0.001, None]
    given = [{"body": at, "delay_seconds": delay, "priority": at % 2} for at, delay in enumerate(delays)]
    reply = await client("POST", MESSAGES, {"messages": given})
    numbers = [int(one["id"].rpartition("-")[2]) for one in reply.json["messages"]]
    assert numbers[::2] == sorted(numbers[::2])
    assert numbers[1::2] == sorted(numbers[1::2])
    assert [one["body"] for one in await client.lease(max=9)] == [1, 3, 5, 0, 2]


async def test_large_batches_travel_in_bounded_blobs_and_keep_their_order(client: Client) -> None:
    bodies = ["x" * (i * 331 % 5000) for i in range(100)] + ["y" * 200_000, "z"]
    ids = await client.enqueue(*bodies)
    [enqueue] = client.shard.applied
    assert len(enqueue.parts) > 3
    for part in enqueue.parts:
        assert len(part.blob) <= packing.BLOB_BYTES_MAX or packing.count(part.blob) == 1
    leased = await client.lease(max=200)
    assert [m["body"] for m in leased] == bodies
    assert [m["id"] for m in leased] == ids


async def test_a_repeated_request_repeats_its_answer(client: Client) -> None:
    given = {"messages": [{"body": 1}, {"body": 2}], "request_id": "r", "request_seconds": 60}
    first, second = [(await client("POST", MESSAGES, given)).json["messages"] for _ in range(2)]
    assert first == second
    assert len(await client.lease(max=10)) == 2
    assert client.shard.applied[0].request.keep_ms == 60_000


@pytest.mark.parametrize(
    ("data", "status", "field"),
    [
        (b'{"body":1,', 400, None),
        (b'{"body":"\xff"}', 400, None),
        (b'{"body":"\xed\xa0\x80"}', 400, None),
        (b'{"body":"\\ud800"}', 400, None),
        (b'{"body":NaN}', 400, None),
        (b'{"body":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
        (b"[1]", 422, "request"),
        (b'{"body":' + b"[" * 65 + b"]" * 65 + b"}", 422, "body"),
        (b'{"messages":[{"body":1},{"body":' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}]}", 422, "messages[1].body"),
        (b"{}", 422, "body"),
        (b"", 422, "body"),
        (b'{"messages":[]}', 422, "messages"),
        (b'{"messages":[{"body":1},{}]}', 422, "messages[1].body"),
        (b'{"messages":[{"body":1}],"body":2}', 422, "body"),
        (b'{"messages":[{"body":1}],"delay_seconds":0}', 422, "delay_seconds"),
        (b'{"body":1,"priority":10}', 422, "priority"),
        (b'{"body":1,"priority":1.5}', 422, "priority"),
        (b'{"body":1,"priority":1e400}', 422, "priority"),
        (b'{"messages":[{"body":1,"delay_seconds":-1}]}', 422, "messages[0].delay_seconds"),
        (b'{"body":1,"delay_seconds":2592001}', 422, "delay_seconds"),
        (b'{"body":1,"dedup_id":""}', 422, "dedup_id"),
        (b'{"messages":[{"body":1},{"body":1,"dedup_id":"%b"}]}' % (b"x" * 129), 422, "messages[1].dedup_id"),
        (f'{{"body":1,"request_id":"{"é" * 65}"}}'.encode(), 422, "request_id"),
        (b'{"body":1,"request_seconds":5}', 422, "request_seconds"),
        (b'{"body":1,"attributes":{"a":null}}', 422, "attributes[...]"),
        (b'{"body":1,"attributes":{"a":[1]}}', 422, "attributes[...]"),
        (b'{"body":1,"attributes":{"a":99999999999999999999}}', 422, "attributes"),
        (b'{"body":1,"attributes":{"a":"%b"}}' % (b"x" * 8192), 413, "attributes"),
        (b'{"body":1,"encoding":"hex"}', 422, "encoding"),
        (b'{"body":1,"encoding":"base64"}', 422, "body"),
        (b'{"body":"a","encoding":"base64"}', 422, "body"),
        (b'{"body":"%b"}' % (b"x" * 1024 * 1024), 413, "body"),
        (b'{"body":1,"colour":2}', 422, "colour"),
    ],
)
async def test_what_is_refused_says_which_field(client: Client, data: bytes, status: int, field: str | None) -> None:
    reply = await send(client, data)
    assert (reply.status, reply.json.get("field"), reply.json["applied"]) == (status, field, "no")
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert client.shard.applied == []


@pytest.mark.parametrize(
    "value",
    [
        {"body": math.nan},
        {"body": [math.inf]},
        {"body": {"a": {"b": -math.inf}}},
        {"body": msgspec.msgpack.Ext(5, b"x")},
        {"body": {None: 1}},
        {"body": 1, "attributes": {"a": math.nan}},
        {"body": 1, "delay_seconds": math.nan},
    ],
)
async def test_msgpack_that_has_no_json_form_is_refused(client: Client, value: Any) -> None:
    assert (await send_msgpack(client, value)).status == 422


async def test_malformed_msgpack_is_400(client: Client) -> None:
    deep = b"\x81\xa4body" + b"\x91" * 100_000 + b"\x01"
    for data in (b"\x81", b"\xc1", b"\x81\xa4body\xa2\xff\xff" + b"\x01", deep):
        assert (await client("POST", MESSAGES, data=data, headers=MSGPACK)).status == 400
    invalid_text = await client("POST", MESSAGES, data=b"\x81\xa4body\xa2\xff\xff", headers=MSGPACK)
    assert invalid_text.status == 422


async def test_many_brackets_that_are_not_deep_are_taken(client: Client) -> None:
    body = {"a": [[[i]] for i in range(200)], "b": ']]}}[[[[\\"{{{{' * 50}
    assert await client.enqueue(body, body)
    assert [m["body"] for m in await client.lease(max=2)] == [body, body]


async def test_limits_come_from_the_node(serve: Serve) -> None:
    client = await serve(Limits(body_bytes=10, batch_messages=2, batch_bytes=1000))
    assert (await client("POST", MESSAGES, {"messages": [{"body": 1}] * 3})).status == 413
    assert (await client("POST", MESSAGES, {"body": "123456789"})).status == 413
    assert (await client("POST", MESSAGES, {"body": "12345678"})).status == 201
    large = await client("POST", MESSAGES, {"body": "x" * 1000})
    assert (large.status, large.headers["Connection"]) == (413, "close")


async def test_enqueue_without_auto_create_needs_the_queue(client: Client) -> None:
    reply = await client("POST", MESSAGES, {"body": 1, "auto_create": False})
    assert (reply.status, reply.json["queue"]) == (404, "jobs")


async def test_peek_pages_through_each_state(client: Client) -> None:
    await client.enqueue(*range(5))
    await client("POST", MESSAGES, {"body": "later", "delay_seconds": 5})
    [leased] = await client.lease()
    seen, cursor = [], ""
    while True:
        page = (await client("GET", f"{MESSAGES}?limit=3{cursor}")).json
        seen += page["messages"]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert [m["body"] for m in seen] == [1, 2, 3, 4]
    [delayed] = (await client("GET", f"{MESSAGES}?state=delayed")).json["messages"]
    assert (delayed["body"], delayed["due_ms"]) == ("later", client.shard.clock_ms + 5000)
    [held] = (await client("GET", f"{MESSAGES}?state=leased&consistency=stale")).json["messages"]
    assert (held["id"], held["state"], held["deliveries"]) == (leased["id"], "leased", 1)
    as_msgpack = await client("GET", MESSAGES, headers={"Accept": "application/msgpack"})
    assert [m["body"] for m in as_msgpack.msgpack["messages"]] == [1, 2, 3, 4]


async def test_a_page_ends_by_bytes_too(client: Client) -> None:
    for _ in range(60):
        await client.enqueue("x" * 500_000)
    page = (await client("GET", f"{MESSAGES}?limit=60")).json
    assert (len(page["messages"]), page["cursor"] is None) == (20, False)
    rest = (await client("GET", f"{MESSAGES}?limit=60&cursor={page['cursor']}")).json
    assert len(rest["messages"]) == 20


async def test_one_message_by_its_id(client: Client) -> None:
    [first, _] = await client.enqueue("a", "b")
    reply = await client("GET", f"{MESSAGES}/{first}", headers={"Accept": "application/msgpack"})
    assert (reply.msgpack["body"], reply.msgpack["state"]) == ("a", "ready")
    for other in ("1-0-99", "2-0-1", "x", "1-0-1-1", "1--1", "01-0-1", "1-0-" + "9" * 30, "%2e"):
        assert (await client("GET", f"{MESSAGES}/{other}")).status == 404, other


@pytest.mark.parametrize("query", ["state=gone", "limit=0", "limit=501", "limit=%2B1", "cursor=x", "consistency=maybe"])
async def test_bad_queries_of_a_peek(client: Client, query: str) -> None:
    await client.enqueue(1)
    reply = await client("GET", f"{MESSAGES}?{query}")
    assert (reply.status, reply.json["field"]) == (422, f"query.{query.split('=')[0]}")
