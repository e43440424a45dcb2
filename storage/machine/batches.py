"""Batches: messages as they lie in the tables, many to a record, written once.

Owns the tables BATCH, ASIDE, GONE and SPARSE. A message that is gone is a bit in the batch's bitmap, and the last bit
deletes both. Knows nothing of who holds a message.

From version 2 on a batch of which less than a quarter lives is written once more without the bytes of what is gone, and
again at a sixteenth, and so on: so a batch that stays is at most about four times what lives of it, and is rewritten a
few times at most. Its key, its count and the position of each message stay, so nobody who knows it has to be told.
Most batches are sparse for a moment only, on their way to nothing. So the bit that makes a batch sparse puts a moment
into SPARSE, and a step of `expiry` rewrites what lives then. A moment is not taken back: it finds nothing to do.

Two things wait in memory for the end of the entry, or until somebody else touches the queue, because they would be
written again and again: small enqueues of one entry, which become one batch, and bitmaps.
"""

from __future__ import annotations

from raftq.storage.machine import keys, packing
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import BLOB_OFFSET, Batch, Cluster, Piece, bits_of, encode_batch
from raftq.storage.machine.timetable import Timetable

#: An enqueue of more bytes is a batch of its own: joining it would cost more than the record that it saves.
JOINED_BYTES_MAX = 4096
#: From the version on that rewrites sparse batches.
SPARSE_VERSION = 2
#: How long a batch is left sparse, up to a second less: moments are whole seconds, so that those of one batch coincide.
SPARSE_MS = 10_000
#: Of a batch: rewriting as many costs a step as much as the removal of a record.
REWRITTEN_BYTES = 1024
#: Bytes of batches that are kept decoded: the ones being leased.
_CACHE_BYTES_MAX = 2 * 1024 * 1024


class _Open:
    """A batch that still grows: small enqueues of one entry, queue and priority, with consecutive numbers."""

    __slots__ = ("blobs", "bytes", "enqueued_at_ms", "first", "next", "priority")

    def __init__(self, priority: int, first: int, enqueued_at_ms: int) -> None:
        self.priority = priority
        self.first = self.next = first
        self.enqueued_at_ms = enqueued_at_ms
        self.blobs: list[bytes] = []
        #: Of the joined blob, or a few more.
        self.bytes = 0


