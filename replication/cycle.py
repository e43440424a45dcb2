"""The loop of one shard: what arrives, is applied, is proposed, is sent, is made durable, is answered, in this order.

A cycle (`_run`) takes in what peers sent and steps Raft, applies what is committed into the overlay, makes one entry
of all that clients proposed meanwhile, sends, and hands ONE write transaction to the writer's thread. Only when that is
on disk (`_landed`) do answers and votes leave, and does the leader count itself. Raft is never stepped while a commit
runs.

Invariant: a crash between any two steps leaves an environment from which the node goes on, with nothing lost and
nothing applied twice. A failed commit or a broken invariant ends the process: memory would be ahead of the disk.
After the Ready loop of etcd's raft and RabbitMQ's `ra`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from raftq.replication import membership
from raftq.replication.changes import Changes
from raftq.replication.clock import ClusterClock
from raftq.replication.digests import Digests
from raftq.replication.engine import CONFIGURATION, NO_OP, REGULAR, Message, SyncObj
from raftq.replication.health import Health
from raftq.replication.journal import Journal
from raftq.replication.membership import Configuration
from raftq.replication.pending import Proposals, Reads
from raftq.replication.roster import FOR_EVER, Roster
from raftq.replication.roster import META as ROSTER
from raftq.replication.shard import (
    ChangeRefused,
    Committed,
    Fenced,
    NotLeader,
    OutcomeUnknown,
    Peer,
    Status,
    Stopping,
)
from raftq.replication.shard_config import ShardConfig
from raftq.replication.stages import Stages
from raftq.replication.ticks import Ticker
from raftq.replication.transfer import Receiver, Sender
from raftq.replication.wire import PROTOCOL, Hello, Refusal
from raftq.replication.world import REAL, World
from raftq.storage.environment import Environment, WriteBatch
from raftq.storage.machine import commands, entries
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.commands import Command, Expire, SetVersion, TakeDigest, Tick, UnknownCommand
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Effect, Expired, Leased, Reply
from raftq.storage.machine.views import View
from raftq.storage.overlay import Overlay
from raftq.storage.snapshot import SnapshotHead

_log = structlog.get_logger("raftq.shard")

_U64 = struct.Struct(">Q")
CLOCKS = struct.Struct(">QQ")
_EXPIRE = commands.encode(Expire())
#: Names in the environment's meta table.
MEMBERSHIP, FENCED = "membership", "fenced"
#: What is counted for the one who says it.
_COUNTED = ("append_answer", "echo", "prevote_answer", "vote_answer")


class RaftShard:
    """Implements `replication.shard.Shard`. `on_effects` is called on the leader after each cycle that had any;
    `on_role` with (role, leader, term) when one of them changed; `on_fatal` once, with what ends the process."""

    def __init__(
        self,
        config: ShardConfig,
        environment: Environment,
        *,
        on_effects: Callable[[list[Effect]], None] = lambda _effects: None,
        on_role: Callable[[str, str | None, int], None] = lambda _role, _leader, _term: None,
        on_fatal: Callable[[BaseException], None] = lambda _error: None,
        world: World = REAL,
    ) -> None:
        """Raises Fenced when this folder may not take part any more."""
        if fenced := environment.meta(FENCED):
            raise Fenced(fenced.decode())
        self.config, self.environment = config, environment
        self._on_effects, self._on_role, self._on_fatal = on_effects, on_role, on_fatal
        self._world, self._monotonic = world, world.monotonic
        self._read_environment()
        applied = self._applied_durable
        self._engine = SyncObj(
            config.node_id,
            _base(config, environment),
            self._journal,
            applied=applied,
            clock=world.monotonic,
            dice=world.dice,
            timing=config.timing,
            flow=config.flow,
        )
        self._engine.append_extra = self._append_extra
        self._engine.on_append = self._on_append
        self._engine.on_answer = self._on_answer
        self._clock = ClusterClock(world.monotonic, world.wall)
        self._health = Health(config, environment, self._clock, world.monotonic)
        self._engine.answer_extra = self._health.of_answer
        self._roster = Roster(config.cluster_id, environment.meta(ROSTER), self._membership)
        self._peers = world.peers(
            self._hello,
            config.peer_listen,
            on_message=self._on_message,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            on_bytes=self._engine.contact,
            on_refused=self._on_refused,
            admit=self._admit,
            security=config.peer_security,
        )
        #: As last acted on, and whether it was committed.
        self._met = self._membership()[1:]
        #: Now or before; a folder that waits to be added was not.
        self._was_member = not config.join or any(map(self._uuid_in, self._engine.memberships.all()))
        self._peers.set_members(self._addresses())
        self._changes = Changes(self._engine, self._uuid_of)
        self._fence: str | None = None
        self._digests = Digests(environment, config.node_id)
        self._sender = Sender(
            environment,
            config.cluster_id,
            self._peers.send,
            term=lambda: self._engine.term,
            on_failure=self._fatal,
            queued_bytes=lambda node: self._peers.queued_bytes(node, bulk=True),
            reserve_bytes=config.disk_reserve_bytes,
            chunk_bytes=config.chunk_bytes,
        )
        self._receiver = Receiver(
            environment,
            config.cluster_id,
            self._peers.send,
            term=lambda: self._engine.term,
            needless=self._has,
            on_ready=self._schedule,
            on_failure=self._fatal,
            reserve_bytes=config.disk_reserve_bytes,
            chunk_bytes=config.chunk_bytes,
        )
        self._inbox: list[tuple[str, Message]] = []
        self.stages = Stages()
        self._proposals = Proposals(config, world.monotonic, self.stages)
        self._reads = Reads()
        self._seen: tuple[str, str | None, int] = ("follower", None, 0)
        self._leading_term: int | None = None
        self._expiring = False
        self._expire_from = self._members_from = 0.0
        self._schedules = Ticker(world.monotonic)
        self._scheduled = False
        #: Since when a commit runs, or a snapshot is being installed.
        self._committing: float | None = None
        self._installing: asyncio.Task[None] | None = None
        self.snapshots_installed = 0
        self._sent = False
        self._stopping = False
        self._closed = False
        #: Once a second: what peers have acknowledged is written with the next batch.
        self._keep_roster = False
        self._ticked = 0.0

    def _read_environment(self) -> None:
        """All that memory holds of what is on disk."""
        environment = self.environment
        self.writer = self._world.writer(environment)
        self._overlay = Overlay(environment)
        self._machine = Machine(self._overlay, self.config.machine_version)
        self._journal = Journal(environment, tail_bytes=self.config.tail_bytes)
        self._applied_durable = self._journal.getRaftCommitIndex()
        #: Clocks of the last applied entry.
        self._clocks = Clocks(*CLOCKS.unpack(environment.meta("clocks") or bytes(CLOCKS.size)))
        #: Since when something is applied that is not on disk.
        self._rode_since: float | None = None

    # Life

    async def start(self) -> None:
        """Listen to peers and begin. Raises OSError when the peer address is taken."""
        self._loop = asyncio.get_running_loop()
        await self._peers.start()
        self._ticked = self._monotonic()
        self._ticker = self._loop.call_later(self.config.tick, self._tick)
        self._schedule()

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse what is new, answer what is in flight, hand leadership over, write what rides, and close."""
        self._stopping = True
        self._engine.may_lead = False
        deadline = self._monotonic() + grace
        while not self._proposals.idle and not self._closed and self._monotonic() < deadline:
            await asyncio.sleep(0.005)
        await self._hand_over(within=1.0)
        deadline = self._monotonic() + 1.0  # under load it never rests; what is not written can be applied again
        while (self._committing is not None or self._overlay.pending_bytes) and not self._closed:
            if self._monotonic() > deadline:
                break
            self._rode_since = float("-inf")
            self._schedule()
            await asyncio.sleep(0.002)
        await self.close()

    async def _hand_over(self, within: float) -> None:
        """Give leadership to a follower, if one is there to take it; when all nodes stop at once, none is."""
        engine = self._engine
        deadline = self._monotonic() + within
        while engine.is_leader and not self._closed and self._monotonic() < deadline:
            target = engine.most_advanced()
            if target is None:
                return
            if not engine.transferring:
                engine.transfer(target)
                self._schedule()
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End at once, as a crash would, but for sockets and threads. What is pending ends as unknown."""
        if not self._closed:
            self._closed = True
            self._ticker.cancel()
            self._deposed()
        await self._peers.close()
        await self._digests.settled()
        await self._sender.interrupt()
        await self._receiver.interrupt()
        if self._installing is not None:
            await asyncio.gather(self._installing, return_exceptions=True)
        await self._loop.run_in_executor(None, self.writer.close)
        self._overlay.close()

    # What the shard shows

    def propose(self, command: bytes) -> asyncio.Future[Committed]:
        self._check_leading()
        self._proposals.check_room(len(command))
        if commands.grows(command):
            self._health.check_disks()
        future: asyncio.Future[Committed] = self._loop.create_future()
        self._proposals.add(command, future)
        self._schedule()
        return future

    def read(self) -> asyncio.Future[View]:
        self._check_leading()
        future: asyncio.Future[View] = self._loop.create_future()
        self._reads.add(future)
        self._schedule()
        return future

    def _check_leading(self) -> None:
        if self._stopping or self._closed:
            raise Stopping("the node is shutting down")
        if not self._engine.is_leader or self._leading_term is None:
            raise NotLeader(self._other_leader())

    def _other_leader(self) -> str | None:
        """Never this node: one that leads and cannot act, since its commit hangs, sends nobody to itself."""
        leader = self._engine.leader
        return leader if leader != self._engine.id else None

    def stale(self) -> View:
        if self._installing is not None and not self._installing.done():
            raise NotLeader(self._other_leader())
        return self._machine.view()

    def wall_ms(self) -> int:
        return max(self._clocks.wall_ms, self._clock.about_ms())

    async def add(self, node: str, peer_address: str, *, replaces: str | None = None) -> int:
        if node == replaces:
            await self._step_aside(node)
        return await self._changed(lambda future: self._changes.add(node, peer_address, replaces, future))

    async def remove(self, node: str) -> int:
        await self._step_aside(node)
        return await self._changed(lambda future: self._changes.remove(node, future))

    async def _step_aside(self, node: str) -> None:
        """A leader whose folder is to go lets another one see to that."""
        self._check_leading()
        if node == self._engine.id and len(self._engine.voters) > 1:
            raise NotLeader(await self.transfer())

    async def _changed(self, change: Callable[[asyncio.Future[int]], None]) -> int:
        self._check_leading()
        while self._committing is not None:  # the log is not changed while it is being committed
            await asyncio.sleep(0.001)
            self._check_leading()
        future: asyncio.Future[int] = self._loop.create_future()
        change(future)
        self._engine.broadcast()
        self._schedule()
        return await future

    async def transfer(self, target: str | None = None, within: float = 2.0) -> str:
        engine = self._engine
        if not engine.is_leader:
            raise NotLeader(engine.leader)
        if target == engine.id:
            return engine.id
        if target is not None and target not in engine.voters:
            raise ChangeRefused(f"{target} does not vote, so it cannot lead: the voters are {', '.join(engine.voters)}")
        chosen = target or engine.most_advanced()
        if chosen is None:
            raise OutcomeUnknown("no follower is connected")
        if not self._peers.reachable(chosen):  # proposals would wait for nothing
            raise OutcomeUnknown(f"{chosen} is not connected")
        deadline = self._monotonic() + within
        while self._monotonic() < deadline and not self._closed:
            if engine.leader is not None and not engine.is_leader:
                return engine.leader
            if not any(self._peers.reachable(node) for node in engine.voters if node != engine.id):
                raise OutcomeUnknown("no other node is connected any more")
            if engine.is_leader and not engine.transferring:
                chosen = target or engine.most_advanced() or chosen
                engine.transfer(chosen)
                self._schedule()
            await asyncio.sleep(0.005)
        raise OutcomeUnknown(f"{chosen} has not taken over within {within:.1f} s")

    async def digest(self, within: float = 10.0) -> tuple[int, dict[str, str | None]]:
        committed = await self.propose(commands.encode(TakeDigest()))
        found = await self._digests.gather(committed.index, list(self._engine.configuration.members), within)
        return committed.index, found

    async def backup(self, path: Path) -> SnapshotHead:
        return await self._sender.backup(path)

    def status(self) -> Status:
        engine, journal = self._engine, self._journal
        return Status(
            node_id=engine.id,
            cluster_id=self.config.cluster_id,
            role=engine.role,
            leader=engine.leader,
            term=engine.term,
            commit_index=engine.commit_index,
            applied_index=engine.applied_index,
            last_index=journal.last_index,
            first_index=journal.first_index,
            log_bytes=journal.log_bytes,
            ready=engine.heard_leader() and not self._stopping,
            peers=[self._peer(node) for node in engine.configuration.members],
            clock_offset_ms=self._clock.offset_ms,
        )

    def _peer(self, node: str) -> Peer:
        engine, own = self._engine, node == self._engine.id
        hello = self._hello() if own else self._peers.hello_of(node)
        member = engine.configuration.members[node]
        role: Any = "unknown"
        if not member.voter:
            role = "learner"
        elif own:
            role = engine.role
        elif engine.leader is not None:
            role = "leader" if engine.leader == node else "follower"
        return Peer(
            id=node,
            api_url=hello.api_url if hello else "",
            peer_address=member.peer_address,
            role=role,
            voter=member.voter,
            reachable=own or self._peers.reachable(node),
            match_index=engine.match_index(node),
            applied_index=engine.applied_index if own else engine.applied_index_of(node),
            version=hello.version if hello else None,
        )

    # What arrives. Nothing is stepped here: it may be in the midst of a commit

    def _hello(self) -> Hello:
        config = self.config
        index, configuration, _ = self._membership()
        return Hello(
            protocol=PROTOCOL,
            cluster_id=config.cluster_id,
            node_id=config.node_id,
            node_uuid=config.node_uuid,
            boot=config.boot,
            api_url=config.api_url,
            peer_address=config.peer_address,
            version=config.version,
            machine_version=config.machine_version,
            last_index=self._journal.durable_index,
            term=self._engine.term,
            config_index=index,
            member=config.node_id in configuration.members,
            named=self._uuid_in(configuration),
        )

    def _membership(self) -> tuple[int, Configuration, bool]:
        """The index of the configuration in force, the configuration, and whether it is committed."""
        memberships = self._engine.memberships
        return memberships.index, memberships.current, memberships.index <= self._engine.commit_index

    def _uuid_of(self, node: str) -> str | None:
        if node == self.config.node_id:
            return self.config.node_uuid
        hello = self._peers.hello_of(node) if self._peers.reachable(node) else None
        return hello.node_uuid if hello else None

    def _uuid_in(self, configuration: Configuration) -> bool:
        own = configuration.members.get(self.config.node_id)
        return own is not None and own.uuid == self.config.node_uuid

    def _addresses(self) -> dict[str, str]:
        """Of the others. Who waits to be added speaks to those that it was told of."""
        found = self._engine.configuration.addresses() or self.config.members
        return {node: address for node, address in found.items() if node != self.config.node_id}

    def _on_refused(self, node: str, refusal: Refusal) -> None:
        """A peer turned this node away. For good, unless a later configuration names this very folder, or the folder
        waits to be added: the peer may not know yet that it was. An old copy of a folder is one for ever."""
        index, configuration, _ = self._membership()
        named_since = self._uuid_in(configuration) and index > refusal.config_index
        if 0 < refusal.acknowledged <= self._journal.durable_index:
            return  # its hello was long on its way: it is older than what it had acknowledged when it arrived
        counts = self._was_member or refusal.config_index == FOR_EVER
        if refusal.final and counts and not named_since:
            self._end_for_good(f"{node} says: {refusal.reason}")

    def _end_for_good(self, reason: str) -> None:
        """This folder must not take part any more: note that on disk, and end."""
        if self._fence is None and not self._closed:
            self._fence = reason
            self._deposed()
            self._schedule()

    def _admit(self, hello: Hello) -> Refusal | None:
        """As the roster says. But a change that is not committed may yet be undone, by a leader that it leaves out: so
        on a follower it keeps nobody away for now."""
        refusal = self._roster.admit(hello)
        decided = self._engine.is_leader or self._membership()[2]
        if refusal is None or refusal.final or decided or not hello.member:
            return refusal
        return None if hello.cluster_id == self.config.cluster_id else refusal

    def _is_member(self, node: str) -> bool:
        """The folder that is met under this name is the one that the configuration means, not a guest of that name."""
        member, hello = self._engine.configuration.members.get(node), self._peers.hello_of(node)
        if member is None or hello is None:
            return False
        return member.uuid in (None, hello.node_uuid) and member.void != hello.node_uuid

    def _is_stranger(self, node: str) -> bool:
        """Who is connected under this name would not be let in any more."""
        hello = self._peers.hello_of(node) if self._peers.reachable(node) else None
        return hello is not None and not self._is_member(node) and self._admit(hello) is not None

    def _on_message(self, node: str, message: Message) -> None:
        if message["type"] in _COUNTED and not self._is_member(node):
            return
        self._inbox.append((node, message))
        self._schedule()

    def _on_connected(self, node: str, hello: Hello) -> None:
        self._roster.met(hello)
        self._on_message(node, {"type": "connected"})

    def _on_disconnected(self, node: str) -> None:
        self._on_message(node, {"type": "disconnected"})

    def _schedule(self) -> None:
        if not self._scheduled and self._committing is None and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(self.config.tick, self._tick)
        now = self._monotonic()
        took = now - self._ticked
        late = took > self.config.timing.heartbeat
        self._ticked = now
        self.stages.lag.observe(max(took - self.config.tick, 0.0))
        if self._committing is not None:
            self._while_committing(now - self._committing)
        elif late:  # this process stood still: what has arrived meanwhile is read before anyone is given up
            self._loop.call_later(0.001, self._schedule)
        else:
            self._schedule()

    def _while_committing(self, took: float) -> None:
        """A commit that takes long: the node says that it lives, and after a while that it is of no use."""
        if took > self.config.slow_commit:
            if self._leading_term is not None:
                self._deposed()
        elif took > self.config.timing.heartbeat / 2:
            self._ping()

    def _ping(self) -> None:
        """The bytes of a ping tell followers that the leader lives; an echo of its last round tells a leader that a
        follower does, for reads and check-quorum. Neither promises anything."""
        engine = self._engine
        if engine.is_leader:
            self._peers.send(self._others(), {"type": "ping"})
            return
        for node, message in reversed(self._inbox):
            if node == engine.leader and message["type"] == "append" and message["term"] == engine.term:
                self._peers.send([node], {"type": "echo", "term": engine.term, "round": message["round"]})
                return

    # The cycle

    def _run(self) -> None:
        self._scheduled = False
        if self._closed or self._committing is not None:
            return
        if self._fence is not None:
            self._commit_fence(self._fence)
            return
        round_before = self._engine.round
        try:
            self._take_inbox()
            self._engine.tick()
            self._watch()
            self._move_snapshots()
            if self._engine.is_leader and self._monotonic() >= self._members_from:
                self._look_after_members()
            self._look_after_health()
            self._apply()
            self._batch()
            self._begin_reads(round_before)
            self._compact()
            self._meet_members()
            self._send(self._engine.outbox)
            if self._reads.begun:
                self._reads.end(self._engine.confirmed_round(), self._engine.applied_index, self._machine.view)
            if self._must_commit():
                self._commit()
            else:
                self._send(self._engine.held)
                self._campaign_in_time()
                if (ready := self._receiver.ready()) is not None:
                    self._committing = self._monotonic()
                    self._installing = self._loop.create_task(self._install(*ready))
            self._sent = False
        except Exception as error:
            self._fatal(error)

    def _campaign_in_time(self) -> None:
        """Deadlines that end between two ticks are kept apart: two followers must not campaign at the same tick."""
        remaining = self._engine.election_in
        if remaining < self.config.tick:
            self._loop.call_later(max(remaining, 0), self._schedule)

    def _take_inbox(self) -> None:
        inbox, self._inbox = self._inbox, []
        engine = self._engine
        for node, message in inbox:
            kind = message["type"]
            if kind == "connected":
                engine.connected(node)
            elif kind == "disconnected":
                self._health.gone(node)
                self._sender.disconnected(node)
                self._receiver.disconnected(node)
                engine.disconnected(node)
            elif kind == "digest":
                if node in engine.configuration.members:
                    self._digests.told(node, message["index"], message["digest"])
            elif kind == "roster":
                if node == engine.leader:
                    self._roster.told(message["known"])
            elif kind == "snapshot_offer":
                if node == engine.leader and message["term"] == engine.term:
                    self._receiver.on_offer(node, message)
            elif kind == "snapshot_ask":
                self._sender.on_ask(node, message)
            elif kind == "snapshot_chunk":
                self._receiver.on_chunk(node, message)
            else:
                engine.step(node, message)
            if self._leading_term is not None and not (engine.is_leader and engine.term == self._leading_term):
                self._deposed()
        engine.advance()
        if engine.is_leader:  # also of what an answer has just made committed, before any client hears of it
            for node in self._others():
                self._roster.matched(node, min(engine.match_index(node) or 0, engine.commit_index))

    def _watch(self) -> None:
        """Note changes of role, leader and term."""
        engine = self._engine
        if self._leading_term is not None and not (engine.is_leader and engine.term == self._leading_term):
            self._deposed()
        if engine.is_leader and self._leading_term is None:
            self._leading_term = engine.term
            self._clock.lead(self._last_clocks(), engine.majority())
        if not engine.is_leader and (self._proposals.queued or self._reads.waiting):
            self._turn_away()
        seen = (engine.role, engine.leader, engine.term)
        if seen != self._seen:
            self._seen = seen
            self._on_role(*seen)

    def _meet_members(self) -> None:
        """Act on a configuration that has come into force, is so no more, or is committed: who is there as a guest, or
        with another folder than the one that is meant, is put to `admit` anew."""
        (before, settled), (now, committed) = self._met, self._membership()[1:]
        if before is now and committed == settled:
            return
        self._met = now, committed
        self._was_member |= self._uuid_in(now)
        after, addresses = now.members, self._addresses()
        gone = [n for n, member in before.members.items() if n not in after or member.voter > after[n].voter]
        gone += [n for n in addresses if n not in gone and self._is_stranger(n)]
        self._roster.forget(gone)
        # One that comes back with a new folder is met anew: its old one may still seem to be there.
        self._peers.set_members({node: address for node, address in addresses.items() if node not in gone})
        self._peers.set_members(addresses)

    def _others(self) -> list[str]:
        return [node for node in self._engine.configuration.members if node != self._engine.id]

    def _last_clocks(self) -> Clocks:
        """Those of the last entry in the log that has any."""
        journal = self._journal
        for index in range(journal.last_index, max(journal.first_index, self._engine.applied_index), -1):
            command = journal.entries(index, 1, 1)[0][0]
            if command[:1] == REGULAR:
                return entries.clocks(command, 1)
        return self._clocks

    def _deposed(self) -> None:
        """Fault 26: what was pending is answered at once. It may yet be committed, by another leader."""
        self._leading_term = None
        self._expiring = False
        self._schedules.give_up()
        self._proposals.give_up()
        self._changes.give_up()
        self._turn_away()

    def _turn_away(self) -> None:
        self._proposals.turn_away(self._other_leader())
        self._reads.turn_away(self._other_leader())

    # Apply

    def _apply(self) -> None:
        """Run what is committed, each entry once, and answer those who wait for it."""
        engine, journal = self._engine, self._journal
        effects: list[Effect] = []
        budget = self.config.apply_bytes
        before_index, began = engine.applied_index, self._monotonic()
        until = began + self.config.apply_seconds
        self._proposals.committed(engine.commit_index)
        while engine.applied_index < engine.commit_index and not self._digests.due:
            if budget < 0:
                self._loop.call_later(0, self._schedule)
                break
            for command, index, term in journal.entries(engine.applied_index + 1, 256 * 1024, 256):
                if index > engine.commit_index or self._digests.due or budget < 0:
                    break
                before = engine.memberships.base
                self._apply_entry(command, index, term, effects)
                engine.applied(index)
                budget = -1 if self._monotonic() > until else budget - len(command)
                self._check_removed(before)
                if self._rode_since is None:
                    self._rode_since = self._monotonic()
        if engine.applied_index > before_index:
            self.stages.applied.observe(self._monotonic() - began)
        self._changes.applied(engine.applied_index)
        if effects and engine.is_leader:
            self._on_effects(effects)

    def _apply_entry(self, command: bytes, index: int, term: int, effects: list[Effect]) -> None:
        if command[:1] != REGULAR:
            if command != NO_OP and command[:1] != CONFIGURATION:
                raise UnknownCommand(f"{UnknownCommand.__doc__} (entry {index} is of kind {command[:1]!r})")
            return
        self._clocks, encoded = entries.decode(command, 1)
        lease_ms, wall_ms = self._clocks
        waiters = self._proposals.waiters(index)
        meta = Meta(index, 0, term, lease_ms, wall_ms)
        machine = self._machine
        for position, data in enumerate(encoded):
            meta.position = position
            operation = commands.decode(data)
            reply, caused = machine.apply(meta, operation)
            if caused:
                effects.extend(caused)
            if waiters is not None:
                waiter = waiters[position]
                if waiter is None:
                    self._answer_itself(operation, reply)
                elif not waiter.done():
                    messages = machine.deliveries(reply) if type(reply) is Leased else None
                    waiter.set_result(Committed(index, position, reply, messages, wall_ms))
            if type(operation) is TakeDigest:
                self._digests.ask(index)
        machine.end_entry(meta)
        self._proposals.applied(index)

    def _answer_itself(self, operation: Command, reply: Reply) -> None:
        """Of what the shard proposed by itself."""
        if type(operation) is Expire:
            self._expiring = False
            more = isinstance(reply, Expired) and reply.more
            self._expire_from = 0.0 if more else self._monotonic() + self.config.expire_pause
        elif type(operation) is Tick:
            self._schedules.applied()

    def _check_removed(self, before: Configuration) -> None:
        """Its own removal is committed: this node ends. One that catches up also meets configurations of long ago, in
        which another folder bore its name."""
        if not self._uuid_in(before):
            return
        if self.config.node_id not in (members := self._engine.memberships.base.members):
            self._end_for_good(
                f"{self.config.node_id} was removed from the cluster: its members are {', '.join(members)}"
            )

    # Propose

    def _batch(self) -> None:
        """Leader: ONE entry of all that gathered while the last cycle ran (group commit)."""
        engine = self._engine
        if not engine.own_term_committed or engine.transferring:
            return
        clocks = self._clock.now()
        if clocks is None:
            return
        self._propose_expiry(clocks)
        if not self._health.low_disk():
            for tick in self._schedules.propose(self._machine.schedules_due, clocks.wall_ms):
                self._proposals.add(commands.encode(tick), None)
        if batch := self._proposals.enter(self._journal.last_index + 1):
            engine.propose(entries.encode(clocks, batch, REGULAR))
            engine.broadcast()

    def _propose_expiry(self, clocks: Clocks) -> None:
        if self._expiring or self._monotonic() < self._expire_from:
            return
        lease_due, wall_due = self._machine.next_due()
        if (lease_due is not None and lease_due <= clocks.lease_ms) or (
            wall_due is not None and wall_due <= clocks.wall_ms
        ):
            self._expiring = True
            self._proposals.add(_EXPIRE, None)

    def _begin_reads(self, round_before: int) -> None:
        """A round that began in this cycle, for an entry or as a heartbeat, will do: it has not left yet."""
        engine = self._engine
        if self._reads.waiting and engine.own_term_committed:
            if engine.round == round_before:
                engine.broadcast()
            self._reads.begin(engine.commit_index, engine.round)

    # Send and commit

    def _send(self, queue: list[tuple[list[str], Message]]) -> None:
        self._sent = self._sent or bool(queue)
        for nodes, message in queue:
            self._peers.send(nodes, message)
        queue.clear()

    def _must_commit(self) -> bool:
        if self._journal.dirty or self._roster.dirty or self._digests.due:
            return True
        if self._rode_since is None:
            return False
        rode = self._monotonic() - self._rode_since
        return rode >= self.config.ride or self._overlay.pending_bytes > self.config.apply_bytes

    def _commit(self) -> None:
        """Hand over one transaction; if anything was sent, after a pass of the loop, so that it leaves before."""
        batch = WriteBatch()
        self._journal.collect(batch)
        batch.tables = self._overlay.take()
        self._applied_next = self._engine.applied_index
        batch.meta["applied"] = _U64.pack(self._applied_next)
        batch.meta["clocks"] = CLOCKS.pack(*self._clocks)
        if self._engine.memberships.dirty:
            batch.meta[MEMBERSHIP] = self._engine.memberships.encode()
        if self._roster.dirty or (self._roster.changed and self._keep_roster):
            self._keep_roster = False
            batch.meta[ROSTER] = self._roster.encode()
        self._rode_since = None
        self._committing = self._monotonic()
        if self._sent:
            self._loop.call_soon(self._write, batch)
        else:
            self._write(batch)

    def _write(self, batch: WriteBatch) -> None:
        if not self._closed:  # else the writer may be, and the loop would wait for a thread that is gone
            self.writer.commit(batch, self._written)

    def _written(self, error: BaseException | None) -> None:
        """In the writer's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._landed, error)

    def _landed(self, error: BaseException | None) -> None:
        """Durable: only now do answers and votes leave, and does the leader count itself."""
        assert self._committing is not None
        took = self._monotonic() - self._committing
        self._committing = None
        if self._closed:
            return
        if error is not None:
            self._fatal(error)
            return
        self.stages.committed.observe(self.writer.last_seconds)
        try:
            self._journal.landed()
            self._overlay.landed()
            self._applied_durable = self._applied_next
            if self._digests.due:
                self._digests.begin(self._loop, self._announce_digest)
            if took < self.config.slow_commit:
                self._engine.resumed(took)
            self._engine.durable()
            self._send(self._engine.held)
        except Exception as failure:
            self._fatal(failure)
            return
        self._run()

    def _compact(self) -> None:
        """Cut the log below what every member has and this node has applied durably, when that is the better part of
        it. A member that lags too far is not waited for: it is sent a snapshot."""
        journal = self._journal
        below = min(self._engine.compactable, self._applied_durable)
        if journal.log_bytes > self.config.compact_bytes and 2 * (below - journal.first_index) > len(journal):
            journal.compact_below(below)

    # Snapshots

    def _has(self, index: int, term: int) -> bool:
        """A snapshot at (index, term) holds nothing that this node has not."""
        return index <= self._engine.commit_index or self._journal.term_at(index) == term

    def _move_snapshots(self) -> None:
        """Leader: make and offer one to those that need it, and keep the log after it. Follower: pull."""
        engine, now = self._engine, self._monotonic()
        lacking = [node for node in engine.lacking() if self._peers.reachable(node)]
        self._sender.tick(now, lacking, self._journal.first_index)
        engine.pinned = [] if self._sender.pinned_index is None else [self._sender.pinned_index]
        self._receiver.tick(now)

    @property
    def snapshot_bytes_sent(self) -> int:
        return self._sender.sent_bytes

    async def _install(self, head: SnapshotHead, incoming: Path) -> None:
        """A cycle of its own: the snapshot takes the place of tables and log; identity, term and vote stay."""
        try:
            await self._sender.interrupt()
            await self._digests.settled()
            if self._closed:
                return
            run = self._loop.run_in_executor
            await run(None, self.writer.close)
            self._overlay.close()
            meta = self.environment.metas() | head.meta()
            await run(None, self.environment.install, incoming, meta, (head.index, head.term))
            self._read_environment()
            self._engine.installed(self._journal, head.index, _base(self.config, self.environment))
            self._receiver.done()
            self._committing = None
            self.snapshots_installed += 1
            _log.info("snapshot installed", index=head.index, term=head.term)
        except Exception as error:
            self._fatal(error)
        else:
            self._run()

    def _commit_fence(self, reason: str) -> None:
        def written(error: BaseException | None) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._fatal, error or Fenced(reason))

        self._committing = self._monotonic()
        self.writer.commit(WriteBatch(meta={FENCED: reason.encode()}), written)

    def _announce_digest(self, index: int, digest: str) -> None:
        self._digests.told(self._engine.id, index, digest)
        self._peers.send(self._others(), {"type": "digest", "index": index, "digest": digest})

    def _fatal(self, error: BaseException) -> None:
        if not self._closed:
            self._closed = True
            self._ticker.cancel()
            self._deposed()
            self._on_fatal(error)

    # What nodes tell each other beside the log

    def _append_extra(self) -> Message:
        """A new leader's first appends leave before the cycle has seen that it leads, and its clock has begun."""
        return self._health.of_append(self._engine.is_leader and self._leading_term == self._engine.term)

    def _on_append(self, _node: str, message: Message) -> None:
        self._clock.follow(message["wall"], message["lease"])

    def _on_answer(self, node: str, message: Message, sent: float | None) -> None:
        if sent is not None:
            self.stages.peer_lags[node].observe(self._monotonic() - sent)
        self._health.answered(node, message, sent if node in self._engine.voters else None)

    def _look_after_health(self) -> None:
        """Once a second."""
        if not self._health.due():
            return
        self._keep_roster = True
        if self._engine.is_leader:
            self._switch_version()
            if self._roster.changed:
                self._peers.send(self._others(), {"type": "roster", "known": self._roster.known()})
        self._health.look(self._journal.log_bytes, self._engine)
        far_off = self._clock.far_off
        self._engine.may_lead = not far_off and not self._stopping
        if far_off and self._engine.is_leader and (target := self._engine.most_advanced(self._clock.near)):
            self._engine.transfer(target)

    def _look_after_members(self) -> None:
        """Leader: make the next step of a change that was asked for."""
        engine = self._engine
        self._members_from = self._monotonic() + self.config.members_pause
        if self._changes.step():
            engine.broadcast()
        elif self._changes.leaves() and (target := engine.most_advanced()):
            engine.transfer(target)

    def _switch_version(self) -> None:
        """To the newest machine version that every member runs, as it said when last met."""
        hellos = [self._peers.hello_of(node) for node in self._others()]
        known = [hello.machine_version for hello in hellos if hello is not None]
        version = min([self.config.machine_version, *known])
        if len(known) == len(hellos) and version > self._machine.version:
            self._proposals.add(commands.encode(SetVersion(version)), None)


def _base(config: ShardConfig, environment: Environment) -> tuple[int, Configuration]:
    """The configuration at the applied index: that of the folder, else the one that the cluster begins with."""
    stored = environment.meta(MEMBERSHIP)
    if stored is not None:
        return membership.base_of(stored)
    return 0, membership.bootstrap({} if config.join else config.members)
