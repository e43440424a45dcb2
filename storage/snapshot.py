"""Snapshots: the machine's tables, the clocks and the configuration at (index, term), as one file.

It owns the form of that file: a prelude with the version of the form, a head, the tables in chunks as they are digested
(`digest.packed`), and an end with their number and digest; each part with its own length and checksum. Being the items
and not the pages of LMDB, it holds nothing of the node that made it: no log, term, vote or identity.

Invariant: a file of this module's is whole and durable under its name, or is not there; and nothing of a file is used
before it was compared with its checksum, nor an environment loaded from one before its digest was.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

from raftq.storage import digest
from raftq.storage.checksums import seal
from raftq.storage.environment import APPLIED_FIRST, Environment, discard, sync_folder, u64
from raftq.storage.failures import EnvironmentDamaged, EnvironmentUnusable, commit_failure

if TYPE_CHECKING:
    from io import FileIO

    from raftq.storage.reader import Cursor, Transaction

_T = TypeVar("_T")

#: To be raised when the file or what the tables mean by it is laid out anew. A newer one is refused.
FORMAT_VERSION: Final = 1

#: What ends with this was not finished, and may be deleted by whoever makes it.
PART = ".part"

#: Bytes that `write` leaves to the system's cache, and `load` to one transaction.
_SYNC_BYTES = 2 * 1024 * 1024

_MAGIC = b"RAFTQSNP"
#: Magic and version of the form, and their checksum: the same in every version.
_PRELUDE = struct.Struct(">8sI")
_CHECKSUM = struct.Struct(">Q")
#: Before each part: its kind, the number of items in it, its bytes and their checksum; then the checksum of all this.
_PART = struct.Struct(">BIIQ")
_HEAD, _CHUNK, _END = 1, 2, 3


class SnapshotError(Exception):
    """A snapshot cannot be used. The text is one line that says which file, why, and what to do."""


class SnapshotDamaged(SnapshotError):
    """The file is not what was written, or not all of it."""


class SnapshotForeign(SnapshotError):
    """The file is not a snapshot, or one of a newer raftq."""


class SnapshotHead(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    term: int
    cluster_id: str
    #: As in meta: of the entry at `index`, and the configuration in force there; empty when there was none.
    clocks: bytes
    membership: bytes
    #: Of the tables. Known when all of the file was written or read.
    items: int = 0
    digest: str = ""

    @property
    def id(self) -> str:
        """Of the contents: two files with the same id hold the same."""
        return xxh3_128_hexdigest(msgspec.msgpack.encode(self))

    def meta(self) -> dict[str, bytes]:
        """The named values that belong to these tables in an environment."""
        found = {"applied": u64(self.index), "clocks": self.clocks, "membership": self.membership}
        return {name: value for name, value in found.items() if value}


def write(
    environment: Environment, path: Path, cluster_id: str, *, between: Callable[[], None] = lambda: None
) -> SnapshotHead:
    """Write the tables as they are now to `path`, beside a node that goes on: in one read transaction, and any thread.
    `between` is called after each chunk: it may sleep, or raise. Raises OSError and EnvironmentDamaged; then no file is
    there."""
    with environment.begin_read() as txn, _made_whole(path) as file:
        index = environment.applied(txn)
        head = SnapshotHead(
            index=index,
            term=_term(environment, txn, index),
            cluster_id=cluster_id,
            clocks=environment.meta_in(txn, "clocks") or b"",
            membership=environment.meta_in(txn, "membership") or b"",
        )
        prelude = _PRELUDE.pack(_MAGIC, FORMAT_VERSION)
        file.write(prelude + _CHECKSUM.pack(xxh3_64_intdigest(prelude)))
        _put(file, _HEAD, 0, msgspec.msgpack.encode(head))
        items, unsynced, hashed = 0, 0, xxh3_128()
        for count, chunk in digest.packed(txn):
            _put(file, _CHUNK, count, chunk)
            hashed.update(chunk)
            items += count
            unsynced += len(chunk)
            if unsynced >= _SYNC_BYTES:  # else all of it at the end, with the commits of the node waiting behind it
                os.fdatasync(file.fileno())
                unsynced = 0
            between()
        head = msgspec.structs.replace(head, items=items, digest=hashed.hexdigest())
        _put(file, _END, 0, msgspec.msgpack.encode((head.items, head.digest)))
    return head


def check(path: Path) -> SnapshotHead:
    """Read all of the file. Raises OSError, SnapshotDamaged and SnapshotForeign."""
    with path.open("rb", buffering=0) as file:
        reading = _Reading(path, file)
        for _count, _chunk in reading.chunks():
            pass
        return reading.head


def load(path: Path, folder: Path, *, between: Callable[[], None] = lambda: None) -> SnapshotHead:
    """Build an environment in the new folder `folder` with the tables of the snapshot at `path`, durable, and nothing
    else: `Environment.install` gives it the rest. `between` is called after each chunk: it may sleep, or raise. Raises
    what `check` does, and StorageError; then the folder is not there."""
    if folder.exists():
        raise EnvironmentUnusable(f"{folder}: is there already: a snapshot is loaded into a new folder")
    try:
        environment = Environment(folder)
        try:
            head = _fill(path, environment, between)
            if (found := digest.digest(environment)[1]) != head.digest:
                raise EnvironmentDamaged(f"{folder}: the tables loaded have the digest {found}, not {head.digest}")
        finally:
            environment.close()
    except BaseException as exc:
        discard(folder)
        if isinstance(exc, lmdb.Error):
            raise commit_failure(folder, exc) from exc
        raise
    return head


def restore(
    path: Path,
    folder: Path,
    meta: dict[str, bytes],
    *,
    command: bytes | None = None,
    between: Callable[[], None] = lambda: None,
) -> SnapshotHead:
    """Make `folder`, new or empty, the data folder of a node that begins with the snapshot at `path`.

    The log begins with the snapshot's boundary; with `command` one more entry follows, of the next index and term.
    `meta` are named values, which win over those of the snapshot. Raises what `load` does; then nothing is restored."""
    made = not (folder / "data.mdb").exists()
    environment = Environment(folder)
    try:
        if environment.log_bounds() is not None or environment.meta("identity") is not None:
            raise EnvironmentUnusable(f"{folder}: holds the data of a node: restore into a new folder")
        head = load(path, environment.incoming, between=between)
        entries = [] if command is None else [(head.index + 1, head.term + 1, command)]
        term = entries[-1][1] if entries else head.term
        named = {"term": u64(term), "vote": b"", **head.meta(), **meta}
        environment.install(environment.incoming, named, (head.index, head.term), entries)
    except BaseException:
        environment.close()
        if made:
            discard(folder)
        raise
    environment.close()
    return head


def _term(environment: Environment, txn: Transaction, index: int) -> int:
    """The log keeps the entry at the applied index. Before the first commit it is empty, and then it would begin with
    an entry of term 0."""
    term = environment.log_term(txn, index)
    if term is not None:
        return term
    if index == APPLIED_FIRST:
        return 0
    raise EnvironmentDamaged(f"{environment.folder}: table 'log' lacks the entry at the applied index {index}")


@contextmanager
def _made_whole(path: Path) -> Iterator[FileIO]:
    """A file that gets its name when it is whole and durable."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _put(file: FileIO, kind: int, count: int, data: bytes) -> None:
    front = _PART.pack(kind, count, len(data), xxh3_64_intdigest(data))
    rest = memoryview(front + _CHECKSUM.pack(xxh3_64_intdigest(front)) + data)
    while rest:
        rest = rest[file.write(rest) :]