def sparseness(count: int, live: int) -> int:
    """0 for a batch of which at least a quarter lives, 1 for at least a sixteenth, 2 for at least a 64th, ..."""
    return (((count - 1) // live | 1).bit_length() - 1) // 2


class Batches:
    def __init__(self, txn: Txn, cluster: Cluster, sparse: Timetable) -> None:
        self._txn = txn
        self._cluster = cluster
        self._sparse = sparse
        self._open: dict[int, _Open] = {}
        #: Bitmaps not written yet: key -> (bits, how many bits there are, the bits in the tables).
        self._gone: dict[bytes, tuple[int, int, int]] = {}
        self._cache: dict[bytes, Batch] = {}
        self._cache_bytes = 0

    def append(self, queue: int, priority: int, first: int, count: int, blob: bytes, enqueued_at_ms: int) -> None:
        """Messages in line, joined to those before them when both are small."""
        size = len(blob)
        if size > JOINED_BYTES_MAX:
            self.store(keys.BATCH, queue, priority, first, blob, enqueued_at_ms)
            return
        batch = self._open.get(queue)
        if (
            batch is None
            or batch.priority != priority
            or batch.next != first
            or batch.bytes + size > packing.BLOB_BYTES_MAX
        ):
            self.close(queue)
            batch = self._open[queue] = _Open(priority, first, enqueued_at_ms)
        batch.blobs.append(blob)
        batch.bytes += size
        batch.next = first + count

    def store(self, table: bytes, queue: int, priority: int, first: int, blob: bytes, enqueued_at_ms: int) -> None:
        self._txn.put(keys.place(table, queue, priority, first), encode_batch(enqueued_at_ms, blob))

    def close(self, queue: int) -> None:
        """Write the queue's open batch, if it has one."""
        batch = self._open.pop(queue, None)
        if batch is not None:
            blob = packing.join(batch.blobs)
            self.store(keys.BATCH, queue, batch.priority, batch.first, blob, batch.enqueued_at_ms)

    def flush(self) -> None:
        """Write all that waits in memory."""
        for queue in list(self._open):
            self.close(queue)
        rewriting = self._cluster.version >= SPARSE_VERSION
        for key, (bits, count, before) in self._gone.items():
            self._txn.put(key, bits.to_bytes((count + 7) // 8, "little"))
            if rewriting and bits.bit_count() * 4 > count * 3:
                self._mark(key, bits, count, before)
        self._gone.clear()

    def _mark(self, key: bytes, bits: int, count: int, before: int) -> None:
        """Look at the batch later when these bits make it sparse, or sparse again, and those before did not."""
        if sparseness(count, count - bits.bit_count()) > sparseness(count, count - before.bit_count()):
            self._sparse.add(keys.after(self._cluster.lease_ms, SPARSE_MS) // 1000 * 1000, key)

    def in_line(self, queue: int, priority: int, first: int) -> Batch | None:
        """The batch in line that begins at `first`."""
        return self._read(keys.place(keys.BATCH, queue, priority, first))

    def of(self, queue: int, piece: Piece) -> Batch:
        table = keys.ASIDE if piece.aside else keys.BATCH
        batch = self._read(keys.place(table, queue, piece.priority, piece.batch))
        if batch is None:
            broken(f"queue {queue}: no batch {piece.priority}-{piece.batch} under {piece}")
        return batch

    def _read(self, key: bytes) -> Batch | None:
        batch = self._cache.get(key)
        if batch is not None:
            return batch
        value = self._txn.get(key)
        if value is None:
            return None
        if self._cache_bytes > _CACHE_BYTES_MAX:
            self._cache.clear()
            self._cache_bytes = 0
        batch = self._cache[key] = Batch(value)
        self._cache_bytes += len(value)
        return batch

    def live(self, queue: int, priority: int, number: int) -> Piece | None:
        """The whole batch that holds the message as a piece; None when the message is gone or never was."""
        for table in (keys.BATCH, keys.ASIDE):
            low, end = keys.place(table, queue, priority, 0), keys.place(table, queue, priority, number) + b"\0"
            for key, value in self._txn.scan(low, end, reverse=True):
                first, batch = keys.place_of(key)[1], Batch(value)
                if number < first + batch.count and not self._gone_of(queue, priority, first) >> (number - first) & 1:
                    aside = table == keys.ASIDE
                    return Piece(priority, first, aside, batch.count, first, batch.count, batch.bytes, 0, 0)
                break
        return None

    def _gone_of(self, queue: int, priority: int, first: int) -> int:
        """The bits of the batch's messages that are gone."""
        key = keys.place(keys.GONE, queue, priority, first)
        waiting = self._gone.get(key)
        return bits_of(self._txn.get(key) or b"") if waiting is None else waiting[0]

    def set_aside(self, queue: int, priority: int, first: int) -> None:
        """Take a batch out of the line: the head never sees it. Its bitmap and whoever knows its place stay right."""
        key, aside = keys.place(keys.BATCH, queue, priority, first), keys.place(keys.ASIDE, queue, priority, first)
        value = self._txn.get(key)
        assert value is not None, key
        self._forget(key)
        self._txn.delete(key)
        self._txn.put(aside, value)

    def cut(self, queue: int, piece: Piece, start: int, count: int) -> Piece:
        """`count` messages of the piece from its `start`-th on."""
        if count == piece.count:
            return piece
        size = self.of(queue, piece).size(piece.first + start - piece.batch, count)
        return Piece(
            piece.priority,
            piece.batch,
            piece.aside,
            piece.batch_count,
            piece.first + start,
            count,
            size,
            piece.deliveries,
            piece.failures,
        )

    def free(self, queue: int, piece: Piece) -> None:
        """The messages of the piece are gone for good."""
        count = piece.batch_count
        if piece.count == count:
            self._delete(queue, piece)
            return
        key = keys.place(keys.GONE, queue, piece.priority, piece.batch)
        waiting = self._gone.get(key)
        if waiting is None:
            gone = before = bits_of(self._txn.get(key) or b"")
        else:
            gone, _, before = waiting
        bits = ((1 << piece.count) - 1) << (piece.first - piece.batch)
        if gone & bits:
            broken(f"queue {queue}: {piece} holds messages that are gone")
        gone |= bits
        if gone == (1 << count) - 1:
            self._gone.pop(key, None)
            self._txn.delete(key)
            self._delete(queue, piece)
        else:
            self._gone[key] = (gone, count, before)

    def _delete(self, queue: int, piece: Piece) -> None:
        key = keys.place(keys.ASIDE if piece.aside else keys.BATCH, queue, piece.priority, piece.batch)
        self._forget(key)
        self._txn.delete(key)

    def _forget(self, key: bytes) -> None:
        batch = self._cache.pop(key, None)
        if batch is not None:
            self._cache_bytes -= len(batch.value)

    def sweep(self) -> None:
        """Look at every bitmap from the next step on: what was sparse before version 2 has no moment."""
        self.flush()
        self._sparse.add(self._cluster.lease_ms, keys.GONE)

    def rewrite_sparse(self, now_ms: int, limit: int) -> None:
        """Rewrite what has been sparse for a while, as much of it as costs `limit`: see `_rewrite`."""
        for ms, key in self._sparse.due(now_ms):
            if limit <= 0:
                return
            self.flush()
            self._sparse.remove(ms, key)
            if len(key) == keys.PLACE_BYTES:
                limit -= self._rewrite(key)
                continue
            found = next(iter(self._txn.scan(key, keys.GONE_END)), None)
            if found is not None:
                self._sparse.add(ms, found[0] + b"\0")
                limit -= self._rewrite(found[0])

    def _rewrite(self, key: bytes) -> int:
        """Write the batch of the bitmap at `key` without the bytes of what is gone, if it is sparse: what it cost, in
        records removed."""
        bitmap = self._txn.get(key) or b""
        gone = bits_of(bitmap)
        if not gone or gone.bit_count() * 4 <= (len(bitmap) * 8 - 7) * 3:  # a byte of the bitmap has a message at least
            return 1
        for table in (keys.BATCH, keys.ASIDE):
            batch = self._read(table + key[1:])
            if batch is not None:
                break
        else:
            broken(f"bitmap {key.hex()} has no batch")
        if gone.bit_count() * 4 > batch.count * 3:
            blob = packing.without(batch.value, gone, BLOB_OFFSET)
            if len(blob) < len(batch.value) - BLOB_OFFSET:
                self._txn.put(table + key[1:], encode_batch(batch.enqueued_at_ms, blob))
                self._forget(table + key[1:])
        return 1 + len(batch.value) // REWRITTEN_BYTES
