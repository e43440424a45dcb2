"""GET /v1/events: what changes in the queues and in the cluster, as this node sees it.

Any node answers for itself, and goes on through a change of leader. Changes of queues and members are found by looking
at what this node has applied, while anybody watches: all that happened to a queue between two looks is one event. A
look takes a twentieth of the time at most, however many queues there are.

A watcher that reads too slowly has events dropped, and is told how many, where they would have been.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from raftq.api import auth, names, sockets
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.frames import FORMATS, Format
from raftq.api.sockets import Connection, Upgraded
from raftq.replication.shard import NotLeader, Peer
from raftq.storage.machine.commands import QueueSettings
from raftq.storage.machine.views import QueueInfo

if TYPE_CHECKING:
    from raftq.api.app import Api

#: Between two looks, and how much longer than the last look.
LOOK_SECONDS = 0.25
LOOK_SHARE = 20
#: Queues that are looked at in one go.
PAGE = 100
#: Events that wait for one watcher.
WAITING_MAX = 1000
#: A watcher sends nothing but control frames.
_FRAME_BYTES_MAX = 1024

_log = structlog.get_logger("raftq.api")


async def watch(call: Call) -> Answer:
    """GET /v1/events?prefix=: Open a WebSocket, to see the changes of queues and of the cluster as they come."""
    prefix = call.query.get("prefix", "")
    if prefix:
        names.queue_key(prefix, "query.prefix")
    protocol = sockets.protocol_of(call)
    socket = await sockets.accept(call, _FRAME_BYTES_MAX)
    await Watcher(call, socket, FORMATS[protocol], prefix).serve()
    return Upgraded()


class Watcher(Connection):
    def __init__(self, call: Call, socket: web.WebSocketResponse, form: Format, prefix: str) -> None:
        super().__init__(call, socket)
        self._format = form
        #: Of the keys of the queues that it is told of.
        self._prefix = f"{names.namespace()}/{prefix}"
        self._waiting: list[dict[str, Any]] = []
        self._dropped = 0
        self._something = asyncio.Event()

    def offer(self, event: dict[str, Any]) -> None:
        """Send it, if it is of the cluster, or of a queue with the prefix that the token may see; drop it when too many
        wait."""
        key = event.get("queue")
        if key is not None:
            if not key.startswith(self._prefix) or not self._may_see(key):
                return
            event = event | {"queue": names.queue_name(key)}
        if self._dropped or len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(event)
        self._something.set()

    def _may_see(self, key: str) -> bool:
        return self.token is None or auth.may(self.api, self.token, None, *names.parts(key))

    async def serve(self) -> None:
        """Until it has ended, on whichever side."""
        self.api.connections.add(self)
        reader, writer = self.run(self._read()), self.run(self._write())
        try:
            if self.api.node.stopping:
                self.stop()
            self.api.events.join(self)
            await self.ended()
        finally:
            reader.cancel()
            writer.cancel()
            self.api.events.leave(self)
            self.api.connections.discard(self)
        await self.close()

    async def _read(self) -> None:
        message = await self.socket.receive()
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            self.end(WSCloseCode.UNSUPPORTED_DATA, "events are read: send nothing")
        else:
            self.end(WSCloseCode.OK, "")

    async def _write(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            events, self._waiting = self._waiting, []
            if self._dropped:
                events.append({"event": "lagged", "dropped": self._dropped})
                self._dropped = 0
            await self.socket.send_frame(self._format.encode(events), self._format.frame_type)


class _Queue(NamedTuple):
    """What of a queue is told when it changes."""

    #: Tells a queue from an earlier one of its name.
    created_index: int
    settings: QueueSettings
    ready: int
    leased: int
    delayed: int


class Events:
    """Finds what changes, while there are watchers."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._watchers: set[Watcher] = set()
        #: As of the last look; None before the first.
        self._queues: dict[str, _Queue] | None = None
        self._nodes: dict[str, dict[str, Any]] = {}
        self._looking: asyncio.Task[None] | None = None

    def join(self, watcher: Watcher) -> None:
        """It is told all that changes from its first event on, which is of the cluster as it is."""
        self._watchers.add(watcher)
        if self._queues is not None:
            watcher.offer(self._cluster())
        elif self._looking is None:
            self._looking = asyncio.ensure_future(self._look())

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        if not self._watchers and self._looking is not None:
            self._looking.cancel()
            self._looking = self._queues = None

    def led_by(self, role: str, leader: str | None, term: int) -> None:
        if self._queues is not None:
            self._tell({"event": "leader", "leader": leader, "role": role, "term": term})

    async def _look(self) -> None:
        try:
            while True:
                pause = await self._look_once()
                await asyncio.sleep(pause)
        except Exception as error:
            _log.exception("events failed")
            for watcher in self._watchers:
                watcher.end(WSCloseCode.INTERNAL_ERROR, f"this is a defect of raftq ({type(error).__name__})")

    async def _look_once(self) -> float:
        """Seconds until the next is due."""
        before, found = self._queues, dict[str, _Queue]()
        cursor, took = None, 0.0
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                page, cursor = self._api.node.shard.stale().queues(None, "", PAGE, cursor)
            except NotLeader:
                return LOOK_SECONDS  # a snapshot takes the place of the tables
            for info in page:
                found[info.key] = seen = _seen(info)
                if before is not None:
                    self._compare(info.key, before.get(info.key), seen)
            took += now() - began
            if cursor is None:
                break
            await asyncio.sleep(0)
        nodes = {peer.id: _described(peer) for peer in self._api.node.shard.status().peers}
        if before is not None:
            for key in sorted(before.keys() - found.keys()):
                self._tell({"event": "queue-deleted", "queue": key})
            self._compare_nodes(self._nodes, nodes)
        self._queues, self._nodes = found, nodes
        if before is None:
            self._tell(self._cluster())
        return max(LOOK_SECONDS, LOOK_SHARE * took)

    def _compare(self, key: str, before: _Queue | None, now: _Queue) -> None:
        if before is not None and before.created_index != now.created_index:
            self._tell({"event": "queue-deleted", "queue": key})
            before = None
        if before is None or before.settings != now.settings:
            self._tell({"event": "queue-defined", "queue": key, "created": before is None})
        ready, leased, delayed = counts = now[2:]
        if counts != ((0, 0, 0) if before is None else before[2:]):
            self._tell({"event": "queue", "queue": key, "ready": ready, "leased": leased, "delayed": delayed})

    def _compare_nodes(self, before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> None:
        for name in before:
            if name not in after:
                self._tell({"event": "node-left", "node": {"id": name}})
        for name, node in after.items():
            if name not in before:
                self._tell({"event": "node-joined", "node": node})
            elif node != before[name]:
                self._tell({"event": "node-changed", "node": node})

    def _cluster(self) -> dict[str, Any]:
        status = self._api.node.shard.status()
        return {
            "event": "cluster",
            "node": status.node_id,
            "role": status.role,
            "leader": status.leader,
            "term": status.term,
            "nodes": list(self._nodes.values()),
        }

    def _tell(self, event: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.offer(event)


def _seen(info: QueueInfo) -> _Queue:
    return _Queue(info.created_index, info.settings, info.ready, info.leased, info.delayed)


def _described(peer: Peer) -> dict[str, Any]:
    return {
        "id": peer.id,
        "api_url": peer.api_url,
        "role": peer.role,
        "voter": peer.voter,
        "reachable": peer.reachable,
    }
