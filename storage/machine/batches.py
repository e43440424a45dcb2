"""Batches: messages as they lie in the tables, many to a record, written once.

Owns the tables BATCH, ASIDE and GONE. A batch is never changed; a message that is gone is a bit in the batch's bitmap,
and the last bit deletes both. Knows nothing of who holds a message.

Two things wait in memory for the end of the entry, or until somebody else touches the queue, because they would be
written again and again: small enqueues of one entry, which become one batch, and bitmaps.
"""

from __future__ import annotations

from raftq.storage.machine import keys, packing
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Batch, Piece, bits_of, encode_batch

#: An enqueue of more bytes is a batch of its own: joining it would cost more than the record that it saves.
JOINED_BYTES_MAX = 4096
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


class Batches:
    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        self._open: dict[int, _Open] = {}
        #: Bitmaps not written yet: key -> (bits, how many bits there are).
        self._gone: dict[bytes, tuple[int, int]] = {}
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
        for key, (bits, count) in self._gone.items():
            self._txn.put(key, bits.to_bytes((count + 7) // 8, "little"))
        self._gone.clear()

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
        gone = self._bitmap(key)
        bits = ((1 << piece.count) - 1) << (piece.first - piece.batch)
        if gone & bits:
            broken(f"queue {queue}: {piece} holds messages that are gone")
        gone |= bits
        if gone == (1 << count) - 1:
            self._gone.pop(key, None)
            self._txn.delete(key)
            self._delete(queue, piece)
        else:
            self._gone[key] = (gone, count)

    def _bitmap(self, key: bytes) -> int:
        waiting = self._gone.get(key)
        return bits_of(self._txn.get(key) or b"") if waiting is None else waiting[0]

    def _delete(self, queue: int, piece: Piece) -> None:
        key = keys.place(keys.ASIDE if piece.aside else keys.BATCH, queue, piece.priority, piece.batch)
        batch = self._cache.pop(key, None)
        if batch is not None:
            self._cache_bytes -= len(batch.value)
        self._txn.delete(key)
