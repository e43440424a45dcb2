"""pysyncobj made safe: Raft as a value that is stepped, and that does no IO.

Owns term, vote, role, the peers' progress and the commit index. It never reads a clock or a random source but those it
was given, never writes to a disk or a socket: what is to be sent gathers in `outbox` (may leave at once) and `held`
(may leave only when everything the journal holds is durable), after the `Ready` contract of etcd's raft. Invariant:
what this node has promised (a vote, a match index, a term) is durable before any other node can learn of it.

The class bears pysyncobj's own class name, so that its name-mangled privates are shared without being spelled out;
`_RELIED_ON` is checked at start. Each override names the fault of stock pysyncobj 0.3.17 that it corrects; the numbers
are those of docs/faults.md. Sources: Ongaro's thesis (3.6.2 commit of the own term only, 3.10 transfer, 4.2.3
check-quorum and stickiness, 6.4 ReadIndex, 9.6 pre-vote) and the flow control of etcd's raft.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pysyncobj
from pysyncobj.node import Node
from pysyncobj.syncobj import _COMMAND_TYPE, _RAFT_STATE
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from raftq.replication import membership
from raftq.replication.journal import Journal
from raftq.replication.membership import Configuration, Memberships
from raftq.replication.progress import Flow, Progress, Timing
from raftq.replication.shard import ChangeUnderway

REGULAR = bytes([_COMMAND_TYPE.REGULAR])
NO_OP = bytes([_COMMAND_TYPE.NO_OP])
CONFIGURATION = bytes([_COMMAND_TYPE.MEMBERSHIP])

PYSYNCOBJ_VERSION = "0.3.17"

_RELIED_ON = (
    "_SyncObj__raftState", "_SyncObj__raftCurrentTerm", "_SyncObj__votedForNodeId", "_SyncObj__raftLeader",
    "_SyncObj__raftElectionDeadline", "_SyncObj__raftLog", "_SyncObj__raftCommitIndex", "_SyncObj__raftLastApplied",
    "_SyncObj__raftNextIndex", "_SyncObj__raftMatchIndex", "_SyncObj__lastResponseTime", "_SyncObj__noopIDx",
    "_SyncObj__otherNodes", "_SyncObj__connectedNodes", "_SyncObj__selfNode", "_SyncObj__setState",
    "_SyncObj__setCurrentTerm", "_SyncObj__onBecomeLeader", "_SyncObj__getCurrentLogIndex",
    "_SyncObj__getCurrentLogTerm", "_SyncObj__onMessageReceived", "_SyncObj__sendAppendEntries",
    "_SyncObj__applyLogEntries", "_SyncObj__tryLogCompaction", "_SyncObj__generateRaftTimeout",
    "_SyncObj__onNodeConnected", "_SyncObj__onNodeDisconnected", "_SyncObj__doApplyCommand",
)  # fmt: skip

Message = dict[str, Any]


class InvariantBroken(Exception):
    """Raft's safety is broken on this node. It stops rather than going on with a log that it cannot trust."""


class _Outlet(Transport):  # type: ignore[misc]
    """The transport that pysyncobj sees. It sends nothing: the engine queues its own messages."""

    def __init__(self) -> None:
        super().__init__(None, None, [])

    def send(self, node: Node, message: Message) -> bool:
        raise InvariantBroken(f"stock code sent {message['type']!r} to {node}: an override is missing")


