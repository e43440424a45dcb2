from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from raftq.api import runs, sockets
from raftq.api.frames import FORMATS
from raftq.api.ports import Limits
from raftq.api.problems import Problem
from raftq.replication.shard import Committed, NotLeader, OutcomeUnknown, Overloaded, ShardError
from raftq.storage.machine import commands
from tests.api.conftest import Client, Serve
from tests.api.shard import LocalShard
from tests.api.test_leases import proposed, until

JSON, MSGPACK = "raftq.v1.json", "raftq.v1.msgpack"


class Sent:
    """One stream, of which answers, pushes and ends are kept apart as they come."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.msgpack = socket.protocol == MSGPACK
        self.answers: dict[Any, Any] = {}
        self.pushed: list[Any] = []
        self.ended: dict[Any, Any] = {}
        self.frames: list[int] = []
        self._name = 0
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            assert message.type is (WSMsgType.BINARY if self.msgpack else WSMsgType.TEXT)
            items = msgspec.msgpack.decode(message.data) if self.msgpack else msgspec.json.decode(message.data)
            self.frames.append(len(items))
            for item in items:
                if "push" in item:
                    self.pushed += item["push"]["messages"]
                elif "ended" in item:
                    self.ended[item["id"]] = item["ended"]
                else:
                    assert item["id"] not in self.answers
                    self.answers[item["id"]] = item["answer"] if "answer" in item else item["problem"]

    async def send(self, frame: Any) -> None:
        if self.msgpack:
            await self.socket.send_bytes(msgspec.msgpack.encode(frame))
        else:
            await self.socket.send_str(msgspec.json.encode(frame).decode())

    async def raw(self, text: str) -> None:
        await self.socket.send_str(text)

    async def ask(self, *operations: dict[str, Any]) -> list[Any]:
        """The answers to operations of one frame."""
        named = [{"id": self._name + place, **one} for place, one in enumerate(operations, 1)]
        self._name += len(named)
        await self.send(named if len(named) != 1 else named[0])
        return await self.wait(*[one["id"] for one in named])

    async def wait(self, *names: Any) -> list[Any]:
        await until(lambda: all(name in self.answers for name in names) or self._reader.done())
        return [self.answers[name] for name in names]

    async def ended_with(self) -> int | None:
        async with asyncio.timeout(10):
            await self._reader
        return self.socket.close_code


Open = Callable[..., Awaitable[Sent]]


@asynccontextmanager
async def opener(protocol: str | None = None) -> AsyncIterator[Open]:
    opened: list[Sent] = []

    async def open_one(client: Client, protocol: str | None = protocol, **options: Any) -> Sent:
        protocols = () if protocol is None else (protocol,)
        socket = await client.session.ws_connect(client.node.url + "/v1/stream", protocols=protocols, **options)
        opened.append(Sent(socket))
        return opened[-1]

    yield open_one
    for sent in opened:
        await sent.socket.close()
        await sent._reader


@pytest.fixture(params=[JSON, MSGPACK])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    async with opener(request.param) as found:
        yield found


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    async with opener() as found:
        yield found


def put(body: Any, queue: str = "jobs", **fields: Any) -> dict[str, Any]:
    return {"op": "enqueue", "queue": queue, "body": body, **fields}


def take(**fields: Any) -> dict[str, Any]:
    return {"op": "lease", "queue": "jobs", **fields}


def settle(verb: str, *messages: Any, **fields: Any) -> dict[str, Any]:
    return {"op": verb, "queue": "jobs", "receipts": [message["receipt"] for message in messages], **fields}


async def test_operations_are_answered_as_the_routes_do(client: Client, either: Open) -> None:
    stream = await either(client)
    one, two = await stream.ask(put("a"), put({"x": [1, 2]}, attributes={"k": 1}, priority=3))
    assert one == {"messages": [{"id": "1-0-1", "duplicate": False}], "index": one["index"]}
    assert two["messages"][0]["id"] == "1-3-2"
    [many] = await stream.ask({"op": "enqueue", "queue": "jobs", "messages": [{"body": 1}, {"body": 2}]})
    assert [message["id"] for message in many["messages"]] == ["1-0-3", "1-0-4"]
    [leased] = await stream.ask(take(max=10, lease_seconds=5))
    messages = leased["messages"]
    assert [message["body"] for message in messages] == [{"x": [1, 2]}, "a", 1, 2]
    acked, nacked, released, extended = await stream.ask(
        settle("ack", messages[0], messages[1]),
        settle("nack", messages[2]),
        settle("release", messages[3]),
        settle("extend", messages[0], lease_seconds=9),
    )
    results = [{"receipt": message["receipt"], "status": "done"} for message in messages]
    assert acked == {"results": results[:2]}
    assert (nacked, released) == ({"results": results[2:3]}, {"results": results[3:]})
    assert extended["results"] == [{"receipt": messages[0]["receipt"], "status": "gone"}]
    again = (await stream.ask(take(max=10)))[0]["messages"]
    assert [(one["body"], one["failures"]) for one in again] == [(1, 1), (2, 0)]
    rejected = await stream.ask(settle("reject", again[0], reason="a"), settle("reject", again[1], reason="b"))
    assert [answer["results"][0]["status"] for answer in rejected] == ["done", "done"]


async def test_neighbours_become_one_command_and_keep_their_order(client: Client, either: Open) -> None:
    stream = await either(client)
    bodies = list(range(300))
    answers = await stream.ask(*[put(body) for body in bodies], put("other", queue="other"))
    assert [answer["messages"][0]["id"] for answer in answers[:-1]] == [f"1-0-{number + 1}" for number in bodies]
    assert len(proposed(client, commands.Enqueue)) == 2
    assert len(stream.frames) <= 2, "answers that are ready together leave together"
    leased = await client.lease(max=300)
    assert [message["body"] for message in leased] == bodies
    acks = await stream.ask(*[settle("ack", message) for message in leased])
    assert all(ack["results"][0]["status"] == "done" for ack in acks)
    assert len(proposed(client, commands.Ack)) == 1
    assert [ack["results"][0]["receipt"] for ack in acks] == [message["receipt"] for message in leased]


async def test_frames_that_come_together_become_one_command(client: Client, connect: Open) -> None:
    stream = await connect(client)
    for name in range(50):
        await stream.send({"id": name, **put(name)})
    await stream.wait(*range(50))
    assert len(proposed(client, commands.Enqueue)) < 10


async def test_one_bad_operation_spoils_no_other(client: Client, either: Open) -> None:
    stream = await either(client)
    answers = await stream.ask(
        put("a"),
        put("b", priority=10),
        put("c", queue="no/name"),
        {"op": "enqueue", "queue": "jobs"},
        put("d", dedup_id="x" * 200),
        {"op": "fly"},
        put("e", colour="red"),
        {"op": "ack", "queue": "jobs", "receipts": ["nonsense"]},
        {"op": "ack", "queue": "jobs", "receipts": ["9.9.0"]},
        {"op": "enqueue", "queue": "jobs", "messages": []},
        put("f", queue="none", auto_create=False),
        {"op": "credit", "subscription": 99, "credit": 1},
        {"op": "subscribe", "queue": "none", "credit": 1},
        put("g"),
    )
    kinds = [answer.get("type", "").rpartition("/")[2] for answer in answers]
    assert kinds == [
        "", "invalid", "invalid", "invalid", "invalid", "invalid", "invalid", "invalid", "",
        "invalid", "unknown-queue", "invalid", "unknown-queue", "",
    ]  # fmt: skip
    assert answers[1]["field"] == "priority"
    assert all(answer["applied"] == "no" for answer in answers if "applied" in answer)
    assert answers[8] == {"results": [{"receipt": "9.9.0", "status": "gone"}]}
    assert [message["body"] for message in await client.lease(max=9)] == ["a", "g"]


async def test_a_bad_body_in_a_run_is_answered_alone(client: Client, connect: Open) -> None:
    stream = await connect(client)
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    answers = await stream.ask(put("a"), put(deep), put("x", encoding="base64"), put("b"))
    assert ["status" in answer for answer in answers] == [False, True, True, False]
    assert [message["body"] for message in await client.lease(max=9)] == ["a", "b"]


async def test_of_neighbours_that_do_not_all_fit_as_many_as_fit_are_taken(client: Client, connect: Open) -> None:
    stream = await connect(client)
    assert (await client("PUT", "/v1/queues/jobs", {"max_messages": 5})).status == 201
    answers = await stream.ask(*[put(body) for body in range(8)])
    assert [answer.get("status") for answer in answers] == [None] * 5 + [429] * 3
    assert [message["body"] for message in await client.lease(max=9)] == [0, 1, 2, 3, 4]


async def test_ids_may_be_texts_and_come_back_as_they_were(client: Client, either: Open) -> None:
    stream = await either(client)
    names = ["", 'q"\\uote', "ü", -5, 2**53]
    await stream.send([{"id": name, **put(1)} for name in names])
    await stream.wait(*names)
    await stream.send({"id": 2**60, **put(1)})
    [bad] = await stream.wait(None)
    assert bad["field"] == "id"


async def test_retried_by_request_id_and_dedup_id(client: Client, either: Open) -> None:
    stream = await either(client)
    one, two, three = await stream.ask(put("a", request_id="r"), put("b"), put("a", request_id="r"))
    assert one["messages"] == three["messages"] != two["messages"]
    first, second = await stream.ask(put("c", dedup_id="d"), put("c", dedup_id="d"))
    assert second["messages"] == [{"id": first["messages"][0]["id"], "duplicate": True}]


async def test_a_lease_waits_while_others_go_on(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.send([{"id": "waits", **take(wait_seconds=30)}, {"id": "put", **put(1, queue="other")}])
    await stream.wait("put")
    assert "waits" not in stream.answers
    await stream.ask(put("now"))
    [answer] = await stream.wait("waits")
    assert [message["body"] for message in answer["messages"]] == ["now"]


# What comes in


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for form in FORMATS.values():
        with suppress(Problem):
            for operation in form.decode(data):
                runs.likeness(operation)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = st.sampled_from(["op", "id", "queue", "body", "messages", "receipts", "credit", "max", "request_id"])
_VERBS = st.sampled_from(["enqueue", "lease", "ack", "reject", "subscribe", "credit", "unsubscribe"])


@given(st.lists(st.dictionaries(_FIELDS, _JUNK | _VERBS, max_size=6), max_size=4))
def test_each_operation_of_a_frame_is_read_or_refused(operations: list[dict[str, Any]]) -> None:
    for form in FORMATS.values():
        found = form.decode(form.encode(operations))
        assert len(found) == len(operations)


async def test_operations_near_to_good_ones_are_all_answered(client: Client, either: Open) -> None:
    stream = await either(client)
    dice = random.Random(3)
    await client.enqueue("a", "b", "c")
    [message, *_] = await client.lease(max=2)
    good: list[dict[str, Any]] = [
        put("x", priority=1, delay_seconds=0.5, dedup_id="d", attributes={"a": 1}),
        {"op": "enqueue", "queue": "jobs", "messages": [{"body": 1}, {"body": 2}], "request_id": "r"},
        take(max=2, lease_seconds=1, request_id="l"),
        *[settle(verb, message) for verb in ("extend", "nack", "release", "reject", "ack")],
        {"op": "subscribe", "queue": "jobs", "credit": 1},
        {"op": "credit", "subscription": 1, "credit": 2},
        {"op": "unsubscribe", "subscription": 1},
    ]
    junk: list[Any] = [None, True, -1, 0.5, 2**40, "", "jobs", "x" * 300, [], [""], ["1.1.0"] * 2, {}, {"a": []}, b"x"]
    names = []
    for name in range(600):
        operation = dict(dice.choice(good))
        field = dice.choice([*operation, "body", "receipts", "request_id", "auto_create"])
        value = dice.choice(junk)
        operation[field] = str(value) if isinstance(value, bytes) and not stream.msgpack else value
        names.append(name)
        await stream.send({"id": name, **operation})
    answers = await stream.wait(*names)
    assert {answer["status"] for answer in answers if "status" in answer} <= {404, 409, 413, 422}
    assert not stream._reader.done()


# Subscriptions


async def test_messages_are_pushed_while_there_is_credit(client: Client, either: Open) -> None:
    stream = await either(client)
    await client("PUT", "/v1/queues/jobs", {})
    assert (await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 3, "lease_seconds": 7})) == [
        {"credit": 3}
    ]
    await stream.ask(*[put(body) for body in range(10)])
    await until(lambda: len(stream.pushed) == 3)
    await asyncio.sleep(0.05)
    assert [message["body"] for message in stream.pushed] == [0, 1, 2]
    assert stream.pushed[0]["deadline_ms"] == client.shard.clock_ms + 7000
    await stream.ask(settle("ack", *stream.pushed[:2]), settle("extend", stream.pushed[2]))
    await until(lambda: len(stream.pushed) == 5)
    await stream.ask(settle("nack", stream.pushed[2], delay_seconds=60))
    await until(lambda: len(stream.pushed) == 6)
    [more] = await stream.ask({"op": "credit", "subscription": "s", "credit": 4})
    assert more == {"credit": 4}
    await until(lambda: len(stream.pushed) == 10)
    assert [message["body"] for message in stream.pushed] == list(range(10))
    await client.enqueue("last")
    await asyncio.sleep(0.05)
    assert len(stream.pushed) == 10


async def test_a_queue_with_partitions(client: Client, either: Open) -> None:
    stream = await either(client)
    await client("PUT", "/v1/queues/jobs", {"partitions": 3})
    groups = ["a", "b", "c", None, "a", None]
    answers = await stream.ask(*[put(at, group=group) for at, group in enumerate(groups)])
    assert len(proposed(client, commands.Enqueue)) == 1
    for at, answer in enumerate(answers):
        found = await client("GET", f"/v1/queues/jobs/messages/{answer['messages'][0]['id']}")
        assert found.json["body"] == at
    [leased] = await stream.ask(take(max=10))
    assert sorted(message["body"] for message in leased["messages"]) == list(range(6))
    released = await stream.ask(*[settle("release", message) for message in leased["messages"]])
    assert {answer["results"][0]["status"] for answer in released} == {"done"}
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 9})
    await until(lambda: len(stream.pushed) == 6)
    await client("POST", "/v1/queues/jobs/messages", {"body": 6})
    await until(lambda: len(stream.pushed) == 7)
    [acked] = await stream.ask(settle("ack", *stream.pushed))
    assert [one["status"] for one in acked["results"]] == ["done"] * 7


async def test_credit_may_be_sent_right_behind_the_subscribe(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client.enqueue("a", "b")
    answers = await stream.ask(
        {"id": "s", "op": "subscribe", "queue": "jobs", "credit": 0},
        {"op": "credit", "subscription": "s", "credit": 2},
    )
    assert answers[1] == {"credit": 2}
    await until(lambda: len(stream.pushed) == 2)


async def test_two_subscriptions_have_their_own_credit(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client.enqueue("a", "b", "c")
    await client.enqueue("x", "y", queue="other")
    await stream.ask(
        {"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1},
        {"id": "t", "op": "subscribe", "queue": "other", "credit": 1},
    )
    await until(lambda: len(stream.pushed) == 2)
    mine = next(message for message in stream.pushed if message["body"] == "a")
    await stream.ask(settle("reject", mine, reason="no"))
    await until(lambda: len(stream.pushed) == 3)
    assert stream.pushed[2]["body"] == "b"


async def test_unsubscribe_ends_the_pushes(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 100})
    await until(client.node.api.waiters.waiting)
    await stream.ask({"op": "unsubscribe", "subscription": "s"})
    assert not client.node.api.waiters.waiting()
    await client.enqueue("a")
    assert len(await client.lease(max=5)) == 1
    assert stream.pushed == []


async def test_a_deleted_queue_ends_its_subscription(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await until(client.node.api.waiters.waiting)
    await client("DELETE", "/v1/queues/jobs")
    client.node.api.waiters.wake_all()
    await until(lambda: stream.ended)
    assert stream.ended["s"]["type"].endswith("unknown-queue")
    [again] = await stream.ask({"op": "unsubscribe", "subscription": "s"})
    assert again["field"] == "subscription"


def leasing(client: Client, error: ShardError | None) -> list[float]:
    """From now on the shard refuses leases with `error`. The loop times at which they were tried."""
    tried: list[float] = []
    propose = LocalShard.propose

    def refusing(command: bytes) -> asyncio.Future[Committed]:
        if type(commands.decode(command)) is not commands.Lease or error is None:
            return propose(client.shard, command)
        tried.append(asyncio.get_running_loop().time())
        if not isinstance(error, OutcomeUnknown):
            raise error
        unsure: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        unsure.set_exception(error)
        return unsure

    client.shard.propose = refusing  # type: ignore[method-assign]
    return tried


@pytest.mark.parametrize("error", [Overloaded(), OutcomeUnknown()])
async def test_a_subscription_goes_on_after_what_passes(client: Client, connect: Open, error: ShardError) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    tried = leasing(client, error)
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await stream.ask(put("a"), put("b"))
    await until(lambda: len(tried) == 2)
    assert tried[1] - tried[0] > 0.9, "Retry-After is 1"
    leasing(client, None)
    await until(lambda: stream.pushed)
    await stream.ask(settle("ack", *stream.pushed))
    await until(lambda: len(stream.pushed) == 2)
    assert [message["body"] for message in stream.pushed] == ["a", "b"]
    assert not stream.ended


async def test_credit_does_not_hasten_what_waits_for_room(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client.enqueue("a")
    tried = leasing(client, Overloaded())
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await until(lambda: tried)
    for _ in range(5):
        await stream.ask({"op": "credit", "subscription": "s", "credit": 1})
    await until(lambda: len(tried) == 2)
    assert tried[1] - tried[0] > 0.9


@pytest.mark.parametrize("way", ["unsubscribe", "close", "stop", "depose"])
async def test_who_waits_for_room_ends_at_once(client: Client, connect: Open, way: str) -> None:
    stream = await connect(client)
    await client.enqueue("a")
    tried = leasing(client, Overloaded())
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await until(lambda: tried)
    [connection] = client.node.api.connections
    subscription = connection._subscriptions._all["s"]  # type: ignore[attr-defined]
    await until(lambda: subscription.rest)
    match way:
        case "unsubscribe":
            await stream.ask({"op": "unsubscribe", "subscription": "s"})
        case "close":
            await stream.socket.close()
        case "stop":
            client.node.stopping = True
            await client.node.api.drain(5)
        case _:
            client.node.follow(None)
    await until(subscription.task.done)
    assert len(tried) == 1
    assert not stream.ended


async def test_a_deleted_queue_ends_who_waits_for_room(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client.enqueue("a")
    tried = leasing(client, Overloaded())
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await until(lambda: tried)
    await client("DELETE", "/v1/queues/jobs")
    await until(lambda: stream.ended)
    assert stream.ended["s"]["type"].endswith("unknown-queue")


async def test_what_was_leased_and_not_sent_is_handed_back(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 5})
    await until(client.node.api.waiters.waiting)
    gate = client.shard.gate = asyncio.Event()
    enqueueing = asyncio.ensure_future(client.enqueue("a"))
    await until(lambda: len(client.shard._tasks) == 1)
    client.shard.gate = asyncio.Event()
    gate.set()
    await enqueueing
    await until(lambda: len(client.shard._tasks) == 1)  # its lease is on the way
    await stream.socket.close()
    await until(lambda: not client.node.api.connections)
    client.shard.gate.set()
    await until(lambda: proposed(client, commands.Release))
    assert client.shard.stale().ready("default/jobs") == 1


# Limits and ends


async def test_nothing_more_is_read_than_may_be_in_flight(client: Client, connect: Open) -> None:
    stream = await connect(client)
    client.shard.gate = asyncio.Event()
    for start in range(0, 5000, 100):
        await stream.send([{"id": start + place, **put(place)} for place in range(100)])
    await asyncio.sleep(0.1)
    [connection] = client.node.api.connections
    assert 1024 <= connection._unanswered < 1124  # type: ignore[attr-defined]
    gate, client.shard.gate = client.shard.gate, None
    gate.set()
    await stream.wait(*range(5000))
    assert connection._unanswered == 0  # type: ignore[attr-defined]


async def test_a_client_that_does_not_read_holds_up_itself_alone(serve: Serve, connect: Open) -> None:
    client = await serve()
    await client.enqueue(*["x" * 100_000] * 60)
    stream = await connect(client)
    stream._reader.cancel()
    transport = stream.socket._response.connection.transport  # type: ignore[union-attr]
    transport.pause_reading()
    await stream.send({"id": 1, "op": "subscribe", "queue": "jobs", "credit": 1000})
    await asyncio.sleep(0.5)
    pushed = 60 - client.shard.stale().ready("default/jobs")
    assert 0 < pushed < 60, "a push is leased when the one before has left"
    [connection] = client.node.api.connections
    connection.end(1001, "")
    await until(lambda: not client.node.api.connections)
    await until(lambda: client.shard.stale().ready("default/jobs") > 60 - pushed)
    transport.abort()
    stream._reader = asyncio.ensure_future(asyncio.sleep(0))


async def test_of_many_leases_few_run_at_once(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.send([{"id": name, **take(wait_seconds=30)} for name in range(40)])
    await until(lambda: client.node.api.waiters.waiting() == 16)
    await stream.ask(*[{"id": f"p{body}", **put(body)} for body in range(40)])
    leased = await stream.wait(*range(40))
    assert sorted(one["messages"][0]["body"] for one in leased) == list(range(40))


async def test_a_client_that_answers_no_ping_is_dropped(
    client: Client, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HEARTBEAT_SECONDS", 0.05)
    stream = await connect(client, autoping=False)
    stream._reader.cancel()
    await until(lambda: not client.node.api.connections)
    stream._reader = asyncio.ensure_future(asyncio.sleep(0))


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda socket: socket.send_str("{"), 1007),
        (lambda socket: socket.send_bytes(b"x"), 1003),
        (lambda socket: socket._writer.send_frame(b'"\xff"', WSMsgType.TEXT), 1007),
        (lambda socket: socket.send_str("x" * 10_001), 1009),
    ],
)
async def test_what_is_no_frame_ends_the_connection(
    serve: Serve, connect: Open, send: Callable[[Any], Awaitable[None]], code: int
) -> None:
    client = await serve(Limits(batch_bytes=10_000))
    stream = await connect(client)
    await stream.ask(put(1))
    await send(stream.socket)
    assert await stream.ended_with() == code


async def test_the_handshake_is_refused_with_a_problem(client: Client) -> None:
    reply = await client("GET", "/v1/stream")
    assert (reply.status, reply.json["type"]) == (400, "https://raftq.dev/problems/malformed")
    with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
        await client.session.ws_connect(client.node.url + "/v1/stream", protocols=("mqtt",))
    with pytest.raises(aiohttp.WSServerHandshakeError, match="422"):
        await client.session.ws_connect(client.node.url + "/v1/stream?x=1")
    assert (await client("GET", "/v1/queues")).status == 200


async def test_a_new_leader_ends_it_with_1012_and_true_answers(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await stream.send({"id": "waits", **take(wait_seconds=30)})
    await until(lambda: client.node.api.waiters.waiting() == 2)
    client.shard.gate = asyncio.Event()
    client.shard.unsure = OutcomeUnknown()
    await stream.send({"id": "sent", **put(1, queue="other")})
    await until(lambda: len(client.shard._tasks) > 0)
    client.node.follow("http://127.0.0.1:1")
    client.shard.gate.set()
    assert await stream.ended_with() == 1012
    assert (stream.answers["sent"]["type"][-15:], stream.answers["sent"]["applied"]) == ("outcome-unknown", "unknown")
    assert (stream.answers["waits"]["type"][-10:], stream.answers["waits"]["applied"]) == ("not-leader", "no")
    assert stream.answers["waits"]["leader"] == "http://127.0.0.1:1"


async def test_what_the_shard_refuses_is_answered(client: Client, connect: Open) -> None:
    stream = await connect(client)
    client.shard.refuse = Overloaded()
    assert [one["status"] for one in await stream.ask(put(1), put(2))] == [429, 429]
    client.shard.refuse = NotLeader("n2")
    assert [one["applied"] for one in await stream.ask(put(1), take(request_id="r"))] == ["no", "no"]
    client.shard.refuse, client.shard.unsure = None, OutcomeUnknown()
    assert [one["applied"] for one in await stream.ask(put(1), put(2))] == ["unknown", "unknown"]


async def test_a_node_that_stops_answers_what_is_in_flight_and_says_goodbye(client: Client, connect: Open) -> None:
    stream = await connect(client)
    await client("PUT", "/v1/queues/jobs", {})
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 1})
    await until(client.node.api.waiters.waiting)
    client.shard.gate = asyncio.Event()
    await stream.send([{"id": "put", **put(1, queue="other")}, {"id": "waits", **take(wait_seconds=30)}])
    await until(lambda: client.shard._tasks)
    client.node.stopping = True
    draining = asyncio.ensure_future(client.node.api.drain(5))
    await asyncio.sleep(0.05)
    client.shard.gate.set()
    assert await stream.ended_with() == 1001
    assert await draining
    assert stream.answers["put"]["messages"]
    assert stream.answers["waits"]["type"].endswith("stopping")


# Through a follower


@pytest.fixture
async def pair(serve: Serve) -> tuple[Client, Client]:
    follower, leader = await serve(), await serve()
    follower.node.follow(leader.node.url)
    return follower, leader


async def test_a_follower_passes_frames_on(pair: tuple[Client, Client], either: Open) -> None:
    follower, leader = pair
    stream = await either(follower)
    answers = await stream.ask(*[put(body) for body in range(100)])
    assert len({answer["messages"][0]["id"] for answer in answers}) == 100
    await stream.ask({"id": "s", "op": "subscribe", "queue": "jobs", "credit": 100})
    await until(lambda: len(stream.pushed) == 100)
    [acked] = await stream.ask(settle("ack", *stream.pushed))
    assert {one["status"] for one in acked["results"]} == {"done"}
    assert len(proposed(leader, commands.Enqueue)) == 1
    await stream.socket.close()
    await until(lambda: not follower.node.api.connections)
    await until(lambda: not leader.node.api.connections)


async def test_a_leader_that_is_deposed_ends_the_proxied_too(pair: tuple[Client, Client], connect: Open) -> None:
    follower, leader = pair
    stream = await connect(follower)
    await stream.ask(put(1))
    leader.node.follow(None)
    assert await stream.ended_with() == 1012


async def test_what_a_dead_leader_left_open_is_told_as_unknown(pair: tuple[Client, Client], either: Open) -> None:
    follower, leader = pair
    stream = await either(follower)
    await stream.ask(put(1))
    leader.shard.gate = asyncio.Event()
    await stream.send([{"id": "a", **put(1)}, {"id": "b", **put(1)}])
    await until(lambda: leader.shard._tasks)
    [connection] = leader.node.api.connections
    connection.socket._req.transport.abort()  # type: ignore[union-attr]
    assert await stream.ended_with() == 1012
    for name in "ab":
        assert (stream.answers[name]["status"], stream.answers[name]["applied"]) == (503, "unknown")


async def test_a_follower_that_learns_of_another_leader_ends_it(pair: tuple[Client, Client], connect: Open) -> None:
    follower, leader = pair
    stream = await connect(follower)
    leader.shard.gate = asyncio.Event()
    await stream.send({"id": 1, **put(1)})
    await until(lambda: leader.shard._tasks)
    follower.node.follow("http://127.0.0.1:1")
    assert await stream.ended_with() == 1012
    assert stream.answers[1]["applied"] == "unknown"


async def test_a_follower_passes_on_why_a_frame_was_refused(pair: tuple[Client, Client], connect: Open) -> None:
    stream = await connect(pair[0])
    await stream.raw("{")
    assert await stream.ended_with() == 1007


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize(
    "bad", [b"\x84\xa2op\xa7en\x9eue\xa2id\x01", b"\x91\x81\xa2id\xa1\xff", b"\x92\x81\xa2id\x90\x81\xa2id\xa1\xff"]
)
async def test_msgpack_text_that_is_no_utf_8_is_no_frame(
    pair: tuple[Client, Client], connect: Open, node: int, bad: bytes
) -> None:
    """Found by the fuzzer: it was taken for a defect of the node, logged and answered 1011."""
    stream = await connect(pair[node], MSGPACK)
    await stream.socket.send_bytes(bad)
    assert await stream.ended_with() == 1007


async def test_a_follower_that_stops_waits_for_answers(pair: tuple[Client, Client], connect: Open) -> None:
    follower, leader = pair
    stream = await connect(follower)
    leader.shard.gate = asyncio.Event()
    await stream.send({"id": 1, **put(1)})
    await until(lambda: leader.shard._tasks)
    follower.node.stopping = True
    draining = asyncio.ensure_future(follower.node.api.drain(5))
    await asyncio.sleep(0.05)
    leader.shard.gate.set()
    assert await stream.ended_with() == 1001
    assert stream.answers[1]["messages"]
    assert await draining


async def test_without_a_leader_there_is_no_stream(serve: Serve) -> None:
    one, other = await serve(), await serve()
    one.node.follow(other.node.url)
    other.node.follow(one.node.url)
    for client in (one, other):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await client.session.ws_connect(client.node.url + "/v1/stream")
