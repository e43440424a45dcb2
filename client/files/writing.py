"""Writing a file into a queue, line by line, in order, each line once, whatever is killed on the way.

The invariant: at every instant the sidecar names a prefix of the file (`offset`) that certainly is in the queue, and
everything after it is sent under request ids that follow from its run and the batch's number alone. A batch follows
from the file and its offset, so a writer that starts again from an old sidecar sends the same batches under the same
ids: those that the queue has are answered with the first answer, not enqueued again. The sidecar may lag behind; it
must never be ahead.

Killed, at each step of `FileWriter.run`:

before the first save    nothing was sent: the run begins anew, under another run id
after it, before a send  the batch is sent by the next run
during or after a send   it is in the queue or not; sent again under the same id, it is there once
after the answer         the same, until the next save has it; saves come at most a second apart
during a save            the sidecar is the old or the new one; both are true
amid a long line's parts they are sent again, under their ids
after them               `parts_sent` stands there: only their pointer is sent again. Its reader may have deleted the
                         side queue, and with it the ids of the parts: sent again, they would lie there for nobody
after the last save      `finished` stands there: starting again writes nothing and says so. Were the sidecar removed
                         instead, a process killed after that and started again would double the whole file

One batch is in flight at a time, for the order; the next is read and cut meanwhile. The nodes forget a request id after
KEEP_SECONDS, so a sidecar that lay too long is refused: whether the batch in flight arrived can no longer be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from raftq.client.client import AsyncClient
from raftq.client.errors import FileRefused
from raftq.client.files.lines import Pointer, messages, pointer_message, side_queue
from raftq.client.files.sidecar import KEEP_SECONDS, TRUST_SECONDS, Sidecar
from raftq.client.files.source import Batch, Identity, Limits, LongLine, SourceFile
from raftq.client.names import queue_name

#: At most this much is sent again after a crash.
SAVE_SECONDS = 1.0


class WriteState(msgspec.Struct, kw_only=True):
    format: int = 1
    queue: str
    cluster_id: str
    #: Random: makes the request ids of this run, and of no other.
    run: str
    file: Identity
    limits: Limits
    #: Bytes and lines before `offset` are in the queue; the batch at `offset` has this number.
    offset: int = 0
    batch: int = 0
    lines: int = 0
    #: The batch at `offset` is a long line whose parts are all in their side queue.
    parts_sent: bool = False
    saved_at: float
    finished: bool = False

    def after(self, offset: int, lines: int) -> WriteState:
        """The state once the batch that ends at `offset` is in the queue."""
        return msgspec.structs.replace(
            self, offset=offset, batch=self.batch + 1, lines=self.lines + lines, parts_sent=False, saved_at=time.time()
        )


class Written(msgspec.Struct, frozen=True):
    lines: int
    #: Where this process began; 0 unless an earlier one was stopped.
    resumed_at: int
    #: An earlier run had finished this very file: nothing was sent.
    already: bool = False
    #: False: stopped as asked before the end.
    finished: bool = True


class FileWriter:
    """One file on its way into one queue.

    progress: called with the bytes of the file that are in the queue.
    reached: called with the name of each step that was taken; a test ends the process there.
    """

    def __init__(
        self,
        client: AsyncClient,
        queue: str,
        path: Path,
        *,
        limits: Limits | None = None,
        save_seconds: float = SAVE_SECONDS,
        progress: Callable[[int], None] = lambda _: None,
        reached: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client, self._queue, self._path = client, queue_name(queue), path
        self._limits = limits or Limits()
        self._save_seconds = save_seconds
        self._progress, self._reached = progress, reached
        self._stopping = False

    @property
    def sidecar_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.raftq-write-{self._queue}")

    def stop(self) -> None:
        """End after the batch in flight."""
        self._stopping = True

    async def run(self, *, again: bool = False) -> Written:
        """Raises FileRefused, and what the client raises; a later run goes on from where it was.

        again: begin anew, whatever the sidecar says."""
        with contextlib.closing(SourceFile(self._path)) as self._source:
            cluster_id = (await self._client.cluster()).cluster_id
            with contextlib.closing(Sidecar(self.sidecar_path, WriteState)) as self._sidecar:
                return await self._run(cluster_id, again)

    async def _run(self, cluster_id: str, again: bool) -> Written:
        state = None if again else self._resumable(cluster_id)
        if state is not None and state.finished:
            return Written(state.lines, state.offset, already=True)
        if state is None:
            state = self._begin(cluster_id)
        resumed_at = state.offset
        self._progress(resumed_at)
        state = await self._send_all(state)
        return Written(state.lines, resumed_at, finished=state.finished)

    def _resumable(self, cluster_id: str) -> WriteState | None:
        """The state to go on from, None to begin. Raises FileRefused when neither is right."""
        state = self._sidecar.state
        if state is None:
            return None
        same_file, same_cluster = state.file == self._source.identity, state.cluster_id == cluster_id
        if state.finished:
            return state if same_file and same_cluster else None
        if not same_file:
            raise self._refused(state, "has changed since its writing began: put the old one back")
        if not same_cluster:
            raise self._refused(state, f"is half written into another cluster, {state.cluster_id}: give its --url")
        if time.time() - state.saved_at > TRUST_SECONDS:
            raise self._refused(state, "was left half written so long ago that the cluster cannot tell what it has")
        return state

    def _refused(self, state: WriteState, why: str) -> FileRefused:
        return FileRefused(f"{self._path} {why}, or write it anew with --again ({state.lines:,} lines are written)")

    def _begin(self, cluster_id: str) -> WriteState:
        state = WriteState(
            queue=self._queue,
            cluster_id=cluster_id,
            run=secrets.token_hex(16),
            file=self._source.identity,
            limits=self._limits,
            saved_at=time.time(),
        )
        self._save(state)
        return state

    async def _send_all(self, state: WriteState) -> WriteState:
        saved = time.monotonic()
        cut = await asyncio.to_thread(self._source.cut, state.offset, state.limits)
        while cut is not None and not self._stopping:
            self._source.check_unchanged()
            following = asyncio.to_thread(self._source.cut, cut.end, state.limits)
            _, after = await asyncio.gather(self._send(state, cut), following)
            self._reached("answered")
            lines = len(cut.lines) if isinstance(cut, Batch) else 1
            state = state.after(cut.end, lines)
            self._progress(state.offset)
            if time.monotonic() - saved >= self._save_seconds:
                self._save(state)
                saved = time.monotonic()
            cut = after
        self._source.check_unchanged()
        state = msgspec.structs.replace(state, finished=cut is None)
        self._save(state)
        return state

    async def _send(self, state: WriteState, cut: Batch | LongLine) -> None:
        if isinstance(cut, Batch):
            made = messages(cut.lines, open_end=cut.open_end)
        else:
            made = [pointer_message(await self._sent_parts(state, cut), open_end=cut.open_end)]
        request_id = f"{state.run}-{state.batch}"
        await self._client.enqueue(self._queue, made, request_id=request_id, request_seconds=KEEP_SECONDS)

    async def _sent_parts(self, state: WriteState, line: LongLine) -> Pointer:
        """The pointer to the parts, which are in the side queue then."""
        queue = side_queue(self._queue, state.run, state.batch)
        if not state.parts_sent:
            for number, part in enumerate(self._source.parts(line, state.limits.part_bytes)):
                request_id = f"{state.run}-{state.batch}.{number}"
                made = messages([part], open_end=False)
                await self._client.enqueue(queue, made, request_id=request_id, request_seconds=KEEP_SECONDS)
                self._reached("part")
            self._source.check_unchanged()
            self._save(msgspec.structs.replace(state, parts_sent=True))
        return Pointer(queue, -(-line.line_bytes // state.limits.part_bytes), line.line_bytes)

    def _save(self, state: WriteState) -> None:
        self._sidecar.save(state)
        self._reached("saved")