class SyncObj(pysyncobj.SyncObj):  # type: ignore[misc]
    """One node's Raft. `clock` gives monotonic seconds; `dice` numbers in [0, 1). `base` is the configuration at the
    applied index, and the index of its entry; those that the log holds beyond it are found there."""

    def __init__(
        self,
        node_id: str,
        base: tuple[int, Configuration],
        journal: Journal,
        *,
        applied: int,
        clock: Callable[[], float],
        dice: Callable[[], float] = random.random,
        timing: Timing | None = None,
        flow: Flow | None = None,
    ) -> None:
        self.__raftLeader: Node | None
        self.clock, self.dice = clock, dice
        self.timing, self.flow = timing or Timing(), flow or Flow()
        self.outbox: list[tuple[list[str], Message]] = []
        self.held: list[tuple[list[str], Message]] = []
        self._progress: dict[str, Progress] = {}
        self._votes: set[str] = set()
        self._refusals: set[str] = set()
        self._prevotes: set[str] | None = None
        self._contact = float("-inf")
        self._rounds: deque[float] = deque()
        self._round = 0
        self._led_from = 0.0
        self._heartbeat_due = 0.0
        self._transfer: tuple[str, float] | None = None
        #: False: no campaign, since the clock is too far off, or the node stops.
        self.may_lead = True
        #: The log may be cut below this: every member has as much, or gets a snapshot, as the leader told.
        self.compactable = 0
        #: Leader: the indexes of snapshots under way, after which the log must stay.
        self.pinned: list[int] = []
        #: Fields that the cycle adds to appends and to their answers (clock, free disk).
        self.append_extra: Callable[[], Message] = dict
        self.answer_extra: Callable[[], Message] = dict
        self.on_append: Callable[[str, Message], None] = lambda _node, _message: None
        self.on_answer: Callable[[str, Message, float | None], None] = lambda _node, _message, _sent: None
        conf = pysyncobj.SyncObjConf(autoTick=False, dynamicMembershipChange=False)
        self.id = node_id
        self.memberships = Memberships(base)
        self.voters: tuple[str, ...] = ()
        #: The other members, learners too.
        self._others: list[str] = []
        #: Every node that was ever met, also guests: members of a configuration that is not in this log yet.
        self._nodes: dict[str, Node] = {}
        super().__init__(Node(node_id), [], conf, transport=_Outlet())
        self._check_relied_on()
        self._adopt(journal, applied, base)

    def _check_relied_on(self) -> None:
        missing = [name for name in _RELIED_ON if not hasattr(self, name)]
        if missing or VERSION != PYSYNCOBJ_VERSION:
            raise InvariantBroken(f"pysyncobj {VERSION} is not {PYSYNCOBJ_VERSION}; missing: {', '.join(missing)}")

    def _adopt(self, journal: Journal, applied: int, base: tuple[int, Configuration]) -> None:
        """Put our journal in the place of the one that the constructor made, or of the one before a snapshot.

        Faults 4, 20: commit and applied index come from the store, where they are bounded by what is durable, so that
        nothing is applied twice or taken as committed that is not in the log. Faults 9, 10, 13, 15: the journal's."""
        self.__raftLog = journal
        self.__raftCurrentTerm = max(journal.getCurrentTerm(), journal.last_term)
        self.__votedForNodeId = journal.getVotedForNodeId() if journal.getCurrentTerm() >= journal.last_term else None
        if applied > journal.last_index:
            raise InvariantBroken(f"applied index {applied} is behind the end of the log {journal.last_index}")
        self.__raftLastApplied = self.__raftCommitIndex = applied
        self.__raftElectionDeadline = self.clock() + self.__generateRaftTimeout()
        self.memberships = Memberships(base)
        self._note_configurations(applied + 1)
        self._reconfigure()

    # What a reader may ask

    @property
    def role(self) -> Literal["leader", "follower", "candidate"]:
        state = self.__raftState
        if state == _RAFT_STATE.LEADER:
            return "leader"
        return "candidate" if state == _RAFT_STATE.CANDIDATE else "follower"

    @property
    def is_leader(self) -> bool:
        return bool(self.__raftState == _RAFT_STATE.LEADER)

    @property
    def leader(self) -> str | None:
        return self.__raftLeader.id if self.__raftLeader is not None else None

    @property
    def term(self) -> int:
        return int(self.__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self.__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self.__raftLastApplied)

    @property
    def journal(self) -> Journal:
        return self.__raftLog

    @property
    def own_term_committed(self) -> bool:
        """Leader: an entry of this term is committed, so the commit index is current (thesis, 6.4)."""
        return self.is_leader and self.__raftCommitIndex >= self.__noopIDx

    @property
    def transferring(self) -> bool:
        return self._transfer is not None

    @property
    def round(self) -> int:
        return self._round

    @property
    def configuration(self) -> Configuration:
        """In force: the newest in the log, committed or not."""
        return self.memberships.current

    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    def match_index(self, node: str) -> int | None:
        if node == self.id:
            return self.journal.durable_index
        return self.__raftMatchIndex.get(self._nodes[node]) if self.is_leader and node in self._nodes else None

    def lacking(self) -> list[str]:
        """Leader: who needs what the log holds no more, and so a snapshot."""
        return [node for node, progress in self._progress.items() if progress.lacks] if self.is_leader else []

    @property
    def unheard(self) -> bool:
        """Leader: for so short a time that who has not answered yet may be well."""
        since = self.clock() - self.timing.check_quorum
        return self._led_from > since and any(progress.round == 0 for progress in self._progress.values())

    def answering(self) -> list[str]:
        """Leader: itself, and who is connected and has echoed a round within the time of check-quorum."""
        if not self.is_leader:
            return []
        since = self.clock() - self.timing.check_quorum
        heard = (node for node, progress in self._progress.items() if progress.round and progress.confirmed > since)
        return [self.id, *(node for node in heard if self._nodes[node] in self.__connectedNodes)]

    def applied_index_of(self, node: str) -> int | None:
        progress = self._progress.get(node)
        return progress.applied if progress is not None and self.is_leader else None

    def heard_leader(self) -> bool:
        """This node leads with a majority behind it, or has heard its leader within the election timeout."""
        now = self.clock()
        if self.is_leader:
            return now - self._quorum_confirmed(now) <= self.timing.check_quorum
        return self.__raftLeader is not None and now - self._contact <= self.timing.election_max

    # Inputs

    def tick(self) -> None:
        """Let time pass: elections, heartbeats, check-quorum. Fault 21: nothing here waits for a period to end."""
        now = self.clock()
        if self.is_leader:
            self._tick_leader(now)
        elif now >= self.__raftElectionDeadline:
            self._canvass()

    def resumed(self, took: float) -> None:
        """No answer could be stepped for `took` seconds, since this node was committing: for check-quorum, which is
        about the others, that time did not pass. What was confirmed to reads stays as it is."""
        now = self.clock()
        for progress in self._progress.values():
            progress.confirmed = min(progress.confirmed + took, now)

    def _tick_leader(self, now: float) -> None:
        if now - self._quorum_confirmed(now) > self.timing.check_quorum:
            self._follow(self.__raftCurrentTerm, None)
            return
        if self._transfer is not None and now > self._transfer[1]:
            self._transfer = None
        if now >= self._heartbeat_due:
            self.broadcast()

    @property
    def election_in(self) -> float:
        """Seconds until this follower campaigns, if it hears nothing."""
        return float("inf") if self.is_leader else self.__raftElectionDeadline - self.clock()

    def contact(self, node: str) -> None:
        """Bytes of `node` arrived: if it is the leader, it is alive, whatever is still unread."""
        if self.__raftLeader is not None and self.__raftLeader.id == node and not self.is_leader:
            self._heard()

    def connected(self, node: str) -> None:
        self.__connectedNodes.add(self._nodes.setdefault(node, Node(node)))
        if self.is_leader and node in self._progress:
            self._send_append(node)

    def disconnected(self, node: str) -> None:
        """Fault 19: what was on its way to `node` may be lost, so its progress is probed anew."""
        peer = self._nodes.setdefault(node, Node(node))
        self.__connectedNodes.discard(peer)
        if self.is_leader:
            if node in self._progress:
                self._progress[node].reset()  # the next index stays: a refused probe says how far to go back
                if node not in self.voters:
                    self.__raftMatchIndex[peer] = 0  # a learner may come back with another folder
        elif self.__raftLeader == peer:
            self.__raftLeader = None
            self._contact = float("-inf")
            self.__raftElectionDeadline = self.clock() + self.timing.lost_leader_jitter * self.dice()

    def propose(self, command: bytes) -> int:
        """Append `command` (type byte and payload) to the leader's log; its index. Fault 25: never parked."""
        if not self.is_leader or self.transferring:
            raise InvariantBroken("a proposal reached a node that does not lead")
        index = int(self.__getCurrentLogIndex()) + 1
        self.journal.add(command, index, self.__raftCurrentTerm)
        return index

    def change(self, configuration: Configuration) -> int:
        """Append `configuration`, and act on it; the index of its entry. Fault 22: one change at a time, and the first
        of a term only when the term is known to be the newest, else two leaders' changes could both be in force
        (Ongaro's erratum to thesis 4.1). Raises ChangeUnderway."""
        if not self.own_term_committed or self.memberships.index > self.__raftCommitIndex or self.transferring:
            raise ChangeUnderway("another change of the members is on its way: try again in a moment")
        index = self.propose(CONFIGURATION + configuration.encode())
        self.memberships.note(index, configuration)
        self._reconfigure()
        return index

    def _note_configurations(self, first: int) -> None:
        """Those in the log from index `first` on."""
        while first <= self.journal.last_index:
            found = self.journal.entries(first, 1 << 20, 1 << 10)
            for command, index, _ in found:
                if command[:1] == CONFIGURATION:
                    self.memberships.note(index, membership.decode(memoryview(command)[1:]))
            first += len(found)

    def _reconfigure(self) -> None:
        """Act on the configuration in force. A member whose folder is a new one begins as one that has nothing."""
        now = self.configuration
        self.voters = now.voters
        others = [node for node in now.members if node != self.id]
        for node in others:
            self._nodes.setdefault(node, Node(node))
        self.__otherNodes = {self._nodes[node] for node in others}
        for node in {**self._progress, **dict.fromkeys(others)}:
            peer = self._nodes[node]
            if node not in now.members:
                del self._progress[node]
                self.__raftNextIndex.pop(peer, None)
                self.__raftMatchIndex.pop(peer, None)
            elif self.is_leader and (node not in self._progress or self._is_new(node)):
                self._progress[node] = Progress(self.clock())
                self.__raftNextIndex[peer] = self.journal.last_index + 1
                self.__raftMatchIndex[peer] = 0
        self._others = others

    def _is_new(self, node: str) -> bool:
        """It was a voter, and is a learner now: its old folder counts no more."""
        before = self.memberships.before.members.get(node)
        return before is not None and before.voter and node not in self.voters

    def durable(self) -> None:
        """All that the journal held is on disk: count the own vote and the own match index, not before."""
        if self.__raftState == _RAFT_STATE.CANDIDATE:
            self._count_vote(self.id)
        self.advance()

    def advance(self) -> None:
        """Commit what a majority has durably, if it is of this term (thesis, 3.6.2)."""
        if not self.is_leader:
            return
        matches = sorted((self.match_index(voter) or 0 for voter in self.voters), reverse=True)
        index = matches[self.majority() - 1]
        if index > self.__raftCommitIndex and self.journal.term_at(index) == self.__raftCurrentTerm:
            self.__raftCommitIndex = index
            if self.id not in self.voters and self.memberships.index <= index:
                self._follow(self.__raftCurrentTerm, None)  # it led until its own removal was committed (thesis, 4.2.2)
                return
        self.compactable = max(self.compactable, self._had_by_members())
        self._try_transfer()

    def _had_by_members(self) -> int:
        """Up to where every member has the log; of a log that is too long, every one that has the newer half of it."""
        journal = self.journal
        least = journal.last_index - len(journal) // 2 if journal.log_bytes > self.flow.lag_bytes else 0
        matches = [self.match_index(node) or 0 for node in self.configuration.members]
        return min([match for match in matches if match >= least] + self.pinned, default=0)

    def applied(self, index: int) -> None:
        """The state machine is at `index`. Faults 7, 8: the caller applies, once each, and stops on an error."""
        if not self.__raftLastApplied < index <= self.__raftCommitIndex:
            raise InvariantBroken(f"applied {index} after {self.__raftLastApplied}, commit {self.__raftCommitIndex}")
        self.__raftLastApplied = index
        self.memberships.settle(index)

    def installed(self, journal: Journal, applied: int, base: tuple[int, Configuration]) -> None:
        """A snapshot took the place of tables and log. Fault 6: never one that is older than what is committed here.
        Term and vote are this node's own, as the journal has them."""
        if applied <= self.__raftCommitIndex or self.is_leader:
            raise InvariantBroken(f"a snapshot at {applied} was installed over commit index {self.__raftCommitIndex}")
        term, vote = self.__raftCurrentTerm, self.__votedForNodeId
        self._follow(term, self.leader)  # votes of another configuration count no more
        self._adopt(journal, applied, base)
        if (term, vote) != (self.__raftCurrentTerm, self.__votedForNodeId):
            raise InvariantBroken(f"a snapshot at {applied} changed term or vote")

    def transfer(self, target: str) -> None:
        """Stop proposals, wait until `target` has the whole log, and tell it to campaign (thesis, 3.10)."""
        if self.is_leader and target in self.voters and target != self.id:
            self._transfer = (target, self.clock() + self.timing.election_max)
            self._try_transfer()

    def most_advanced(self, fit: Callable[[str], bool] = lambda _node: True) -> str | None:
        """The connected and fit follower to hand leadership to, or None."""
        if not self.is_leader:
            return None
        connected = [self._nodes[node] for node in self._other_voters() if self._nodes[node] in self.__connectedNodes]
        found = [(self.__raftMatchIndex[node], node.id) for node in connected if fit(node.id)]
        return max(found)[1] if found else None

    # Elections

    def __generateRaftTimeout(self) -> float:
        return self.timing.election_min + (self.timing.election_max - self.timing.election_min) * self.dice()

    def _canvass(self) -> None:
        """Fault 17: pre-vote. Ask whether an election could be won before disturbing anyone with a higher term."""
        self.__raftElectionDeadline = self.clock() + self.__generateRaftTimeout()
        if not self.may_lead or not self.memberships.votes(self.id, self.__raftCommitIndex):
            return
        self.__raftLeader = None
        self.__setState(_RAFT_STATE.FOLLOWER)
        self._prevotes = set()
        self._post(self._other_voters(), self._ask("prevote", self.__raftCurrentTerm + 1, False), held=False)
        self._count_prevote(self.id)

    def _campaign(self, *, transfer: bool) -> None:
        """The requests are held until term and own vote are durable; the own vote counts from then on."""
        self._prevotes = None
        self.__raftElectionDeadline = self.clock() + self.__generateRaftTimeout()
        self.__raftLeader = None
        self.__setState(_RAFT_STATE.CANDIDATE)
        self.__setCurrentTerm(self.__raftCurrentTerm + 1, self.id)
        self._votes, self._refusals = set(), set()
        self._post(self._other_voters(), self._ask("vote", self.__raftCurrentTerm, transfer), held=True)

    def _ask(self, kind: str, term: int, transfer: bool) -> Message:
        return {
            "type": kind,
            "term": term,
            "last_index": self.journal.last_index,
            "last_term": self.journal.last_term,
            "transfer": transfer,
        }

    def _up_to_date(self, message: Message) -> bool:
        mine = (self.journal.last_term, self.journal.last_index)
        return (message["last_term"], message["last_index"]) >= mine

    def _sticky(self) -> bool:
        """A leader is alive: this node hears it, or is it."""
        if self.is_leader:
            return True
        return self.__raftLeader is not None and self.clock() - self._contact < self.timing.election_min

    def _on_prevote(self, node: str, message: Message) -> None:
        granted = (
            message["term"] > self.__raftCurrentTerm
            and self._up_to_date(message)
            and not self._sticky()
            and bool(self.configuration.members)
        )
        self._answer_vote(node, "prevote_answer", message, granted)

    def _on_vote(self, node: str, message: Message) -> None:
        """Faults 17, 27, 29: stickiness unless it is a transfer; the same answer to a repeated request; a refusal is
        answered, with the term of this node."""
        term = message["term"]
        if term > self.__raftCurrentTerm:
            if self._sticky() and not message["transfer"]:
                self._answer_vote(node, "vote_answer", message, False)
                return
            self._follow(term, None)
        granted = (
            term == self.__raftCurrentTerm
            and self.__votedForNodeId in (None, node)
            and not self.is_leader
            and self._up_to_date(message)
            and bool(self.configuration.members)  # else it waits to be added, and what it promised before is not known
        )
        if granted:
            if self.__votedForNodeId is None:
                self.__setCurrentTerm(term, node)
            self.__raftElectionDeadline = self.clock() + self.__generateRaftTimeout()
        self._answer_vote(node, "vote_answer", message, granted)

    def _answer_vote(self, node: str, kind: str, message: Message, granted: bool) -> None:
        answer = {"type": kind, "term": self.__raftCurrentTerm, "asked": message["term"], "granted": granted}
        self._post([node], answer, held=True)

    def _on_prevote_answer(self, node: str, message: Message) -> None:
        if self._prevotes is None or message["asked"] != self.__raftCurrentTerm + 1 or not message["granted"]:
            return
        self._count_prevote(node)

    def _count_prevote(self, node: str) -> None:
        if self._prevotes is not None and node in self.voters:
            self._prevotes.add(node)
            if len(self._prevotes) >= self.majority():
                self._campaign(transfer=False)

    def _on_vote_answer(self, node: str, message: Message) -> None:
        if self.__raftState != _RAFT_STATE.CANDIDATE or message["asked"] != self.__raftCurrentTerm:
            return
        if message["granted"]:
            self._count_vote(node)
            return
        self._refusals.add(node)
        if not self._can_win():  # a split vote: ask again soon, at another moment
            self.__raftElectionDeadline = self.clock() + self.timing.lost_leader_jitter * (0.5 + 2 * self.dice())

    def _can_win(self) -> bool:
        """Enough voters are left that are connected and have not refused."""
        left = [node for node in self._other_voters() if self._nodes[node] in self.__connectedNodes]
        return len(self._votes.union(left, (self.id,)) - self._refusals) >= self.majority()

    def _count_vote(self, node: str) -> None:
        """Fault 28: votes are a set of voters, not a number of messages."""
        if node not in self.voters:
            return
        self._votes.add(node)
        if len(self._votes) >= self.majority():
            self._led_from = now = self.clock()
            self._progress = {peer: Progress(now) for peer in self._others}
            self._rounds.clear()
            self._round = 0
            self._transfer = None
            self.__onBecomeLeader()

    def _on_timeout_now(self, node: str, message: Message) -> None:
        leads = self.__raftLeader is not None and self.__raftLeader.id == node
        if leads and message["term"] == self.__raftCurrentTerm and self.may_lead and self.id in self.voters:
            self._campaign(transfer=True)

    def _follow(self, term: int, leader: str | None) -> None:
        """Become a follower in `term`. Durable with the next commit, before any answer leaves."""
        if term > self.__raftCurrentTerm:
            self.__setCurrentTerm(term, None)
        if self.__raftState != _RAFT_STATE.FOLLOWER:
            self.__raftElectionDeadline = self.clock() + self.__generateRaftTimeout()
        self.__setState(_RAFT_STATE.FOLLOWER)
        self._prevotes = None
        self._transfer = None
        self.__raftLeader = self._nodes[leader] if leader is not None else None

    def _heard(self) -> None:
        self._contact = self.clock()
        self.__raftElectionDeadline = self._contact + self.__generateRaftTimeout()

    # Messages

    def step(self, node: str, message: Message) -> None:
        """Take in one message. Unknown senders and types are ignored. Fault 16: messages are plain values."""
        handler = _HANDLERS.get(message["type"])
        if handler is None:
            return
        if node not in self._nodes:
            self._nodes[node] = Node(node)
        term = message["term"]
        asks_for_votes = message["type"] in ("prevote", "vote")
        if asks_for_votes and self.leader == node:
            self.__raftLeader = None  # it leads no more, whatever its bytes, this message's too, said of it
        if term > self.__raftCurrentTerm and not asks_for_votes:
            self._follow(term, None)
        handler(self, node, message)

    def __onMessageReceived(self, node: Node, message: Message) -> None:
        raise InvariantBroken("the stock message handler was reached")

    # Replication, leader

    def broadcast(self) -> None:
        """A new round to all followers: what they lack, or a heartbeat."""
        self.__sendAppendEntries()

    def __sendAppendEntries(self) -> None:
        """Faults 1, 18, 23, 24: pipelined, each entry sent once while its connection lives, whole, and never a
        snapshot piece. Followers at the same place share one message, which is encoded once."""
        now = self.clock()
        self._heartbeat_due = now + self.timing.heartbeat
        self._round += 1
        self._rounds.append(now)
        while len(self._rounds) > 8192:
            self._rounds.popleft()
        shared: dict[int, Message] = {}
        for node in self._others:
            if self._nodes[node] in self.__connectedNodes:
                self._send_append(node, shared)
        self._try_transfer()

    def _send_append(self, node: str, shared: dict[int, Message] | None = None) -> None:
        peer, progress = self._nodes[node], self._progress[node]
        # The log was cut below what it has, which may be more than it said in this term, or too far for it.
        next_index = self.__raftNextIndex[peer] = max(self.__raftNextIndex[peer], self.journal.first_index + 1)
        message = (shared or {}).get(next_index)
        if not self._may_send_entries(progress):
            message = self._append_message(next_index, 0)
        elif message is None:
            message = self._append_message(next_index, self.flow.append_bytes)
            if shared is not None:
                shared[next_index] = message
        self._post([node], message, held=False)
        entries = message["entries"]
        if entries or not progress.in_flight:
            progress.probe_prev = next_index - 1
        if entries:
            size = sum(len(entry[1]) for entry in entries)
            progress.in_flight.append((next_index + len(entries) - 1, size))
            progress.in_flight_bytes += size
            self.__raftNextIndex[peer] = next_index + len(entries)
            self._send_more(node, shared)

    def _send_more(self, node: str, shared: dict[int, Message] | None = None) -> None:
        """Entries that the follower has not been sent, if its window has room. Never an append that is empty: that
        would be answered, and the answer lead here again."""
        lacks = self.__raftNextIndex[self._nodes[node]] <= self.journal.last_index
        if lacks and self._may_send_entries(self._progress[node]):
            self._send_append(node, shared)

    def _may_send_entries(self, progress: Progress) -> bool:
        full = progress.in_flight_bytes >= self.flow.bytes or len(progress.in_flight) >= self.flow.entries
        return not (full or progress.lacks or (progress.probing and progress.in_flight))

    def _append_message(self, next_index: int, bytes_max: int) -> Message:
        journal = self.journal
        if next_index <= journal.first_index:
            raise InvariantBroken(
                f"a follower needs entry {next_index}, but the log begins at {journal.first_index}: it was cut too far"
            )
        entries = []
        if bytes_max and next_index <= journal.last_index:
            entries = [
                (term, command) for command, _, term in journal.entries(next_index, bytes_max, self.flow.entries)
            ]
        return {
            "type": "append",
            "term": self.__raftCurrentTerm,
            "round": self._round,
            "prev_index": next_index - 1,
            "prev_term": journal.term_at(next_index - 1),
            "commit": self.__raftCommitIndex,
            "compact": self.compactable,
            "entries": entries,
            **self.append_extra(),
        }

    def _on_append_answer(self, node: str, message: Message) -> None:
        """Fault 5: only answers of this term count. Check-quorum takes the time at which the round was sent."""
        if not self.is_leader or message["term"] != self.__raftCurrentTerm or node not in self._progress:
            return
        peer, progress = self._nodes[node], self._progress[node]
        progress.applied = message["applied"]
        sent = self._confirm(progress, message["round"])
        self.on_answer(node, message, sent)
        if message["ok"]:
            self._matched(peer, progress, message["match"])
        else:
            self._refused(peer, progress, message)

    def _matched(self, peer: Node, progress: Progress, match: int) -> None:
        progress.landed(match)
        progress.lacks = False
        if match > self.__raftMatchIndex[peer]:
            self.__raftMatchIndex[peer] = match
        # Fault 1: an earlier answer never moves the next index back.
        self.__raftNextIndex[peer] = max(self.__raftNextIndex[peer], match + 1)
        if progress.probing and not progress.in_flight:
            progress.probing = False
        self._send_more(peer.id)
        self._try_transfer()

    def _refused(self, peer: Node, progress: Progress, message: Message) -> None:
        """The follower's log does not hold what the append builds on: go back to where it may."""
        refused = message["prev_index"]
        if progress.probing and refused not in (progress.probe_prev, self.__raftNextIndex[peer] - 1):
            return  # sent before this probe
        progress.reset()
        wanted = min(refused, message["hint"] + 1)
        next_index = max(wanted, self.__raftMatchIndex[peer] + 1, self.journal.first_index + 1)
        self.__raftNextIndex[peer] = next_index
        if next_index <= refused:
            self._send_append(peer.id)
        else:  # nothing older is in the log; heartbeats go on to ask
            progress.lacks = True

    def _try_transfer(self) -> None:
        """Once all is committed, so that no client is left without an answer."""
        if self._transfer is None or not self.is_leader:
            return
        target = self._transfer[0]
        if self.match_index(target) == self.journal.last_index == self.__raftCommitIndex:
            self._post([target], {"type": "timeout_now", "term": self.__raftCurrentTerm}, held=False)

    # Reads and check-quorum

    def _on_echo(self, node: str, message: Message) -> None:
        """A follower whose commit takes long still follows in this term: that much it can say without promising."""
        if self.is_leader and message["term"] == self.__raftCurrentTerm and node in self._progress:
            self._confirm(self._progress[node], message["round"])

    def _confirm(self, progress: Progress, number: int) -> float | None:
        """The follower has echoed round `number`; when that was sent, None if that is too long ago to be known."""
        sent = self._round_sent(number)
        if sent is not None and number > progress.round:
            progress.round, progress.confirmed = number, max(progress.confirmed, sent)
        return sent

    def _round_sent(self, number: int) -> float | None:
        place = number - 1 - (self._round - len(self._rounds))
        return self._rounds[place] if 0 <= place < len(self._rounds) else None

    def _quorum_confirmed(self, now: float) -> float:
        """When the latest round left that a majority, this node included, has echoed."""
        progress = self._progress
        times = [now if voter == self.id else progress[voter].confirmed for voter in self.voters]
        return sorted(times, reverse=True)[self.majority() - 1]

    def confirmed_round(self) -> int:
        """The latest round that a majority, this node included, has echoed: reads begun before it are linearizable."""
        progress = self._progress
        rounds = [self._round if voter == self.id else progress[voter].round for voter in self.voters]
        return sorted(rounds, reverse=True)[self.majority() - 1]

    # Replication, follower

    def _on_append(self, node: str, message: Message) -> None:
        """Faults 2, 3: truncate on a conflict only, and commit no further than this leader's log was verified."""
        if message["term"] < self.__raftCurrentTerm:
            self._answer_append(node, message, ok=False, match=0, hint=self.journal.last_index)
            return
        if self.is_leader:
            raise InvariantBroken(f"{node} claims to lead term {message['term']}, which this node leads")
        self._follow(message["term"], node)
        self._heard()
        self.compactable = max(self.compactable, message["compact"])
        self.on_append(node, message)
        prev_index, entries = message["prev_index"], message["entries"]
        if not self._matches(prev_index, message["prev_term"]):
            self._answer_append(node, message, ok=False, match=0, hint=self._hint(prev_index))
            return
        self._take_entries(prev_index + 1, entries)
        verified = prev_index + len(entries)
        commit = min(message["commit"], verified)
        if commit > self.__raftCommitIndex:
            self.__raftCommitIndex = commit
        self._answer_append(node, message, ok=True, match=verified, hint=0)

    def _matches(self, index: int, term: int) -> bool:
        if index <= self.__raftCommitIndex:
            return True  # committed here, so every leader of a later term holds the same entry
        return bool(self.journal.term_at(index) == term)

    def _hint(self, prev_index: int) -> int:
        """Where to go on after a mismatch: this log's end, or before the term that conflicts."""
        journal = self.journal
        if prev_index > journal.last_index:
            return journal.last_index
        conflicting, index = journal.term_at(prev_index), prev_index
        while index > self.__raftCommitIndex + 1 and journal.term_at(index - 1) == conflicting:
            index -= 1
        return max(index - 1, self.__raftCommitIndex)

    def _take_entries(self, index: int, entries: Sequence[Sequence[Any]]) -> None:
        journal = self.journal
        before = self.configuration
        for term, command in entries:
            if index <= journal.last_index:
                if index <= self.__raftCommitIndex or journal.term_at(index) == term:
                    index += 1
                    continue
                journal.deleteEntriesFrom(index - journal.first_index)
                self.memberships.truncate(index)
            journal.add(command, index, term)
            if command[:1] == CONFIGURATION:
                self.memberships.note(index, membership.decode(memoryview(command)[1:]))
            index += 1
        if self.configuration is not before:  # another one may stand at the same index
            self._reconfigure()

    def _answer_append(self, node: str, message: Message, *, ok: bool, match: int, hint: int) -> None:
        answer = {
            "type": "append_answer",
            "term": self.__raftCurrentTerm,
            "round": message["round"],
            "ok": ok,
            "match": match,
            "prev_index": message["prev_index"],
            "hint": hint,
            "applied": self.__raftLastApplied,
            **self.answer_extra(),
        }
        if ok and self.held and self._supersedes(self.held[-1], node, answer):
            self.held[-1] = ([node], answer)
        else:
            self._post([node], answer, held=True)

    @staticmethod
    def _supersedes(last: tuple[list[str], Message], node: str, answer: Message) -> bool:
        """An answer that says all that the last one said, and more."""
        nodes, held = last
        return (
            nodes == [node]
            and held["type"] == "append_answer"
            and held["ok"]
            and held["term"] == answer["term"]
            and held["match"] <= answer["match"]
        )

    # Outputs

    def _other_voters(self) -> list[str]:
        return [node for node in self.voters if node != self.id]

    def _post(self, nodes: list[str], message: Message, *, held: bool) -> None:
        queue = self.held if held else self.outbox
        if queue and queue[-1][1] is message:
            queue[-1][0].extend(nodes)
        elif nodes:
            queue.append((nodes, message))

    # Stock paths that are closed: whatever reaches them is a mistake of ours

    def _onTick(self, timeToWait: float = 0.0) -> None:
        raise InvariantBroken("the stock tick was reached")

    def _checkCommandsToApply(self) -> None:
        raise InvariantBroken("the stock proposal queue was reached")

    def __applyLogEntries(self) -> None:
        raise InvariantBroken("the stock apply loop was reached")

    def __doApplyCommand(self, command: bytes) -> None:
        raise InvariantBroken("the stock apply was reached, which unpickles")

    def __tryLogCompaction(self) -> None:
        raise InvariantBroken("the stock compaction was reached")


_HANDLERS: dict[str, Callable[[SyncObj, str, Message], None]] = {
    "append": SyncObj._on_append,
    "append_answer": SyncObj._on_append_answer,
    "prevote": SyncObj._on_prevote,
    "prevote_answer": SyncObj._on_prevote_answer,
    "vote": SyncObj._on_vote,
    "vote_answer": SyncObj._on_vote_answer,
    "timeout_now": SyncObj._on_timeout_now,
    "echo": SyncObj._on_echo,
}
