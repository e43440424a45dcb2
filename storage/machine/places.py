"""Who holds a waiting message: the head of its priority, the table of returned ones, or the table of delayed ones.

Owns the tables RETURNED and DUE and the heads in a queue's record. A message's place is (priority, number) for ever: a
returned message stands before all that came after it. Invariant: a message moves from one holder to one other, and the
counters of its queue with it.
"""

from __future__ import annotations

from raftq.storage.machine import keys, records
from raftq.storage.machine.batches import Batches
from raftq.storage.machine.firstkey import FirstKey
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Batch, Due, Head, Piece, QueueRecord
from raftq.storage.machine.timetable import Timetable

_FIRSTS_MAX = 10_000


class Basket:
    """Pieces being gathered for a lease, up to a number of messages and of bytes; but the first message always fits."""

    __slots__ = ("bytes_left", "full", "left", "pieces")

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.pieces: list[Piece] = []
        self.left = count_max
        self.bytes_left = bytes_max
        self.full = count_max <= 0

    def fit(self, batch: Batch, start: int, count: int) -> int:
        """How many of the `count` messages of the batch from the `start`-th on are to be taken."""
        fitting = batch.fit(start, min(count, self.left), self.bytes_left)
        return 1 if fitting == 0 and not self.pieces else fitting

    def add(self, piece: Piece, available: int) -> None:
        """Take the piece, of `available` messages that could have been taken."""
        self.pieces.append(piece)
        self.left -= piece.count
        self.bytes_left -= piece.bytes
        self.full = piece.count < available or self.left == 0


