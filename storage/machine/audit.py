"""The invariant of the tables, checked by reading all of them: for tests and for doubts, never while serving.

Each live message has exactly one holder: in line beyond its head, returned, delayed, leased or in a group. Of each
group the first are eligible, as many as there is room for beside those that are leased. The counters of a queue
equal the scan. Every record that passes has its moment and every moment its record. No record belongs to no queue.
From version 2 on every sparse batch is rewritten, or has a moment to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from raftq.storage.machine import dedup, keys, leases, records, tokens
from raftq.storage.machine.batches import SPARSE_VERSION, sparseness
from raftq.storage.machine.groups import LIMIT_MAX
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Batch, Cluster, Piece, QueueRecord, TokenRecord
from raftq.storage.machine.tallies import COUNTS, TOTALS

#: (priority, number)
_Place = tuple[int, int]

_AFTER_ALL = b"\xff"


def check(txn: Txn) -> None:
    """Read all tables. Raises InvariantBroken."""
    queues = {queue.number: queue for queue in _queues(txn)}
    deleted = {keys.queue_of(key) for key, _ in _table(txn, keys.DELETED)}
    cluster = records.decode_cluster(txn.get(keys.CLUSTER) or b"\x90")
    _same("queues", cluster.queues, len(queues))
    _sums(cluster, queues.values())
    sparse = _Sparse(txn) if cluster.version >= SPARSE_VERSION else None
    ids = {queue.ids for queue in queues.values()}
    partitioned = _partitioned(txn, {queue.key for queue in queues.values()})
    requesting = ids | _topics(txn, cluster, {queue.key for queue in queues.values()} | partitioned.keys())
    requesting |= {dedup.NO_QUEUE, *partitioned.values()}
    for table in keys.OF_A_QUEUE:
        living = ids if table == keys.DEDUP else requesting if table == keys.REQUEST else queues
        for key, _ in _table(txn, table):
            if keys.queue_of(key) not in living and keys.queue_of(key) not in deleted:
                broken(f"record {key.hex()} belongs to no queue")
    schedules = [records.decode_schedule(value) for _, value in _table(txn, keys.SCHEDULE)]
    _same("schedules", cluster.schedules, len(schedules))
    next_ticks = [(one.state.next_ms, keys.schedule(one.key)) for one in schedules if one.state.next_ms is not None]
    _same("moments of schedules", _moments(txn, keys.TICK), Counter(next_ticks))
    _tokens(txn)
    _same("deadlines", _moments(txn, keys.DEADLINE), _expected_deadlines(txn))
    _same("moments of wall time", _moments(txn, keys.WALL), _expected_wall(txn))
    for queue in queues.values():
        _Scan(txn, queue, sparse).check()


def _table(txn: Txn, table: bytes) -> Iterator[tuple[bytes, bytes]]:
    return txn.scan(table, table + _AFTER_ALL)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        broken(f"{what}: found {found}, expected {expected}")


def _sums(cluster: Cluster, queues: Iterable[QueueRecord]) -> None:
    """The totals may be higher: those of deleted queues stay in them."""
    if not cluster.sums:
        return
    expected = [sum(getattr(queue, name) for queue in queues) for name in COUNTS + TOTALS]
    _same("sums of the counts", cluster.sums[: len(COUNTS)], expected[: len(COUNTS)])
    lower = [total for total, least in zip(cluster.sums, expected, strict=True) if total < least]
    _same("sums of totals below those of the queues", lower, [])


def _queues(txn: Txn) -> Iterator[QueueRecord]:
    numbers = {}
    for key, value in _table(txn, keys.NAME):
        numbers[key[1:].decode()] = records.decode_name(value)
    found = [records.decode_queue(value) for _, value in _table(txn, keys.QUEUE)]
    _same("names", numbers, {queue.key: queue.number for queue in found})
    return iter(found)


def _partitioned(txn: Txn, queues: set[str]) -> dict[str, int]:
    """The names that stand for several queues, and their numbers. All of the queues are there, and none so named."""
    found = [records.decode_partitioned(value) for _, value in _table(txn, keys.PARTITIONED)]
    for record in found:
        if record.key in queues or not queues.issuperset(record.partitions):
            broken(f"{record} stands for queues that are not there, or there is one of its name")
    return {record.key: record.number for record in found}


def _topics(txn: Txn, cluster: Cluster, queues: set[str]) -> set[int]:
    """The topics' numbers. Each subscription is one of a topic and of a queue, and stands under both."""
    topics = {topic.key: topic.number for topic in map(records.decode_topic, dict(_table(txn, keys.TOPIC)).values())}
    _same("topics", cluster.topics, len(topics))
    by_topic, by_queue = set(), set()
    for key, _ in _table(txn, keys.SUBSCRIPTION):
        subscribed, to = keys.subscribed_of(key), key[1:].partition(b"\0")[0].decode()
        if to:
            by_topic.add((to, subscribed))
        else:
            by_queue.add((keys.subscribed_of(key[1:]), key[2:].partition(b"\0")[0].decode()))
    _same("subscriptions by queue", by_queue, by_topic)
    lost = {pair for pair in by_topic if pair[0] not in topics or pair[1] not in queues}
    _same("subscriptions without topic or queue", lost, set())
    return set(topics.values())


