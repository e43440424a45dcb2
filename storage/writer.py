"""The one thread that writes: it begins, fills and commits each transaction.

It owns every write transaction of its environment from begin to commit, since LMDB hangs the next writer when a
transaction begun in one thread is committed in another. It never reads the machine's tables and never retries.

Filling is done while the caller waits: py-lmdb gives the interpreter away at every put, and a busy event loop would
take it for a whole switch interval each time (docs/decisions/0006). The commit runs beside the loop.

Invariant: `done(None)` is called only after the batch is on disk as LMDB's default sync puts it there, whole; after a
failure no later batch is written, since it would build on one that is not there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

from raftq.storage.checksums import seal
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.failures import StorageError, commit_failure

if TYPE_CHECKING:
    from raftq.storage.reader import Cursor, Transaction

Done = Callable[[BaseException | None], None]


class Writer:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._batches: SimpleQueue[tuple[WriteBatch, Done] | None] = SimpleQueue()
        #: Released by the writer when a batch is taken over.
        self._filled = threading.Lock()
        self._filled.acquire()
        self._busy = False
        #: What failed first. Nothing is written after it.
        self.failure: StorageError | None = None
        #: Transactions committed, and the seconds that they took: in all, and the last.
        self.commits = 0
        self.seconds = 0.0
        self.last_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="raftq-writer", daemon=True)
        self._thread.start()

    def commit(self, batch: WriteBatch, done: Done) -> None:
        """Write `batch`, then call `done` in the writer's thread, with None or what failed. Returns once the batch was
        taken over, while the commit runs. One at a time: the next one after `done`."""
        assert not self._busy, "a commit is running"
        assert self._thread.is_alive(), "the writer is closed"
        self._busy = True
        self._batches.put((batch, done))
        self._filled.acquire()

    def write(self, batch: WriteBatch) -> None:
        """Commit `batch` and wait for it; for where no loop runs. Raises what failed."""
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.commit(batch, ended.put)
        if (failure := ended.get()) is not None:
            raise failure

    def close(self) -> None:
        """Finish what was given, and end the thread."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._batches.get()) is not None:
            batch, done = item
            self._write(batch)
            self._busy = False
            self._tell(done)

    def _tell(self, done: Done) -> None:
        """A caller that is gone, its loop closed, must not leave the next one waiting for a dead thread."""
        try:
            done(self.failure)
        except Exception as exc:
            self.failure = self.failure or commit_failure(self._environment.folder, exc)

    def _write(self, batch: WriteBatch) -> None:
        begun = perf_counter()
        try:
            self._filling(batch).commit()
        except BaseException as exc:  # whatever it was, the batch is not on disk
            self.failure = self.failure or commit_failure(self._environment.folder, exc)
            return
        self.last_seconds = perf_counter() - begun
        self.seconds += self.last_seconds
        self.commits += 1

    def _filling(self, batch: WriteBatch) -> Transaction:
        """The filled transaction; the caller of `commit` goes on in any case."""
        try:
            if self.failure is not None:
                raise self.failure
            return fill(self._environment, batch)
        finally:
            self._filled.release()


def fill(environment: Environment, batch: WriteBatch) -> Transaction:
    """A write transaction, begun and filled with `batch`: call its `commit` in the same thread, or its `abort`."""
    txn = environment.begin_write()
    try:
        if batch.truncate_from is not None or batch.entries or batch.compact_below is not None:
            _fill_log(txn.cursor(environment.log), batch)
        if batch.meta:
            named = [(key := name.encode(), seal(key, value)) for name, value in batch.meta.items()]
            txn.cursor(environment.named).putmulti(named)
        if batch.tables:
            _fill_tables(environment, txn, batch.tables)
    except BaseException:
        txn.abort()
        raise
    return txn


def _fill_log(cursor: Cursor, batch: WriteBatch) -> None:
    if batch.truncate_from is not None and cursor.set_range(u64(batch.truncate_from)):
        while cursor.delete():
            pass
    if batch.entries:
        _assert_follows(cursor, batch.entries)
        sealed = [(key := u64(index), seal(key, u64(term) + command)) for index, term, command in batch.entries]
        cursor.putmulti(sealed, append=True)
    if batch.compact_below is not None:
        _compact(cursor, u64(batch.compact_below))


def _assert_follows(cursor: Cursor, entries: list[tuple[int, int, bytes]]) -> None:
    first, last = entries[0][0], entries[-1][0]
    follows = not cursor.last() or cursor.key() == u64(first - 1)
    assert follows, f"log entries from {first} on do not follow the log"
    assert last - first + 1 == len(entries), f"log entries {first} to {last} have a gap"


def _compact(cursor: Cursor, below: bytes) -> None:
    found = cursor.first()
    while found and cursor.key() < below:
        found = cursor.delete()


def _fill_tables(environment: Environment, txn: Transaction, items: list[tuple[bytes, bytes | None]]) -> None:
    sealed = [(key, seal(key, value)) for key, value in items if value is not None]
    txn.cursor(environment.tables).putmulti(sealed)
    for key, value in items:
        if value is None:
            txn.delete(key, db=environment.tables)
