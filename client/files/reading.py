"""Reading a queue into a file, line by line, in order, each line once, whatever is killed on the way.

The invariant: up to the sidecar's `offset` the file holds exactly the lines whose ack was answered `done` to this
reader. A turn moves it on, and each step of a turn is durable before the next begins:

saved     the sidecar has turn n, from which the lease's request id follows
leased    the queue has leased lines to this reader, or none
spooled   the lines are in the spool, synced
held      the sidecar has the receipts; the ack's request id follows from the turn
acked     the queue has answered for each receipt
landed    the lines answered `done` are in the file at `offset`, synced; those answered `gone` are another reader's
saved     the sidecar has the new offset and turn n + 1
forgot    the side queues of long lines that landed are deleted

Killed after any of them, the next run finds in the sidecar one of two states, and repeats from there:

no `held`  The same lease is asked for under the same id: the queue answers with what that lease still holds, or makes
           it now. The spool is written anew; nothing in it was ever acked. Side queues to forget are deleted again; one
           that is there no more is as good. (Were the turn not saved before asking, the lines of a lease whose answer
           was lost would wait for its end, and come after lines that they stand before.)
`held`     The same ack is asked for under the same id: the queue acks now, or answers as it did then, even when the
           lease has passed since. The file is cut back to `offset` and the lines that are `done` are appended again.

A sidecar is never torn (`sidecar`), a spool is synced before the sidecar speaks of it and checked before a later
process uses it, and a torn end of the file lies after `offset`. A lease that passes (a slow or dead reader) makes the
ack `gone`: the lines are dropped here and read by whoever leases them next. A line could only be lost to all readers
if the nodes forgot how they answered an ack in doubt, after KEEP_SECONDS: a sidecar with `held` that lay too long is
refused, and the spool kept.

A turn that got nothing takes a new id as well: a lease that is asked for again and holds nothing any more stays empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from raftq.client.client import AsyncClient
from raftq.client.errors import FileRefused, NotFound
from raftq.client.files import spool
from raftq.client.files.holding import Holding
from raftq.client.files.output import Output, check_nothing_there
from raftq.client.files.sidecar import KEEP_SECONDS, TRUST_SECONDS, Sidecar
from raftq.client.files.spool import Held, runs
from raftq.client.models import LeasedMessage
from raftq.client.names import queue_name

#: Of one lease: the most that nodes give.
LINES_MAX = 1000
LEASE_SECONDS = 60.0
#: The longest wait of one lease; each costs a save of the sidecar.
POLL_SECONDS = 5.0
#: How often to look again when only others' leases stand between the queue and empty, or there is no queue yet.
LOOK_SECONDS = 1.0


class ReadState(msgspec.Struct, kw_only=True):
    format: int = 1
    queue: str
    cluster_id: str
    #: Random: makes the request ids of this file's readers, and of no other's.
    run: str
    turn: int = 0
    offset: int = 0
    lines: int = 0
    #: The last line of the file has no `\\n`.
    open_line: bool = False
    #: Side queues whose line has landed.
    forget: list[str] = []
    held: Held | None = None
    saved_at: float = 0.0


class FileReader:
    """One file into which a queue is read.

    until_empty: end when no line was to be had for so many seconds and the queue is empty: nothing ready or delayed,
        and nothing leased to others, whose lines would come back if they died. None: read until `stop`.
    progress: called with the bytes and lines of the file.
    reached: called with the name of each step that was taken; a test ends the process there.
    """

    def __init__(
        self,
        client: AsyncClient,
        queue: str,
        path: Path,
        *,
        until_empty: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
        lines_max: int = LINES_MAX,
        progress: Callable[[int, int], None] = lambda _offset, _lines: None,
        reached: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client, self._queue, self._path = client, queue_name(queue), path
        self._until_empty, self._lease_seconds, self._lines_max = until_empty, lease_seconds, lines_max
        self._progress, self._reached = progress, reached
        self._spool = path.with_name(path.name + ".raftq-read.lines")
        self._holding = Holding(client, queue, self._spool, lease_seconds)
        self._stop = asyncio.Event()

    @property
    def sidecar_path(self) -> Path:
        return self._path.with_name(self._path.name + ".raftq-read")

    def stop(self) -> None:
        """End after the turn that has begun."""
        self._stop.set()

    async def run(self) -> ReadState:
        """The state at the end. Raises FileRefused, and what the client raises; a later run goes on from there."""
        if not self.sidecar_path.exists():
            check_nothing_there(self._path)
        cluster_id = (await self._client.cluster()).cluster_id
        with contextlib.closing(Sidecar(self.sidecar_path, ReadState)) as self._sidecar:
            self._state = self._opened(cluster_id)
            with contextlib.closing(Output(self._path)) as self._output:
                await self._resume()
                await self._read()
                self._spool.unlink(missing_ok=True)
                return self._state

    def _opened(self, cluster_id: str) -> ReadState:
        state = self._sidecar.state
        if state is None:
            check_nothing_there(self._path)
            state = ReadState(queue=self._queue, cluster_id=cluster_id, run=secrets.token_hex(16))
            self._sidecar.save(state)
            self._reached("saved")
        if (state.queue, state.cluster_id) != (self._queue, cluster_id):
            other = f"{self._path} is read from {state.queue} of the cluster {state.cluster_id}"
            raise FileRefused(f"{other}: go on with that, or name another file")
        return state

    async def _resume(self) -> None:
        """Finish the turn that an earlier run had begun."""
        state, held = self._state, self._state.held
        self._output.check(state.offset, sum(held.lengths) + len(held.lengths) if held else 0)
        if held is not None:
            if time.time() - state.saved_at > TRUST_SECONDS:
                doubt = f"{self._spool} holds {len(held.receipts):,} lines that were acked or not, too long ago to ask"
                raise FileRefused(f"{doubt}: keep those that no other reader has, and name another file")
            spool.check(held, self._spool)
            await self._settle(held)
        self._progress(self._state.offset, self._state.lines)
        await self._forget()

    async def _read(self) -> None:
        idle_since = time.monotonic()
        while not self._stop.is_set():
            if await self._turn(self._wait_seconds(idle_since)):
                idle_since = time.monotonic()
            elif self._is_over(idle_since):
                ready, others = await self._left()
                if not ready and not others:
                    return
                await self._pause(0.0 if ready else LOOK_SECONDS)

    async def _turn(self, wait_seconds: float) -> bool:
        """False when there was no line to be had."""
        leased = await self._lease(wait_seconds)
        self._reached("leased")
        if not leased and self._stop.is_set():
            return False  # the poll that was let go may yet be granted: the next run asks under the same id
        held = await self._holding.take(leased) if leased else None
        if held is None:
            self._save(turn=self._state.turn + 1, forget=[])
            return bool(leased)
        self._reached("spooled")
        self._save(held=held, forget=[])
        await self._settle(held)
        await self._forget()
        return True

    async def _lease(self, wait_seconds: float) -> list[LeasedMessage]:
        """What can be had within `wait_seconds`, or at once when `stop` is called."""
        ask = partial(
            self._client.lease,
            self._queue,
            max=self._lines_max,
            lease_seconds=self._lease_seconds,
            request_id=f"{self._state.run}-{self._state.turn}",
            request_seconds=KEEP_SECONDS,
        )
        polling = asyncio.ensure_future(ask(wait_seconds=wait_seconds))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((polling, stopping), return_when=asyncio.FIRST_COMPLETED)
            return await (polling if polling.done() else ask())
        except NotFound:
            await self._pause(min(wait_seconds, LOOK_SECONDS))
            return []
        finally:
            polling.cancel()
            stopping.cancel()

    async def _settle(self, held: Held) -> None:
        state = self._state
        request_id = f"{state.run}-{state.turn}.ack"
        try:
            results = await self._client.ack(
                self._queue, held.receipts, request_id=request_id, request_seconds=KEEP_SECONDS
            )
        except NotFound as error:
            doubt = f"the {len(held.receipts):,} lines in {self._spool} were acked before or not"
            raise FileRefused(f"the queue {self._queue} was deleted; {doubt}, that cannot be told") from error
        self._reached("acked")
        landing = {result.receipt for result in results if result.status == "done"}
        done = [receipt in landing for receipt in held.receipts]
        offset, open_line = self._output.land(state.offset, state.open_line, self._spool, runs(held, done))
        self._reached("landed")
        forget = [name for receipt, name in held.side_queues.items() if receipt in landing]
        lines = state.lines + len(landing)
        self._save(turn=state.turn + 1, offset=offset, open_line=open_line, lines=lines, forget=forget, held=None)
        self._progress(offset, lines)

    async def _forget(self) -> None:
        for name in self._state.forget:
            with contextlib.suppress(NotFound):
                await self._client.delete_queue(name)
            self._reached("forgot")

    def _save(self, **changes: Any) -> None:
        self._state = msgspec.structs.replace(self._state, saved_at=time.time(), **changes)
        self._sidecar.save(self._state)
        self._reached("saved")

    async def _pause(self, seconds: float) -> None:
        """Until `stop`, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _wait_seconds(self, idle_since: float) -> float:
        if self._until_empty is None:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(0.0, self._until_empty - (time.monotonic() - idle_since)))

    def _is_over(self, idle_since: float) -> bool:
        return self._until_empty is not None and time.monotonic() - idle_since >= self._until_empty

    async def _left(self) -> tuple[int, int]:
        """How many messages are ready, and how many delayed or leased to others."""
        try:
            stats = await self._client.stats(self._queue)
        except NotFound:
            return 0, 0
        return stats["ready"], stats["delayed"] + stats["leased"]