def _tokens(txn: Txn) -> None:
    """As many as are counted, each under its id."""
    every = records.decode_tokens(txn.get(keys.TOKENS) or b"\x90")
    found = _token_records(txn)
    _same("tokens", every.count, len(found))
    _same("ids of tokens", [keys.token(token.id) for token in found.values()], list(found))
    malformed = [token.id for token in found.values() if tokens.wrong(token, token.created_ms) is not None]
    _same("malformed tokens", malformed, [])
    _same("ids of first tokens", len(set(every.firsts)), len(every.firsts))


def _token_records(txn: Txn) -> dict[bytes, TokenRecord]:
    return {key: records.decode_token(value) for key, value in _table(txn, keys.TOKENS) if key != keys.TOKENS}


def _moments(txn: Txn, table: bytes) -> Counter[tuple[int, bytes]]:
    return Counter(keys.moment_of(key) for key, _ in _table(txn, table))


def _expected_deadlines(txn: Txn) -> Counter[tuple[int, bytes]]:
    return Counter((records.decode_lease(value).deadlines[0][0], key) for key, value in _table(txn, keys.LEASE))


def _expected_wall(txn: Txn) -> Counter[tuple[int, bytes]]:
    moments = Counter((records.decode_due(value).due_ms, key) for key, value in _table(txn, keys.DUE))
    moments.update((records.decode_dedup(value).expires_ms, key) for key, value in _table(txn, keys.DEDUP))
    moments.update((records.decode_request(value).expires_ms, key) for key, value in _table(txn, keys.REQUEST))
    found = [(key, records.decode_queue(value).retention_due_ms) for key, value in _table(txn, keys.QUEUE)]
    found += [
        (keys.of_queue(keys.GROUP, keys.queue_of(key)), records.decode_queue(value).regroup_due_ms)
        for key, value in _table(txn, keys.QUEUE)
    ]
    found += [(key, records.decode_redrive(value).due_ms) for key, value in _table(txn, keys.REDRIVE)]
    expiring = [(key, token.expires_ms) for key, token in _token_records(txn).items()]
    found += [(key, ms and tokens.removed_ms(ms)) for key, ms in expiring]
    for key, due_ms in found:
        if due_ms is not None:
            moments[due_ms, key] += 1
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
        self.enqueued_ms: dict[_Place, int] = {}
        self.batches: dict[tuple[int, int], tuple[bool, Batch]] = {}
        self.holders: Counter[_Place] = Counter()
        #: The group key of each message that has one, where groups have a limit.
        self.groups: dict[_Place, bytes] = {}
        #: When each ready message was enqueued.
        self.ready_ms: list[int] = []

    def check(self) -> None:
        for table in (keys.BATCH, keys.ASIDE):
            for key, value in self._of_queue(table):
                self._batch(*keys.place_of(key), table == keys.ASIDE, Batch(value))
        self._gone()
        beyond = self._beyond()
        returned = self._pieces("returned", keys.RETURNED, records.decode_piece)
        in_line = [place for place in self.holders if place in self.groups]
        _same(f"messages of groups in line in {self.queue.key}", in_line, [])
        delayed = self._pieces("delayed", keys.DUE, lambda value: records.decode_due(value).piece)
        members = self._pieces("member", keys.MEMBER, records.decode_piece)
        waiting = set(self.holders)
        leased = self._leased()
        self._replace_keys(waiting)
        self._groups(set(self.holders) - waiting)
        queue = self.queue
        _same(f"holders in {queue.key}", self.holders, Counter(dict.fromkeys(self.live, 1)))
        counted = (queue.ready, queue.leased, queue.delayed, queue.bytes)
        found = (beyond + returned + members, leased, delayed, sum(self.live.values()))
        _same(f"(ready, leased, delayed, bytes) of {queue.key}", counted, found)
        self._retention()

    def _retention(self) -> None:
        """The moment of a queue with retention is not after what is ready passes it, or right after now."""
        queue, kept_ms = self.queue, self.queue.settings.retention_ms
        now_ms = records.decode_cluster(self.txn.get(keys.CLUSTER) or b"\x90").wall_ms
        due_ms = queue.retention_due_ms
        if kept_ms is None:
            _same(f"moment of {queue.key}, which keeps all", due_ms, None)
        elif self.ready_ms and (due_ms is None or due_ms > max(min(self.ready_ms) + kept_ms, now_ms + 1)):
            broken(f"{queue.key} is looked at at {due_ms}, what was enqueued at {min(self.ready_ms)} is past {kept_ms}")

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
            self.enqueued_ms[place] = batch.enqueued_at_ms
            if self.queue.settings.max_leased_per_group is not None and self.live[place] and batch.group(at):
                self.groups[place] = batch.group(at)
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
            self.ready_ms += [self.enqueued_ms[place] for place in beyond]
            count += len(beyond)
        return count

    def _pieces(self, what: str, table: bytes, piece_of: Callable[[bytes], Piece]) -> int:
        returned: Counter[int] = Counter()
        count = 0
        for key, value in self._of_queue(table):
            piece = piece_of(value)
            _same(f"place of a {what} piece", keys.place_of(key), (piece.priority, piece.first))
            self._hold(piece, (1 << piece.count) - 1)
            if table != keys.DUE:
                self.ready_ms.append(self.enqueued_ms[piece.priority, piece.first])
            returned[piece.priority] += piece.count
            count += piece.count
        if table == keys.RETURNED:
            heads = Counter({head.priority: head.returned for head in self.queue.heads if head.returned})
            _same(f"{what} by priority", returned, heads)
        return count

    def _replace_keys(self, waiting: set[_Place]) -> None:
        """Each is of a live message in a batch of its own, and the newest of each key is known by it."""
        newest = {}
        keyed = list(self._of_queue(keys.KEYED))
        _same(f"messages with a replace key in {self.queue.key}", len(keyed), self.queue.keyed)
        for key, replace_key in keyed:
            place = keys.place_of(key)
            aside, batch = self.batches.get(place, (False, None))
            if place not in self.live or not aside or batch is None or batch.count != 1:
                broken(f"replace key {replace_key!r} of {place} in {self.queue.key}")
            if replace_key:
                newest[keys.newest(self.queue.number, replace_key.decode())] = key
            elif place in waiting:
                broken(f"{place} in {self.queue.key} waits, and was superseded")
        _same(f"replace keys of {self.queue.key}", dict(self._of_queue(keys.NEWEST)), newest)

    def _groups(self, leased: set[_Place]) -> None:
        """The tables of the groups say what their messages say, and nothing else."""
        queue = self.queue
        ready = [keys.place_of(key) for key, _ in self._of_queue(keys.MEMBER)]
        due = [records.decode_due(value).piece for _, value in self._of_queue(keys.DUE)]
        held_back = [(piece.priority, piece.first) for piece in due if piece.deliveries]
        _same(f"members of no group in {queue.key}", [place for place in ready if place not in self.groups], [])
        found: tuple[dict[bytes, bytes], dict[bytes, bytes]] = {}, {}
        blocked = 0
        for group in {self.groups[place] for place in (*ready, *leased, *held_back) if place in self.groups}:
            members, let, back = (
                [place for place in places if self.groups.get(place) == group] for places in (ready, leased, held_back)
            )
            blocked += self._group(group, members, len(let), len(back), *found)
        _same(f"groups of {queue.key}", dict(self._of_queue(keys.GROUP)), found[0])
        _same(f"eligible messages of {queue.key}", dict(self._of_queue(keys.ELIGIBLE)), found[1])
        _same(f"blocked messages of {queue.key}", queue.blocked, blocked)

    def _group(
        self,
        group: bytes,
        members: list[_Place],
        leased: int,
        held_back: int,
        of_groups: dict[bytes, bytes],
        eligible: dict[bytes, bytes],
    ) -> int:
        """Of one group: how many are blocked. What is to be in GROUP and ELIGIBLE is added."""
        queue, limit = self.queue, self.queue.settings.max_leased_per_group
        key = keys.group(queue.number, group)
        value = self.txn.get(key) or b"\x90"
        record = records.decode_group(value)
        room = max((limit or 0) - leased - (held_back if limit == 1 else 0), 0)
        if queue.regroup_due_ms is not None and key[5:] >= queue.regrouped:
            room = record.eligible
        if room > LIMIT_MAX:
            broken(f"{room} messages of group {group!r} are eligible")
        first, later = members[:room], members[room:]
        counted = record.leased, record.held_back, record.eligible, record.blocked
        _same(f"counts of group {group!r}", counted, (leased, held_back, len(first), len(later)))
        of_groups[key] = value
        for place in members:
            member = keys.place(keys.MEMBER, queue.number, *place)
            of_groups[key + keys.in_group(member)] = records.NOTHING
            _same(f"{place} before the frontier", keys.in_group(member) < record.frontier, place in first)
            if place in first:
                eligible[keys.ELIGIBLE + member[1:]] = group
        return len(later)

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
