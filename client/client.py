"""`AsyncClient`: every operation of the HTTP API as one coroutine, typed.

It owns what an operation is (its path, its body, whether repeating it is safe) and leaves how it is carried to
`raftq.client.calls`. Every change carries a request id unless told otherwise, so a retry never doubles.
"""

from __future__ import annotations

import asyncio
import enum
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from raftq.client.calls import Call, Caller, Patience
from raftq.client.errors import NotFound, OutcomeUnknown, Unavailable
from raftq.client.models import (
    BackedUp,
    Changed,
    Cluster,
    Enqueued,
    Grant,
    Leased,
    LeasedMessage,
    Led,
    MadeToken,
    Message,
    NewMessage,
    Page,
    Published,
    Purged,
    Redrive,
    Results,
    Settled,
    Token,
    TokenPage,
    Transacted,
)
from raftq.client.names import checked_token, queue_name
from raftq.client.stream import PROTOCOL, Stream
from raftq.client.transport import AiohttpTransport, Transport

T = TypeVar("T")


class Fresh(enum.Enum):
    """As a request id: make a new one. With None, none is sent, and a lost answer raises OutcomeUnknown at once."""

    FRESH = enum.auto()


FRESH: Final = Fresh.FRESH
RequestId = str | None | Fresh
#: What `_request` takes, as a retry needs it.
_RETRIED: Final[dict[str, Any]] = {"request_id": FRESH, "request_seconds": None}

_encode = msgspec.msgpack.Encoder().encode


