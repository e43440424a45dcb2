"""The engine alone: Raft's safety under a network and crashes in the test's hands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raftq.replication.progress import Flow
from tests.replication.network import Message, Network


@pytest.fixture
def network(tmp_path: Path):
    network = Network(tmp_path)
    yield network
    network.close()


def test_one_leader_is_elected_and_replicates(network: Network) -> None:
    network.settle()
    leader = network.leader
    index = network.propose(leader, b"one")
    network.settle()
    assert [member.engine.commit_index for member in network.members.values()] == [index] * 3
    assert all(member.applied == [(index, b"\0one")] for member in network.members.values())


def test_a_single_node_leads_itself_only_once_its_vote_is_durable(tmp_path: Path) -> None:
    network = Network(tmp_path, size=1)
    network.now += 1
    engine = network["n1"].engine
    engine.tick()
    assert engine.role == "candidate"
    network.cycle("n1")
    assert engine.is_leader
    network.settle(0.1)
    network.propose("n1", b"one")
    network.settle(0.1)
    assert network["n1"].applied
    network.close()


def test_an_entry_without_a_majority_is_not_committed(network: Network) -> None:
    network.settle()
    leader = network.leader
    network.isolate(leader)
    committed = network[leader].engine.commit_index
    network.propose(leader, b"lost")
    network.settle()
    assert network[leader].engine.commit_index == committed
    assert not network[leader].engine.is_leader
    network.settle()
    other = network.leader
    assert other != leader
    network.propose(other, b"kept")
    network.settle()
    network.heal()
    network.settle()
    assert all([command for _, command in member.applied] == [b"\0kept"] for member in network.members.values())


def test_a_leader_counts_itself_only_once_its_entry_is_durable(network: Network) -> None:
    network.settle()
    leader = network.leader
    follower, away = (name for name in network.names if name != leader)
    network.isolate(away)
    index = network.propose(leader, b"one")
    network.cycle(leader, commit=False)
    while network.wire:
        network.deliver(commit=network.wire[0][1] != leader)
    assert network[leader].engine.match_index(follower) == index
    assert network[leader].engine.commit_index < index
    network.cycle(leader)
    assert network[leader].engine.commit_index == index


def test_an_answer_of_another_term_does_not_count(network: Network) -> None:
    network.settle()
    engine = network[network.leader].engine
    follower = next(name for name in network.names if name != network.leader)
    network.propose(network.leader, b"one")
    network.cycle(network.leader)
    answer = next(message for message in _answers(network, follower) if message["match"] == engine.journal.last_index)
    before = engine.match_index(follower)
    engine.step(follower, answer | {"term": engine.term - 1})
    assert engine.match_index(follower) == before
    engine.step(follower, answer)
    assert engine.match_index(follower) == answer["match"]


def _answers(network: Network, follower: str) -> list[Message]:
    """What `follower` answers to all that is on its way to it."""
    while any(target == follower for _, target, _ in network.wire):
        network.deliver(next(at for at, (_, target, _) in enumerate(network.wire) if target == follower))
    return [message for source, _, message in network.wire if source == follower]


def test_what_this_leader_has_not_verified_is_not_committed(network: Network) -> None:
    """A follower with entries of an old leader hears a heartbeat that builds on what lies before them."""
    network.settle()
    old = network.leader
    network.isolate(old)
    for number in range(3):
        network.propose(old, str(number).encode())
    network.cycle(old)
    network.settle()
    new = network.leader
    engine, first = network[old].engine, network[old].engine.commit_index
    network[old].engine.step(
        new,
        {
            "type": "append",
            "term": network[new].engine.term,
            "round": 1,
            "prev_index": first,
            "prev_term": network[new].journal.term_at(first),
            "commit": first + 3,
            "compact": 0,
            "entries": [],
        },
    )
    assert engine.commit_index == first
    assert [answer["match"] for _, answer in engine.held if answer["type"] == "append_answer"] == [first]
    network.heal()
    network.settle()


def test_an_earlier_answer_has_no_entry_sent_again(network: Network) -> None:
    network.settle()
    leader = network.leader
    follower = next(name for name in network.names if name != leader)
    for number in range(5):
        network.propose(leader, str(number).encode())
    network.cycle(leader)
    sent = sum(len(message["entries"]) for _, target, message in network.wire if target == follower)
    for answer in _answers(network, follower):
        network[leader].engine.step(follower, answer)
    assert sent == 5
    assert not [message for _, message in network[leader].engine.outbox if message.get("entries")]


def test_an_entry_of_an_older_term_is_not_committed_by_counting(network: Network) -> None:
    """Raft's figure 8: a majority has it, and a leader of another log may yet overwrite it."""
    network.settle()
    old = network.leader
    heir, other = (name for name in network.names if name != old)
    network.isolate(other)
    index = network.propose(old, b"one")
    network.cycle(old)
    network.wire = [item for item in network.wire if item[1] == heir]
    while network.wire:
        network.deliver()
        network.wire = [item for item in network.wire if item[1] == heir]
    network.crash(old)
    network.heal()
    engine = network[heir].engine
    while not engine.is_leader:
        network.tick()
        while network.wire and not engine.is_leader:
            network.deliver()
    answer = {"type": "append_answer", "term": engine.term, "round": engine.round, "prev_index": index - 1}
    network.wire.clear()
    engine.step(other, answer | {"ok": True, "match": index, "hint": 0, "applied": 1})
    network.cycle(heir)
    assert engine.commit_index < index
    engine.step(other, answer | {"ok": True, "match": index + 1, "hint": 0, "applied": 1})
    network.cycle(heir)
    assert engine.commit_index == index + 1


