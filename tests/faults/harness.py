"""A cluster in one process whose messages, clock and dice are in the test's hands, of stock pysyncobj or of ours.

Both kinds of node take the same orders, so that one scenario function shows a fault on the stock class and its absence
on ours. The stock class is not changed in any way: it is given a transport, a clock and a random source. Messages wait
in one first-in, first-out line per direction, as on TCP, until the test delivers, loses or repeats them.
"""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pysyncobj
from pysyncobj.node import Node as StockId
from pysyncobj.syncobj import _COMMAND_TYPE
from pysyncobj.transport import Transport

from raftq.replication.engine import REGULAR, Flow
from raftq.replication.membership import bootstrap
from tests.replication.network import Member

Message = dict[str, Any]

#: Longer than any election timeout of either kind, shorter than the 30 s after which a stock leader gives up.
ELECTION_SECONDS = 2.0
#: Longer than the period of appends that both kinds are given here.
STEP_SECONDS = 0.05


class Told(list[Any]):
    """What the client of one proposal was told, in order: "ok" or a reason. Empty: it still waits."""


class Register(pysyncobj.SyncObj):
    """The stock class, as its documentation uses it. `applied` is given from outside: a durable state machine; `state`
    is one in memory, which is in its dumps."""

    def __init__(self, *args: Any, applied: list[str], **options: Any) -> None:
        self.applied = applied
        super().__init__(*args, **options)
        self.state: list[str] = []

    @pysyncobj.replicated
    def put(self, value: str) -> int:
        self.state.append(value)
        self.applied.append(value)
        return len(self.applied)


class Held(Transport):
    """A transport that hands each message to the test."""

    def __init__(self, post: Callable[[str, Message], bool]) -> None:
        super().__init__(None, None, [])
        self._post = post

    def send(self, node: StockId, message: Message) -> bool:
        return self._post(node.id, message)


class Stock:
    """What a node of either kind can be told and asked: see `Ours` for the same of our engine."""

    def __init__(self, cluster: Cluster, name: str, folder: Path, **options: Any) -> None:
        self._cluster, self._name = cluster, name
        self._options = {"autoTick": False, "appendEntriesPeriod": 0.04, "useFork": False} | options
        if self._options.pop("durable", False):
            self._options["journalFile"] = str(folder / name)
        if self._options.pop("dumps", False):
            self._options["fullDumpFile"] = str(folder / f"{name}.dump")
        self.applied: list[str] = []
        self.start()

    def start(self) -> None:
        self.transport = Held(lambda target, message: self._cluster.post(self._name, target, message))
        others = [StockId(other) for other in self._cluster.names if other != self._name]
        conf = pysyncobj.SyncObjConf(**self._options)
        self.object = Register(StockId(self._name), others, conf, transport=self.transport, applied=self.applied)

    def crash(self) -> None:
        self.object.destroy()

    def tick(self) -> None:
        self.object.doTick()

    def receive(self, source: str, message: Message) -> None:
        self.transport._onMessageReceived(StockId(source), message)

    def connected(self, other: str) -> None:
        self.transport._onNodeConnected(StockId(other))

    def disconnected(self, other: str) -> None:
        self.transport._onNodeDisconnected(StockId(other))

    def propose(self, value: str) -> Told:
        told = Told()
        self.object.put(value, callback=lambda _result, reason: told.append("ok" if reason == 0 else reason))
        self.tick()
        return told

    def compact(self) -> None:
        """Dump the state, and cut the log below it."""
        self.object.forceLogCompaction()
        self.tick()
        self.tick()

    def add(self, name: str) -> Told:
        return self._change(self.object.addNodeToCluster, name)

    def remove(self, name: str) -> Told:
        return self._change(self.object.removeNodeFromCluster, name)

    def _change(self, change: Callable[..., None], name: str) -> Told:
        told = Told()
        change(StockId(name), callback=lambda _result, reason: told.append("ok" if reason == 0 else reason))
        self.tick()
        return told

    @property
    def others(self) -> set[str]:
        """Whom it takes for the other voters."""
        return {node.id for node in self.object.otherNodes}

    def log(self) -> dict[int, str | None]:
        """Index to value; None for an entry of Raft's own."""
        return {index: _stock_value(command) for command, index, _ in self.object._SyncObj__raftLog[:]}

    @property
    def leads(self) -> bool:
        return bool(self.object._isLeader())

    @property
    def term(self) -> int:
        return int(self.object.raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self.object.raftCommitIndex)


