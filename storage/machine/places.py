"""Who holds a waiting message: the head of its priority, the table of returned ones, the table of delayed ones, or its
group.

Owns the tables RETURNED and DUE and the heads in a queue's record. A message's place is (priority, number) for ever: a
returned message stands before all that came after it. Invariant: a message moves from one holder to one other, and the
counters of its queue with it.
"""

from __future__ import annotations

from raftq.storage.machine import keys, records
from raftq.storage.machine.batches import Batches
from raftq.storage.machine.firstkey import FirstKey, FirstKeys
from raftq.storage.machine.groups import PASSED_MAX, Groups
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Batch, Cluster, Due, Head, Piece, QueueRecord
from raftq.storage.machine.replacing import ReplaceKeys
from raftq.storage.machine.timetable import Timetable


class Basket:
    """Pieces being gathered for a lease, up to a number of messages and of bytes; but the first message always fits."""

    __slots__ = ("bytes_left", "full", "left", "passes_left", "pieces")

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.pieces: list[Piece] = []
        self.left = count_max
        self.bytes_left = bytes_max
        #: See `PASSED_MAX` of `groups`.
        self.passes_left = PASSED_MAX
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

    def passed(self, count: int) -> None:
        """So many were looked at in vain."""
        self.passes_left -= count
        self.full = self.passes_left <= 0


