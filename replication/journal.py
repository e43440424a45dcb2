"""The Raft log as pysyncobj sees it: entries, term and vote, over the environment.

It owns the tail of the log in memory and what is still to be written; it never writes itself: `collect` moves the
changes into the cycle's batch, `landed` says that the batch is durable. Corrects FAULTS 9, 10, 13, 15 and 20:
everything is in the one synced transaction of the cycle, checked when read, and only a bounded tail is in memory.

Invariants: the tail is never empty, ends with the last entry, and holds every entry that is not durable; what lies
before it is read from LMDB. `durable_index` never exceeds what is on disk, of the log as it is now.
"""

from __future__ import annotations

from typing import NoReturn, overload

from raftq.storage.environment import Environment, EnvironmentDamaged, WriteBatch, from_u64, u64

#: (command, index, term), in pysyncobj's order.
Entry = tuple[bytes, int, int]

#: pysyncobj's NO_OP, with which every log begins.
FIRST_ENTRY: Entry = (b"\x01", 1, 0)

TAIL_BYTES = 16 * 1024 * 1024

#: Entries that one commit deletes at most, so that compaction does not make it long.
COMPACTED_MAX = 1000

#: What an entry takes in memory beside its command.
_ENTRY_BYTES = 120


class Journal:
    def __init__(self, environment: Environment, *, tail_bytes: int = TAIL_BYTES) -> None:
        self._environment = environment
        self._tail_bytes = tail_bytes
        self._term = from_u64(environment.meta("term") or u64(0))
        self._vote = (environment.meta("vote") or b"").decode() or None
        self._ballot_pending = False
        self._truncate_from: int | None = None
        #: Last index of the batch that is being committed, None between commits.
        self._collected: int | None = None
        self._shrunk = False
        self._load()

    def _load(self) -> None:
        bounds = self._environment.log_bounds()
        self.first_index, self.durable_index = bounds or (1, 0)
        #: Below `first_index` while compaction is going on.
        self._stored_first = self.first_index
        self.log_bytes = self._environment.log_bytes()
        self._tail: list[Entry] = []
        self._tail_first = self.first_index
        self.bytes_in_memory = 0
        if bounds is None:
            self._append(FIRST_ENTRY)
        else:
            self._reload_tail()
        if (applied := self.getRaftCommitIndex()) > self.last_index:
            raise EnvironmentDamaged(f"table 'log' ends at {self.last_index}, before the applied index {applied}")

    # What pysyncobj calls. Positions count from `first_index`.

    def __len__(self) -> int:
        return self.last_index - self.first_index + 1

    @overload
    def __getitem__(self, position: int) -> Entry: ...
    @overload
    def __getitem__(self, position: slice) -> list[Entry]: ...
    def __getitem__(self, position: int | slice) -> Entry | list[Entry]:
        if isinstance(position, slice):
            return self._slice(position)
        if position == -1:
            return self._tail[-1]
        index = position + (self.first_index if position >= 0 else self.last_index + 1)
        if not self.first_index <= index <= self.last_index:
            raise IndexError(f"no position {position} in a log of {len(self)} entries")
        return self.entries(index, 0, 1)[0]

    def _slice(self, positions: slice) -> list[Entry]:
        start, stop, step = positions.indices(len(self))
        assert step == 1
        found: list[Entry] = []
        while start < stop:
            part = self.entries(self.first_index + start, self._tail_bytes, stop - start)
            found += part
            start += len(part)
        return found

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._assert_settled()
        assert idx == self.last_index + 1, f"entry {idx} after {self.last_index}"
        assert term >= self.last_term, f"entry {idx} of term {term} after one of {self.last_term}"
        self._append((command, idx, term))

    def _append(self, entry: Entry) -> None:
        size = len(entry[0]) + _ENTRY_BYTES
        self._tail.append(entry)
        self.bytes_in_memory += size
        self.log_bytes += size

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - pysyncobj's names
        """Truncate: on a conflict with the leader's log alone."""
        self._assert_settled()
        assert entryFrom > 0, "the first entry is never truncated"
        index = self.first_index + entryFrom
        if index > self.last_index:
            return
        if index <= self.durable_index:
            assert index > self._environment.applied(), f"truncation from {index} would undo what was applied"
            self._truncate_from = index
            self.durable_index = index - 1
        self._drop_tail(max(index - self._tail_first, 0))
        if not self._tail:
            self._reload_tail()

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        """Compact, keeping the entry at `entryTo` and the one before it."""
        self.compact_below(self.first_index + entryTo)

    def clear(self) -> NoReturn:
        raise NotImplementedError("the log is never cleared: only a snapshot replaces it")

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        self._assert_settled()
        assert term >= self._term, f"term {term} after {self._term}"
        if (term, votedForNodeId) != (self._term, self._vote):
            self._term, self._vote = term, votedForNodeId
            self._ballot_pending = True

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._vote

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Ignored: the applied index, committed with the tables, stands for it."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._environment.applied()

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Nothing waits for a timer here."""

    def _destroy(self) -> None:
        """The environment is closed by whoever opened it."""

    # What the engine and the cycle call.

    @property
    def last_index(self) -> int:
        return self._tail[-1][1]

    @property
    def last_term(self) -> int:
        return self._tail[-1][2]

    def term_at(self, index: int) -> int | None:
        """None for an index that is not in the log."""
        if self._tail_first <= index <= self.last_index:
            return self._tail[index - self._tail_first][2]
        found = self.entries(index, 0, 1)
        return found[0][2] if found else None

    def entries(self, first: int, bytes_max: int, count_max: int) -> list[Entry]:
        """Entries from index `first` on: at least one if it is in the log and `count_max` > 0, then as both limits
        allow; fewer where what LMDB holds meets what memory holds."""
        if not self.first_index <= first <= self.last_index or count_max <= 0:
            return []
        if first < self._tail_first:
            return self._environment.log_entries(first, bytes_max, min(count_max, self._tail_first - first))
        start = first - self._tail_first
        found = self._tail[start : start + count_max]
        for at, entry in enumerate(found):
            bytes_max -= len(entry[0])
            if bytes_max < 0:
                return found[: max(at, 1)]
        return found

    def compact_below(self, index: int) -> None:
        """Delete the durable entries below `index - 1`. That one stays, for the term before `index`."""
        self._assert_settled()
        self.first_index = max(self.first_index, min(index - 1, self.durable_index))
        self._trim()

    @property
    def dirty(self) -> bool:
        """There is something to collect."""
        return (
            self.last_index > self.durable_index
            or self._ballot_pending
            or self._truncate_from is not None
            or self._stored_first < self.first_index
        )

    def collect(self, batch: WriteBatch) -> None:
        """Move what changed into `batch`. Until `landed`, entries are read and nothing is changed."""
        self._assert_settled()
        batch.truncate_from, self._truncate_from = self._truncate_from, None
        start = self.durable_index + 1 - self._tail_first
        batch.entries = [(index, term, command) for command, index, term in self._tail[start:]]
        if self._stored_first < self.first_index:
            self._stored_first = min(self.first_index, self._stored_first + COMPACTED_MAX)
            batch.compact_below = self._stored_first
        if self._ballot_pending:
            batch.meta |= {"term": u64(self._term), "vote": (self._vote or "").encode()}
            self._ballot_pending = False
        self._collected = self.last_index
        self._shrunk = batch.truncate_from is not None or batch.compact_below is not None

    def landed(self) -> None:
        """The batch given by `collect` is durable."""
        assert self._collected is not None
        self.durable_index, self._collected = self._collected, None
        if self._shrunk:
            self.log_bytes = self._environment.log_bytes()
        self._trim()

    def _assert_settled(self) -> None:
        assert self._collected is None, "the log changes while it is being committed"

    def _reload_tail(self) -> None:
        """Begin the tail with the last durable entry."""
        self._tail = self._environment.log_entries(self.durable_index, 0, 1)
        self._tail_first = self.durable_index
        self.bytes_in_memory = len(self._tail[0][0]) + _ENTRY_BYTES

    def _drop_tail(self, start: int) -> None:
        self.bytes_in_memory -= _size(self._tail[start:])
        del self._tail[start:]

    def _trim(self) -> None:
        """Forget the oldest entries that are durable: those compacted, and those over the bound. A quarter goes at
        once, so that it is seldom."""
        drop = max(self.first_index - self._tail_first, 0)
        if self.bytes_in_memory > self._tail_bytes:
            drop = max(drop, self._over_bound())
        if drop:
            self.bytes_in_memory -= _size(self._tail[:drop])
            del self._tail[:drop]
            self._tail_first += drop

    def _over_bound(self) -> int:
        """How many entries to forget to come down to three quarters of the bound; never one that is not durable, nor
        the last."""
        excess = self.bytes_in_memory - self._tail_bytes * 3 // 4
        durable = min(self.durable_index + 1, self.last_index) - self._tail_first
        drop = 0
        while drop < durable and excess > 0:
            excess -= len(self._tail[drop][0]) + _ENTRY_BYTES
            drop += 1
        return drop


def _size(entries: list[Entry]) -> int:
    return sum(len(entry[0]) for entry in entries) + _ENTRY_BYTES * len(entries)
