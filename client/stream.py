"""One WebSocket to a node, with many operations in flight: `AsyncClient.stream`.

What is sent in one pass of the loop leaves in one frame. Nothing is repeated: when the connection ends, what was sent
and not answered raises OutcomeUnknown, what was not sent Unavailable, and so does all that is asked for later. Open
another one then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import msgspec

from raftq.client.errors import Busy, OutcomeUnknown, RaftqError, Unavailable, refused
from raftq.client.models import Enqueued, EnqueuedMessage, Leased, LeasedMessage, NewMessage, Results, Settled
from raftq.client.transport import Lost, Socket

T = TypeVar("T")

PROTOCOL = "raftq.v1.msgpack"
#: Operations in flight, beyond which the next one waits. A node reads no more than about as many.
IN_FLIGHT_MAX = 1000

_encode = msgspec.msgpack.Encoder().encode
#: Of a frame: an array of up to 2^32 items.
_ARRAY = b"\xdd"


class _Item(msgspec.Struct):
    """What a node sends: one of the fields beside the id is there."""

    id: int | str | None
    answer: msgspec.Raw = msgspec.Raw()
    problem: dict[str, Any] | None = None
    push: Leased | None = None
    ended: dict[str, Any] | None = None


_items = msgspec.msgpack.Decoder(list[_Item])


class Subscription:
    """Messages of one queue as they are pushed: `async for message in subscription`.

    A message takes one from the credit, and gives it back when it is settled on the same stream. The iteration ends
    with `end`, raises what ended the subscription on the node, and Unavailable when the stream ends.
    """

    def __init__(self, stream: Stream, name: int) -> None:
        self._stream, self._name = stream, name
        self._pushed: asyncio.Queue[LeasedMessage | RaftqError | None] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[LeasedMessage]:
        return self

    async def __anext__(self) -> LeasedMessage:
        pushed = await self._pushed.get()
        if isinstance(pushed, LeasedMessage):
            return pushed
        self._pushed.put_nowait(pushed)  # for who asks again
        if pushed is None:
            raise StopAsyncIteration
        raise pushed

    async def add_credit(self, credit: int) -> None:
        await self._stream.ask("credit", dict[str, int], subscription=self._name, credit=credit)

    async def end(self) -> None:
        """No more is pushed. Messages pushed already are leased still, and the iteration gives them first."""
        await self._stream.ask("unsubscribe", dict[str, Any], subscription=self._name)
        self._pushed.put_nowait(None)

    def take(self, item: _Item) -> None:
        """What the node sent for it."""
        for message in item.push.messages if item.push is not None else ():
            self._pushed.put_nowait(message)
        if item.ended is not None:
            self.fail(_error(item.ended))

    def fail(self, error: RaftqError) -> None:
        self._pushed.put_nowait(error)


class Stream:
    """All operations raise Refused, Unavailable or OutcomeUnknown, as those of the client do."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._names = 0
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._asked: dict[int, asyncio.Future[msgspec.Raw]] = {}
        #: Encoded, for the next frame, by id.
        self._unsent: dict[int, bytes] = {}
        self._something = asyncio.Event()
        self._subscriptions: dict[int, Subscription] = {}
        self._ended: Unavailable | None = None
        self._tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())]

    async def enqueue(
        self, queue: str, message: NewMessage, *, request_id: str | None = None, auto_create: bool = True
    ) -> EnqueuedMessage:
        """Enqueue one message. Call it many times at once: they are stored in the order of the calls."""
        given = msgspec.to_builtins(message, builtin_types=(bytes,))
        if request_id is not None:
            given["request_id"] = request_id
        if not auto_create:
            given["auto_create"] = False
        return (await self.ask("enqueue", Enqueued, queue=queue, **given)).messages[0]

    async def lease(
        self,
        queue: str,
        *,
        max: int = 1,  # noqa: A002 - the word of the API
        lease_seconds: float | None = None,
        wait_seconds: float = 0.0,
        groups: Sequence[str] | None = None,
    ) -> list[LeasedMessage]:
        """Up to `max` messages, waiting up to `wait_seconds` for the first; none when there was none. With `groups`
        those of these group keys alone."""
        given: dict[str, Any] = {"max": max, "wait_seconds": wait_seconds, **_given("lease_seconds", lease_seconds)}
        if groups is not None:
            given["groups"] = list(groups)
        return (await self.ask("lease", Leased, queue=queue, **given)).messages

    async def subscribe(self, queue: str, *, credit: int, lease_seconds: float | None = None) -> Subscription:
        """Have messages pushed as they become ready, at most `credit` that are not settled."""
        name = self._names + 1  # the one that `ask` takes
        subscription = self._subscriptions[name] = Subscription(self, name)
        given = {"credit": credit, **_given("lease_seconds", lease_seconds)}
        try:
            await self.ask("subscribe", dict[str, int], queue=queue, **given)
        except BaseException:
            del self._subscriptions[name]
            raise
        return subscription

    async def ack(self, queue: str, receipts: Sequence[str]) -> list[Settled]:
        return await self._settle("ack", queue, receipts)

    async def nack(self, queue: str, receipts: Sequence[str], *, delay_seconds: float | None = None) -> list[Settled]:
        return await self._settle("nack", queue, receipts, **_given("delay_seconds", delay_seconds))

    async def release(self, queue: str, receipts: Sequence[str]) -> list[Settled]:
        return await self._settle("release", queue, receipts)

    async def reject(self, queue: str, receipts: Sequence[str], *, reason: str | None = None) -> list[Settled]:
        return await self._settle("reject", queue, receipts, **_given("reason", reason))

    async def extend(self, queue: str, receipts: Sequence[str], *, lease_seconds: float | None = None) -> list[Settled]:
        return await self._settle("extend", queue, receipts, **_given("lease_seconds", lease_seconds))

    async def _settle(self, verb: str, queue: str, receipts: Sequence[str], **given: Any) -> list[Settled]:
        return (await self.ask(verb, Results, queue=queue, receipts=list(receipts), **given)).results

    async def ask(self, verb: str, kind: type[T], /, **given: Any) -> T:
        """The answer to any operation of the protocol."""
        self._names += 1
        name = self._names
        operation = _encode({"op": verb, "id": name, **given})
        async with self._room:
            if self._ended is not None:
                raise self._ended
            answered = self._asked[name] = asyncio.get_running_loop().create_future()
            self._unsent[name] = operation
            self._something.set()
            answer = await answered
        try:
            return msgspec.msgpack.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise OutcomeUnknown(f"the answer is not one of raftq: {error}") from error

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._fail("the stream was closed")
        await self._socket.close()

    async def _read(self) -> None:
        try:
            while True:
                for item in _items.decode(await self._socket.receive()):
                    self._take(item)
        except Lost as error:
            self._fail(str(error))
        except msgspec.DecodeError as error:
            self._fail(f"what came is not of raftq: {error}")

    def _take(self, item: _Item) -> None:
        if item.push is not None or item.ended is not None:
            if isinstance(item.id, int) and item.id in self._subscriptions:
                self._subscriptions[item.id].take(item)
            return
        asked = self._asked.pop(item.id, None) if isinstance(item.id, int) else None
        if asked is None or asked.done():  # who asked was cancelled
            return
        if item.problem is None:
            asked.set_result(item.answer)
        else:
            asked.set_exception(_error(item.problem))

    async def _write(self) -> None:
        try:
            while True:
                await self._something.wait()
                self._something.clear()
                unsent, self._unsent = self._unsent, {}
                await self._socket.send(_ARRAY + len(unsent).to_bytes(4, "big") + b"".join(unsent.values()))
        except Lost as error:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        """The connection has ended."""
        if self._ended is not None:
            return
        self._ended = Unavailable(f"the stream has ended ({why}): open another")
        for name, asked in self._asked.items():
            if not asked.done():
                lost = OutcomeUnknown(f"it may have happened or not: the stream ended first ({why})")
                asked.set_exception(self._ended if name in self._unsent else lost)
        for subscription in self._subscriptions.values():
            subscription.fail(self._ended)


def _given(name: str, value: float | str | None) -> dict[str, float | str]:
    return {} if value is None else {name: value}


def _error(problem: dict[str, Any]) -> RaftqError:
    status = int(problem.get("status", 500))
    detail = f"{problem.get('detail') or problem.get('title') or status}"
    if problem.get("applied") != "no":
        return OutcomeUnknown(f"it may have happened or not: {detail}")
    if status == 429:
        return Busy(status, problem)
    if status in (307, 503):
        return Unavailable(detail)
    return refused(status, problem)
