"""The journal: a list to pysyncobj, a bounded tail in memory, and after a crash exactly what was committed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raftq.replication.journal import COMPACTED_MAX, FIRST_ENTRY, Entry, Journal
from raftq.storage.environment import Environment, EnvironmentDamaged, WriteBatch, u64
from raftq.storage.writer import Writer


class Log:
    """A journal with a writer below it."""

    def __init__(self, folder: Path, tail_bytes: int = 4096) -> None:
        self.folder, self.tail_bytes = folder, tail_bytes
        self.open()

    def open(self) -> None:
        self.environment = Environment(self.folder)
        self.writer = Writer(self.environment)
        self.journal = Journal(self.environment, tail_bytes=self.tail_bytes)

    def close(self) -> None:
        self.writer.close()
        self.environment.close()

    def crash(self) -> None:
        """What was not committed is gone."""
        self.close()
        self.open()

    def commit(self, applied: int | None = None) -> WriteBatch:
        batch = WriteBatch() if applied is None else WriteBatch(meta={"applied": u64(applied)})
        self.journal.collect(batch)
        self.writer.write(batch)
        self.journal.landed()
        return batch

    def fill(self, last: int, *, term: int = 1, size: int = 500) -> None:
        """Commit entries up to index `last`."""
        for index in range(self.journal.last_index + 1, last + 1):
            self.journal.add(bytes([index % 256]) * size, index, term)
        self.commit()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.close()


@pytest.fixture
def journal(log: Log) -> Journal:
    return log.journal


def entry(index: int, term: int = 1, size: int = 500) -> Entry:
    return bytes([index % 256]) * size, index, term


def test_an_empty_log_begins_with_the_first_no_op(log: Log, journal: Journal) -> None:
    assert journal[:] == [FIRST_ENTRY] == [(b"\x01", 1, 0)]
    assert (journal.first_index, journal.last_index, journal.last_term, journal.durable_index) == (1, 1, 0, 0)
    assert journal.dirty
    log.commit()
    assert journal.durable_index == 1
    assert not journal.dirty
    log.crash()
    assert log.journal[:] == [FIRST_ENTRY]
    assert not log.journal.dirty


def test_positions_count_from_the_first_index(log: Log, journal: Journal) -> None:
    """Old entries come from disk, new ones from memory, and nobody sees a difference."""
    log.fill(60)
    journal.compact_below(12)
    log.commit()
    journal.add(*entry(61))
    assert journal._tail_first > 40
    everything = [entry(index) for index in range(11, 62)]
    assert journal.first_index == 11
    assert len(journal) == 51
    assert journal[0] == everything[0]
    assert journal[-1] == everything[-1]
    assert journal[-40] == everything[-40]
    assert journal[:] == everything
    assert journal[3:50] == everything[3:50]
    assert journal[45:] == everything[45:]
    assert journal[60:] == []
    with pytest.raises(IndexError):
        journal[51]
    with pytest.raises(IndexError):
        journal[-52]


def test_memory_is_bounded_by_the_tail(log: Log, journal: Journal) -> None:
    """What is not durable stays, whatever its size; once it is durable the bound holds."""
    for index in range(2, 40):
        journal.add(*entry(index))
    assert journal.bytes_in_memory > 2 * log.tail_bytes
    log.commit()
    assert 0 < journal.bytes_in_memory <= log.tail_bytes
    journal.add(*entry(40, size=100_000))
    log.commit()
    assert journal.bytes_in_memory < 101_000
    assert journal[-1] == entry(40, size=100_000)


def test_term_at(log: Log, journal: Journal) -> None:
    log.fill(30, term=1)
    log.fill(60, term=2)
    journal.compact_below(10)
    assert [journal.term_at(index) for index in (0, 8, 9, 30, 31, 60, 61)] == [None, None, 1, 1, 2, 2, None]


@pytest.mark.parametrize("first", [3, 58], ids=["on disk", "in memory"])
def test_entries_keep_both_limits_but_give_one(log: Log, journal: Journal, first: int) -> None:
    log.fill(60)
    assert journal.entries(first, 1000, 10) == [entry(first), entry(first + 1)]
    assert journal.entries(first, 1 << 20, 2) == [entry(first), entry(first + 1)]
    assert journal.entries(first, 10, 10) == [entry(first)]
    assert journal.entries(first, 1000, 0) == []
    assert journal.entries(0, 1000, 10) == []
    assert journal.entries(61, 1000, 10) == []


def test_durable_index_advances_when_the_batch_landed(log: Log, journal: Journal) -> None:
    log.fill(5)
    journal.add(*entry(6))
    batch = WriteBatch()
    journal.collect(batch)
    log.writer.write(batch)
    assert journal.durable_index == 5
    journal.landed()
    assert journal.durable_index == 6


def test_the_log_is_read_and_not_changed_between_collect_and_landed(journal: Journal) -> None:
    journal.collect(WriteBatch())
    assert journal[-1] == FIRST_ENTRY
    for change in (
        lambda: journal.add(*entry(2)),
        lambda: journal.deleteEntriesFrom(1),
        lambda: journal.setCurrentTerm(1, None),
        lambda: journal.compact_below(1),
        lambda: journal.collect(WriteBatch()),
    ):
        with pytest.raises(AssertionError, match="while it is being committed"):
            change()


def test_truncation_lowers_the_durable_index_at_once(log: Log, journal: Journal) -> None:
    log.fill(60)
    journal.deleteEntriesFrom(20)
    assert (journal.last_index, journal.durable_index, len(journal)) == (20, 20, 20)
    assert journal[-1] == entry(20)
    journal.add(*entry(21, term=2))
    assert journal.durable_index == 20
    assert log.environment.log_bounds() == (1, 60)
    batch = log.commit()
    assert batch.truncate_from == 21
    assert journal.durable_index == 21
    assert journal[18:] == [entry(19), entry(20), entry(21, term=2)]
    log.crash()
    assert log.journal[18:] == [entry(19), entry(20), entry(21, term=2)]


def test_truncation_of_what_was_never_written_writes_nothing(log: Log, journal: Journal) -> None:
    log.fill(5)
    journal.add(*entry(6))
    journal.add(*entry(7))
    journal.deleteEntriesFrom(5)
    assert (journal.last_index, journal.durable_index) == (5, 5)
    assert not journal.dirty
    assert log.commit() == WriteBatch()


def test_a_crash_before_the_commit_undoes_a_truncation(log: Log, journal: Journal) -> None:
    log.fill(10)
    journal.deleteEntriesFrom(4)
    journal.add(*entry(5, term=3))
    log.crash()
    assert log.journal[1:] == [entry(index) for index in range(2, 11)]


def test_what_was_applied_is_never_truncated(log: Log, journal: Journal) -> None:
    log.fill(10)
    log.commit(applied=8)
    with pytest.raises(AssertionError, match="would undo what was applied"):
        journal.deleteEntriesFrom(7)
    journal.deleteEntriesFrom(8)
    assert journal.last_index == 8


@pytest.mark.parametrize(("index", "term"), [(10, 1), (12, 1), (11, 0)], ids=["again", "gap", "older term"])
def test_an_entry_that_does_not_follow_is_refused(log: Log, journal: Journal, index: int, term: int) -> None:
    log.fill(10)
    with pytest.raises(AssertionError):
        journal.add(b"", index, term)


def test_compaction_goes_in_steps_and_keeps_the_entry_before(log: Log, journal: Journal) -> None:
    log.fill(COMPACTED_MAX + 60, size=10)
    journal.compact_below(COMPACTED_MAX + 50)
    first = COMPACTED_MAX + 49
    assert (journal.first_index, journal[0][1]) == (first, first)
    log.commit()
    assert log.environment.log_bounds() == (COMPACTED_MAX + 1, COMPACTED_MAX + 60)
    assert journal.dirty
    log.commit()
    assert log.environment.log_bounds() == (first, COMPACTED_MAX + 60)
    assert not journal.dirty
    log.crash()
    assert log.journal[:] == [entry(index, size=10) for index in range(first, COMPACTED_MAX + 61)]


def test_compaction_never_empties_the_log_nor_takes_what_is_not_durable(log: Log, journal: Journal) -> None:
    log.fill(5)
    journal.add(*entry(6))
    journal.compact_below(100)
    assert journal[:] == [entry(5), entry(6)]
    log.commit()
    log.crash()
    assert log.journal[:] == [entry(5), entry(6)]


def test_log_bytes_follow_the_log(log: Log, journal: Journal) -> None:
    log.fill(200, size=2000)
    full = journal.log_bytes
    assert 400_000 < full < 1_000_000
    log.crash()
    assert 400_000 < log.journal.log_bytes < 1_000_000
    log.journal.compact_below(190)
    log.commit()
    assert log.journal.log_bytes < full / 5


@pytest.mark.parametrize("vote", ["n1", "nœud", None])
def test_term_and_vote_survive_once_committed(log: Log, journal: Journal, vote: str | None) -> None:
    journal.setCurrentTerm(4, "n2")
    log.commit()
    journal.setCurrentTerm(5, vote)
    assert journal.dirty
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (5, vote)
    log.crash()
    assert (log.journal.getCurrentTerm(), log.journal.getVotedForNodeId()) == (4, "n2")
    log.journal.setCurrentTerm(5, vote)
    log.commit()
    log.crash()
    assert (log.journal.getCurrentTerm(), log.journal.getVotedForNodeId()) == (5, vote)


def test_a_term_never_goes_back(journal: Journal) -> None:
    journal.setCurrentTerm(4, None)
    with pytest.raises(AssertionError, match="term 3 after 4"):
        journal.setCurrentTerm(3, None)


def test_the_commit_index_is_the_applied_one(log: Log, journal: Journal) -> None:
    """Fault 4: it is never beyond the log, since it is committed with the tables and not stated by the journal."""
    assert journal.getRaftCommitIndex() == 1
    log.fill(9)
    journal.setRaftCommitIndex(9)
    assert journal.getRaftCommitIndex() == 1
    log.commit(applied=8)
    log.crash()
    assert log.journal.getRaftCommitIndex() == 8


def test_a_log_that_ends_before_the_applied_index_is_damage(log: Log) -> None:
    log.commit(applied=3)
    with pytest.raises(EnvironmentDamaged, match="ends at 1, before the applied index 3"):
        Journal(log.environment)


def test_the_log_is_never_cleared(journal: Journal) -> None:
    with pytest.raises(NotImplementedError):
        journal.clear()


class JournalIsAList(RuleBasedStateMachine):
    """Against a list, with a crash possible at every step, after which exactly what was committed is there."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.log = Log(Path(self.folder.name), tail_bytes=2000)
        self.expected = [FIRST_ENTRY]
        self.ballot: tuple[int, str | None] = (0, None)
        self.committed: tuple[list[Entry], tuple[int, str | None]] = ([FIRST_ENTRY], self.ballot)
        self.applied = 1

    @rule(sizes=st.lists(st.integers(0, 900), max_size=6), newer=st.integers(0, 1))
    def add(self, sizes: list[int], newer: int) -> None:
        for size in sizes:
            added = (bytes(size), self.expected[-1][1] + 1, self.expected[-1][2] + newer)
            self.log.journal.add(*added)
            self.expected.append(added)

    @precondition(lambda self: self.expected[-1][1] > self.applied)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.applied + 1, self.expected[-1][1]))
        position = index - self.expected[0][1]
        assert position > 0
        self.log.journal.deleteEntriesFrom(position)
        del self.expected[position:]

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        below = data.draw(st.integers(0, self.applied + 1))
        self.log.journal.compact_below(below)
        self.expected = [kept for kept in self.expected if kept[1] >= below - 1]

    @rule(newer=st.integers(0, 2), vote=st.sampled_from(["n1", "n2", None]))
    def vote(self, newer: int, vote: str | None) -> None:
        self.ballot = (self.ballot[0] + newer, vote)
        self.log.journal.setCurrentTerm(*self.ballot)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.applied = data.draw(st.integers(self.applied, self.expected[-1][1]))
        self.log.commit(self.applied)
        assert self.log.journal.durable_index == self.expected[-1][1]
        self.committed = (list(self.expected), self.ballot)

    @rule()
    def crash(self) -> None:
        self.log.crash()
        self.expected, self.ballot = list(self.committed[0]), self.committed[1]

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.expected) - 1))
        stop = data.draw(st.integers(start, len(self.expected)))
        assert self.log.journal[start:stop] == self.expected[start:stop]
        assert self.log.journal[start] == self.expected[start]
        assert self.log.journal.term_at(self.expected[start][1]) == self.expected[start][2]

    @invariant()
    def is_the_list(self) -> None:
        journal = self.log.journal
        assert (journal.first_index, journal[-1], len(journal)) == (
            self.expected[0][1],
            self.expected[-1],
            len(self.expected),
        )
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == self.ballot
        assert journal.bytes_in_memory == sum(len(command) + 120 for command, _, _ in journal._tail)

    @invariant()
    def durable_is_on_disk(self) -> None:
        """Each entry up to `durable_index` is on disk as it is in the log."""
        journal = self.log.journal
        count = journal.durable_index - journal.first_index + 1
        if count > 0:
            on_disk = self.log.environment.log_entries(journal.first_index, 1 << 30, count)
            assert on_disk == self.expected[:count]

    def teardown(self) -> None:
        self.log.close()
        self.folder.cleanup()


TestJournalIsAList = JournalIsAList.TestCase
TestJournalIsAList.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
