"""Message groups: of the messages of one group key so many are leased at once, and they are delivered in their order.

Owns the tables MEMBER, ELIGIBLE and GROUP, of queues with `max_leased_per_group` alone; without it a group key means
nothing here. There a message with a key lies aside, and while it is ready it has a record in MEMBER, which holds it,
and its place in its key's order in GROUP. The first of each key are in ELIGIBLE too, as many as may be leased beside
those that are: a lease looks at nothing else. At a limit of 1 a message that a nack delays takes the place of a leased
one, so that none that came after it goes before it.

Invariant, after `settle`: of each key the first (limit - leased) ready messages are eligible, all of them before the
`frontier` of its record, and no others. So a lease, an ack and a return cost the same whatever waits behind.

A change of the limit moves messages of every key, so it is done in steps of `expiry`, key by key. Of a stale key, which
no step has come to, there may be more eligible ones than may be leased, or fewer: no more than a limit ever let be, and
a command moves no more of them than it takes, adds or ends itself. A lease looks at the limit even so; it passes over a
stale key that has no room, and moves messages on its way: up to a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge

from raftq.storage.machine import keys, records
from raftq.storage.machine.batches import Batches
from raftq.storage.machine.firstkey import FirstKey, FirstKeys
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import GroupRecord, Piece, QueueRecord
from raftq.storage.machine.timetable import Timetable

#: The highest limit.
LIMIT_MAX = 1_000
#: Keys and messages that a change of the limit sets right in its own step; the rest is left to steps of `expiry`.
REGROUPED_MAX = 1_000
#: And those that a lease passes over: it ends there, with what it has.
PASSED_MAX = 1_000

#: Before a group key in GROUP.
_OF_QUEUE_BYTES = len(keys.of_queue(keys.GROUP, 0))


class Groups:
    def __init__(self, txn: Txn, batches: Batches, wall: Timetable) -> None:
        self._txn = txn
        self._batches = batches
        self._wall = wall
        self._firsts = FirstKeys(txn, keys.ELIGIBLE)
        #: What changed since the last `settle`: key in GROUP -> (its queue, its record, and before: how many were
        #: eligible, how many there was room for).
        self.unsettled: dict[bytes, tuple[QueueRecord, GroupRecord, int, int]] = {}

    def of(self, queue: QueueRecord, piece: Piece) -> bytes:
        """The group key of the piece's first message; b"": none of the piece has one, or the queue does not care."""
        if not piece.aside or queue.settings.max_leased_per_group is None:
            return b""
        return self._batches.of(queue.number, piece).group(piece.first - piece.batch)

    def first(self, queue: QueueRecord, priority: int) -> FirstKey:
        """The first that may be leased of a priority: its key in ELIGIBLE."""
        return self._firsts.of(queue.number, priority)

    def eligible(self, queue: QueueRecord, groups: Iterable[str]) -> Iterator[bytes]:
        """The keys in ELIGIBLE of all that may be leased of these group keys, in order of delivery. They may be taken
        while this goes on."""
        prefix = keys.of_queue(keys.ELIGIBLE, queue.number)
        for place in merge(*[self._before_frontier(queue, group.encode()) for group in dict.fromkeys(groups)]):
            yield prefix + place

    def _before_frontier(self, queue: QueueRecord, group: bytes) -> Iterator[bytes]:
        key = keys.group(queue.number, group)
        record = self._read(key)
        if record is not None and record.eligible:
            for member, _ in self._txn.scan(key + b"\0", key + record.frontier):
                yield member[len(key) :]

    def ready(self, queue: QueueRecord, groups: Iterable[str]) -> int:
        """How many messages of these group keys may be leased."""
        found = [self._read(keys.group(queue.number, group.encode())) for group in dict.fromkeys(groups)]
        return sum(min(record.eligible, _room(queue, record)) for record in found if record is not None)

    def _read(self, key: bytes) -> GroupRecord | None:
        value = self._txn.get(key)
        return None if value is None else records.decode_group(value)

    def _record(self, queue: QueueRecord, group: bytes) -> tuple[bytes, GroupRecord]:
        """To be changed: `settle` writes it."""
        key = keys.group(queue.number, group)
        known = self.unsettled.get(key)
        if known is not None:
            return key, known[1]
        record = self._read(key) or GroupRecord()
        self.unsettled[key] = queue, record, record.eligible, _room(queue, record)
        return key, record

    def add(self, queue: QueueRecord, piece: Piece, group: bytes) -> None:
        """One message is ready, and held here."""
        member = keys.place(keys.MEMBER, queue.number, piece.priority, piece.first)
        self._txn.put(member, records.encode(piece))
        key, record = self._record(queue, group)
        place = keys.in_group(member)
        self._txn.put(key + place, records.NOTHING)
        if place < record.frontier:
            self._mark(record, member, group)
        elif not record.blocked and record.eligible < _room(queue, record):
            self._mark(record, member, group)
            record.frontier = place + b"\0"
        else:
            record.blocked += 1
            queue.blocked += 1

    def _mark(self, record: GroupRecord, member: bytes, group: bytes) -> None:
        eligible = keys.ELIGIBLE + member[1:]
        self._txn.put(eligible, group)
        self._firsts.of(*keys.line_of(eligible)).added(eligible)
        record.eligible += 1

    def _unmark(self, record: GroupRecord, member: bytes) -> None:
        eligible = keys.ELIGIBLE + member[1:]
        self._txn.delete(eligible)
        self._firsts.of(*keys.line_of(eligible)).removed(eligible)
        record.eligible -= 1

    def lookup(self, queue: QueueRecord, eligible: bytes, passed_max: int) -> Piece | int:
        """The message at this key of ELIGIBLE. A number: the limit was lowered since it came there, and so many were
        passed over, up to that many: it may be there still when they were as many."""
        group = self._txn.get(eligible)
        if group is None:
            return 1
        key, record = self._record(queue, group)
        if _room(queue, record) > 0:
            return records.decode_piece(self._txn.get(keys.MEMBER + eligible[1:]) or b"")
        return max(self._move(queue, key, record, 0, passed_max), 1)

    def lease(self, queue: QueueRecord, eligible: bytes) -> None:
        """The message at this key of ELIGIBLE is leased: whoever ends that says `let_go`."""
        group = self._txn.get(eligible)
        assert group is not None, eligible
        key, record = self._record(queue, group)
        self._remove(key, record, keys.MEMBER + eligible[1:])
        record.leased += 1

    def _remove(self, key: bytes, record: GroupRecord, member: bytes) -> None:
        """An eligible one."""
        self._txn.delete(member)
        self._txn.delete(key + keys.in_group(member))
        self._unmark(record, member)

    def pull(self, queue: QueueRecord, priority: int, number: int) -> Piece | None:
        """A ready message, to be held by the caller from now on; None: it is not held here."""
        member = keys.place(keys.MEMBER, queue.number, priority, number)
        value = None if queue.settings.max_leased_per_group is None else self._txn.get(member)
        if value is None:
            return None
        piece = records.decode_piece(value)
        key, record = self._record(queue, self.of(queue, piece))
        if keys.in_group(member) < record.frontier:
            self._remove(key, record, member)
            return piece
        self._txn.delete(member)
        self._txn.delete(key + keys.in_group(member))
        record.blocked -= 1
        queue.blocked -= 1
        return piece

    def oldest(self, queue: QueueRecord, priority: int) -> Piece | None:
        """The first ready message of a priority that is held here."""
        if queue.settings.max_leased_per_group is not None:
            for _, value in self._txn.scan(*keys.line(keys.MEMBER, queue.number, priority)):
                return records.decode_piece(value)
        return None

    def let_go(self, queue: QueueRecord, pieces: list[Piece]) -> None:
        """These are leased no longer. To be said before they are freed."""
        if queue.settings.max_leased_per_group is not None:
            for piece in pieces:
                if group := self.of(queue, piece):
                    self._record(queue, group)[1].leased -= 1

    def held_back(self, queue: QueueRecord, piece: Piece, change: int) -> None:
        """A message is delayed (1), or no longer (-1): it counts if it was delivered before."""
        if piece.deliveries and (group := self.of(queue, piece)):
            self._record(queue, group)[1].held_back += change

    def settle(self) -> None:
        """At the end of a command, before anybody is told what is ready."""
        if not self.unsettled:
            return
        for key, (queue, record, eligible, room_before) in self.unsettled.items():
            room = _room(queue, record)
            if _is_stale(queue, key):
                least = min(eligible + max(room - room_before, 0), room)
                room = min(max(record.eligible, least), max(room, eligible))
            self._move(queue, key, record, room)
            self._write(key, record)
        self.unsettled.clear()

    def _move(
        self, queue: QueueRecord, key: bytes, record: GroupRecord, room: int, count_max: int | None = None
    ) -> int:
        """Promote or demote until as many are eligible as there is room for, or up to so many: how many were moved."""
        promoted = min(room - record.eligible, record.blocked)
        moved = abs(promoted) if count_max is None else min(abs(promoted), count_max)
        for _ in range(moved):
            if promoted > 0:
                self._promote(queue, key, record)
            else:
                self._demote(queue, key, record)
        return moved

    def _write(self, key: bytes, record: GroupRecord) -> None:
        if record.leased or record.held_back or record.eligible or record.blocked:
            self._txn.put(key, records.encode(record))
        else:
            self._txn.delete(key)

    def _promote(self, queue: QueueRecord, key: bytes, record: GroupRecord) -> None:
        """The first that is not eligible becomes so."""
        found = next(iter(self._txn.scan(key + record.frontier, key + keys.GROUP_END)))
        place = found[0][len(key) :]
        self._mark(record, keys.of_queue(keys.MEMBER, queue.number) + place, keys.group_of(key))
        record.frontier = place + b"\0"
        record.blocked -= 1
        queue.blocked -= 1

    def _demote(self, queue: QueueRecord, key: bytes, record: GroupRecord) -> None:
        """The last that is eligible is so no longer."""
        found = next(iter(self._txn.scan(key + b"\0", key + record.frontier, reverse=True)))
        place = found[0][len(key) :]
        self._unmark(record, keys.of_queue(keys.MEMBER, queue.number) + place)
        record.frontier = place
        record.blocked += 1
        queue.blocked += 1

    def begin_regrouping(self, queue: QueueRecord, now_ms: int, of_queues: int) -> None:
        """The limit has changed, that of so many queues at once: set every key right, the first of them now."""
        self.forget(queue)
        queue.regrouped = b"\0"
        queue.regroup_due_ms = now_ms
        self._wall.add(now_ms, keys.of_queue(keys.GROUP, queue.number))
        self.regroup(queue, max(REGROUPED_MAX // of_queues, 1))

    def regroup(self, queue: QueueRecord, count_max: int) -> int:
        """Set the next keys right, up to so many keys and messages that are moved: how many they were."""
        self.settle()
        prefix, end = keys.of_queue(keys.GROUP, queue.number), keys.of_queue(keys.GROUP, queue.number + 1)
        left = count_max
        while left > 0:
            found = next(iter(self._txn.scan(prefix + queue.regrouped, end)), None)
            if found is None:
                self.forget(queue)
                break
            key, record = found[0], records.decode_group(found[1])
            room = _room(queue, record)
            left -= 1 + self._move(queue, key, record, room, left)
            self._write(key, record)
            queue.regrouped = key[len(prefix) :]
            if record.eligible == room or (record.eligible < room and not record.blocked):
                queue.regrouped += keys.GROUP_END
        return count_max - max(left, 0)

    def forget(self, queue: QueueRecord) -> None:
        """No key is to be set right any more."""
        if queue.regroup_due_ms is not None:
            self._wall.remove(queue.regroup_due_ms, keys.of_queue(keys.GROUP, queue.number))
        queue.regroup_due_ms, queue.regrouped = None, b""


def _room(queue: QueueRecord, record: GroupRecord) -> int:
    """How many of the key may be leased, beside those that are."""
    limit = queue.settings.max_leased_per_group
    assert limit is not None, queue
    return max(limit - record.leased - (record.held_back if limit == 1 else 0), 0)


def _is_stale(queue: QueueRecord, key: bytes) -> bool:
    """Whether a change of the limit has still to be told to the group key, that of a record in GROUP."""
    return queue.regroup_due_ms is not None and key[_OF_QUEUE_BYTES:] >= queue.regrouped