@pytest.mark.parametrize("kind", ["prevote", "vote"])
@pytest.mark.parametrize(
    ("terms", "entries", "granted"), [(0, 0, True), (0, 1, True), (1, -3, True), (0, -1, False), (-1, 9, False)]
)
def test_a_vote_goes_to_a_log_of_a_later_term_then_to_a_longer_one(
    network: Network, kind: str, terms: int, entries: int, granted: bool
) -> None:
    network.settle()
    leader = network.leader
    for number in range(5):
        network.propose(leader, str(number).encode())
    network.settle()
    voter, candidate = (name for name in network.names if name != leader)
    network.unlink(leader, voter)
    network.unlink(voter, leader)
    journal, engine = network[voter].journal, network[voter].engine
    asked = {"type": kind, "term": engine.term + 1, "transfer": False}
    engine.step(candidate, asked | {"last_term": journal.last_term + terms, "last_index": journal.last_index + entries})
    assert [answer["granted"] for _, answer in engine.held] == [granted]


@pytest.mark.parametrize("kind", ["prevote", "vote"])
def test_who_hears_a_leader_elects_no_other_but_for_a_transfer(network: Network, kind: str) -> None:
    network.settle()
    leader, term = network.leader, network[network.leader].engine.term
    voter, candidate = (name for name in network.names if name != leader)
    engine, journal = network[voter].engine, network[voter].journal
    asked = {"type": kind, "term": term + 1, "last_term": journal.last_term, "last_index": journal.last_index}
    for member in (voter, leader):
        network[member].engine.step(candidate, asked | {"transfer": False})
        assert [answer["granted"] for _, answer in network[member].engine.held] == [False]
        assert network[member].engine.term == term
    engine.held.clear()
    engine.step(candidate, asked | {"transfer": True})
    assert [answer["granted"] for _, answer in engine.held] == [kind == "vote"]


def test_a_vote_counts_once_however_often_it_is_heard(tmp_path: Path) -> None:
    network = Network(tmp_path, size=5)
    network.now += 1
    network.tick(0, names=["n1"])
    while (engine := network["n1"].engine).role != "candidate":
        network.deliver()
    network.wire.clear()
    granted = {"type": "vote_answer", "term": engine.term, "asked": engine.term, "granted": True}
    for _ in range(5):
        engine.step("n2", granted)
    engine.step("n9", granted)
    assert engine.role == "candidate"
    engine.step("n3", granted)
    assert engine.is_leader
    network.close()


def test_a_killed_leader_is_replaced_and_comes_back(network: Network) -> None:
    network.settle()
    old = network.leader
    network.propose(old, b"before")
    network.settle()
    network.crash(old)
    network.settle(0.3)
    network.propose(network.leader, b"after")
    network.settle()
    network.restart(old)
    network.settle()
    logs = {member.engine.commit_index for member in network.members.values()}
    assert len(logs) == 1


def test_a_rejoining_node_does_not_depose_a_healthy_leader(network: Network) -> None:
    network.settle()
    leader, term = network.leader, network[network.leader].engine.term
    follower = next(name for name in network.names if name != leader)
    network.isolate(follower)
    network.settle(5)
    network.heal()
    network.settle()
    assert (network.leader, network[leader].engine.term) == (leader, term)


