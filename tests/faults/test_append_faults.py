"""Faults 1, 2, 5, 18 and 24: what a leader sends, what a follower does with it, and what the answer is taken for."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from tests.faults.conftest import Maker
from tests.faults.harness import Cluster, Told, entry_indexes


def times_sent_while_in_flight(cluster: Cluster) -> Counter[int]:
    """Three entries are on their way to b when the answer to the first arrives. How often each was sent."""
    cluster.elect("a", "b")
    for value in ("x", "y", "z"):
        cluster.write("a", value)
    cluster.deliver("a", "b", 1)
    cluster.deliver("b", "a", 1)
    cluster.step("a")
    sent = [message for source, target, message in cluster.history if (source, target) == ("a", "b")]
    return Counter(index for message in sent for index in entry_indexes(message))


def test_fault_01_entries_in_flight_are_sent_again_stock(stock: Maker) -> None:
    """Every append answer moves the next index back to what it answers, so that entries in flight are sent again."""
    assert max(times_sent_while_in_flight(stock()).values()) == 2


def test_fault_01_entries_in_flight_are_sent_once_ours(ours: Maker) -> None:
    """An answer never moves the next index back."""
    assert set(times_sent_while_in_flight(ours()).values()) == {1}


def lose_the_leader_after_a_retransmission(cluster: Cluster) -> tuple[Told, set[str | None]]:
    """b has confirmed four entries, and has taken in a part of what the leader sent again. The leader answers its
    client, and dies. What the client was told, and what is in the log of the next leader."""
    cluster.elect("a", "b", "c")
    cluster.cut("a", "c")
    values = [letter * 600 for letter in "wxyz"]  # two to an append of at most 1,000 bytes
    told = [cluster.write("a", value) for value in values][-1]
    cluster.deliver("a", "b")
    cluster.deliver("b", "a", 1)
    cluster.step("a")
    cluster.deliver("a", "b", 1)
    cluster.deliver("b", "a")
    cluster.step("a")
    cluster.crash("a")
    cluster.elect("b", "c")
    return told, {value and value[0] for value in cluster["b"].log().values()}


def test_fault_02_a_confirmed_entry_is_truncated_and_lost_stock(stock: Maker) -> None:
    """A follower cuts its log after prevLogIdx on every append, conflict or not, and so drops what it has confirmed."""
    told, log = lose_the_leader_after_a_retransmission(stock(appendEntriesBatchSizeBytes=1000))
    assert told == ["ok"]
    assert "z" not in log


def test_fault_02_a_confirmed_entry_stays_ours(ours: Maker) -> None:
    """Nothing is sent again, and nothing is cut: the next leader has all that was confirmed."""
    told, log = lose_the_leader_after_a_retransmission(ours(append_bytes=1000))
    assert told == ["ok"]
    assert log >= set("wxyz")


def log_after_an_earlier_append_is_heard_again(cluster: Cluster) -> dict[int, str | None]:
    """b has three entries, each of an append of its own, when the first append comes once more, as from a connection
    that was replaced."""
    cluster.elect("a", "b")
    for value in "xyz":
        cluster.write("a", value)
    first = next(message for message in cluster.waiting("a", "b") if entry_indexes(message))
    cluster.deliver("a", "b")
    cluster.inject("a", "b", first)
    log: dict[int, str | None] = cluster["b"].log()
    return log


def test_fault_02_an_earlier_append_cuts_the_log_stock(stock: Maker) -> None:
    """What follows an append that is heard again is cut off, though it is confirmed and no other entry is there."""
    assert set(log_after_an_earlier_append_is_heard_again(stock()).values()) == {None, "x"}


def test_fault_02_an_earlier_append_changes_nothing_ours(ours: Maker) -> None:
    """Only an entry of another term is cut."""
    assert set(log_after_an_earlier_append_is_heard_again(ours()).values()) == {None, "x", "y", "z"}


def answer_of_an_old_term(cluster: Cluster) -> Told:
    """a leads, is deposed, and leads again. What b had confirmed in the first term, and lost to the leader between,
    is heard in the last one. What the client of a write on two of five nodes was told."""
    cluster.elect("a", "b", "c", "d", "e")
    for value in "stuvwxyz":
        cluster["a"].propose(value)
    cluster.step("a")
    cluster.deliver("a", "b")
    cluster.elect("c", "d", "e")
    cluster.exchange("c", "a")
    cluster.exchange("c", "b")
    assert not set(cluster["b"].log().values()) & set("stuvwxyz")
    cluster.lose("a", "b")
    cluster.elect("a", "d", "e")
    told = cluster.write("a", "last")
    cluster.exchange("a", "d")
    assert cluster.waiting("b", "a")
    cluster.deliver("b", "a")
    cluster.step("a")
    assert cluster["a"].leads
    assert [name for name in "bce" if "last" in cluster[name].log().values()] == []
    return told


def test_fault_05_an_answer_of_an_old_term_counts_stock(stock: Maker) -> None:
    """Append answers carry no term, so that one of an old term raises the match index in a new one."""
    assert answer_of_an_old_term(stock(5)) == ["ok"]


def test_fault_05_an_answer_of_an_old_term_does_not_count_ours(ours: Maker) -> None:
    """An answer of another term is not counted."""
    assert answer_of_an_old_term(ours(5)) == []


def test_fault_18_pieces_of_two_entries_are_put_together_stock(stock: Maker) -> None:
    """Large entries travel in pieces that say neither of which entry they are nor which piece. A node reads all of its
    connections from one peer, so what is left in an old one mixes with what comes on a new one."""
    cluster = stock(appendEntriesBatchSizeBytes=1000)
    cluster.elect("a", "b")
    cluster.write("a", "x" * 3500)
    old = cluster.lose("a", "b")
    cluster.deliver("b", "a")
    cluster.write("a", "y" * 3500)
    new = cluster.lose("a", "b")
    assert [message["transmission"] for message in old] == ["start", "process", "process", "finish"]
    for message in [*old, new[0], *old[1:]]:
        cluster.inject("a", "b", message)
    mixed = cluster["b"].log()[3]
    assert set(mixed) == {"x", "y"}


def test_fault_18_an_entry_travels_whole_ours(ours: Maker) -> None:
    """An entry is never in more than one message, however small the limit of a message is."""
    cluster = ours(append_bytes=1000)
    cluster.elect("a", "b")
    for value in ("x" * 3500, "y" * 3500):
        cluster.write("a", value)
    late = cluster.waiting("a", "b")
    cluster.exchange("a", "b")
    for message in late:
        cluster.inject("a", "b", message)
    values = [value for value in cluster["b"].log().values() if value]
    assert values == ["x" * 3500, "y" * 3500]


def test_fault_24_the_last_piece_is_taken_for_another_stock(stock: Maker) -> None:
    """The last piece is recognised by the length of the command, not of what is cut: some sizes end too early."""
    cluster = stock(appendEntriesBatchSizeBytes=1000)
    cluster.elect("a", "b")
    cluster.write("a", "x" * _stock_payload(1990))
    assert [message["transmission"] for message in cluster.waiting("a", "b")] == ["start", "finish", "finish"]
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        cluster.deliver("a", "b")
    assert 3 not in cluster["b"].log()


def test_fault_24_entries_around_the_limit_arrive_ours(ours: Maker) -> None:
    """Any size passes: there are no pieces."""
    cluster = ours(append_bytes=1000)
    cluster.elect("a", "b")
    values = ["x" * size for size in (1, 998, 999, 1000, 1001, 1914, 1998, 2000)]
    for value in values:
        cluster.write("a", value)
        cluster.exchange("a", "b")
    assert [value for value in cluster["b"].log().values() if value] == values


def _stock_payload(command_bytes: int) -> int:
    """The length of a text whose command has `command_bytes`."""
    overhead = 1 + len(pickle.dumps((0, ("x" * 1000,)), 2)) - 1000
    return command_bytes - overhead
