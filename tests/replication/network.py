"""A few engines with real journals on real environments, a network in the test's hands, and a clock that only it moves.

What a node of the real cycle does is done here step by step: messages are stepped, the outbox leaves at once, the
journal is committed, and only then what was held leaves and the node counts itself. Each commit may be made to wait,
and a node may crash before or after it. Nodes may be added, and the members changed to whatever a test wants. A
snapshot is a place in the log and the configuration there; a test installs it when it likes.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import msgspec

from raftq.replication import membership
from raftq.replication.engine import CONFIGURATION, NO_OP, SyncObj
from raftq.replication.journal import Journal
from raftq.replication.membership import Configuration
from raftq.replication.progress import Flow, Timing
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.writer import Writer

Message = dict[str, Any]


#: Of the configuration at the applied index, in meta.
MEMBERSHIP = "membership"


class Snapshot(NamedTuple):
    index: int
    term: int
    base: tuple[int, Configuration]


class Member:
    """`names`: of the nodes that the cluster begins with; none for one that waits to be added."""

    def __init__(
        self, name: str, names: list[str], folder: Path, clock: Any, dice: Any, flow: Flow | None = None
    ) -> None:
        self.name, self.names, self.folder = name, names, folder
        self._clock, self._dice, self._flow = clock, dice, flow
        self.applied: list[tuple[int, bytes]] = []
        self.up = False
        self.start()

    def start(self) -> None:
        self.environment = Environment(self.folder, map_bytes=1 << 28)
        self.writer = Writer(self.environment)
        self.journal = Journal(self.environment)
        self.engine = SyncObj(
            self.name,
            self.base(),
            self.journal,
            applied=self.journal.getRaftCommitIndex(),
            clock=self._clock,
            dice=self._dice,
            timing=Timing(),
            flow=self._flow,
        )
        self.up = True

    def base(self) -> tuple[int, Configuration]:
        """The configuration at the durable applied index."""
        stored = self.environment.meta(MEMBERSHIP)
        return membership.base_of(stored) if stored else (0, membership.bootstrap(dict.fromkeys(self.names, "")))

    def crash(self) -> None:
        self.writer.close()
        self.environment.close()
        self.up = False

    def commit(self) -> None:
        """Write all that is dirty, durably."""
        batch = WriteBatch()
        self.journal.collect(batch)
        batch.meta["applied"] = u64(self.engine.applied_index)
        if self.engine.memberships.dirty:
            batch.meta[MEMBERSHIP] = self.engine.memberships.encode()
        failures: SimpleQueue[BaseException | None] = SimpleQueue()
        self.writer.commit(batch, failures.put)
        assert failures.get() is None
        self.journal.landed()
        self.engine.durable()

    def apply(self) -> None:
        engine = self.engine
        while engine.applied_index < engine.commit_index:
            command, index, _ = self.journal.entries(engine.applied_index + 1, 0, 1)[0]
            if command[:1] not in (NO_OP, CONFIGURATION):
                self.applied = [item for item in self.applied if item[0] < index] + [(index, command)]
            engine.applied(index)

    def snapshot(self) -> Snapshot:
        """Of what is applied durably."""
        index = self.environment.applied()
        term = self.journal.term_at(index)
        assert term is not None
        return Snapshot(index, term, self.base())

    def install(self, snapshot: Snapshot) -> bool:
        """As the cycle does, between two commits; False when it is needless."""
        index, term, base = snapshot
        if index <= self.engine.commit_index or self.journal.term_at(index) == term:
            return False
        assert not self.journal.dirty
        self.writer.close()
        named = {"applied": u64(index), MEMBERSHIP: msgspec.msgpack.encode(base)}
        Environment(self.environment.incoming, map_bytes=1 << 28).close()
        self.environment.install(self.environment.incoming, self.environment.metas() | named, (index, term))
        self.writer, self.journal = Writer(self.environment), Journal(self.environment)
        self.engine.installed(self.journal, index, base)
        return True


class Network:
    """`seed` decides timeouts and, in tests of random faults, everything else."""

    def __init__(self, folder: Path, size: int = 3, seed: int = 1, flow: Flow | None = None) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.folder, self._flow = folder, flow
        self.names = [f"n{number}" for number in range(1, size + 1)]
        self.members = {name: self._member(name, list(self.names)) for name in self.names}
        self.wire: list[tuple[str, str, Message]] = []
        self.cut: set[tuple[str, str]] = set()
        self.linked: set[tuple[str, str]] = set()
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.leaders: dict[int, str] = {}
        #: (voter, term) -> whom it told that it has its vote.
        self.votes: dict[tuple[str, int], str] = {}
        #: Stopped as by SIGSTOP: nothing is stepped, and what is sent to them waits.
        self.paused: set[str] = set()
        for source in self.names:
            for target in self.names:
                self.link(source, target)

    def _member(self, name: str, names: list[str]) -> Member:
        return Member(name, names, self.folder / name, lambda: self.now, self.random.random, self._flow)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def add(self, name: str) -> None:
        """An empty node that waits to be added to the members. It is connected with all."""
        self.members[name] = self._member(name, [])
        self.names.append(name)
        for other in self.names:
            self.link(other, name)
            self.link(name, other)

    def change(self, name: str, configuration: Configuration) -> int:
        index = self[name].engine.change(configuration)
        self[name].engine.broadcast()
        return index

    def close(self) -> None:
        for member in self.members.values():
            if member.up:
                member.crash()
            shutil.rmtree(member.folder)

    def link(self, source: str, target: str) -> None:
        known = source == target or (source, target) in self.linked | self.cut
        if not known and self[source].up and self[target].up:
            self.linked.add((source, target))
            self[source].engine.connected(target)

    def unlink(self, source: str, target: str) -> None:
        """The connection breaks, and what is on it is lost."""
        if (source, target) in self.linked:
            self.linked.discard((source, target))
            self.wire = [item for item in self.wire if item[:2] != (source, target)]
            if self[source].up:
                self[source].engine.disconnected(target)

    def crash(self, name: str) -> None:
        self.paused.discard(name)
        self[name].crash()
        for other in self.names:
            self.unlink(other, name)
            self.unlink(name, other)

    def restart(self, name: str) -> None:
        self[name].start()
        for other in self.names:
            self.link(other, name)
            self.link(name, other)

    def isolate(self, name: str) -> None:
        for other in self.names:
            self.cut |= {(name, other), (other, name)}
            self.unlink(name, other)
            self.unlink(other, name)

    def heal(self) -> None:
        self.cut.clear()
        for source in self.names:
            for target in self.names:
                self.link(source, target)

    def post(self, queue: list[tuple[list[str], Message]], source: str) -> None:
        for nodes, message in queue:
            for node in nodes:
                self.check_promise(source, node, message)
            self.wire += [(source, node, message) for node in nodes if (source, node) in self.linked]
        queue.clear()

    def check_promise(self, source: str, target: str, message: Message) -> None:
        """What leaves a node is durable there, and one vote a term is all that it ever gives."""
        engine, journal = self[source].engine, self[source].journal
        kind, now = message["type"], message["term"] == engine.term
        if kind in ("vote", "vote_answer", "append_answer"):
            durable = Environment.meta(self[source].environment, "term") or u64(0)
            assert message["term"] <= int.from_bytes(durable, "big") or message["term"] == 0, f"{source}: {message}"
        if kind == "vote_answer" and message["granted"]:
            assert self.votes.setdefault((source, message["asked"]), target) == target, f"{source} voted twice"
        if kind == "vote":
            assert self.votes.setdefault((source, message["term"]), source) == source, f"{source} voted twice"
        if kind == "append_answer" and message["ok"] and now:
            assert message["match"] <= journal.durable_index, f"{source} told what is not durable: {message}"

    def cycle(self, name: str, *, commit: bool = True) -> None:
        """One cycle of a member after it was stepped."""
        member = self[name]
        member.engine.advance()
        member.apply()
        self.post(member.engine.outbox, name)
        if commit:
            if member.journal.dirty:
                member.commit()
            self.post(member.engine.held, name)
            self.post(member.engine.outbox, name)
        self.check(name)

    def deliver(self, place: int = 0, *, commit: bool = True) -> None:
        source, target, message = self.wire.pop(place)
        if self[target].up:
            self[target].engine.contact(source)
            self[target].engine.step(source, message)
            self.cycle(target, commit=commit)

    def tick(self, seconds: float = 0.01, names: list[str] | None = None) -> None:
        self.now += seconds
        for name in names or self.names:
            if self[name].up and name not in self.paused:
                self[name].engine.tick()
                self.cycle(name)

    def settle(self, seconds: float = 2.0) -> None:
        """Let time pass with every message delivered in order."""
        end = self.now + seconds
        while self.now < end:
            self.tick()
            while self.wire:
                self.deliver()

    @property
    def leader(self) -> str:
        """The one leader of the highest term."""
        leaders = [member for member in self.members.values() if member.up and member.engine.is_leader]
        return max(leaders, key=lambda member: member.engine.term).name

    def propose(self, name: str, payload: bytes) -> int:
        index = self[name].engine.propose(b"\0" + payload)
        self[name].engine.broadcast()
        return index

    def check(self, name: str) -> None:
        """Election safety, state machine safety, and what is committed never changes."""
        engine, journal = self[name].engine, self[name].journal
        if engine.is_leader:
            if engine.term not in self.leaders:
                self.check_complete(name)
            assert self.leaders.setdefault(engine.term, name) == name, f"two leaders in term {engine.term}"
        for index in range(max(journal.first_index, engine.commit_index - 20), engine.commit_index + 1):
            command, _, term = journal.entries(index, 0, 1)[0]
            if index == journal.first_index > 1:  # it may stand for what a snapshot replaced
                assert self.committed.get(index, (term, b""))[0] == term, f"{name} begins after another entry {index}"
                continue
            known = self.committed.setdefault(index, (term, command))
            assert known == (term, command), f"{name} committed another entry at {index}"

    def check_complete(self, name: str) -> None:
        """Leader completeness: a new leader has all that any node knows to be committed."""
        journal = self[name].journal
        for index, (term, _) in self.committed.items():
            if index >= journal.first_index:
                assert journal.term_at(index) == term, f"{name} leads without the committed entry {index}"

    def compact(self, name: str) -> None:
        """Cut the log as the cycle does."""
        member = self[name]
        member.journal.compact_below(min(member.engine.compactable, member.environment.applied()))