def test_transfer_hands_leadership_to_the_target(network: Network) -> None:
    network.settle()
    leader = network.leader
    target = next(name for name in network.names if name != leader)
    network.propose(leader, b"one")
    network[leader].engine.transfer(target)
    network.settle(0.2)
    assert network.leader == target
    assert not network[leader].engine.is_leader


def test_a_transfer_waits_until_the_target_has_the_whole_log(network: Network) -> None:
    network.settle()
    leader = network.leader
    target = next(name for name in network.names if name != leader)
    network.propose(leader, b"one")
    network.cycle(leader)
    network[leader].engine.transfer(target)
    network.cycle(leader)
    assert "timeout_now" not in [message["type"] for _, _, message in network.wire]
    network.settle(0.2)
    assert network.leader == target


def test_a_paused_leader_steps_down_before_it_serves(network: Network) -> None:
    network.settle()
    leader = network.leader
    others = [name for name in network.names if name != leader]
    stale = [item for item in network.wire if item[1] == leader]
    for _ in range(500):
        network.tick(names=others)
        network.wire = [item for item in network.wire if leader not in item[:2]] or []
        while network.wire:
            network.deliver()
            network.wire = [item for item in network.wire if leader not in item[:2]]
    network.wire += stale
    network.tick(names=[leader])
    assert not network[leader].engine.is_leader


def test_a_read_counts_only_rounds_begun_after_it(network: Network) -> None:
    network.settle()
    leader = network[network.leader].engine
    confirmed = leader.confirmed_round()
    leader.broadcast()
    begun = leader.round
    assert confirmed < begun
    assert leader.confirmed_round() < begun
    network.settle(0.05)
    assert leader.confirmed_round() >= begun


def test_a_follower_that_flaps_is_not_sent_the_whole_log_again(network: Network) -> None:
    """A connection that was lost before the first answer of a new term moved the next index to the log's beginning."""
    network.settle()
    for number in range(50):
        network.propose(network.leader, str(number).encode())
    network.settle()
    old = network.leader
    network.crash(old)
    network.settle()
    leader = network.leader
    network.restart(old)
    network.unlink(leader, old)
    network.link(leader, old)
    sent = 0
    for _ in range(20):
        sent += sum(len(message.get("entries", [])) for _, target, message in network.wire if target == old)
        while network.wire:
            network.deliver()
        network.tick()
    assert network[old].engine.commit_index == network[leader].engine.commit_index
    assert sent < 10


def test_a_log_that_is_cut_while_a_follower_is_away_does_not_end_the_leader(network: Network) -> None:
    """That every voter has so much was told by the leader before; to this one the follower has said nothing yet."""
    network.settle()
    for number in range(20):
        network.propose(network.leader, str(number).encode())
    network.settle()
    old = network.leader
    network.crash(old)
    network.settle(0.05)
    while not any(member.up and member.engine.is_leader for member in network.members.values()):
        network.settle(0.05)
    leader = network.leader
    network.restart(old)
    network.unlink(leader, old)
    network.compact(leader)
    assert network[leader].journal.first_index > 10
    network.link(leader, old)
    network.settle()
    assert network[old].engine.commit_index == network[leader].engine.commit_index


def test_a_follower_whose_answer_was_lost_before_the_log_was_cut_is_known_to_lack(network: Network) -> None:
    """The leader probed with an entry, heard nothing, and cut its log beyond that. What the follower then refuses is
    what the log goes on from: it was taken for an answer to an older probe, and the follower never got a snapshot."""
    network.settle()
    leader = network.leader
    follower = next(name for name in network.names if name != leader)
    network.unlink(leader, follower)
    network.link(leader, follower)
    network[leader].engine.flow = Flow(lag_bytes=0)
    for number in range(20):
        network.propose(leader, str(number).encode())
        network.tick(names=[leader])
        while network.wire:
            network.wire = [item for item in network.wire if follower not in item[:2]]
            if network.wire:
                network.deliver()
    network.compact(leader)
    assert network[leader].journal.first_index > network[follower].journal.last_index
    network.settle()
    assert network[leader].engine.lacking() == [follower]