class Ours:
    """The engine over a real journal and environment, driven as the cycle drives it."""

    def __init__(
        self, cluster: Cluster, name: str, folder: Path, *, append_bytes: int = 1 << 20, lag_bytes: int = 1 << 30
    ) -> None:
        self._cluster, self._name = cluster, name
        self._flow = Flow(append_bytes=append_bytes, lag_bytes=lag_bytes)
        self._member = Member(name, cluster.names, folder / name, cluster.clock, cluster.dice)
        self._pending: list[tuple[int, int, Told]] = []
        self._forget()

    @property
    def engine(self) -> Any:
        return self._member.engine

    def start(self) -> None:
        self._member.start()
        self._forget()

    def _forget(self) -> None:
        self._pending.clear()
        self.engine.flow = self._flow

    def crash(self) -> None:
        self._member.crash()

    def tick(self) -> None:
        self.engine.tick()
        self._cycle()

    def receive(self, source: str, message: Message) -> None:
        self.engine.step(source, message)
        self._cycle()

    def connected(self, other: str) -> None:
        self.engine.connected(other)
        self._cycle()

    def disconnected(self, other: str) -> None:
        self.engine.disconnected(other)
        self._cycle()

    def propose(self, value: str) -> Told:
        told = Told()
        index = self.engine.propose(REGULAR + value.encode())
        self._pending.append((index, self.engine.term, told))
        self.engine.broadcast()
        self._cycle()
        return told

    def compact(self) -> None:
        """Cut the log as the cycle does."""
        self._member.commit()
        self.engine.advance()
        self._member.journal.compact_below(min(self.engine.compactable, self._member.environment.applied()))
        self._member.commit()

    def install_from(self, other: Ours) -> bool:
        """Take the place in the log that `other` has applied; False when it is needless."""
        installed = self._member.install(other._member.snapshot())
        self._cycle()
        return installed

    def remove(self, name: str) -> Told:
        return self._change(*(set(self.others) - {name}))

    def add(self, name: str) -> Told:
        return self._change(*self.others, name)

    def _change(self, *others: str) -> Told:
        told = Told()
        index = self.engine.change(bootstrap(dict.fromkeys([self._name, *others], "")))
        self._pending.append((index, self.engine.term, told))
        self.engine.broadcast()
        self._cycle()
        return told

    @property
    def others(self) -> set[str]:
        return set(self.engine.voters) - {self._name}

    def log(self) -> dict[int, str | None]:
        return {index: _our_value(command) for command, index, _ in self._member.journal[:]}

    @property
    def applied(self) -> list[str]:
        return [command[1:].decode() for _, command in self._member.applied]

    @property
    def leads(self) -> bool:
        return bool(self.engine.is_leader)

    @property
    def term(self) -> int:
        return int(self.engine.term)

    @property
    def commit_index(self) -> int:
        return int(self.engine.commit_index)

    def _cycle(self) -> None:
        self.engine.advance()
        self._apply()
        self._post(self.engine.outbox)
        if self._member.journal.dirty:
            self._member.commit()
            self._apply()
        self._post(self.engine.held)
        self._post(self.engine.outbox)

    def _apply(self) -> None:
        self._member.apply()
        for index, term, told in self._pending:
            if not told and index <= self.engine.applied_index:
                told.append("ok" if self._member.journal.term_at(index) == term else "lost")

    def _post(self, queue: list[tuple[list[str], Message]]) -> None:
        for targets, message in queue:
            for target in targets:
                self._cluster.post(self._name, target, message)
        queue.clear()