class Places:
    def __init__(self, txn: Txn, batches: Batches, wall: Timetable) -> None:
        self._txn = txn
        self._batches = batches
        self._wall = wall
        self._firsts: dict[tuple[int, int], FirstKey] = {}

    def enqueued(self, queue: QueueRecord, priority: int, first: int, count: int) -> None:
        """New messages in line."""
        head = _head(queue, priority)
        if head is None:
            head = _new_head(queue, priority, first)
        head.beyond += count
        queue.ready += count

    def take(self, queue: QueueRecord, count_max: int, bytes_max: int) -> list[Piece]:
        """The first messages that are ready, in order of delivery. The caller holds them; this delivery is counted."""
        basket = Basket(count_max, bytes_max)
        for head in queue.heads:
            if basket.full:
                break
            if head.returned:
                self._take_returned(queue, head, basket)
            if head.beyond and not basket.full:
                self._take_beyond(queue, head, basket, keys.NUMBER_MAX)
        return basket.pieces

    def _take_returned(self, queue: QueueRecord, head: Head, basket: Basket) -> None:
        """Returned pieces, and before each what lies in line before it. Pieces never overlap: each is of one batch."""
        first = self._first(queue.number, head.priority)
        while not basket.full and (key := first.get()) is not None:
            value = self._txn.get(key)
            assert value is not None, key
            piece = records.decode_piece(value)
            if head.beyond:
                self._take_beyond(queue, head, basket, piece.first)
            taken = 0 if basket.full else self._fitting(queue, piece, basket)
            if taken == 0:
                basket.full = True
                return
            self._txn.delete(key)
            first.removed(key)
            self._take_piece(queue, piece, taken, basket)
            head.returned -= taken

    def _take_piece(self, queue: QueueRecord, piece: Piece, taken: int, basket: Basket) -> None:
        """Take the first messages of a returned piece; the others stay returned."""
        available = piece.count
        if taken < available:
            self._put_returned(queue, self._batches.cut(queue.number, piece, taken, available - taken))
            piece = self._batches.cut(queue.number, piece, 0, taken)
        piece.deliveries += 1
        basket.add(piece, available)

    def _fitting(self, queue: QueueRecord, piece: Piece, basket: Basket) -> int:
        if piece.count <= basket.left and piece.bytes <= basket.bytes_left:
            return piece.count
        return basket.fit(self._batches.of(queue.number, piece), piece.first - piece.batch, piece.count)

    def _take_beyond(self, queue: QueueRecord, head: Head, basket: Basket, below: int) -> None:
        """Messages in line beyond the head with numbers less than `below`."""
        while head.beyond and not basket.full:
            batch = self._at(queue, head)
            if head.number >= below:
                return
            start = head.number - head.batch
            available = batch.count - start
            size = batch.bytes if start == 0 else batch.size(start, available)
            count = available
            if available > basket.left or size > basket.bytes_left:
                count = basket.fit(batch, start, available)
                if count == 0:
                    basket.full = True
                    return
                size = batch.size(start, count)
            piece = Piece(head.priority, head.batch, False, batch.count, head.number, count, size, 1, 0)
            head.beyond -= count
            head.number += count
            if count == available:
                head.batch = head.number
            basket.add(piece, available)

    def _at(self, queue: QueueRecord, head: Head) -> Batch:
        """The batch that the head stands in; a head before a batch moves to its first message."""
        batch = self._batches.in_line(queue.number, head.priority, head.batch)
        if batch is None:
            # Numbers grow over all priorities, so there are gaps between the batches of one.
            low = keys.place(keys.BATCH, queue.number, head.priority, head.number)
            high = keys.line(keys.BATCH, queue.number, head.priority)[1]
            for key, _ in self._txn.scan(low, high):
                head.number = head.batch = keys.place_of(key)[1]
                batch = self._batches.in_line(queue.number, head.priority, head.batch)
                break
        if batch is None:
            broken(f"queue {queue.number}: nothing beyond {head}")
        return batch

    def give_back(self, queue: QueueRecord, piece: Piece) -> None:
        """The caller holds the piece no longer; it is ready."""
        head = _head(queue, piece.priority)
        if head is None:
            # Its first messages of this priority were delayed: the head begins before any that come.
            head = _new_head(queue, piece.priority, queue.next_number)
        self._put_returned(queue, piece)
        head.returned += piece.count
        queue.ready += piece.count

    def _put_returned(self, queue: QueueRecord, piece: Piece) -> None:
        key = keys.place(keys.RETURNED, queue.number, piece.priority, piece.first)
        self._txn.put(key, records.encode(piece))
        self._first(queue.number, piece.priority).added(key)

    def delay(self, queue: QueueRecord, piece: Piece, due_ms: int) -> None:
        """The caller holds the piece no longer; it is ready at `due_ms` of wall time."""
        key = keys.place(keys.DUE, queue.number, piece.priority, piece.first)
        self._txn.put(key, records.encode(Due(due_ms, piece)))
        self._wall.add(due_ms, key)
        queue.delayed += piece.count

    def ripen(self, queue: QueueRecord, key: bytes, due: Due, count_max: int) -> int:
        """Make the first messages of a delayed piece ready: how many."""
        piece = due.piece
        self._txn.delete(key)
        self._wall.remove(due.due_ms, key)
        count = min(piece.count, count_max)
        queue.delayed -= piece.count
        if count < piece.count:
            self.delay(queue, self._batches.cut(queue.number, piece, count, piece.count - count), due.due_ms)
        self.give_back(queue, self._batches.cut(queue.number, piece, 0, count))
        return count

    def _first(self, queue: int, priority: int) -> FirstKey:
        """First key of the returned pieces of a priority."""
        first = self._firsts.get((queue, priority))
        if first is None:
            if len(self._firsts) > _FIRSTS_MAX:
                self._firsts.clear()
            first = FirstKey(self._txn, *keys.line(keys.RETURNED, queue, priority))
            self._firsts[queue, priority] = first
        return first


def _head(queue: QueueRecord, priority: int) -> Head | None:
    for head in queue.heads:
        if head.priority == priority:
            return head
    return None


def _new_head(queue: QueueRecord, priority: int, number: int) -> Head:
    head = Head(priority, number, number)
    queue.heads.append(head)
    queue.heads.sort(key=lambda head: -head.priority)
    return head