def test_an_answer_that_leaves_the_window_full_is_not_answered(network: Network) -> None:
    """Else an empty append goes out for every answer, and an answer for every empty append, without end and as fast as
    the network allows; where messages are repeated they are more and more."""
    network.settle()
    leader = network.leader
    engine = network[leader].engine
    follower = next(name for name in network.names if name != leader)
    engine.flow = Flow(bytes=1)
    engine.broadcast()
    network.cycle(leader)
    [answer] = _answers(network, follower)
    network.propose(leader, b"fills the window")
    network.propose(leader, b"waits for it")
    network.cycle(leader)
    engine.step(follower, answer)
    assert [message for nodes, message in engine.outbox if follower in nodes] == []
    network.settle()
    assert network[follower].journal.last_index == engine.journal.last_index


def test_a_leader_that_asks_for_votes_is_not_kept_from_them_by_its_own_bytes(network: Network) -> None:
    """What it sends is contact with it. When it has stepped down, that must not make the others refuse it."""
    network.settle()
    leader = network.leader
    follower = next(name for name in network.names if name != leader)
    while network[leader].engine.is_leader:
        network.tick(names=[leader])
        while network.wire:
            network.deliver()
            network.wire = [item for item in network.wire if item[1] != leader]  # its followers' answers are lost
    while not network.wire:
        network.tick(names=[leader])
    network.wire = [item for item in network.wire if item[1] == follower]
    network.deliver()
    assert [message["granted"] for _, _, message in network.wire] == [True]


def test_the_time_of_an_own_commit_is_not_held_against_the_followers(network: Network) -> None:
    """A commit of a second, in which no answer can be stepped, cost leadership, since check-quorum takes 0.6 s."""
    network.settle()
    engine = network[network.leader].engine
    engine.broadcast()
    confirmed = engine.confirmed_round()
    network.now += 1.0
    engine.resumed(1.0)
    assert engine.confirmed_round() == confirmed < engine.round  # a read still waits for an answer
    engine.tick()
    assert engine.is_leader
    network.wire.clear()
    network.now += 0.61
    engine.tick()
    assert not engine.is_leader


def test_a_follower_in_a_long_commit_counts_for_the_quorum(network: Network) -> None:
    """It can promise nothing then, but it can say that it still follows, in which term and since which round."""
    network.settle()
    leader = network.leader
    engine = network[leader].engine
    follower = next(name for name in network.names if name != leader)
    for _ in range(100):
        network.tick(names=[leader])
        rounds = [message["round"] for _, target, message in network.wire if target == follower]
        network.wire.clear()
        if rounds:
            assert engine.confirmed_round() < rounds[-1]
            engine.step(follower, {"type": "echo", "term": engine.term, "round": rounds[-1]})
            assert engine.confirmed_round() == rounds[-1]
    assert engine.is_leader


def test_an_echo_of_another_term_proves_nothing(network: Network) -> None:
    network.settle()
    leader = network.leader
    engine = network[leader].engine
    follower = next(name for name in network.names if name != leader)
    engine.broadcast()
    confirmed = engine.confirmed_round()
    engine.step(follower, {"type": "echo", "term": engine.term - 1, "round": engine.round})
    assert engine.confirmed_round() == confirmed
    engine.step(follower, {"type": "echo", "term": engine.term + 1, "round": engine.round})
    assert not engine.is_leader


def test_an_answer_confirms_its_own_round_and_no_later_one(network: Network) -> None:
    """Neither to a read, nor to check-quorum: what lay in a socket for a while says nothing of now."""
    network.settle()
    leader = network.leader
    engine = network[leader].engine
    network.wire.clear()
    engine.broadcast()
    network.cycle(leader)
    begun = engine.round
    answers = [message for name in network.names if name != leader for message in _answers(network, name)]
    network.wire.clear()
    network.now += 0.5
    engine.broadcast()
    for follower, answer in zip((name for name in network.names if name != leader), answers, strict=True):
        engine.step(follower, answer)
    assert engine.confirmed_round() == begun < engine.round
    network.now += 0.11
    engine.tick()
    assert not engine.is_leader


