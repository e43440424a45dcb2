"""The invariant of the tables, checked by reading all of them: for tests and for doubts, never while serving.

Each live message has exactly one holder: in line beyond its head, returned, delayed or leased. The counters of a queue
equal the scan. Every record that passes has its moment and every moment its record. No record belongs to no queue.
From version 2 on every sparse batch is rewritten, or has a moment to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from raftq.storage.machine import keys, leases, records
from raftq.storage.machine.batches import SPARSE_VERSION, sparseness
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Batch, Piece, QueueRecord

#: (priority, number)
_Place = tuple[int, int]

_AFTER_ALL = b"\xff"


def check(txn: Txn) -> None:
    """Read all tables. Raises InvariantBroken."""
    queues = {queue.number: queue for queue in _queues(txn)}
    deleted = {keys.queue_of(key) for key, _ in _table(txn, keys.DELETED)}
    cluster = records.decode_cluster(txn.get(keys.CLUSTER) or b"\x90")
    _same("queues", cluster.queues, len(queues))
    sparse = _Sparse(txn) if cluster.version >= SPARSE_VERSION else None
    for table in keys.OF_A_QUEUE:
        for key, _ in _table(txn, table):
            if keys.queue_of(key) not in queues and keys.queue_of(key) not in deleted:
                broken(f"record {key.hex()} belongs to no queue")
    _same("deadlines", _moments(txn, keys.DEADLINE), _expected_deadlines(txn))
    _same("moments of wall time", _moments(txn, keys.WALL), _expected_wall(txn))
    for queue in queues.values():
        _Scan(txn, queue, sparse).check()


def _table(txn: Txn, table: bytes) -> Iterator[tuple[bytes, bytes]]:
    return txn.scan(table, table + _AFTER_ALL)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        broken(f"{what}: found {found}, expected {expected}")


def _queues(txn: Txn) -> Iterator[QueueRecord]:
    numbers = {}
    for key, value in _table(txn, keys.NAME):
        numbers[key[1:].decode()] = records.decode_name(value)
    found = [records.decode_queue(value) for _, value in _table(txn, keys.QUEUE)]
    _same("names", numbers, {queue.key: queue.number for queue in found})
    return iter(found)


def _moments(txn: Txn, table: bytes) -> Counter[tuple[int, bytes]]:
    return Counter(keys.moment_of(key) for key, _ in _table(txn, table))


def _expected_deadlines(txn: Txn) -> Counter[tuple[int, bytes]]:
    return Counter((records.decode_lease(value).deadlines[0][0], key) for key, value in _table(txn, keys.LEASE))


def _expected_wall(txn: Txn) -> Counter[tuple[int, bytes]]:
    moments = Counter((records.decode_due(value).due_ms, key) for key, value in _table(txn, keys.DUE))
    moments.update((records.decode_dedup(value).expires_ms, key) for key, value in _table(txn, keys.DEDUP))
    moments.update((records.decode_request(value).expires_ms, key) for key, value in _table(txn, keys.REQUEST))
    return moments


class _Sparse:
    """The batches that a step is going to look at."""

    def __init__(self, txn: Txn) -> None:
        marks = [record for _, record in _moments(txn, keys.SPARSE)]
        self._marked = {mark for mark in marks if len(mark) == keys.PLACE_BYTES}
        self._swept_to = min((mark for mark in marks if mark not in self._marked), default=keys.GONE_END)

    def check(self, key: bytes, batch: Batch, live: int) -> None:
        if key in self._marked or key >= self._swept_to:
            return
        kept = sum(batch.size(at, 1) > 0 for at in range(batch.count))
        if sparseness(batch.count, kept) < sparseness(batch.count, live):
            broken(f"batch {key.hex()} of {batch.count} keeps {kept} messages for {live} that live")


class _Scan:
    """All messages of one queue, and who holds them."""

    def __init__(self, txn: Txn, queue: QueueRecord, sparse: _Sparse | None) -> None:
        self.txn = txn
        self.queue = queue
        self.sparse = sparse
        self.live: dict[_Place, int] = {}
        self.in_line: set[_Place] = set()
        self.batches: dict[tuple[int, int], tuple[bool, Batch]] = {}
        self.holders: Counter[_Place] = Counter()

    def check(self) -> None:
        for table in (keys.BATCH, keys.ASIDE):
            for key, value in self._of_queue(table):
                self._batch(*keys.place_of(key), table == keys.ASIDE, Batch(value))
        self._gone()
        beyond = self._beyond()
        returned = self._pieces("returned", keys.RETURNED, records.decode_piece)
        delayed = self._pieces("delayed", keys.DUE, lambda value: records.decode_due(value).piece)
        leased = self._leased()
        queue = self.queue
        _same(f"holders in {queue.key}", self.holders, Counter(dict.fromkeys(self.live, 1)))
        counted = (queue.ready, queue.leased, queue.delayed, queue.bytes)
        found = (beyond + returned, leased, delayed, sum(self.live.values()))
        _same(f"(ready, leased, delayed, bytes) of {queue.key}", counted, found)

    def _of_queue(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        number = self.queue.number
        return self.txn.scan(keys.of_queue(table, number), keys.of_queue(table, number + 1))

    def _batch(self, priority: int, first: int, aside: bool, batch: Batch) -> None:
        if (priority, first) in self.batches or not 0 < first <= first + batch.count <= self.queue.next_number:
            broken(f"batch {priority}-{first} of {self.queue.key} has numbers that it cannot have")
        self.batches[priority, first] = (aside, batch)
        for at in range(batch.count):
            place = priority, first + at
            if place in self.live:
                broken(f"two batches hold message {place} of {self.queue.key}")
            self.live[place] = batch.size(at, 1)
            if not aside:
                self.in_line.add(place)

    def _gone(self) -> None:
        for key, value in self._of_queue(keys.GONE):
            priority, first = keys.place_of(key)
            _, batch = self.batches[priority, first]
            bits = records.bits_of(value)
            if not 0 < bits < (1 << batch.count) - 1:
                broken(f"bitmap {bits:b} of a batch of {batch.count}")
            if self.sparse is not None:
                self.sparse.check(key, batch, batch.count - bits.bit_count())
            for at in range(batch.count):
                if bits >> at & 1:
                    del self.live[priority, first + at]
                    self.in_line.discard((priority, first + at))

    def _beyond(self) -> int:
        priorities = [head.priority for head in self.queue.heads]
        _same("order of the heads", priorities, sorted(set(priorities), reverse=True))
        count = 0
        for head in self.queue.heads:
            beyond = [place for place in self.in_line if place[0] == head.priority and place[1] >= head.number]
            _same(f"beyond {head}", len(beyond), head.beyond)
            self.holders.update(beyond)
            count += len(beyond)
        return count

    def _pieces(self, what: str, table: bytes, piece_of: Callable[[bytes], Piece]) -> int:
        returned: Counter[int] = Counter()
        count = 0
        for key, value in self._of_queue(table):
            piece = piece_of(value)
            _same(f"place of a {what} piece", keys.place_of(key), (piece.priority, piece.first))
            self._hold(piece, (1 << piece.count) - 1)
            returned[piece.priority] += piece.count
            count += piece.count
        if table == keys.RETURNED:
            heads = Counter({head.priority: head.returned for head in self.queue.heads if head.returned})
            _same(f"{what} by priority", returned, heads)
        return count

    def _leased(self) -> int:
        count = 0
        for _, value in self._of_queue(keys.LEASE):
            lease = records.decode_lease(value)
            held = (1 << lease.count) - 1 & ~records.bits_of(lease.settled)
            _same("slots of the deadlines", sum(bits for _, bits in leases.deadlines(lease)), (1 << lease.count) - 1)
            _same("acked but not settled", records.bits_of(lease.acked) & held, 0)
            _same("pieces of a lease", bool(lease.pieces), bool(held))
            count += held.bit_count()
            for piece in lease.pieces:
                self._hold(piece, held & ((1 << piece.count) - 1))
                held >>= piece.count
        return count

    def _hold(self, piece: Piece, bits: int) -> None:
        """These of the piece's messages are held by it."""
        aside, batch = self.batches.get((piece.priority, piece.batch), (piece.aside, None))
        if batch is not None:
            # Of a lease's piece, what was settled may be gone from the batch, but for its place.
            whole = bits == (1 << piece.count) - 1
            size = batch.size(piece.first - piece.batch, piece.count) if whole else piece.bytes
            found = (piece.aside, piece.batch_count, piece.bytes)
            _same(f"what {piece} knows of its batch", found, (aside, batch.count, size))
        elif bits:
            broken(f"{piece} has no batch")
        self.holders.update((piece.priority, piece.first + at) for at in range(piece.count) if bits >> at & 1)
