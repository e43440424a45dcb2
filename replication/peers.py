"""The connections between the nodes of one cluster.

Owns the listening socket, one dialed connection to each peer (ours to send on) and one accepted from each (ours to read
on), and the opening in which both sides say who they are. Never looks into a message, keeps none that cannot be sent
now, and reports nothing of a peer that it did not admit.
Invariant: of each kind a peer has at most one connection that counts, the newest; what an older one still says is not
heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import structlog

from raftq.replication import wire
from raftq.replication.wire import Hello, Malformed, Refusal

__all__ = ["Hello", "Peers"]

#: A peer that leaves this much unread is as good as dead; keeping more for it would only cost memory.
QUEUED_BYTES_MAX: Final = 64 << 20
REDIAL_SECONDS_MIN: Final = 0.05
REDIAL_SECONDS_MAX: Final = 0.5
REFUSED_SECONDS: Final = 2.0
#: For a connection to be made, and again for the opening to be answered.
OPENING_SECONDS: Final = 3.0
#: After this long without an acknowledgement by the peer's kernel (power cut, cable pulled) the connection is over.
UNACKNOWLEDGED_SECONDS: Final = 10
#: Kinds of refusal remembered, so that each is told once.
_TOLD_MAX: Final = 1000

_log = structlog.get_logger(__name__)


class Peers:
    """See the module. The callbacks are called synchronously: `on_message` for each whole frame, `on_bytes` whenever
    bytes of an admitted peer arrive, `on_connected` when messages can be sent to it, `on_disconnected` once when either
    of its connections is lost. What they raise closes that connection and goes to the loop's exception handler."""

    def __init__(
        self,
        hello: Callable[[], Hello],
        addresses: dict[str, str],
        listen: str,
        *,
        on_message: Callable[[str, dict[str, Any]], None],
        on_connected: Callable[[str, Hello], None],
        on_disconnected: Callable[[str], None],
        on_bytes: Callable[[str], None],
        admit: Callable[[Hello], str | None],
    ) -> None:
        own = hello().node_id
        self.hello = hello
        self.on_message = on_message
        self.on_connected = on_connected
        self.on_disconnected = on_disconnected
        self.on_bytes = on_bytes
        self.closing = False
        #: Every connection that is open, admitted or not.
        self.links: set[_Link] = set()
        self._admit = admit
        self._listen = listen
        self._peers = {node: _Peer(node, address) for node, address in addresses.items() if node != own}
        self._told: set[tuple[str, str]] = set()
        self._dials: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, and begin to dial. Raises OSError when the address cannot be had."""
        host, port = _parse(self._listen)
        self._server = await asyncio.get_running_loop().create_server(lambda: _Accepted(self), host, port)
        self._dials = [asyncio.create_task(self._dial_for_ever(peer)) for peer in self._peers.values()]

    async def close(self) -> None:
        """End every connection. No callback is called from here on."""
        self.closing = True
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        links = list(self.links)
        for link in links:
            link.abort()
        await asyncio.gather(*(link.lost for link in links))
        if self._server is not None:
            await self._server.wait_closed()

    def send(self, nodes: Sequence[str], message: dict[str, Any]) -> list[str]:
        """Hand `message`, encoded once, to those of `nodes` that are reachable, and name them. The others miss it."""
        reached = [(node, link) for node in nodes if (link := self._sending(node)) is not None]
        if not reached:
            return []
        data = wire.frame(message)
        return [node for node, link in reached if link.write(data)]

    def reachable(self, node: str) -> bool:
        return self._sending(node) is not None

    def queued_bytes(self, node: str) -> int:
        """Bytes handed over for `node` that the kernel has not taken yet."""
        link = self._sending(node)
        return 0 if link is None else link.queued_bytes()

    def hello_of(self, node: str) -> Hello | None:
        """The last hello of `node`, also when it is gone by now."""
        peer = self._peers.get(node)
        return None if peer is None else peer.hello

    def peer(self, node: str) -> _Peer:
        return self._peers[node]

    def refusal(self, hello: Hello) -> str | None:
        """Why the node that says `hello` is no peer of this one, or None."""
        own = self.hello()
        if hello.protocol != own.protocol:
            return f"it speaks protocol {hello.protocol}, this node {own.protocol}"
        if hello.cluster_id != own.cluster_id:
            return f"it is of cluster {hello.cluster_id!r}, this node of {own.cluster_id!r}"
        if hello.node_id not in self._peers:
            return f"{hello.node_id!r} is no other node of this cluster"
        return self._admit(hello)

    def tell(self, event: str, who: str, reason: str) -> None:
        """Log a refusal, unless it is known already."""
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        if (event + who, reason) not in self._told:
            self._told.add((event + who, reason))
            _log.warning(event, peer=who, reason=reason)

    def _sending(self, node: str) -> _Dialed | None:
        peer = self._peers.get(node)
        if peer is None or peer.dialed is None or peer.dialed.closing():
            return None
        return peer.dialed

    async def _dial_for_ever(self, peer: _Peer) -> None:
        pause = REDIAL_SECONDS_MIN
        while True:
            link = await self._dial(peer)
            if link is not None and link.admitted:
                pause = REDIAL_SECONDS_MIN
            await asyncio.sleep(REFUSED_SECONDS if link is not None and link.refused else pause)
            pause = min(pause * 2, REDIAL_SECONDS_MAX)

    async def _dial(self, peer: _Peer) -> _Dialed | None:
        """One connection from its beginning to its end; None when there was none to be had."""
        host, port = _parse(peer.address)
        link = _Dialed(self, peer)
        with contextlib.suppress(OSError, TimeoutError):
            try:
                async with asyncio.timeout(OPENING_SECONDS):
                    await asyncio.get_running_loop().create_connection(lambda: link, host, port)
            except BaseException:
                link.forsaken()
                raise
            await asyncio.shield(link.lost)
            return link
        return None


class _Peer:
    """What is known of one other node."""

    __slots__ = ("accepted", "address", "dialed", "hello", "node", "present")

    def __init__(self, node: str, address: str) -> None:
        self.node = node
        self.address = address
        self.dialed: _Dialed | None = None
        self.accepted: _Accepted | None = None
        self.hello: Hello | None = None
        #: An admission was seen since the last loss was reported.
        self.present = False


class _Transport(Protocol):
    """What is used of asyncio's transports, and of uvloop's, which are not derived from them."""

    def write(self, data: bytes | bytearray) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str) -> Any: ...


class _Link(asyncio.Protocol):
    """One connection, from its opening to its loss."""

    def __init__(self, peers: Peers) -> None:
        self.admitted = False
        self.refused = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peers = peers
        self._splitter = wire.Splitter(wire.HELLO_BYTES_MAX)
        self._transport: _Transport
        self._impatience: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._impatience = asyncio.get_running_loop().call_later(OPENING_SECONDS, self.abort)
        self._peers.links.add(self)
        _tune(transport.get_extra_info("socket"))
        if self._peers.closing:
            self.abort()

    def forsaken(self) -> None:
        """Whoever was making this connection gave up; uvloop then closes it without telling its protocol."""
        if self in self._peers.links:
            self.connection_lost(None)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.lost.done():
            return
        self._impatience.cancel()
        self._peers.links.discard(self)
        self.lost.set_result(None)
        if self.admitted and not self._peers.closing:
            self.leave()

    def data_received(self, data: bytes) -> None:
        try:
            self.heard()
            for payload in self._splitter.feed(data):
                if self.closing():
                    return
                self.take(payload)
        except Malformed as error:
            self._peers.tell("peer malformed", self.who(), str(error))
            self.abort()

    def take(self, payload: memoryview) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """This admitted connection is gone."""
        raise NotImplementedError

    def who(self) -> str:
        """For the log: whom this connection is with."""
        raise NotImplementedError

    def heard(self) -> None:
        """Bytes have arrived."""

    def opened(self) -> None:
        self.admitted = True
        self._impatience.cancel()
        self._splitter.limit = wire.FRAME_BYTES_MAX

    def write(self, data: bytes | bytearray) -> bool:
        """Hand over one frame, or end a connection whose peer does not take what it was given."""
        queued = self._transport.get_write_buffer_size()
        if queued and queued + len(data) > QUEUED_BYTES_MAX:
            self._peers.tell("peer too slow", self.who(), f"more than {QUEUED_BYTES_MAX} bytes would wait for it")
            self.abort()
            return False
        self._transport.write(data)
        return True

    def queued_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def closing(self) -> bool:
        return self._transport.is_closing()

    def abort(self) -> None:
        self._impatience.cancel()
        self._transport.abort()


class _Dialed(_Link):
    """A connection that this node made: it says hello, is answered, and sends."""

    def __init__(self, peers: Peers, peer: _Peer) -> None:
        super().__init__(peers)
        self._peer = peer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._transport.write(wire.frame(self._peers.hello()))

    def take(self, payload: memoryview) -> None:
        if self.admitted:
            raise Malformed("a message on a connection that is only for ours")
        answer = wire.opening(payload)
        if isinstance(answer, Refusal):
            self._refuse("refused by peer", answer.reason)
        elif (reason := self._refusal(answer)) is not None:
            self._refuse("refused peer", reason)
        else:
            self._join(answer)

    def leave(self) -> None:
        if self._peer.dialed is self:
            self._peer.dialed = None
            _report_loss(self._peers, self._peer)

    def who(self) -> str:
        return self._peer.node

    def _refusal(self, hello: Hello) -> str | None:
        if hello.node_id != self._peer.node:
            return f"{self._peer.address} is {hello.node_id!r}, not {self._peer.node!r}"
        return self._peers.refusal(hello)

    def _refuse(self, event: str, reason: str) -> None:
        self.refused = True
        self._peers.tell(event, self.who(), reason)
        self.abort()

    def _join(self, hello: Hello) -> None:
        self.opened()
        self._peer.dialed = self
        self._peer.hello = hello
        self._peer.present = True
        self._peers.on_connected(self._peer.node, hello)


class _Accepted(_Link):
    """A connection that a peer made: it says hello, is answered, and is read."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers)
        self._peer: _Peer | None = None

    def heard(self) -> None:
        if self._peer is not None and not self.closing():
            self._peers.on_bytes(self._peer.node)

    def take(self, payload: memoryview) -> None:
        if self._peer is not None:
            self._peers.on_message(self._peer.node, wire.message(payload))
            return
        hello = wire.opening(payload)
        if isinstance(hello, Refusal):
            raise Malformed("a refusal where a hello was due")
        reason = self._peers.refusal(hello)
        if reason is None:
            self._join(hello)
        else:
            self._refuse(hello, reason)

    def leave(self) -> None:
        peer = self._peer
        if peer is not None and peer.accepted is self:
            peer.accepted = None
            # Most likely the peer has died. If only this connection has, a new one of ours makes both sides agree.
            dialed, peer.dialed = peer.dialed, None
            if dialed is not None:
                dialed.abort()
            _report_loss(self._peers, peer)

    def who(self) -> str:
        if self._peer is not None:
            return self._peer.node
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if address else "unknown"

    def _refuse(self, hello: Hello, reason: str) -> None:
        self.refused = True
        self._peers.tell("refused peer", f"{hello.node_id[:100]} at {self.who()}", reason)
        self._transport.write(wire.frame(Refusal(reason)))
        self._transport.close()

    def _join(self, hello: Hello) -> None:
        """Become the one connection from this peer."""
        self.opened()
        self._peer = peer = self._peers.peer(hello.node_id)
        older, peer.accepted = peer.accepted, self
        if older is not None:
            older.abort()
        if peer.dialed is not None and peer.hello is not None and hello.boot != peer.hello.boot:
            peer.dialed.abort()  # it leads to a process that is no more, whose machine had no time to say so
        peer.hello = hello
        peer.present = True
        self._transport.write(wire.frame(self._peers.hello()))


def _report_loss(peers: Peers, peer: _Peer) -> None:
    """A peer that dies takes two connections with it: the first is the loss, the second is not another."""
    if peer.present:
        peer.present = False
        peers.on_disconnected(peer.node)


def _tune(connection: socket.socket) -> None:
    """Send small messages at once, and find out about a peer whose machine has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)


def _parse(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
