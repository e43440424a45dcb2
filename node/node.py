"""One node: the shard on its environment and the HTTP front before it, from start to stop.

Order matters. To start, the shard runs before the front answers. To stop, the front turns new work away and answers
what is in flight, then the shard hands leadership over and writes what it has, and then the environment is closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog

import raftq
from raftq.api.app import Api
from raftq.api.ports import Backup, Limits, Measure
from raftq.node import first_token, listening
from raftq.node.backups import Backups
from raftq.node.config import Config
from raftq.node.identity import Identity
from raftq.node.measures import measures
from raftq.node.security import Security
from raftq.replication.cycle import RaftShard
from raftq.replication.progress import Timing
from raftq.replication.shard_config import ShardConfig
from raftq.storage.environment import Environment

_log = structlog.get_logger("raftq.node")


class Node:
    """Implements `api.ports.Node`."""

    def __init__(self, config: Config, environment: Environment, identity: Identity, security: Security) -> None:
        self.config, self.environment, self.security = config, environment, security
        self.version = raftq.__version__
        self.limits = _limits(config)
        self.stopping = False
        self.tokens_required = config.tokens
        #: How often this node has come to know a leader.
        self.leaders_met = 0
        #: Ends with what made the node fail.
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._role = "follower"
        self._leader: str | None = None
        self._api = Api(self)
        self.shard: RaftShard = RaftShard(
            _shard_config(config, identity, security),
            environment,
            on_effects=self._api.on_effects,
            on_role=self._on_role,
            on_fatal=self._on_fatal,
        )
        self._chores: list[asyncio.Future[None]] = []
        self._backups = Backups(environment.folder, self.shard.backup, self._room_bytes)

    async def start(self, bound: socket.socket) -> None:
        """Serve on `bound`. Raises Fatal when the peers' address cannot be listened on."""
        try:
            await self.shard.start()
        except OSError as error:
            raise listening.refusal(error, self.config.peer_listen, "peer_listen") from error
        api = self.security.api
        self._api.leader.ssl = None if api is None else api.client_context
        try:
            await self._api.start(bound, api.lasting_context() if api and self.config.api_tls_cert else None)
        except OSError as error:
            raise listening.refusal(error, self.config.api_listen, "api_listen") from error
        self._chores = [asyncio.ensure_future(chore) for chore in self._begun()]

    def _begun(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What goes on beside all else until the node stops."""
        if self.security.sides:
            from raftq.node import certificates  # takes a tenth of a second

            yield certificates.watch(self.security.sides)
        if self.security.first_token is not None:
            yield first_token.see_to(self, self.security.first_token)

    async def stop(self) -> None:
        self.stopping = True
        for chore in self._chores:
            chore.cancel()
        seconds = self.config.stop_seconds_max / 2
        if not await self._api.drain(seconds):
            _log.warning("some requests were not answered in time", requests=self._api.in_flight)
        await self.shard.stop(seconds)
        await self._api.stop()
        self.environment.close()

    def leads(self) -> bool:
        return self._role == "leader"

    def leader_url(self) -> str | None:
        peers = self.shard.status().peers if self._leader else []
        return next((peer.api_url or None for peer in peers if peer.id == self._leader), None)

    def backup(self) -> AbstractAsyncContextManager[Backup]:
        return self._backups.backup()

    def _room_bytes(self) -> int:
        environment = self.environment
        return environment.free_bytes() - environment.tables_bytes() - self.config.disk_reserve_bytes

    def measures(self) -> Iterable[Measure]:
        return measures(self)

    def _on_role(self, role: str, leader: str | None, term: int) -> None:
        if leader is None and self._leader is not None:
            _log.warning("no leader", last=self._leader, term=term, role=role)
        elif leader is not None and leader != self._leader:
            self.leaders_met += 1
            _log.info("ready" if self.leaders_met == 1 else "new leader", leader=leader, term=term, role=role)
        self._role, self._leader = role, leader
        self._api.on_role(role, leader, term)

    def _on_fatal(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)


def _limits(config: Config) -> Limits:
    return Limits(
        body_bytes=config.body_bytes_max,
        batch_messages=config.batch_messages_max,
        batch_bytes=config.batch_bytes_max,
        wait_seconds=config.wait_seconds_max,
    )


def _shard_config(config: Config, identity: Identity, security: Security) -> ShardConfig:
    return ShardConfig(
        node_id=config.node_id,
        cluster_id=config.cluster_id,
        node_uuid=identity.node_uuid,
        boot=identity.boot,
        members=config.first_members,
        join=config.join,
        peer_listen=config.peer_listen,
        peer_address=config.public_peer_address,
        api_url=config.public_url,
        version=raftq.__version__,
        timing=Timing(
            election_min=config.election_ms_min / 1000,
            election_max=config.election_ms_max / 1000,
            heartbeat=config.heartbeat_ms / 1000,
        ),
        disk_reserve_bytes=config.disk_reserve_bytes,
        peer_security=security.peer,
    )