def _fill(path: Path, environment: Environment, between: Callable[[], None]) -> SnapshotHead:
    """In transactions of a bounded size: what they change is kept in memory until they end."""
    with path.open("rb", buffering=0) as file:
        reading = _Reading(path, file)
        chunks = reading.chunks()
        more = True
        while more:
            with environment.begin_write() as txn:
                more = _fill_some(chunks, txn.cursor(environment.tables), between)
        return reading.head


def _fill_some(chunks: Iterator[tuple[int, bytes]], cursor: Cursor, between: Callable[[], None]) -> bool:
    """False when that was all."""
    filled = 0
    for _count, chunk in chunks:
        cursor.putmulti(_sealed(chunk), append=True)
        filled += len(chunk)
        between()
        if filled >= _SYNC_BYTES:
            return True
    return False


def _sealed(chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 0
    while offset < len(chunk):
        key_bytes, value_bytes = digest.SIZES.unpack_from(chunk, offset)
        middle = offset + digest.SIZES.size + key_bytes
        key = chunk[middle - key_bytes : middle]
        offset = middle + value_bytes
        yield key, seal(key, chunk[middle:offset])


class _Reading:
    """One pass over a file, which keeps one part in memory."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path, self._file = path, file
        self._left = os.fstat(file.fileno()).st_size
        self._at = 0
        self._check_prelude()
        kind, _count, data = self._part()
        if kind != _HEAD:
            raise self._damaged("the head is missing")
        #: Its `items` and `digest` are known when all chunks were read.
        self.head = self._decoded(data, SnapshotHead)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The number of items in it, and the chunk. Raises at the end too, when it was not all of it."""
        items, hashed = 0, xxh3_128()
        while True:
            kind, count, data = self._part()
            if kind == _END:
                break
            if kind != _CHUNK:
                raise self._damaged(f"it has a part of kind {kind}")
            items += count
            hashed.update(data)
            yield count, data
        if self._left:
            raise self._damaged(f"{self._left} bytes follow its end")
        if self._decoded(data, tuple[int, str]) != (items, hashed.hexdigest()):
            raise self._damaged("the parts in it are not those that were written")
        self.head = msgspec.structs.replace(self.head, items=items, digest=hashed.hexdigest())

    def _check_prelude(self) -> None:
        data = self._take(_PRELUDE.size + _CHECKSUM.size)
        magic, version = _PRELUDE.unpack_from(data)
        if magic != _MAGIC:
            raise SnapshotForeign(f"{self._path}: is not a snapshot of raftq, or its first bytes are damaged")
        self._compare(data[: _PRELUDE.size], data[_PRELUDE.size :])
        if version != FORMAT_VERSION:
            raise SnapshotForeign(
                f"{self._path}: is of format {version}, this raftq knows {FORMAT_VERSION}: use the newer raftq"
            )

    def _part(self) -> tuple[int, int, bytes]:
        """The length is compared before it is believed."""
        front = self._take(_PART.size + _CHECKSUM.size)
        self._compare(front[: _PART.size], front[_PART.size :])
        kind, count, size, checksum = _PART.unpack_from(front)
        data = self._take(size)
        self._compare(data, _CHECKSUM.pack(checksum))
        return kind, count, data

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise self._damaged(f"it ends early, {size - self._left} bytes or more are missing")
        parts = []
        while size:
            if not (part := self._file.read(size)):
                raise self._damaged("it became shorter while it was read")
            parts.append(part)
            size -= len(part)
            self._left -= len(part)
            self._at += len(part)
        return b"".join(parts)

    def _compare(self, data: bytes, checksum: bytes) -> None:
        if _CHECKSUM.pack(xxh3_64_intdigest(data)) != checksum:
            raise self._damaged("what is written before it does not match its checksum")

    def _decoded(self, data: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.msgpack.decode(data, type=kind)
        except msgspec.DecodeError as exc:
            raise self._damaged(str(exc)) from exc

    def _damaged(self, what: str) -> SnapshotDamaged:
        advice = "take another copy, or a new snapshot"
        return SnapshotDamaged(f"{self._path}: is damaged at byte {self._at}: {what}: {advice}")