class AsyncClient:
    """A client of one cluster.

    urls: one node, or several; the rest and the leader are found from any of them.
    namespace: None is that of the token, else `default`.
    token: sent to these nodes and to those that they name as nodes of their cluster, and to nobody else.
    ca_file: the authorities of the nodes' certificates, in PEM, and no others; None: those of the system.
    All operations raise Refused, Unavailable or OutcomeUnknown (`raftq.client.errors`), and ValueError for what cannot
    be the name of a queue. So does this, for what is no URL, no token or no such file.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        namespace: str | None = None,
        patience: Patience | None = None,
        transport: Transport | None = None,
        token: str | None = None,
        ca_file: str | Path | None = None,
    ) -> None:
        self._transport = transport or AiohttpTransport(ca_file=ca_file)
        seeds = [urls] if isinstance(urls, str) else list(urls)
        given = None if token is None else checked_token(token)
        self._caller = Caller(seeds, self._transport, patience or Patience(), namespace, given)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def enqueue(
        self,
        queue: str,
        messages: Sequence[NewMessage],
        *,
        request_id: RequestId = FRESH,
        request_seconds: float | None = None,
    ) -> Enqueued:
        """Enqueue all of `messages`, in their order, or none.

        request_seconds: how long the node keeps the first answer for retries; None takes its default.
        """
        body = {"messages": messages, **_request(request_id, request_seconds)}
        return await self._post(_queue(queue, "/messages"), body, Enqueued)

    async def lease(
        self,
        queue: str,
        *,
        max: int = 1,  # noqa: A002 - the word of the API
        lease_seconds: float | None = None,
        wait_seconds: float = 0.0,
        groups: Sequence[str] | None = None,
        request_id: RequestId = FRESH,
        request_seconds: float | None = None,
    ) -> list[LeasedMessage]:
        """Up to `max` messages, waiting up to `wait_seconds` for the first; none when there was none.

        groups: messages with one of these group keys alone, of a queue with `max_leased_per_group`.
        """
        body = {"max": max, "wait_seconds": wait_seconds, **_request(request_id, request_seconds)}
        if lease_seconds is not None:
            body["lease_seconds"] = lease_seconds
        if groups is not None:
            body["groups"] = list(groups)
        leased = await self._post(_queue(queue, "/lease"), body, Leased, wait_seconds=wait_seconds)
        return leased.messages

    async def ack(self, queue: str, receipts: Sequence[str], **request: Any) -> list[Settled]:
        """The messages are done with. Takes `request_id` and `request_seconds` as `enqueue` does."""
        return await self._settle(queue, "/ack", receipts, {}, **request)

    async def nack(
        self, queue: str, receipts: Sequence[str], *, delay_seconds: float | None = None, **request: Any
    ) -> list[Settled]:
        """The messages failed: they come back after the delay, or after the queue's own."""
        extra = {} if delay_seconds is None else {"delay_seconds": delay_seconds}
        return await self._settle(queue, "/nack", receipts, extra, **request)

    async def release(self, queue: str, receipts: Sequence[str], **request: Any) -> list[Settled]:
        """The messages go back as they came; no failure is counted."""
        return await self._settle(queue, "/release", receipts, {}, **request)

    async def reject(
        self, queue: str, receipts: Sequence[str], *, reason: str | None = None, **request: Any
    ) -> list[Settled]:
        """The messages are dead-lettered at once, with the reason; without a dead-letter queue they are discarded."""
        extra = {} if reason is None else {"reason": reason}
        return await self._settle(queue, "/reject", receipts, extra, **request)

    async def extend(
        self, queue: str, receipts: Sequence[str], *, lease_seconds: float | None = None, **request: Any
    ) -> list[Settled]:
        """The messages' lease ends `lease_seconds` from now."""
        extra = {} if lease_seconds is None else {"lease_seconds": lease_seconds}
        return await self._settle(queue, "/extend", receipts, extra, **request)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Stream]:
        """One connection with many operations in flight, and with messages pushed to subscriptions. Raises Refused and
        Unavailable when there is none to be had."""
        if self._caller.discovery.leader is None:
            await self._caller.discovery.refresh()
        stream = Stream(await self._caller.connect("/v1/stream", PROTOCOL))
        try:
            yield stream
        finally:
            await stream.close()

    async def peek(self, queue: str, *, state: str = "ready", limit: int = 100, cursor: str | None = None) -> Page:
        """A page of the queue's messages, without a lease. Give `Page.cursor` to get the next."""
        query = {"state": state, "limit": limit} | ({} if cursor is None else {"cursor": cursor})
        return await self._get(_queue(queue, f"/messages?{urlencode(query)}"), Page)

    async def message(self, queue: str, message_id: str) -> Message:
        """Raises NotFound."""
        return await self._get(_queue(queue, f"/messages/{quote(message_id, safe='')}"), Message)

    async def stats(self, queue: str | None = None) -> dict[str, Any]:
        """Counts of one queue, or of all."""
        return await self._get("/v1/stats" if queue is None else _queue(queue, "/stats"), dict[str, Any])

    async def define_queue(self, queue: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Create the queue, or give it these settings, by their names in the API (`{"lease_seconds": 5,
        "dead_letter_queue": "dead", "max_failures": 3}`); the others take their defaults. The answer is all of them."""
        call = Call("PUT", _queue(queue), _encode(dict(settings or {})), repeatable=True)
        return _decode(await self._caller.call(call), dict[str, Any])

    async def change_queue(self, queue: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Change these settings, None to the default; the others stay. The answer is all of them. Raises NotFound."""
        call = Call("PATCH", _queue(queue), _encode(dict(settings)), repeatable=True)
        return _decode(await self._caller.call(call), dict[str, Any])

    async def delete_queue(self, queue: str) -> None:
        """Remove the queue and its messages. Raises NotFound, unless an attempt before may be what removed it."""
        await self._delete(_queue(queue))

    async def transact(
        self,
        operations: Sequence[Mapping[str, Any]],
        *,
        request_id: RequestId = FRESH,
        request_seconds: float | None = None,
    ) -> Transacted:
        """Do all of the operations, in their order, or none: `[{"ack": {"queue": "orders", "receipts": [...]}},
        {"enqueue": {"queue": "invoices", "messages": [NewMessage(body=1)]}}]`; also nack, release and reject.
        Raises Refused, whose `fields["operations"]` say what stood in the way."""
        body = {"operations": operations, **_request(request_id, request_seconds)}
        return await self._post("/v1/transactions", body, Transacted)

    async def publish(
        self,
        topic: str,
        messages: Sequence[NewMessage],
        *,
        request_id: RequestId = FRESH,
        request_seconds: float | None = None,
    ) -> Published:
        """Enqueue the messages into every queue that is subscribed and whose filter takes them, into all or none.
        Raises NotFound without the topic."""
        body = {"messages": messages, **_request(request_id, request_seconds)}
        return await self._post(_topic(topic, "/messages"), body, Published)

    async def define_topic(self, topic: str) -> None:
        """Create the topic, unless it is there."""
        await self._caller.call(Call("PUT", _topic(topic), _encode({}), repeatable=True))

    async def delete_topic(self, topic: str) -> None:
        """Remove the topic and its subscriptions, as `delete_queue` does a queue."""
        await self._delete(_topic(topic))

    async def subscribe(self, topic: str, queue: str, filter: Mapping[str, Any] | None = None) -> None:  # noqa: A002
        """Subscribe the queue, which is created if need be, to what the filter takes (None: all), or change the filter:
        `{"color": ["red", {"prefix": "dark-"}], "n": [{"numeric": [">=", 1]}]}`. Raises NotFound without the topic."""
        body = _encode({"filter": dict(filter or {})})
        await self._caller.call(Call("PUT", _subscription(topic, queue), body, repeatable=True))

    async def unsubscribe(self, topic: str, queue: str) -> None:
        """End the subscription. Raises NotFound, unless an attempt before may be what ended it."""
        await self._delete(_subscription(topic, queue))

    async def define_schedule(self, schedule: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Create the schedule, or change it as a whole, by the names of the API: `{"cron": "30 2 * * *", "time_zone":
        "Europe/Berlin", "queue": "reports", "message": NewMessage(body=1)}`; also `interval_seconds`, `topic`, `missed`
        ("skip" or "one") and `paused`. How it stands: with `next_at_ms`, `ticks`, `skipped` and more. Raises NotFound
        without the topic."""
        call = Call("PUT", _schedule(schedule), _encode(dict(given)), repeatable=True)
        return _decode(await self._caller.call(call), dict[str, Any])

    async def schedule(self, schedule: str) -> dict[str, Any]:
        """How the schedule stands. Raises NotFound."""
        return await self._get(_schedule(schedule), dict[str, Any])

    async def delete_schedule(self, schedule: str) -> None:
        """Remove the schedule, as `delete_queue` does a queue. What it enqueued stays."""
        await self._delete(_schedule(schedule))

    async def purge_queue(self, queue: str, **request: Any) -> int:
        """Remove all messages of the queue, leased and delayed ones too: how many. Receipts and message ids of before
        are gone. Takes `request_id` and `request_seconds` as `enqueue` does. Raises NotFound."""
        return (await self._post(_queue(queue, "/purge"), _request(**_RETRIED | request), Purged)).messages

    async def pause(self, queue: str) -> dict[str, Any]:
        """Let the queue give out nothing until `resume`; its settings. Raises NotFound."""
        return await self._switch(queue, "/pause")

    async def resume(self, queue: str) -> dict[str, Any]:
        """Let the queue give out messages again; its settings. Raises NotFound."""
        return await self._switch(queue, "/resume")

    async def delete_message(self, queue: str, message_id: str) -> None:
        """Remove a message that is ready, or cancel one that is delayed. Raises NotFound, unless an attempt before may
        be what removed it, and Refused for one that is leased."""
        path = _queue(queue, f"/messages/{quote(message_id, safe='')}")
        try:
            await self._caller.call(Call("DELETE", path, repeatable=True))
        except OutcomeUnknown as error:
            if not isinstance(error.__cause__, NotFound):
                raise

    async def redrive(
        self,
        queue: str,
        *,
        to: str | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the word of the API
        messages_per_second: int | None = None,
        max_redrives: int | None = None,
        limit: int | None = None,
        **request: Any,
    ) -> Redrive:
        """Begin to move dead letters back to the queues that they come from, or all of the queue's messages `to`
        another. It goes on by itself: see `redrive_state`. Takes `request_id` and `request_seconds` as `enqueue` does.

        filter: by attribute, as of a subscription; what it does not take stays.
        max_redrives: what was redriven as often stays.
        limit: messages moved at most.
        """
        body = {
            "to": to,
            "filter": dict(filter or {}),
            "messages_per_second": messages_per_second,
            "max_redrives": max_redrives,
            "limit": limit,
        }
        return await self._post(_queue(queue, "/redrive"), body | _request(**_RETRIED | request), Redrive)

    async def redrive_state(self, queue: str) -> Redrive:
        """How the queue's last redrive stands. Raises NotFound when there was none."""
        return await self._get(_queue(queue, "/redrive"), Redrive)

    async def cancel_redrive(self, queue: str) -> Redrive:
        """End the queue's redrive; what was moved stays moved. Raises NotFound when there was none."""
        return _decode(await self._caller.call(Call("DELETE", _queue(queue, "/redrive"), repeatable=True)), Redrive)

    async def _switch(self, queue: str, verb: str) -> dict[str, Any]:
        call = Call("POST", _queue(queue, verb), _encode({}), repeatable=True)
        return _decode(await self._caller.call(call), dict[str, Any])

    async def cluster(self, *, of_leader: bool = False) -> Cluster:
        """As a node sees it; `of_leader`: as the leader does, if it can be found, which alone knows what each has."""
        if of_leader and self._caller.discovery.leader is None:
            await self._caller.discovery.refresh()
        return await self._get("/v1/cluster", Cluster)

    async def add_node(self, node: str, peer_address: str, *, replaces: str | None = None) -> int:
        """Make `node` a learner: once it has caught up it votes by itself, and then `replaces` is removed. With its own
        name in `replaces` it comes back with a new, empty folder. The index of the change. Raises OutcomeUnknown when
        the answer was lost: look at `cluster` before you repeat it."""
        body = {"id": node, "peer_address": peer_address, "replaces": replaces}
        return (await self._post("/v1/cluster/nodes", body, Changed)).index

    async def remove_node(self, node: str) -> int | None:
        """Remove `node` from the members; a leader hands leadership over first. The index of the change, or None when
        an attempt before may be what removed it. Raises NotFound."""
        try:
            call = Call("DELETE", f"/v1/cluster/nodes/{quote(node, safe='')}", repeatable=True)
            return _decode(await self._caller.call(call), Changed).index
        except OutcomeUnknown as error:
            if not isinstance(error.__cause__, NotFound):
                raise
            return None

    async def transfer(self, node: str | None = None) -> str:
        """Hand leadership to `node`, or to the most advanced follower; who leads now."""
        call = Call("POST", "/v1/cluster/leader", _encode({"node": node}), repeatable=node is not None)
        return _decode(await self._caller.call(call), Led).leader

    async def create_token(
        self, name: str, grants: Sequence[Grant], *, namespace: str = "default", expires_seconds: float | None = None
    ) -> MadeToken:
        """Make a token that may do what any of the grants allows. Its text is in the answer, and nowhere else: keep it.
        Raises OutcomeUnknown when that was lost: revoke what `tokens` then has of that name, and make another.

        namespace: the one in which it may; `*` is all.
        expires_seconds: from now; None: until it is revoked.
        """
        body = {"name": name, "grants": grants, "namespace": namespace, "expires_seconds": expires_seconds}
        return await self._post("/v1/tokens", body, MadeToken)

    async def tokens(self) -> list[Token]:
        """All of them, by id, those that have expired too."""
        found: list[Token] = []
        query = "limit=500"
        while True:
            page = await self._get(f"/v1/tokens?{query}", TokenPage)
            found += page.tokens
            if page.cursor is None:
                return found
            query = urlencode({"limit": 500, "cursor": page.cursor})

    async def token(self, token_id: str) -> Token:
        """Raises NotFound."""
        return await self._get(f"/v1/tokens/{quote(token_id, safe='')}", Token)

    async def revoke_token(self, token_id: str) -> None:
        """It is good for nothing any more, and its streams end. Raises NotFound, unless an attempt before may be what
        revoked it."""
        await self._delete(f"/v1/tokens/{quote(token_id, safe='')}")

    async def backup(self, target: Path | BinaryIO, *, silent_seconds: float = 600.0) -> BackedUp:
        """Save a backup, made by the first of the client's `urls` that can, of what that node has applied.

        A path gets the whole of it, durable, or nothing; a file object is left in its midst when this raises.
        silent_seconds: how long the node may take to make it before it sends the first byte.
        Raises Refused, Unavailable, and OSError for `target`.
        """
        if not isinstance(target, Path):
            return await self._save(target, silent_seconds)
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                saved = await self._save(file, silent_seconds)
                await asyncio.to_thread(_sync, file)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return saved

    async def _save(self, file: BinaryIO, silent_seconds: float) -> BackedUp:
        size = 0

        async def take(piece: bytes) -> None:
            nonlocal size
            try:
                await asyncio.to_thread(file.write, piece)
            except OSError as error:
                raise _NotSaved(error) from error
            size += len(piece)

        try:
            url, answer = await self._caller.download("/v1/cluster/snapshot", take, silent_seconds)
        except _NotSaved as error:
            raise error.error from None
        headers = answer.headers
        if "Raftq-Index" not in headers or headers.get("Content-Length") != str(size):
            raise Unavailable(f"{url} sent {size} bytes of {headers.get('Content-Length', 'what is no backup')}")
        return BackedUp(index=int(headers["Raftq-Index"]), bytes=size, url=url)

    async def _delete(self, path: str) -> None:
        try:
            await self._caller.call(Call("DELETE", path, repeatable=True))
        except OutcomeUnknown as error:
            if not isinstance(error.__cause__, NotFound):
                raise

    async def _settle(
        self,
        queue: str,
        verb: str,
        receipts: Sequence[str],
        extra: dict[str, Any],
        *,
        request_id: RequestId = FRESH,
        request_seconds: float | None = None,
    ) -> list[Settled]:
        body = {"receipts": receipts, **extra, **_request(request_id, request_seconds)}
        return (await self._post(_queue(queue, verb), body, Results)).results

    async def _post(self, path: str, body: dict[str, Any], kind: type[T], *, wait_seconds: float = 0.0) -> T:
        repeatable = "request_id" in body
        call = Call("POST", path, _encode(body), repeatable=repeatable, wait_seconds=wait_seconds)
        return _decode(await self._caller.call(call), kind)

    async def _get(self, path: str, kind: type[T]) -> T:
        return _decode(await self._caller.call(Call("GET", path, repeatable=True)), kind)


class _NotSaved(Exception):
    """The file could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _queue(queue: str, rest: str = "") -> str:
    return f"/v1/queues/{queue_name(queue)}{rest}"


def _topic(topic: str, rest: str = "") -> str:
    return f"/v1/topics/{queue_name(topic)}{rest}"


def _schedule(schedule: str) -> str:
    return f"/v1/schedules/{queue_name(schedule)}"


def _subscription(topic: str, queue: str) -> str:
    return _topic(topic, f"/subscriptions/{queue_name(queue)}")


def _request(request_id: RequestId, request_seconds: float | None) -> dict[str, Any]:
    if request_id is None:
        return {}
    request: dict[str, Any] = {"request_id": secrets.token_hex(16) if request_id is FRESH else request_id}
    return request if request_seconds is None else {**request, "request_seconds": request_seconds}


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        # A node said yes to something: only what it said is not understood.
        raise OutcomeUnknown(f"the answer is not one of raftq: {error}") from error