class Cluster:
    """Nodes named a, b, c, ... all connected, at second 1000."""

    def __init__(self, kind: type[Stock] | type[Ours], size: int, folder: Path, **options: Any) -> None:
        self.now = 1000.0
        self.names = list("abcdefg"[:size])
        self._lines: dict[tuple[str, str], deque[Message]] = {
            (source, target): deque() for source in self.names for target in self.names if source != target
        }
        self._cut: set[tuple[str, str]] = set()
        self._down: set[str] = set()
        #: Everything that was ever posted.
        self.history: list[tuple[str, str, Message]] = []
        self.nodes: dict[str, Any] = {}
        self.nodes |= {name: kind(self, name, folder, **options) for name in self.names}
        for source, target in self._lines:
            self[source].connected(target)

    def __getitem__(self, name: str) -> Any:
        return self.nodes[name]

    def clock(self) -> float:
        return self.now

    def dice(self) -> float:
        return 0.5

    def close(self) -> None:
        for name in set(self.names) - self._down:
            self[name].crash()

    # Messages

    def post(self, source: str, target: str, message: Message) -> bool:
        if (source, target) in self._cut or {source, target} & self._down:
            return False
        message = copy.deepcopy(message)
        self.history.append((source, target, message))
        self._lines[source, target].append(message)
        return True

    def waiting(self, source: str, target: str) -> list[Message]:
        return list(self._lines[source, target])

    def lose(self, source: str, target: str) -> list[Message]:
        """Take what waits off the line, undelivered."""
        lost = self.waiting(source, target)
        self._lines[source, target].clear()
        return lost

    def deliver(self, source: str, target: str, count: int | None = None) -> None:
        """The next `count` messages, or all that wait now."""
        line = self._lines[source, target]
        for _ in range(len(line) if count is None else min(count, len(line))):
            self[target].receive(source, line.popleft())

    def inject(self, source: str, target: str, message: Message) -> None:
        """Deliver a message that was posted before, once more or late."""
        self[target].receive(source, copy.deepcopy(message))

    def exchange(self, *names: str) -> None:
        """Deliver among `names` until all is quiet."""
        lines = [(source, target) for source, target in self._lines if source in names and target in names]
        while any(self._lines[line] for line in lines):
            for line in lines:
                self.deliver(*line)

    # Nodes and connections

    def cut(self, one: str, *others: str) -> None:
        """The connections between `one` and `others` break, with all that is on them."""
        for pair in _pairs(one, others):
            if pair not in self._cut:
                self._cut.add(pair)
                self._lines[pair].clear()
                self[pair[0]].disconnected(pair[1])

    def heal(self, one: str, *others: str) -> None:
        for pair in _pairs(one, others):
            if pair in self._cut:
                self._cut.discard(pair)
                self[pair[0]].connected(pair[1])

    def crash(self, name: str) -> None:
        """kill -9: what the node had sent, and not delivered, is lost with it."""
        self._down.add(name)
        for other in self.names:
            if other != name:
                self.lose(name, other)
                self.lose(other, name)
                if other not in self._down:
                    self[other].disconnected(name)
        self[name].crash()

    def restart(self, name: str) -> None:
        self._down.discard(name)
        self[name].start()
        for source, target in _pairs(name, [other for other in self.names if other != name]):
            if not {source, target} & self._down and (source, target) not in self._cut:
                self[source].connected(target)

    # Time

    def step(self, *names: str, seconds: float = STEP_SECONDS) -> None:
        """Let time pass, and `names` notice it."""
        self.now += seconds
        for name in names:
            self[name].tick()

    def campaign(self, name: str) -> None:
        """`name` alone times out, and asks for votes; nobody has heard it yet."""
        self.step(name, seconds=ELECTION_SECONDS)
        others = [other for other in self.names if other != name and other not in self._down]
        while not any(asks_for_vote(message) for other in others for message in self.waiting(name, other)):
            for other in others:  # pre-votes
                self.deliver(name, other)
            for other in others:
                self.deliver(other, name)
            assert any(self.waiting(name, other) for other in others), f"{name} does not campaign"

    def elect(self, name: str, *voters: str) -> None:
        """`name` leads by the votes of `voters`, who then have and confirm its first entry."""
        self.step(name, seconds=ELECTION_SECONDS)
        self.exchange(name, *voters)
        assert self[name].leads, f"{name} was not elected"
        self.step(name)
        self.exchange(name, *voters)

    def write(self, name: str, value: str) -> Told:
        """A client's write: it is in the leader's log, and on its way to the followers."""
        told: Told = self[name].propose(value)
        self.step(name)
        return told


def asks_for_vote(message: Message) -> bool:
    return message["type"] in ("request_vote", "vote")


def entry_indexes(message: Message) -> list[int]:
    """The entries that an append carries."""
    if message["type"] == "append_entries":
        return [index for _, index, _ in message.get("entries", [])]
    if message["type"] == "append":
        return [message["prev_index"] + 1 + place for place in range(len(message["entries"]))]
    return []


def _stock_value(command: bytes) -> str | None:
    if command[0] != _COMMAND_TYPE.REGULAR:
        return None
    value: str = pickle.loads(command[1:])[1][0]
    return value


def _our_value(command: bytes) -> str | None:
    return command[1:].decode() if command[:1] == REGULAR else None


def _pairs(one: str, others: Iterable[str]) -> list[tuple[str, str]]:
    return [pair for other in others for pair in ((one, other), (other, one))]