class Places:
    def __init__(self, txn: Txn, cluster: Cluster, batches: Batches, wall: Timetable) -> None:
        self._txn = txn
        self._cluster = cluster
        self._batches = batches
        self._wall = wall
        #: Of the returned pieces.
        self._firsts = FirstKeys(txn, keys.RETURNED)
        self.replace_keys = ReplaceKeys(txn)
        self.groups = Groups(txn, batches, wall)

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
        grouped = queue.settings.max_leased_per_group is not None
        for head in queue.heads:
            if basket.full:
                break
            if head.returned or grouped:
                self._take_waiting(queue, head, basket)
            if head.beyond and not basket.full:
                self._take_beyond(queue, head, basket, keys.NUMBER_MAX)
        return basket.pieces

    def take_of_groups(self, queue: QueueRecord, groups: list[str], count_max: int, bytes_max: int) -> list[Piece]:
        """The same of messages with one of these group keys."""
        basket = Basket(count_max, bytes_max)
        for key in self.groups.eligible(queue, groups):
            if basket.full:
                break
            self._take_eligible(queue, key, basket)
        return basket.pieces

    def _take_eligible(self, queue: QueueRecord, key: bytes, basket: Basket) -> None:
        """The message of a group at `key`, if it fits."""
        piece = self.groups.lookup(queue, key, basket.passes_left)
        if isinstance(piece, int):
            basket.passed(piece)
            return
        if self._fitting(queue, piece, basket) == 0:
            basket.full = True
            return
        self.groups.lease(queue, key)
        piece.deliveries += 1
        basket.add(piece, 1)

    def _take_waiting(self, queue: QueueRecord, head: Head, basket: Basket) -> None:
        """Returned pieces and messages of groups, and before each what lies in line before it. Pieces never overlap:
        each is of one batch."""
        first = self._firsts.of(queue.number, head.priority)
        grouped = queue.settings.max_leased_per_group is not None
        while not basket.full:
            key = first.get()
            eligible = self.groups.first(queue, head.priority).get() if grouped else None
            if eligible is not None and (key is None or eligible[1:] < key[1:]):
                if head.beyond:
                    self._take_beyond(queue, head, basket, keys.place_of(eligible)[1])
                if not basket.full:
                    self._take_eligible(queue, eligible, basket)
                continue
            if key is None:
                return
            value = self._txn.get(key)
            assert value is not None, key
            piece = records.decode_piece(value)
            if head.beyond:
                self._take_beyond(queue, head, basket, piece.first)
            if not basket.full:
                self._take_first(queue, head, first, key, piece, basket)

    def _take_first(
        self, queue: QueueRecord, head: Head, first: FirstKey, key: bytes, piece: Piece, basket: Basket
    ) -> None:
        """Take of the first returned piece, at `key`, what fits."""
        taken = self._fitting(queue, piece, basket)
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

    def take_old(self, queue: QueueRecord, enqueued_ms_max: int, basket: Basket) -> None:
        """The ready messages that were enqueued until then, in order of delivery: no delivery is counted."""
        for head in queue.heads:
            while not basket.full and self._take_old(queue, head, enqueued_ms_max, basket):
                pass
        for piece in basket.pieces:
            piece.deliveries -= 1

    def _take_old(self, queue: QueueRecord, head: Head, enqueued_ms_max: int, basket: Basket) -> bool:
        """The first of a priority, a piece or what is left of a batch. False: there is none, or it is younger."""
        first = self._firsts.of(queue.number, head.priority)
        key = first.get() if head.returned else None
        piece = None if key is None else records.decode_piece(self._txn.get(key) or b"")
        batch = self._at(queue, head) if head.beyond else None
        member = self.groups.oldest(queue, head.priority)
        if (
            member is not None
            and (piece is None or member.first < piece.first)
            and (batch is None or member.first < head.number)
        ):
            return self._take_old_member(queue, member, enqueued_ms_max, basket)
        if key is not None and piece is not None and (batch is None or piece.first < head.number):
            if self._batches.of(queue.number, piece).enqueued_at_ms > enqueued_ms_max:
                return False
            self._take_first(queue, head, first, key, piece, basket)
            return True
        if batch is None or batch.enqueued_at_ms > enqueued_ms_max:
            return False
        self._take_beyond(queue, head, basket, head.number + 1)
        return True

    def _take_old_member(self, queue: QueueRecord, member: Piece, enqueued_ms_max: int, basket: Basket) -> bool:
        """As `_take_old`, of a message of a group."""
        if self._batches.of(queue.number, member).enqueued_at_ms > enqueued_ms_max:
            return False
        if self._fitting(queue, member, basket) == 0:
            basket.full = True
            return True
        self.groups.pull(queue, member.priority, member.first)
        member.deliveries += 1  # as of a delivery, which the caller takes back
        basket.add(member, 1)
        return True

    def oldest(self, queue: QueueRecord) -> int | None:
        """When the oldest ready message was enqueued. Within a priority the first is the oldest."""
        found = []
        for head in queue.heads:
            if head.beyond:
                found.append(self._at(queue, head).enqueued_at_ms)
            key = self._firsts.of(queue.number, head.priority).get() if head.returned else None
            pieces = [] if key is None else [records.decode_piece(self._txn.get(key) or b"")]
            member = self.groups.oldest(queue, head.priority)
            pieces += [] if member is None else [member]
            found += [self._batches.of(queue.number, piece).enqueued_at_ms for piece in pieces]
        return min(found, default=None)

    def aged(self, queue: QueueRecord, enqueued_at_ms: int) -> None:
        """A message that was enqueued then becomes ready: whoever makes one so says it, if the queue has retention.
        One that is past it already is looked for 1 ms later: so no step does both, whose order pieces would decide."""
        due_ms = keys.after(enqueued_at_ms, queue.settings.retention_ms or 0)
        due_ms = max(due_ms, keys.after(self._cluster.wall_ms, 1))
        if queue.retention_due_ms is None or due_ms < queue.retention_due_ms:
            self.look_at(queue, due_ms)

    def look_at(self, queue: QueueRecord, due_ms: int | None) -> None:
        """Let a step look for what is past retention at that moment."""
        key = keys.of_queue(keys.QUEUE, queue.number)
        if queue.retention_due_ms is not None:
            self._wall.remove(queue.retention_due_ms, key)
        if due_ms is not None:
            self._wall.add(due_ms, key)
        queue.retention_due_ms = due_ms

    def give_back(self, queue: QueueRecord, piece: Piece) -> None:
        """The caller holds the piece no longer; it is ready, unless it was superseded: then it is gone."""
        if self.drop(queue, piece):
            return
        if queue.settings.retention_ms is not None:
            self.aged(queue, self._batches.of(queue.number, piece).enqueued_at_ms)
        head = _head(queue, piece.priority)
        if head is None:
            # Its first messages of this priority were delayed: the head begins before any that come.
            head = _new_head(queue, piece.priority, queue.next_number)
        queue.ready += piece.count
        if self.groups.of(queue, piece):
            for at in range(piece.count):
                one = self._batches.cut(queue.number, piece, at, 1)
                self.groups.add(queue, one, self.groups.of(queue, one))
            return
        self._put_returned(queue, piece)
        head.returned += piece.count

    def _put_returned(self, queue: QueueRecord, piece: Piece) -> None:
        key = keys.place(keys.RETURNED, queue.number, piece.priority, piece.first)
        self._txn.put(key, records.encode(piece))
        self._firsts.of(queue.number, piece.priority).added(key)

    def delay(self, queue: QueueRecord, piece: Piece, due_ms: int) -> None:
        """The caller holds the piece no longer; it is ready at `due_ms` of wall time, unless it was superseded."""
        if self.drop(queue, piece):
            return
        key = keys.place(keys.DUE, queue.number, piece.priority, piece.first)
        self._txn.put(key, records.encode(Due(due_ms, piece)))
        self._wall.add(due_ms, key)
        queue.delayed += piece.count
        self.groups.held_back(queue, piece, 1)

    def ripen(self, queue: QueueRecord, key: bytes, due: Due, count_max: int) -> int:
        """Make the first messages of a delayed piece ready: how many."""
        piece = due.piece
        self._txn.delete(key)
        self._wall.remove(due.due_ms, key)
        count = min(piece.count, count_max)
        queue.delayed -= piece.count
        self.groups.held_back(queue, piece, -1)
        if count < piece.count:
            self.delay(queue, self._batches.cut(queue.number, piece, count, piece.count - count), due.due_ms)
        self.give_back(queue, self._batches.cut(queue.number, piece, 0, count))
        return count

    def pull(self, queue: QueueRecord, priority: int, number: int, count_max: int = 1) -> Piece | None:
        """Up to `count_max` waiting messages from `number` on, wherever they wait, of one holder; None when that one
        does not wait. The caller frees them at once: a batch in line may be left with nobody who holds it."""
        return (
            self._pull_returned(queue, priority, number, count_max)
            or self._pull_beyond(queue, priority, number, count_max)
            or self._pull_member(queue, priority, number)
            or self._pull_delayed(queue, priority, number, count_max)
        )

    def _pull_beyond(self, queue: QueueRecord, priority: int, number: int, count_max: int) -> Piece | None:
        """The batch's other messages become returned ones, and a batch that the head has not come to goes aside."""
        head = _head(queue, priority)
        if head is None or not head.beyond or number < head.number:
            return None
        found = self._at_or_before(keys.BATCH, queue.number, priority, number)
        first, batch = (0, None) if found is None else (keys.place_of(found[0])[1], Batch(found[1]))
        if batch is None or number >= first + batch.count:
            return None
        start, end = max(first, head.number), first + batch.count
        size = batch.size(start - first, end - start)
        piece = Piece(priority, first, False, batch.count, start, end - start, size, 0, 0)
        head.beyond -= piece.count
        if first <= head.number:
            head.number = head.batch = end
        elif number > first or count_max < batch.count:
            self._batches.set_aside(queue.number, priority, first)
            piece.aside = True
        before, pulled, after = self._split(queue, piece, number, count_max)
        for rest in (before, after):
            if rest is not None:
                self._put_returned(queue, rest)
                head.returned += rest.count
        queue.ready -= pulled.count
        return pulled

    def _pull_returned(self, queue: QueueRecord, priority: int, number: int, count_max: int) -> Piece | None:
        head = _head(queue, priority)
        if head is None or not head.returned:
            return None
        found = self._at_or_before(keys.RETURNED, queue.number, priority, number)
        piece = None if found is None else records.decode_piece(found[1])
        if found is None or piece is None or number >= piece.first + piece.count:
            return None
        self._txn.delete(found[0])
        self._firsts.of(queue.number, priority).removed(found[0])
        before, pulled, after = self._split(queue, piece, number, count_max)
        for rest in (before, after):
            if rest is not None:
                self._put_returned(queue, rest)
        head.returned -= pulled.count
        queue.ready -= pulled.count
        return pulled

    def _pull_member(self, queue: QueueRecord, priority: int, number: int) -> Piece | None:
        piece = self.groups.pull(queue, priority, number)
        if piece is not None:
            queue.ready -= 1
        return piece

    def _pull_delayed(self, queue: QueueRecord, priority: int, number: int, count_max: int) -> Piece | None:
        found = self._at_or_before(keys.DUE, queue.number, priority, number)
        due = None if found is None else records.decode_due(found[1])
        if found is None or due is None or number >= due.piece.first + due.piece.count:
            return None
        self._txn.delete(found[0])
        self._wall.remove(due.due_ms, found[0])
        queue.delayed -= due.piece.count
        self.groups.held_back(queue, due.piece, -1)
        before, pulled, after = self._split(queue, due.piece, number, count_max)
        for rest in (before, after):
            if rest is not None:
                self.delay(queue, rest, due.due_ms)
        return pulled

    def _at_or_before(self, table: bytes, queue: int, priority: int, number: int) -> tuple[bytes, bytes] | None:
        """The last record of the line with a number of at most `number`."""
        key = keys.place(table, queue, priority, number)
        value = self._txn.get(key)
        if value is not None:
            return key, value
        return next(iter(self._txn.scan(keys.place(table, queue, priority, 0), key, reverse=True)), None)

    def _split(
        self, queue: QueueRecord, piece: Piece, number: int, count_max: int
    ) -> tuple[Piece | None, Piece, Piece | None]:
        """What lies before `number` in the piece, up to `count_max` from it on, and what comes after."""
        at = number - piece.first
        count = min(count_max, piece.count - at)
        left = piece.count - at - count
        cut = self._batches.cut
        return (
            cut(queue.number, piece, 0, at) if at else None,
            cut(queue.number, piece, at, count),
            cut(queue.number, piece, at + count, left) if left else None,
        )

    def free(self, queue: QueueRecord, piece: Piece) -> None:
        """The messages of the piece, which the caller held, are gone for good."""
        if queue.keyed:
            self.replace_keys.free(queue, piece)
        self._batches.free(queue.number, piece)
        queue.bytes -= piece.bytes

    def drop(self, queue: QueueRecord, piece: Piece) -> bool:
        """Free the piece, which the caller held, if it was superseded."""
        if not queue.keyed or not self.replace_keys.superseded(queue, piece):
            return False
        self.free(queue, piece)
        queue.removed += 1
        return True


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