class Faults:
    """One random run: what disturbs a network, and what its clients were told."""

    def __init__(self, network: Network) -> None:
        self.network, self.dice = network, network.random
        self.acknowledged: list[tuple[int, bytes]] = []
        #: Nodes whose commits take long: what they have to promise waits.
        self.slow: set[str] = set()
        #: (leader, its term, its commit index, round, the highest index acknowledged to anyone before).
        self.reads: list[tuple[str, int, int, int, int]] = []
        self.reads_answered = 0

    def step(self, number: int) -> None:
        self._disturb()
        if self.network.wire and self.dice.random() < 0.9:
            self._deliver()
        else:
            self.network.tick(self.dice.choice([0.005, 0.02, 0.1]))
        for name in self.network.names:
            if self.network[name].up and name not in self.network.paused:
                self._use(name, number)
        self._end_reads()

    def heal(self) -> None:
        network = self.network
        self.slow.clear()
        network.paused.clear()
        for name in network.names:
            if not network[name].up:
                network.restart(name)
        network.heal()

    def _chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def _deliver(self) -> None:
        network = self.network
        place = self.dice.randrange(min(len(network.wire), 4 if self._chance(0.2) else 1))
        source, target, message = network.wire[place]
        if target in network.paused:
            network.wire.append(network.wire.pop(place))
            return
        if self._chance(0.03):
            network.wire.append((source, target, message))
        network.deliver(place, commit=target not in self.slow and self._chance(0.8))

    def _use(self, name: str, number: int) -> None:
        """What clients, and the cycle for itself, do with a node."""
        member, engine = self.network[name], self.network[name].engine
        if engine.own_term_committed and not engine.transferring and self._chance(0.1):
            self.network.propose(name, str(number).encode())
            self.network.cycle(name, commit=name not in self.slow and self._chance(0.7))
        if engine.own_term_committed and self._chance(0.05):
            floor = max((index for index, _ in self.acknowledged), default=0)
            engine.broadcast()
            self.reads.append((name, engine.term, engine.commit_index, engine.round, floor))
        self.acknowledged += [item for item in member.applied[-3:] if item not in self.acknowledged[-50:]]
        if self._chance(0.02):
            self.network.compact(name)

    def _end_reads(self) -> None:
        waiting, self.reads = self.reads, []
        for read in waiting:
            name, term, index, number, floor = read
            engine = self.network[name].engine
            if not self.network[name].up or not engine.is_leader or engine.term != term:
                continue
            if engine.confirmed_round() < number:
                self.reads.append(read)
                continue
            self.reads_answered += 1
            assert index >= floor, f"{name} answers a read at {index} after {floor} was acknowledged"

    def _disturb(self) -> None:
        network, dice = self.network, self.dice
        down = [name for name in network.names if not network[name].up]
        if self._chance(0.004) and len(down) * 2 + 1 < len(network.names):
            network.crash(dice.choice([name for name in network.names if network[name].up]))
        if down and self._chance(0.02):
            network.restart(dice.choice(down))
        if self._chance(0.001):  # a power cut of all
            for name in network.names:
                if network[name].up:
                    network.crash(name)
        if self._chance(0.004):
            network.isolate(dice.choice(network.names))
        if network.cut and self._chance(0.02):
            network.heal()
        if self._chance(0.004):
            network.paused ^= {dice.choice([name for name in network.names if network[name].up] or network.names)}
        if network.paused and self._chance(0.01):
            network.paused.clear()
        if self._chance(0.004):
            self.slow ^= {dice.choice(network.names)}
        if self._chance(0.003):
            leaders = [name for name in network.names if network[name].up and network[name].engine.is_leader]
            if leaders:
                network[leaders[0]].engine.transfer(dice.choice([name for name in network.names if name != leaders[0]]))


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("seed", range(int(os.environ.get("RAFTQ_SEEDS", "4"))))
def test_random_faults_keep_the_log_safe_and_the_cluster_alive(tmp_path: Path, seed: int, size: int) -> None:
    """Reordered, repeated and lost messages, cuts, pauses, crashes of one or all before and after commits, commits that
    take long, transfers, compaction; reads against the real order. Then no faults, and all agree."""
    network = Network(tmp_path, size=size, seed=seed)
    faults = Faults(network)
    for number in range(3000):
        faults.step(number)
    faults.heal()
    network.settle(5)
    network.propose(network.leader, b"end")
    network.settle(1)
    journals = [member.journal for member in network.members.values()]
    assert {member.engine.commit_index for member in network.members.values()} == {
        network[network.leader].journal.last_index
    }
    for index in range(max(journal.first_index for journal in journals), journals[0].last_index + 1):
        assert len({journal.entries(index, 0, 1)[0] for journal in journals}) == 1
    final = {index: command for index, (_, command) in network.committed.items()}
    assert all(final[index] == command for index, command in faults.acknowledged)
    network.close()
