"""Snapshots on their way from a leader to a follower that needs what the log holds no more.

`Sender` makes a snapshot beside the cycle, offers it, and answers with pieces of it; `Receiver` pulls the pieces that
it lacks, into a file from which it goes on after any interruption, and loads the whole beside the cycle. Neither steps
Raft or touches the tables: the cycle hands them messages, ticks them, and installs what is ready.

The follower pulls, so that it alone sets the pace: at most `WINDOW` pieces are on their way to it. A message may be
lost, repeated, late or out of order: every one says what it is about, a piece has its own checksum, the whole has its
digest, and what is missing is asked for again.

    snapshot_offer {type, term, id, index, snapshot_term, bytes}     leader to follower
    snapshot_ask   {type, term, id, offset}                          follower to leader; at `bytes`: it is loading
    snapshot_chunk {type, term, id, offset, data, checksum}          leader to follower, over the bulk connection
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import structlog
from xxhash import xxh3_64_intdigest

from raftq.storage import snapshot
from raftq.storage.environment import Environment, discard
from raftq.storage.failures import StorageError
from raftq.storage.snapshot import PART, SnapshotDamaged, SnapshotError, SnapshotHead

CHUNK_BYTES: Final = 256 * 1024
#: Pieces that a follower has asked for and not got.
WINDOW: Final = 4
#: A follower that does not ask is offered the snapshot again.
OFFER_SECONDS: Final = 0.5
#: A snapshot that nobody asks for is forgotten, and the log after it no longer kept.
KEPT_SECONDS: Final = 30.0
#: After what cannot go well at once again: a snapshot that nobody wanted, a full disk.
PAUSE_SECONDS: Final = 1.0
#: What does not come is asked for again after this long, longer where pieces take long.
PATIENCE_SECONDS_MIN: Final = 0.2
PATIENCE_SECONDS_MAX: Final = 1.0
#: A pull in which nothing comes is given up. What it got stays for a while, for the next offer of the same snapshot.
GIVE_UP_SECONDS: Final = 60.0
PART_SECONDS: Final = 600.0

Message = dict[str, Any]
_T = TypeVar("_T")

_ID = re.compile(r"[0-9a-f]{32}")

_log = structlog.get_logger(__name__)


class Send(Protocol):
    """As `Peers.send`."""

    def __call__(self, nodes: list[str], message: Message, *, bulk: bool = False) -> object: ...


class _Interrupted(Exception):
    """What a thread is at is not wanted any more."""


class _Threads:
    """Coroutines of one owner that wait for threads, and an end to all of them. What one raises ends the process."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        #: In the order in which they began.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._interrupted = False

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.join(work)
        task.add_done_callback(self._judge)
        return task

    def join(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """For work whose errors somebody waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def between(self) -> None:
        """In a thread, now and then."""
        if self._interrupted:
            raise _Interrupted

    async def interrupt(self) -> None:
        """Return when no thread is at work any more."""
        self._interrupted = True
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._interrupted = False

    def _judge(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._on_failure(failure)


class _Held(NamedTuple):
    head: SnapshotHead
    id: str
    bytes: int


class Sender:
    """The leader's side, and backups. Every node has one; on a follower nothing lacks, and it forgets what it held.

    Tick it in every cycle with the followers that are connected and lack what the log holds (`engine.lacking`); hand it
    `snapshot_ask`, and `disconnected`. Compact no further than `pinned_index`: the entry there and those after it stay
    in the log. Before the environment is closed or replaced, await `interrupt`.

    At most one snapshot exists, in `snapshots/` of the data folder. `on_failure` gets what must end the process;
    `queued_bytes` says what waits for a node on the bulk connection; below `reserve_bytes` of free disk none is made.
    """

    def __init__(
        self,
        environment: Environment,
        cluster_id: str,
        send: Send,
        *,
        term: Callable[[], int],
        on_failure: Callable[[BaseException], None],
        queued_bytes: Callable[[str], int] = lambda _node: 0,
        reserve_bytes: int = 0,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._environment, self._cluster_id = environment, cluster_id
        self._send, self._term = send, term
        self._queued_bytes, self._reserve_bytes, self._chunk_bytes = queued_bytes, reserve_bytes, chunk_bytes
        self._file = environment.folder / "snapshots" / "outgoing.snapshot"
        for leftover in (self._file, self._file.with_name(self._file.name + PART)):
            leftover.unlink(missing_ok=True)
        self._threads = _Threads(on_failure)
        self._now = float("-inf")
        self._held: _Held | None = None
        #: Index from which on the log is kept: of the snapshot that is held, or less than that which is being made.
        self.pinned_index: int | None = None
        #: A snapshot is being made, or the file of the last one deleted.
        self._busy = False
        self._make_from = float("-inf")
        #: When the snapshot was made or last asked for, and whether it ever was.
        self._used = 0.0
        self._wanted = False
        #: When each follower last asked, or was made an offer; and the offset that it asked for.
        self._heard: dict[str, float] = {}
        self._offsets: dict[str, int] = {}
        #: Pieces that are being read.
        self._reading: set[tuple[str, int]] = set()
        #: Of all snapshots, repeated pieces too.
        self.sent_bytes = 0

    def tick(self, now: float, lacking: Collection[str], log_first: int) -> None:
        """`log_first`: where the log begins. A snapshot that it does not go on from any more is of no use: this node
        may have followed meanwhile, and have been told to cut its log."""
        self._now = now
        if self._busy:
            return
        if self._held is None:
            if lacking and now >= self._make_from:
                self._begin_making()
        elif self._held.head.index < log_first:
            self._forget()
        elif now - self._used > KEPT_SECONDS:
            if not self._wanted:
                self._make_from = now + PAUSE_SECONDS
            self._forget()
        else:
            self._offer(
                self._held, [node for node in lacking if now - self._heard.get(node, float("-inf")) >= OFFER_SECONDS]
            )

    def on_ask(self, node: str, message: Message) -> None:
        held, offset = self._held, message["offset"]
        if held is None or message["id"] != held.id:
            return
        self._used = self._heard[node] = self._now
        self._wanted = True
        self._offsets[node] = max(offset, self._offsets.get(node, 0))
        place = (node, offset)
        if not 0 <= offset < held.bytes or place in self._reading:
            return
        if self._queued_bytes(node) <= WINDOW * self._chunk_bytes:
            self._reading.add(place)
            self._threads.begin(self._answer(held, *place))

    def disconnected(self, node: str) -> None:
        self._heard.pop(node, None)
        self._offsets.pop(node, None)

    def progress(self) -> dict[str, tuple[int, int]]:
        """For each follower that pulls: the furthest byte that it has asked for, and the bytes in all."""
        return {} if self._held is None else {node: (at, self._held.bytes) for node, at in self._offsets.items()}

    async def backup(self, path: Path) -> SnapshotHead:
        """Write a snapshot to `path`, on any node. Raises OSError, StorageError, and SnapshotError when this node
        replaces its data or stops meanwhile."""
        try:
            # Whoever waits may go; the thread is then still to be waited for.
            return await asyncio.shield(self._threads.join(self._write(path)))
        except _Interrupted:
            raise SnapshotError(f"{path}: is not written: the node stops, or gets a snapshot itself") from None

    async def interrupt(self) -> None:
        """Stop what reads the environment, and wait for it."""
        await self._threads.interrupt()
        if self._held is not None:
            self._forget()
            await self._threads.interrupt()

    def _begin_making(self) -> None:
        environment = self._environment
        if environment.free_bytes() < environment.tables_bytes() + self._reserve_bytes:
            self._pause("the disk is too full")
            return
        self._busy = True
        self.pinned_index = environment.applied()
        self._threads.begin(self._make())

    async def _make(self) -> None:
        try:
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            head = await self._write(self._file)
        except OSError as exc:
            self._pause(str(exc))
        except _Interrupted:
            pass
        else:
            self._held = _Held(head, head.id, self._file.stat().st_size)
        finally:
            self._busy = False
            self._used, self._wanted = self._now, False
            self.pinned_index = None if self._held is None else self._held.head.index

    async def _write(self, path: Path) -> SnapshotHead:
        def write() -> SnapshotHead:
            return snapshot.write(self._environment, path, self._cluster_id, between=self._threads.between)

        return await asyncio.get_running_loop().run_in_executor(None, write)

    def _offer(self, held: _Held, nodes: list[str]) -> None:
        if nodes:
            self._heard |= dict.fromkeys(nodes, self._now)
            message = {"type": "snapshot_offer", "term": self._term(), "id": held.id, "bytes": held.bytes}
            self._send(nodes, message | {"index": held.head.index, "snapshot_term": held.head.term})

    async def _answer(self, held: _Held, node: str, offset: int) -> None:
        try:
            data = await asyncio.get_running_loop().run_in_executor(None, _read, self._file, offset, self._chunk_bytes)
        except OSError as exc:
            _log.warning("snapshot unreadable", error=str(exc))
            return
        finally:
            self._reading.discard((node, offset))
        if self._held is held:
            message = {"type": "snapshot_chunk", "term": self._term(), "id": held.id, "offset": offset, "data": data}
            if self._send([node], message | {"checksum": _checksum(offset, data)}, bulk=True):
                self.sent_bytes += len(data)

    def _pause(self, reason: str) -> None:
        self._make_from = self._now + PAUSE_SECONDS
        _log.warning("no snapshot made", reason=reason)

    def _forget(self) -> None:
        self._held = self.pinned_index = None
        self._heard.clear()
        self._offsets.clear()
        self._busy = True
        self._threads.begin(self._delete())

    async def _delete(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._file.unlink)
        except OSError as exc:
            _log.warning("snapshot not deleted", error=str(exc))
        finally:
            self._busy = False


class _Pull:
    """One snapshot on its way here."""

    def __init__(self, node: str, message: Message, now: float, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self.node: str = node
        self.term: int = message["term"]
        self.id: str = message["id"]
        self.place: tuple[int, int] = (message["index"], message["snapshot_term"])
        self.bytes: int = message["bytes"]
        #: Bytes in the file; None until it was looked at.
        self.have: int | None = None
        #: When each piece within the window was first asked for, and those that came and are not in the file.
        self.asked: dict[int, float] = {}
        self.arrived: dict[int, bytes] = {}
        self.heard = self.asked_last = now
        self.patience = PATIENCE_SECONDS_MIN
        #: Set when a piece came, or nothing is to be waited for any more.
        self.came = asyncio.Event()
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True
        self.came.set()

    def window(self) -> list[int]:
        """The pieces that may be on their way now."""
        have = self.bytes if self.have is None else self.have
        return list(range(have, min(self.bytes, have + WINDOW * self._chunk_bytes), self._chunk_bytes))

    def take(self) -> bytes:
        """The pieces that follow what is in the file."""
        parts = []
        at = self.have or 0
        while (part := self.arrived.pop(at, None)) is not None:
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def written(self, count: int) -> None:
        self.have = (self.have or 0) + count
        window = self.window()
        self.asked = {offset: self.asked[offset] for offset in window if offset in self.asked}
        self.arrived = {offset: self.arrived[offset] for offset in window if offset in self.arrived}


class Receiver:
    """The follower's side.

    Hand it `snapshot_offer` of the leader of the own term, `snapshot_chunk`, and `disconnected`; tick it in every
    cycle. `needless(index, term)` is asked again and again: whether the commit index is at or above `index`, or the own
    log holds (index, term). When the snapshot is loaded `on_ready` is called, and `ready` gives it until `done`.

    It owns `incoming.*.part` and `environment.incoming` of the data folder, and deletes nothing else.
    """

    def __init__(
        self,
        environment: Environment,
        cluster_id: str,
        send: Send,
        *,
        term: Callable[[], int],
        needless: Callable[[int, int], bool],
        on_ready: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        reserve_bytes: int = 0,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._environment, self._cluster_id = environment, cluster_id
        self._send, self._term, self._needless, self._on_ready = send, term, needless, on_ready
        self._reserve_bytes, self._chunk_bytes = reserve_bytes, chunk_bytes
        self._threads = _Threads(on_failure)
        #: What the disk is at: one thing after the other.
        self._last: asyncio.Task[None] | None = None
        self._now = float("-inf")
        self._pull: _Pull | None = None
        self._ready: SnapshotHead | None = None
        self._begin_from = float("-inf")
        #: Since when nothing is done with what earlier pulls left, None when there is nothing.
        self._left_since: float | None = float("inf")

    def on_offer(self, node: str, message: Message) -> bool:
        """False when nothing of it is needed: the leader has a wrong idea of what this node has."""
        place = (message["index"], message["snapshot_term"])
        if self._needless(*place):
            return False
        pull = self._pull
        if pull is not None and pull.id == message["id"]:
            pull.node, pull.term = node, max(pull.term, message["term"])
        elif self._ready is None and (pull is None or self._is_newer(message, pull)):
            self._begin(node, message)
        return True

    def on_chunk(self, _node: str, message: Message) -> None:
        pull, offset, data = self._pull, message["offset"], message["data"]
        if pull is None or message["id"] != pull.id or offset not in pull.asked:
            return
        if not data or message["checksum"] != _checksum(offset, data):
            return
        pull.patience = _patience(2 * (self._now - pull.asked[offset]))
        pull.heard = self._now
        pull.arrived[offset] = data
        pull.came.set()

    def tick(self, now: float) -> None:
        self._now = now
        pull = self._pull
        if pull is None:
            self._look_at_leftovers(now)
        elif self._needless(*pull.place):
            self.done()
        elif self._ready is None and now - pull.heard > GIVE_UP_SECONDS and pull.window():
            self._drop(pull)
        elif now - max(pull.heard, pull.asked_last) >= pull.patience:
            pull.patience = _patience(2 * pull.patience)
            self._ask(pull, again=True)

    def disconnected(self, node: str) -> None:
        """What was on its way is lost; it is asked for at the next tick."""
        if self._pull is not None and self._pull.node == node:
            self._pull.heard = self._pull.asked_last = self._now - self._pull.patience

    def ready(self) -> tuple[SnapshotHead, Path] | None:
        """What is to be installed now, unless it has become needless meanwhile."""
        if self._ready is not None and self._needless(self._ready.index, self._ready.term):
            self.done()
        return None if self._ready is None else (self._ready, self._environment.incoming)

    def done(self) -> None:
        """It is installed, or nothing of it is wanted: forget it, and delete what is left of it."""
        self._ready = None
        if self._pull is not None:
            self._drop(self._pull)
        self._then(self._clean)

    def progress(self) -> tuple[int, int] | None:
        """Bytes that are here, and in all."""
        return None if self._pull is None else (self._pull.have or 0, self._pull.bytes)

    async def interrupt(self) -> None:
        """Stop, and wait until nothing is written any more. What came stays, for the next offer or the next start."""
        if self._pull is not None:
            self._drop(self._pull)
        await self._threads.interrupt()

    @staticmethod
    def _is_newer(message: Message, pull: _Pull) -> bool:
        """An old offer may arrive late; a leader's next snapshot is of a higher index. One that is all here stays."""
        return bool(pull.window()) and (message["term"], message["index"]) > (pull.term, pull.place[0])

    def _begin(self, node: str, message: Message) -> None:
        if self._now < self._begin_from or not _ID.fullmatch(message["id"]):
            return
        if self._environment.free_bytes() < 2 * message["bytes"] + self._reserve_bytes:  # the file, and what it becomes
            self._pause("snapshot refused", "the disk is too full")
            return
        if self._pull is not None:
            self._drop(self._pull)
        self._pull = _Pull(node, message, self._now, self._chunk_bytes)
        self._then(partial(self._fetch, self._pull))

    def _drop(self, pull: _Pull) -> None:
        pull.drop()
        self._pull = None
        self._left_since = self._now

    def _look_at_leftovers(self, now: float) -> None:
        if self._left_since is not None:
            self._left_since = min(self._left_since, now)
            if now - self._left_since > PART_SECONDS:
                self._left_since = None
                self._then(self._clean)

    def _then(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._last = self._threads.begin(self._after(self._last, work))

    @staticmethod
    async def _after(last: asyncio.Task[None] | None, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if last is not None:
            await asyncio.wait([last])
        await work()

    async def _fetch(self, pull: _Pull) -> None:
        """All of a snapshot, from what is here to what is ready."""
        run = asyncio.get_running_loop().run_in_executor
        part = self._part(pull)
        try:
            pull.have = await run(None, self._prepare, pull)
            pull.heard = self._now
            while pull.have < pull.bytes and not pull.dropped:
                self._ask(pull)
                await pull.came.wait()
                pull.came.clear()
                if data := pull.take():
                    await run(None, _append, part, data)
                    pull.written(len(data))
            if pull.dropped:
                return
            self._ask(pull)
            head = await run(None, self._load, pull)
        except _Interrupted:
            return
        except SnapshotError as exc:  # begin anew
            _log.warning("snapshot not loaded", reason=str(exc))
            await self._clean()
        except (OSError, StorageError) as exc:
            self._pause("snapshot not loaded", str(exc))
        else:
            if not pull.dropped:
                self._ready = head
                self._on_ready()
            return
        if self._pull is pull:
            self._drop(pull)

    def _ask(self, pull: _Pull, *, again: bool = False) -> None:
        """For what may be on its way and was not asked for; `again`: for all that did not come. When all is here, that
        is what it says, so that the leader keeps the log."""
        message = {"type": "snapshot_ask", "term": self._term(), "id": pull.id}
        missing = [offset for offset in pull.window() if offset not in pull.arrived]
        for offset in missing:
            if again or offset not in pull.asked:
                pull.asked.setdefault(offset, self._now)
                self._send([pull.node], message | {"offset": offset})
        if pull.have == pull.bytes:
            self._send([pull.node], message | {"offset": pull.bytes})
        pull.asked_last = self._now

    def _pause(self, event: str, reason: str) -> None:
        self._begin_from = self._now + PAUSE_SECONDS
        _log.warning(event, reason=reason)

    def _part(self, pull: _Pull) -> Path:
        return self._environment.folder / f"incoming.{pull.id}{PART}"

    # In a thread

    def _prepare(self, pull: _Pull) -> int:
        """The bytes of it that an earlier pull has left."""
        part = self._part(pull)
        self._delete_parts(but=part)
        discard(self._environment.incoming)
        return part.stat().st_size if part.exists() else 0

    def _load(self, pull: _Pull) -> SnapshotHead:
        def between() -> None:
            self._threads.between()
            if pull.dropped:
                raise _Interrupted

        incoming = self._environment.incoming
        head = snapshot.load(self._part(pull), incoming, between=between)
        if (head.id, head.cluster_id, (head.index, head.term)) != (pull.id, self._cluster_id, pull.place):
            discard(incoming)
            raise SnapshotDamaged(f"{self._part(pull)}: is not what was offered")
        return head

    async def _clean(self) -> None:
        def clean() -> None:
            self._delete_parts()
            discard(self._environment.incoming)

        await asyncio.get_running_loop().run_in_executor(None, clean)

    def _delete_parts(self, but: Path | None = None) -> None:
        for part in self._environment.folder.glob(f"incoming.*{PART}"):
            if part != but:
                part.unlink(missing_ok=True)


def _patience(seconds: float) -> float:
    return min(max(seconds, PATIENCE_SECONDS_MIN), PATIENCE_SECONDS_MAX)


def _checksum(offset: int, data: bytes) -> int:
    return xxh3_64_intdigest(data, offset)


def _read(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
