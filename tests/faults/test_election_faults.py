"""Faults 17, 27, 28 and 29: who gets to lead, and who hears of it.

Fault 29 as the list states it ("no leader ever") does not come about on the stock class while links work both ways: the
node with the longer log learns the higher term from the other's own request, and wins the next election that it begins.
It does come about once a pre-vote is added (17), because a pre-vote spreads no term. What the stock class shows is the
cause, the silence; that ours elects a leader from there, pre-vote and all, is the counterpart.
"""

from __future__ import annotations

from tests.faults.conftest import Maker
from tests.faults.harness import Cluster, Message, asks_for_vote


def leads_on_after_a_node_comes_back(cluster: Cluster) -> bool:
    """c was cut off for 2 seconds, takes the silence for the leader's death, and reaches b first. Whether the leader,
    whom b has heard all the time, leads on."""
    cluster.elect("a", "b", "c")
    term = cluster["a"].term
    cluster.cut("c", "a", "b")
    for _ in range(40):
        cluster.step("a")
        cluster.exchange("a", "b")
    cluster.heal("c", "a", "b")
    cluster["c"].tick()
    cluster.exchange("b", "c")
    cluster.exchange("a", "b", "c")
    return bool(cluster["a"].leads and cluster["a"].term == term)


def test_fault_17_a_returning_node_deposes_a_healthy_leader_stock(stock: Maker) -> None:
    """There is no pre-vote and no stickiness: a vote request of a higher term deposes a leader that all others hear."""
    assert not leads_on_after_a_node_comes_back(stock())


def test_fault_17_a_healthy_leader_leads_on_ours(ours: Maker) -> None:
    """Who hears a leader grants no pre-vote, and without a majority of these nobody's term rises."""
    assert leads_on_after_a_node_comes_back(ours())


def seconds_as_a_stale_leader(cluster: Cluster) -> float:
    """a was cut off, b leads now, and a reaches none but c again. For how long a goes on as a leader."""
    cluster.elect("a", "b", "c")
    cluster.cut("a", "b", "c")
    cluster.elect("b", "c")
    cluster.heal("a", "c")
    begun = cluster.now
    while cluster["a"].leads and cluster.now < begun + 60:
        cluster.step("a", seconds=0.1)
        cluster.exchange("a", "c")
    return cluster.now - begun


def test_fault_17_a_stale_leader_is_not_told_stock(stock: Maker) -> None:
    """An append of an old term is not answered: a deposed leader goes on, and serves stale reads, for 30 seconds."""
    assert 25 < seconds_as_a_stale_leader(stock()) < 35


def test_fault_17_a_stale_leader_steps_down_ours(ours: Maker) -> None:
    """A leader steps down when no majority has answered for two election timeouts, or at the first answer of a higher
    term."""
    assert seconds_as_a_stale_leader(ours()) < 0.2


def answers_to_a_repeated_request(cluster: Cluster) -> list[list[Message]]:
    """What b answers to a vote request, and to the same request once more."""
    cluster.campaign("a")
    request = next(message for message in cluster.waiting("a", "b") if asks_for_vote(message))
    cluster.lose("b", "a")
    answers = []
    for _ in range(2):
        cluster.inject("a", "b", request)
        answers.append(cluster.lose("b", "a"))
    return answers


def test_fault_27_a_repeated_vote_request_is_not_answered_stock(stock: Maker) -> None:
    """A repeated vote request of the candidate that a node has voted for is not answered."""
    first, second = answers_to_a_repeated_request(stock())
    assert len(first) == 1
    assert second == []


def test_fault_27_a_repeated_vote_request_is_answered_ours(ours: Maker) -> None:
    """The same request gets the same answer."""
    first, second = answers_to_a_repeated_request(ours())
    assert [answer["granted"] for answer in first] == [True]
    assert second == first


def leads_by_one_vote_heard_twice(cluster: Cluster) -> bool:
    """Of five nodes b alone votes for a, and its answer arrives twice."""
    cluster.campaign("a")
    cluster.lose("b", "a")
    cluster.deliver("a", "b")
    (vote,) = cluster.lose("b", "a")
    for _ in range(2):
        cluster.inject("b", "a", vote)
    return bool(cluster["a"].leads)


def test_fault_28_a_vote_counts_as_often_as_it_is_heard_stock(stock: Maker) -> None:
    """Votes are counted per message, not per voter: two nodes of five make a leader."""
    assert leads_by_one_vote_heard_twice(stock(5))


def test_fault_28_a_vote_counts_once_ours(ours: Maker) -> None:
    """Votes are a set of voters: a third node must join, and then it is enough."""
    cluster = ours(5)
    assert not leads_by_one_vote_heard_twice(cluster)
    cluster.exchange("a", "c")
    assert cluster["a"].leads


def longer_log_and_higher_term(cluster: Cluster) -> Cluster:
    """a has an entry that nobody else has; b has a higher term; c is dead, by whose pre-vote b could campaign."""
    cluster.elect("a", "b", "c")
    cluster.cut("a", "b", "c")
    cluster.write("a", "x")
    cluster.campaign("b")
    cluster.crash("c")
    cluster.heal("a", "b")
    assert cluster["b"].term > cluster["a"].term
    assert len(cluster["a"].log()) > len(cluster["b"].log())
    return cluster


def answers_to_b(cluster: Cluster) -> list[Message]:
    """What a, whose log is longer, tells b, which asks for its vote."""
    cluster.step("b", seconds=2.0)
    cluster.lose("a", "b")
    cluster.deliver("b", "a")
    return cluster.lose("a", "b")


def test_fault_29_a_refused_vote_is_silence_stock(stock: Maker) -> None:
    """A refused vote is not answered: the candidate learns neither that it cannot win nor the refuser's term."""
    assert answers_to_b(longer_log_and_higher_term(stock())) == []


def test_fault_29_a_refused_vote_is_answered_ours(ours: Maker) -> None:
    """A refusal is answered with the refuser's term. So a, which steps down when it has heard nobody for long, learns
    the higher term at its first election and wins the second."""
    cluster = longer_log_and_higher_term(ours())
    (answer,) = answers_to_b(cluster)
    assert answer["granted"] is False
    assert answer["term"] == cluster["a"].term
    cluster.inject("a", "b", answer)
    for _ in range(3):
        assert not cluster["a"].leads or cluster["a"].term < cluster["b"].term
        cluster.step("a", seconds=2.0)
        cluster.exchange("a", "b")
    assert cluster["a"].leads
    assert "x" in cluster["b"].log().values()
