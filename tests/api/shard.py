"""A node with one shard in this process: the real state machine over a table in memory, and no Raft.

Each command is an entry of its own, applied in the next pass of the loop. Time stands still until `later` moves it.
`refuse` makes the shard raise what a real one would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Any

from raftq.api.app import Api
from raftq.api.ports import BackupRefused, Limits, Measure
from raftq.replication import ticks
from raftq.replication.shard import Committed, NotLeader, Peer, Status, Stopping
from raftq.replication.stages import Stages
from raftq.storage.machine import commands
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Effect, Leased
from raftq.storage.machine.views import View


class LocalShard:
    def __init__(self, node_id: str, on_effects: Callable[[list[Effect]], None]) -> None:
        self.node_id = node_id
        self.machine = Machine(MemoryTxn())
        self.leading = True
        self.leader: str | None = node_id
        #: Raised by `propose`; `unsure` ends its future instead.
        self.refuse: Exception | None = None
        self.unsure: Exception | None = None
        #: Proposals wait for this, when it is set.
        self.gate: asyncio.Event | None = None
        self.applied: list[Any] = []
        #: Other members, and what was asked of `add` and `remove`.
        self.members: list[Peer] = []
        self.asked: list[tuple[Any, ...]] = []
        self.index, self.clock_ms = 0, 1_700_000_000_000
        self.stages = Stages()
        self._on_effects = on_effects
        self._tasks: set[asyncio.Task[None]] = set()

    def propose(self, command: bytes) -> asyncio.Future[Committed]:
        self._check()
        if self.refuse is not None:
            raise self.refuse
        future = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._commit(command, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _commit(self, command: bytes, future: asyncio.Future[Committed]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        committed = self.apply(commands.decode(command))
        if self.unsure is not None:
            future.set_exception(self.unsure)
        elif not future.done():
            future.set_result(committed)

    def apply(self, command: Any) -> Committed:
        self.index += 1
        meta = Meta(self.index, 0, 1, self.clock_ms, self.clock_ms)
        reply, effects = self.machine.apply(meta, command)
        messages: Any = self.machine.deliveries(reply) if isinstance(reply, Leased) else None
        self.machine.end_entry(meta)
        self.applied.append(command)
        self._on_effects(effects)
        return Committed(self.index, 0, reply, messages, self.clock_ms)

    def later(self, seconds: float) -> None:
        """Time passes: what is due happens."""
        self.clock_ms += round(seconds * 1000)
        self.apply(commands.Expire())
        while due := self.machine.schedules_due(self.clock_ms, 1):
            self.apply(ticks.tick(due[0], self.clock_ms))

    def read(self) -> asyncio.Future[View]:
        self._check()
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(self.machine.view()))
        return future

    def stale(self) -> View:
        return self.machine.view()

    def wall_ms(self) -> int:
        return self.clock_ms

    def _check(self) -> None:
        if isinstance(self.refuse, Stopping):
            raise self.refuse
        if not self.leading:
            raise NotLeader(self.leader)

    def status(self) -> Status:
        role: Any = "leader" if self.leading else "follower"
        version = "0"
        peer = Peer(self.node_id, "http://x", "x:1", role, True, True, self.index, self.index, version)
        return Status(
            node_id=self.node_id,
            cluster_id="c1",
            role=role,
            leader=self.leader,
            term=3,
            commit_index=self.index,
            applied_index=self.index,
            last_index=self.index,
            first_index=1,
            log_bytes=100,
            ready=self.leader is not None,
            peers=[peer, *self.members],
            clock_offset_ms=0.5,
        )

    async def transfer(self, target: str | None = None) -> str:
        self._check()
        if self.refuse is not None:
            raise self.refuse
        return target or "n2"

    async def add(self, node: str, peer_address: str, *, replaces: str | None = None) -> int:
        self._change("add", node, peer_address, replaces)
        self.members.append(Peer(node, "", peer_address, "learner", False, False, 0, None, None))
        return self.index

    async def remove(self, node: str) -> int:
        self._change("remove", node)
        self.members = [member for member in self.members if member.id != node]
        return self.index

    def _change(self, *asked: Any) -> None:
        self._check()
        if self.refuse is not None:
            raise self.refuse
        self.asked.append(asked)
        self.index += 1

    async def digest(self) -> tuple[int, dict[str, str | None]]:
        self._check()
        return self.index, {"n1": "abc", "n2": None}


class LocalBackup:
    """Implements `api.ports.Backup`: `body`, in pieces; `fault` is raised before the second."""

    cluster_id = "c1"

    def __init__(self, index: int, body: bytes, fault: Exception | None) -> None:
        self.index, self.size_bytes = index, len(body)
        self._pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
        self._fault, self._read = fault, 0

    async def read(self) -> bytes:
        self._read += 1
        if self._read == 2 and self._fault is not None:
            raise self._fault
        return self._pieces.pop(0) if self._pieces else b""


class LocalNode:
    """Implements `api.ports.Node`, and serves on a free port."""

    version = "0"

    def __init__(self, node_id: str = "n1", limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.tokens_required = False
        self.stopping = False
        self.url_of_leader: str | None = None
        #: What `leads` says, when that is to differ from what the shard knows.
        self.believes: bool | None = None
        self.shard = LocalShard(node_id, self._on_effects)
        #: Under way; what one holds; what it meets.
        self.backups, self.backup_body = 0, b"tables"
        self.backup_fault: Exception | None = None
        self.api = Api(self)

    def _on_effects(self, effects: list[Effect]) -> None:
        self.api.on_effects(effects)

    def leads(self) -> bool:
        return self.shard.leading if self.believes is None else self.believes

    def leader_url(self) -> str | None:
        return self.url_of_leader

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[LocalBackup]:
        if self.backups:
            raise BackupRefused("there is one already: wait")
        self.backups += 1
        try:
            yield LocalBackup(self.shard.index, self.backup_body, self.backup_fault)
        finally:
            self.backups -= 1

    def measures(self) -> Iterable[Measure]:
        return [Measure("raftq_leaders_met_total", "Leaders.", "counter", 7.0)]

    def follow(self, url: str | None) -> None:
        """Leadership is lost to the node at `url`."""
        self.shard.leading = False
        self.shard.leader = None if url is None else "n2"
        self.url_of_leader = url
        self.api.on_role("follower", self.shard.leader, 4)

    async def start(self, ssl: SSLContext | None = None) -> str:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        await self.api.start(bound, ssl)
        self.port = bound.getsockname()[1]
        self.url = f"{'http' if ssl is None else 'https'}://127.0.0.1:{self.port}"
        return self.url
