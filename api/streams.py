"""GET /v1/stream: many operations in flight on one WebSocket, and messages pushed as long as there is credit.

The way of an enqueue: decoded with its frame; joined with its neighbours into one command (`runs.py`); proposed;
answered from the future's callback, with all that ended in the same pass of the loop, in one frame. No task is made
for it. Settlements go the same way. What cannot be done as a run (one of it is bad, or the whole is refused) is done
one by one; all else is done by the HTTP route's own handler, in a task.

Bounds: a frame is not read while `IN_FLIGHT_MAX` operations, or `PROPOSED_BYTES_MAX` of them, have no answer that the
socket has taken. Who leads no more answers what is in flight, and closes with 1012.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from raftq.api import auth, frames, leases, names, problems, runs, settlements, sockets, stream_proxy
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.frames import FORMATS, AddCredit, Bad, Enqueue, Format, Settlement, Subscribe, Unsubscribe
from raftq.api.problems import Problem
from raftq.api.routing import Handler
from raftq.api.runs import Run
from raftq.api.sockets import END_SECONDS, Connection, Upgraded, wake
from raftq.api.stream_call import StreamCall
from raftq.api.subscriptions import Subscriptions
from raftq.replication.shard import Committed, NotLeader, ShardError, Stopping
from raftq.storage.machine import replies
from raftq.storage.machine.commands import Scope

IN_FLIGHT_MAX = 1024
PROPOSED_BYTES_MAX = 8 * 1024 * 1024
#: That run at once, those included that wait for messages, or whose answer has not left.
LEASES_MAX = 16
#: Of bodies in one run: a command should fit well into an entry.
RUN_BYTES_MAX = 256 * 1024
#: Of answers in one frame, but for a single larger one.
FRAME_BYTES_MAX = 1024 * 1024

_HANDLERS: dict[type[Any], Handler] = {
    frames.Lease: leases.lease,
    frames.Ack: settlements.ack,
    frames.Nack: settlements.nack,
    frames.Release: settlements.release,
    frames.Reject: settlements.reject,
    frames.Extend: settlements.extend,
}

_log = structlog.get_logger("raftq.api")


async def stream(call: Call) -> Answer:
    """GET /v1/stream: Open a WebSocket, for many operations in flight on one connection."""
    if not call.node.leads():
        return await stream_proxy.stream(call)
    protocol = sockets.protocol_of(call)
    socket = await sockets.accept(call, call.node.limits.batch_bytes)
    await Stream(call, socket, FORMATS[protocol]).serve()
    return Upgraded()


class Stream(Connection):
    def __init__(self, call: Call, socket: web.WebSocketResponse, form: Format) -> None:
        super().__init__(call, socket)
        self.node, self.request, self.route, self.format = call.node, call.request, call.route, form
        #: What waits for messages, to be told of the end, and the call that it is of.
        self.watching: dict[Callable[[], object], StreamCall] = {}
        self._loop = asyncio.get_running_loop()
        self._subscriptions = Subscriptions(self)
        self._tasks: set[asyncio.Task[None]] = set()
        #: Each may be answered with 8 MiB.
        self._leases = asyncio.Semaphore(LEASES_MAX)
        #: Operations that were read, and whose answer the socket has not taken.
        self._unanswered = 0
        self._proposed_bytes = 0
        self._room: asyncio.Future[None] | None = None
        #: Neighbours that become one run; what they have in common; their messages or receipts; bytes.
        self._run: list[Any] = []
        self._likeness: Hashable | None = None
        self._run_count = self._run_bytes = 0
        #: Encoded, for the next frame; how many of them are answers; and who waits until they have left.
        self._out: list[bytes] = []
        self._answers = 0
        self._leaving: list[asyncio.Future[None]] = []
        self._something: asyncio.Future[None] | None = None

    # Life

    async def serve(self) -> None:
        """Until it has ended, on whichever side."""
        self.api.connections.add(self)
        reader, writer = self.run(self._read()), self.run(self._write())
        try:
            self.led_by(None)
            if self.node.stopping:
                self.stop()
            await self.ended()
            reader.cancel()
            self.abandon()
            await asyncio.wait([writer], timeout=END_SECONDS)
        finally:
            self.ending = True
            self.abandon()
            reader.cancel()
            writer.cancel()
            await asyncio.wait([writer])
            self._forget_unsent()
            self.api.connections.discard(self)
        await self.close()

    def end(self, code: int, reason: str) -> None:
        super().end(code, reason)
        wake(self._something)

    def led_by(self, leader: str | None) -> None:  # noqa: ARG002 - this node, or not
        if not self.node.leads():
            self.end(WSCloseCode.SERVICE_RESTART, "this node does not lead any more: connect again")

    def abandon(self, call: StreamCall | None = None) -> None:
        """Let nothing of the call, or at all, wait for messages any more."""
        for gone, its in list(self.watching.items()):
            if call is None or its is call:
                gone()
        if call is None:
            self._subscriptions.end()

    def _forget_unsent(self) -> None:
        for future in self._leaving:
            if not future.done():
                future.set_exception(ConnectionResetError("the connection has ended"))
        self._leaving = []

    # In

    async def _read(self) -> None:
        """Raises Problem for what is no frame."""
        while True:
            message = await self.socket.receive()
            if message.type is not self.format.frame_type:
                return self._refuse_frame(message.type)
            self._take(message.data)
            while self._unanswered >= IN_FLIGHT_MAX or self._proposed_bytes >= PROPOSED_BYTES_MAX:
                self._room = self._loop.create_future()
                await self._room

    def _refuse_frame(self, kind: WSMsgType) -> None:
        wrong = kind in (WSMsgType.TEXT, WSMsgType.BINARY)
        code = WSCloseCode.UNSUPPORTED_DATA if wrong else WSCloseCode.OK
        self.end(code, "JSON goes in text frames, msgpack in binary ones")

    def _take(self, data: bytes) -> None:
        """Raises Problem 400."""
        found = self.format.decode(data)
        self._unanswered += len(found)
        if not self._run:  # frames that arrived together are taken in before that
            self._loop.call_soon(self._flush)
        for operation in found:
            likeness, count, size = runs.likeness(operation)
            if likeness is None:
                self._flush()
                self._do_later(operation)
                continue
            if likeness != self._likeness or self._is_full(operation, count):
                self._flush()
                self._likeness = likeness
            self._run.append(operation)
            self._run_count += count
            self._run_bytes += size

    def _is_full(self, operation: Any, count: int) -> bool:
        limits = self.node.limits
        most = limits.batch_messages if type(operation) is Enqueue else limits.lease_messages
        return self._run_count + count > most or self._run_bytes > RUN_BYTES_MAX

    def _flush(self) -> None:
        """Propose what gathered."""
        run, self._run = self._run, []
        self._likeness = None
        self._run_count = self._run_bytes = 0
        if run:
            self._propose(run)

    # Runs

    def _propose(self, operations: Sequence[Any]) -> None:
        try:
            call = self._call(operations[0])
        except Exception as error:
            return self._refuse(operations, self.problem_of(error))
        try:
            run = runs.of(call, operations)
            if run is None:
                for operation in operations:
                    self._do_later(operation)
            else:
                self.node.shard.propose(run.command).add_done_callback(partial(self._ended, run))
                self._proposed_bytes += len(run.command)
        except Problem as problem:
            self._one_by_one(operations, problem)
        except Exception as error:
            self._refuse(operations, self.problem_of(error))

    def _ended(self, run: Run, done: asyncio.Future[Committed]) -> None:
        operations = run.operations
        self._proposed_bytes -= len(run.command)
        try:
            committed = done.result()
            if isinstance(committed.reply, replies.Refused):
                queue = names.queue_key(operations[0].queue)
                self._one_by_one(operations, problems.refused(committed.reply.reason, committed.reply.detail, queue))
            else:
                self._answer(run.answers(committed, self.format), operations)
        except Exception as error:
            self._refuse(operations, self.problem_of(error))

    def _one_by_one(self, operations: Sequence[Any], problem: Problem) -> None:
        """What was to be done as one was refused as one: each may be good for itself."""
        if len(operations) == 1:
            self._refuse(operations, problem)
        else:
            for operation in operations:
                self._propose([operation])

    # All else

    def _do_later(self, operation: Any) -> None:
        task = asyncio.ensure_future(self._perform(operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, operation: Any) -> None:
        async with self._leases if type(operation) is frames.Lease else nullcontext():
            try:
                body = await self._body(operation)
                self._answer([self.format.item(operation.id, b"answer", body)], [operation])
            except Exception as error:
                self._refuse([operation], self.problem_of(error))
            if type(operation) is frames.Lease and not self.ending:
                with suppress(ConnectionError):
                    await self._left()

    async def _body(self, operation: Any) -> bytes:
        """Of the answer. Raises Problem, ShardError, and ConnectionResetError for what waited until the end."""
        match operation:
            case Bad():
                raise operation.problem
            case AddCredit():
                return self.format.encode(self._subscriptions.add_credit(operation))
            case Subscribe():
                return self.format.encode(await self._subscriptions.subscribe(operation))
            case Unsubscribe():
                return self.format.encode(await self._subscriptions.unsubscribe(operation))
            case _:
                answer = await _HANDLERS[type(operation)](self._call(operation))
                return answer.body

    def _call(self, operation: Any) -> StreamCall:
        """For the operation, and those that are like it. Raises Problem 403."""
        call = StreamCall(self, operation.queue, operation)
        self.require(call, "produce" if type(operation) is Enqueue else "consume")
        return call

    def require(self, call: StreamCall, scope: Scope) -> None:
        """On the call's queue. Raises Problem 403."""
        try:
            auth.require(call, scope, call.parameters[0])
        except Problem as problem:
            self.api.audit.tell(call, problem.status, call.given.__struct_config__.tag, call.parameters[0])
            raise

    def problem_of(self, error: BaseException) -> Problem:
        """What a client reads of anything that can be raised for an operation."""
        match error:
            case Problem():
                return error
            case NotLeader():
                detail = "This node does not lead any more, and did not do it: connect again, and repeat it."
                return Problem("not-leader", detail, leader=self.node.leader_url())
            case ShardError():
                return problems.of_shard(error)
            case ConnectionError():
                # It waited for messages when the connection began to end.
                return self.problem_of(Stopping() if self.node.stopping else NotLeader(None))
            case _:
                _log.error("an operation of a stream failed", exc_info=error)
                detail = f"This is a defect of raftq ({type(error).__name__}); the node logged it."
                return Problem("internal", detail, applied="unknown")

    # Out

    def _answer(self, items: list[bytes], operations: Sequence[Any]) -> None:
        self._answers += len(items)
        self.say(items)
        if isinstance(operations[0], Settlement):
            for operation in operations:
                self._subscriptions.settled(operation)

    def _refuse(self, operations: Sequence[Any], problem: Problem) -> None:
        self._answers += len(operations)
        if problem.kind == "forbidden":
            self.api.forbidden += len(operations)
        self.say([self.format.problem(operation.id, problem) for operation in operations])

    def say(self, items: list[bytes]) -> None:
        """Send them with the next frame."""
        self._out += items
        wake(self._something)

    async def leave(self, item: bytes) -> None:
        """Return when the socket has taken it, and had room for it. Raises ConnectionResetError."""
        if self.ending:
            raise ConnectionResetError("the connection ends")
        self.say([item])
        await self._left()

    async def _left(self) -> None:
        """Return when all that was said has left. Raises ConnectionResetError."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._leaving.append(future)
        await future

    async def _write(self) -> None:
        """Send what has gathered; at the end, until nothing is in flight."""
        while True:
            while not self._out:
                if self.ending and not self._unanswered:
                    return
                self._something = self._loop.create_future()
                await self._something
            await self._send()

    async def _send(self) -> None:
        out, self._out = self._out, []
        leaving, self._leaving = self._leaving, []
        answers, self._answers = self._answers, 0
        try:
            for items in _cut(out):
                await self.socket.send_frame(self.format.frame(items), self.format.frame_type)
        except BaseException:
            self._leaving += leaving
            raise
        for future in leaving:
            wake(future)
        self._unanswered -= answers
        wake(self._room)


def _cut(out: list[bytes]) -> list[list[bytes]]:
    """Into frames of at most FRAME_BYTES_MAX, or one larger item."""
    if sum(map(len, out)) <= FRAME_BYTES_MAX:
        return [out]
    cut: list[list[bytes]] = [[]]
    size = 0
    for item in out:
        if cut[-1] and size + len(item) > FRAME_BYTES_MAX:
            cut.append([])
            size = 0
        cut[-1].append(item)
        size += len(item)
    return cut
