"""The connections between the nodes of one cluster.

Owns the listening socket, one dialed connection to each peer (ours to send on) and one accepted from each (ours to read
on), and the opening in which both sides say who they are. A peer is another member, or a guest: a node that the roster
let in though it is no member here, kept for as long as its accepted connection. What is long goes over the bulk lane, a
second pair of connections that is made when needed, so that a heartbeat never waits behind it.
Never looks into a message, keeps none that cannot be sent now (but for what the bulk lane holds while it opens), and
reports nothing of a peer that it did not admit.
Invariant: of each kind a peer has at most one connection that counts, the newest; what an older one still says is not
heard. A bulk connection stands only beside a main one of the same two processes, and ends with it, but not it with the
bulk one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, Final, Literal

import msgspec
import structlog

from raftq.replication import wire
from raftq.replication.channel import Channel, Transport
from raftq.replication.security import PeerSecurity, Unproved, is_proof, sealed_of
from raftq.replication.wire import Buffer, Hello, Malformed, Refusal

__all__ = ["Hello", "Peers", "Refusal"]

#: A peer that leaves this much unread is as good as dead; keeping more for it would only cost memory.
QUEUED_BYTES_MAX: Final = 64 << 20
#: What the bulk lane holds for one peer; beyond it a message is not taken.
BULK_QUEUED_BYTES_MAX: Final = 4 << 20
#: A bulk connection on which nothing moves for this long, and at most twice as long, is closed.
BULK_IDLE_SECONDS: Final = 5.0
REDIAL_SECONDS_MIN: Final = 0.05
REDIAL_SECONDS_MAX: Final = 0.5
REFUSED_SECONDS: Final = 2.0
#: A dial that began, or is to begin, within this time is let be when its peer says hello.
SOON_SECONDS: Final = 0.05
#: For a connection to be made, and again for the opening to be answered.
OPENING_SECONDS: Final = 3.0
#: After this long without an acknowledgement by the peer's kernel (power cut, cable pulled) the connection is over.
UNACKNOWLEDGED_SECONDS: Final = 10
GUESTS_MAX: Final = 16
#: Accepted connections that have not said who they are.
STRANGERS_MAX: Final = 256
#: As many of one address as nodes may have there are not held against it.
FEW: Final = 8
#: Connections that wait to be accepted: no more than strangers, so that each is heard before it is one too many.
BACKLOG: Final = 256
#: So many connections in a row that end without an answer are told: fewer are those of a node that starts or stops.
LEFT_WAITING_TOLD: Final = 3
#: Kinds of refusal remembered, so that each is told once; and for so long, so that strangers do not fill the log.
_TOLD_MAX: Final = 1000
_TOLD_SECONDS: Final = 600.0
_REASON_CHARACTERS_MAX: Final = 1000

_log = structlog.get_logger(__name__)


class Peers:
    """See the module. The callbacks are called synchronously: `on_message` for each whole frame, `on_bytes` whenever
    bytes of an admitted peer arrive on its main connection, `on_connected` when messages can be sent to it,
    `on_disconnected` once when either of its main connections is lost, `on_refused` whenever a peer turned this node
    away. What they raise closes that connection and goes to the loop's exception handler. `admit` says why a node may
    not take part, if it may not; it is asked about members and others alike."""

    def __init__(
        self,
        hello: Callable[[], Hello],
        listen: str,
        *,
        on_message: Callable[[str, dict[str, Any]], None],
        on_connected: Callable[[str, Hello], None],
        on_disconnected: Callable[[str], None],
        on_bytes: Callable[[str], None],
        on_refused: Callable[[str, Refusal], None],
        admit: Callable[[Hello], Refusal | None],
        security: PeerSecurity | None = None,
    ) -> None:
        self.hello = hello
        self.on_message = on_message
        self.on_connected = on_connected
        self.on_disconnected = on_disconnected
        self.on_bytes = on_bytes
        self.on_refused = on_refused
        self.security = security or PeerSecurity()
        self.closing = False
        #: Accepted connections that have not said who they are, the oldest first.
        self.strangers: dict[_Accepted, None] = {}
        #: Every connection that is open, admitted or not, the oldest first.
        self.links: dict[_Link, None] = {}
        self._admit = admit
        self._listen = listen
        self._peers: dict[str, _Peer] = {}
        self._told: set[tuple[str, str]] = set()
        self._told_since = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def set_members(self, addresses: dict[str, str]) -> None:
        """From now on the other members are those of `addresses`. Those left out are cut, with `on_disconnected` told
        before this returns, as are guests that are not admitted any more; new ones are dialed at once."""
        if self.closing:
            return
        own = self.hello().node_id
        for peer in [peer for peer in self._peers.values() if peer.address is not None and peer.node not in addresses]:
            self.drop(peer)
        for node, address in addresses.items():
            if node != own:
                self._set_member(node, address)
        for peer in [peer for peer in self._peers.values() if peer.address is None]:
            if peer.hello is not None and self._admit(peer.hello) is not None:
                self.drop(peer)

    async def start(self) -> None:
        """Listen, and begin to dial. Raises OSError when the address cannot be had."""
        host, port = _parse(self._listen)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Accepted(self), host, port, backlog=BACKLOG)
        for peer in self._peers.values():
            if peer.dialing is None:
                self.dial(peer)

    async def close(self) -> None:
        """End every connection. No callback is called from here on."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for link in list(self.links):
            link.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.lost for link in self.links))
        if self._server is not None:
            await self._server.wait_closed()

    def send(self, nodes: Sequence[str], message: dict[str, Any], *, bulk: bool = False) -> list[str]:
        """Hand `message`, encoded once, to those of `nodes` that are reachable, and name them. The others miss it. With
        `bulk`, those that too much waits for already miss it as well, and keep their connection."""
        find = self._carrying if bulk else self._sending
        reached = [(node, link) for node in nodes if (link := find(node)) is not None]
        if not reached:
            return []
        data = wire.frame(message)
        sealed = None if self.security.secret is None else sealed_of(memoryview(data)[wire.PREFIX_BYTES :])
        return [node for node, link in reached if link.write(data, sealed)]

    def reachable(self, node: str) -> bool:
        return self._sending(node) is not None

    def queued_bytes(self, node: str, *, bulk: bool = False) -> int:
        """Bytes handed over for `node` that the kernel has not taken yet."""
        peer = self._peers.get(node)
        link = self._sending(node) if peer is None or not bulk else peer.bulk
        return 0 if link is None else link.queued_bytes()

    def hello_of(self, node: str) -> Hello | None:
        """The last hello of `node`, of a member also when it is gone by now."""
        peer = self._peers.get(node)
        return None if peer is None else peer.hello

    def peer(self, node: str) -> _Peer:
        return self._peers[node]

    def _set_member(self, node: str, address: str) -> None:
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer(node, address)
            if self._server is not None:
                self.dial(peer)
            return
        elsewhere = peer.address not in (None, address) and peer.learnt != address
        peer.address = address
        if elsewhere:  # another node under this name, most likely
            peer.learnt = None
            self.cut(peer)
            if self._server is not None:
                self.dial(peer)

    # What the connections ask and report

    def refusal(self, hello: Hello) -> Refusal | None:
        """Why the node that says `hello` is no peer of this one, or None."""
        own = self.hello()
        if hello.protocol != own.protocol:
            return Refusal(f"it speaks protocol {hello.protocol}, this node {own.protocol}")
        if hello.cluster_id != own.cluster_id:
            return Refusal(f"it is of cluster {hello.cluster_id!r}, this node of {own.cluster_id!r}")
        if hello.to not in ("", own.node_id):
            return Refusal(f"this is {own.node_id!r}, not {hello.to!r}")
        if hello.node_id == own.node_id:
            return Refusal(f"{hello.node_id!r} is this node")
        peer = self._peers.get(hello.node_id)
        if peer is None and not _dialable(hello.peer_address):
            return Refusal(f"it is no member here, and its peer address {hello.peer_address!r} cannot be dialed")
        if peer is None and sum(peer.address is None for peer in self._peers.values()) >= GUESTS_MAX:
            return Refusal(f"it is no member here, and {GUESTS_MAX} others that are none are connected")
        if hello.lane == "bulk" and (peer is None or peer.accepted is None or not peer.is_process(hello)):
            return Refusal("its bulk connection stands beside no main one")
        return self._admit(hello)

    def admitted(self, hello: Hello) -> _Peer:
        """The peer that says `hello`, a guest if it is no member."""
        peer = self._peers.get(hello.node_id)
        if peer is None:
            peer = self._peers[hello.node_id] = _Peer(hello.node_id, None)
        return peer

    def meet(self, stranger: _Accepted) -> None:
        """One more, and of too many one less: of the address that has the most, the oldest that proved nothing. So a
        flood from one place sends away its own."""
        self.strangers[stranger] = None
        if len(self.strangers) > STRANGERS_MAX:
            counts = Counter(link.origin for link in self.strangers)
            oldest = max(self.strangers, key=lambda link: (max(counts[link.origin], FEW), not link.proved()))
            del self.strangers[oldest]
            oldest.abort()

    def dial(self, peer: _Peer) -> None:
        """Begin to dial, or begin anew at once."""
        peer.stop_dialing()
        peer.dialing = self._run(self._dial_for_ever(peer))

    def cut(self, peer: _Peer) -> None:
        """End every connection with `peer` that was opened, and report the loss if it was present."""
        for link in (peer.dialed, peer.accepted, peer.bulk_accepted):
            if link is not None:
                link.abort()
        peer.dialed = peer.accepted = peer.bulk_accepted = None
        peer.cut_bulk()
        self.report_loss(peer)

    def drop(self, peer: _Peer) -> None:
        """`peer` is a peer no more."""
        del self._peers[peer.node]
        peer.stop_dialing()
        self.cut(peer)

    def report_loss(self, peer: _Peer) -> None:
        """A peer that dies takes several connections with it: the first is the loss, the others are not another."""
        if peer.present:
            peer.present = False
            self.on_disconnected(peer.node)

    def tell(self, event: str, who: str, reason: str) -> None:
        """Log a refusal, unless it is known already."""
        reason = reason[:_REASON_CHARACTERS_MAX]
        now = asyncio.get_running_loop().time()
        if len(self._told) >= _TOLD_MAX and now - self._told_since > _TOLD_SECONDS:
            self._told.clear()
        if not self._told:
            self._told_since = now
        if len(self._told) < _TOLD_MAX and (event + who, reason) not in self._told:
            self._told.add((event + who, reason))
            _log.warning(event, peer=who, reason=reason)

    # Dialing

    def _sending(self, node: str) -> _Dialed | None:
        peer = self._peers.get(node)
        if peer is None or peer.dialed is None or peer.dialed.closing():
            return None
        return peer.dialed

    def _carrying(self, node: str) -> _Bulk | None:
        """The bulk connection to `node`, open or not yet."""
        beside = self._sending(node)
        if beside is None:
            return None
        peer = self._peers[node]
        if peer.bulk is None:
            peer.bulk = _Bulk(self, peer, beside.address)
            peer.bulk.task = self._run(self._carry(peer, peer.bulk))
        return peer.bulk

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _dial_for_ever(self, peer: _Peer) -> None:
        pause, attempt = REDIAL_SECONDS_MIN, 0
        while True:
            addresses = peer.addresses()
            link = _Dialed(self, peer, addresses[attempt % len(addresses)])
            peer.dials_at = asyncio.get_running_loop().time()
            await self._connect(link)
            attempt += 1
            if link.admitted:
                pause, attempt = REDIAL_SECONDS_MIN, 0
            rest = REFUSED_SECONDS if link.refused else pause
            peer.dials_at = asyncio.get_running_loop().time() + rest
            await asyncio.sleep(rest)
            pause = min(pause * 2, REDIAL_SECONDS_MAX)

    async def _carry(self, peer: _Peer, link: _Bulk) -> None:
        """A bulk connection to its end; after one that could not be had nothing is taken for a while."""
        await self._connect(link)
        if not link.admitted:
            await asyncio.sleep(REFUSED_SECONDS if link.refused else REDIAL_SECONDS_MAX)
        if peer.bulk is link:
            peer.bulk = None

    @staticmethod
    async def _connect(link: _Dialed) -> None:
        """One connection from its beginning to its end, if there is one to be had."""
        try:
            host, port = _parse(link.address)
            async with asyncio.timeout(OPENING_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: link, host, port)
        except (OSError, ValueError):  # also of an address that is none
            link.forsaken()
            return
        except BaseException:
            link.forsaken()
            raise
        try:
            await asyncio.shield(link.lost)
        finally:
            link.abort()


class _Peer:
    """What is known of one other node."""

    __slots__ = (
        "accepted", "address", "bulk", "bulk_accepted", "dialed", "dialing", "dials_at",
        "hello", "learnt", "left_waiting", "node", "opening", "present",
    )  # fmt: skip

    def __init__(self, node: str, address: str | None) -> None:
        self.node = node
        #: As the configuration says; None: a guest.
        self.address = address
        #: As its newest admitted hello says, for a node that moved.
        self.learnt: str | None = None
        self.dialing: asyncio.Task[None] | None = None
        #: When the dial began that is on its way, or when the next one is to begin.
        self.dials_at = 0.0
        #: Made and not answered yet.
        self.opening: _Dialed | None = None
        self.dialed: _Dialed | None = None
        self.accepted: _Accepted | None = None
        self.bulk: _Bulk | None = None
        self.bulk_accepted: _Accepted | None = None
        self.hello: Hello | None = None
        #: Connections to it in a row that it closed in the opening.
        self.left_waiting = 0
        #: An admission was seen since the last loss was reported.
        self.present = False

    def addresses(self) -> list[str]:
        """To be tried in turn."""
        return [address for address in dict.fromkeys((self.learnt, self.address)) if address is not None]

    def greeted(self, hello: Hello) -> None:
        """It said `hello` on a main connection, and was admitted."""
        self.hello = hello
        self.present = True
        if _dialable(hello.peer_address):
            self.learnt = hello.peer_address

    def is_process(self, hello: Hello) -> bool:
        """`hello` is of the process that was met last."""
        known = self.hello
        return known is not None and (known.node_uuid, known.boot) == (hello.node_uuid, hello.boot)

    def dials_soon(self) -> bool:
        """A dial has just begun, or is about to. After a loss it must not begin at once: the other side hears of the
        loss a moment later, and would take it for one of the new connection, and so on for ever."""
        return abs(self.dials_at - asyncio.get_running_loop().time()) < SOON_SECONDS

    def stop_dialing(self) -> None:
        if self.opening is not None:
            self.opening.abort()  # at once: its answer must not be taken any more
            self.opening = None
        if self.dialing is not None:
            self.dialing.cancel()

    def cut_bulk(self) -> None:
        bulk, self.bulk = self.bulk, None
        if bulk is not None:
            bulk.task.cancel()


class _Link(asyncio.Protocol):
    """One connection, from its opening to its loss."""

    def __init__(self, peers: Peers) -> None:
        self.admitted = False
        self.refused = False
        #: By this node.
        self.ended = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peers = peers
        self._transport: Transport
        self._channel: Channel
        self._impatience: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._impatience = asyncio.get_running_loop().call_later(OPENING_SECONDS, self.abort)
        self._peers.links[self] = None
        _tune(transport.get_extra_info("socket"))
        if self._peers.closing:
            self.abort()
            return
        accepted = isinstance(self, _Accepted)
        self._channel = Channel(transport, self._peers.security, accepted=accepted, on_ready=self.greet)
        self.begin()
        self._checked(self._channel.begin)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.lost.done():
            return
        self._impatience.cancel()
        del self._peers.links[self]
        self.lost.set_result(None)
        if not self._peers.closing:
            self.leave()

    def data_received(self, data: bytes) -> None:
        if not self.closing():
            self._checked(self._hear, data)

    def _hear(self, data: bytes) -> None:
        data = self._channel.decrypt(data)
        if not data:
            return
        self.heard()
        for payload in self._channel.frames(data):
            if self.closing():
                return
            self.take(payload)

    def _checked(self, step: Callable[..., None], *arguments: Any) -> bool:
        """Do that, or end the connection if what the peer sent is the reason why not."""
        try:
            step(*arguments)
        except Unproved as error:
            self._peers.tell("unproved peer", self.who(), str(error))
            self.hang_up()
        except Malformed as error:
            self._peers.tell("peer malformed", self.who(), str(error))
            self.abort()
        else:
            return True
        return False

    def hang_up(self) -> None:
        """End the connection, after what TLS says of the reason."""
        if self.admitted:
            self.abort()
        else:
            self.ended = True
            self._transport.close()

    def begin(self) -> None:
        """The connection is made."""

    def greet(self) -> None:
        """Hellos can be said."""

    def take(self, payload: memoryview) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """This connection is gone."""
        raise NotImplementedError

    def who(self) -> str:
        """For the log: whom this connection is with."""
        raise NotImplementedError

    def heard(self) -> None:
        """Bytes have arrived."""

    def opened(self) -> None:
        self.admitted = True
        self._impatience.cancel()
        self._channel.opened()

    def write(self, data: bytes | bytearray, sealed: Buffer | None = None) -> bool:
        """Hand over one frame, or end a connection whose peer does not take what it was given."""
        queued = self._transport.get_write_buffer_size()
        if queued and queued + len(data) > QUEUED_BYTES_MAX:
            self._peers.tell("peer too slow", self.who(), f"more than {QUEUED_BYTES_MAX} bytes would wait for it")
            self.abort()
            return False
        return self._checked(self._channel.write, data, sealed)

    def queued_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def closing(self) -> bool:
        return self._transport.is_closing()

    def abort(self) -> None:
        self.ended = True
        self._impatience.cancel()
        self._transport.abort()


class _Dialed(_Link):
    """A connection that this node made: it says hello, is answered, and sends."""

    lane: ClassVar[Literal["main", "bulk"]] = "main"

    def __init__(self, peers: Peers, peer: _Peer, address: str) -> None:
        super().__init__(peers)
        self.address = address
        self._peer = peer

    def begin(self) -> None:
        self._peer.opening = self

    def greet(self) -> None:
        hello = msgspec.structs.replace(self._peers.hello(), lane=self.lane, to=self._peer.node)
        self._channel.write(wire.frame(hello))

    def take(self, payload: memoryview) -> None:
        if self.admitted:
            raise Malformed("a message on a connection that is only for ours")
        answer = wire.opening(payload)
        self._peer.left_waiting = 0
        if isinstance(answer, Refusal):
            self._refuse("refused by peer", answer)
            self._peers.on_refused(self._peer.node, answer)
        elif (refusal := self._refusal(answer)) is not None:
            self._refuse("refused peer", refusal)
        else:
            self.opened()
            self.join(answer)

    def join(self, hello: Hello) -> None:
        self._peer.opening = None
        self._peer.dialed = self
        self._peer.greeted(hello)
        self._peers.on_connected(self._peer.node, hello)

    def leave(self) -> None:
        if not self.admitted and not self.ended:
            self._left_waiting()
        if self._peer.opening is self:
            self._peer.opening = None
        if self._peer.dialed is self:
            self._peer.dialed = None
            self._peer.cut_bulk()
            self._peers.report_loss(self._peer)

    def forsaken(self) -> None:
        """Whoever was making this connection gave up; uvloop then closes it without telling its protocol."""
        if self in self._peers.links:
            self.connection_lost(None)
        else:
            self.lost.set_result(None)

    def who(self) -> str:
        return self._peer.node

    def _left_waiting(self) -> None:
        """The other end closed the connection in the opening: it dies, or does not want to speak with this node, and
        says that to nobody but who has proved to belong to the cluster."""
        self._peer.left_waiting += 1
        if self._peer.left_waiting == LEFT_WAITING_TOLD:
            self._peers.tell(
                "peer does not answer",
                self.who(),
                "it closes connections before it answers. Its cluster secret, TLS or certificates may not fit those of "
                f"this node, which opens with {self._peers.security.shown()}: its log says more",
            )

    def _refusal(self, hello: Hello) -> Refusal | None:
        if hello.node_id != self._peer.node:
            return Refusal(f"{self.address} is {hello.node_id!r}, not {self._peer.node!r}")
        return self._channel.refusal(hello.node_id) or self._peers.refusal(hello)

    def _refuse(self, event: str, refusal: Refusal) -> None:
        self.refused = True
        self._peers.tell(event, self.who(), refusal.reason)
        self.abort()


class _Bulk(_Dialed):
    """What is long goes here. It holds a little while it opens, and closes when nothing moves."""

    lane = "bulk"
    task: asyncio.Task[None]

    def __init__(self, peers: Peers, peer: _Peer, address: str) -> None:
        super().__init__(peers, peer, address)
        self._waiting: list[bytes | bytearray] = []
        self._waiting_bytes = 0
        self._taken = 0
        self._seen = (0, 0)
        self._look: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Not an opening of the main connection."""

    def join(self, _hello: Hello) -> None:
        for data in self._waiting:
            self._checked(self._channel.write, data)
        self._waiting, self._waiting_bytes = [], 0
        self._look_after()

    def leave(self) -> None:
        if self._look is not None:
            self._look.cancel()

    def write(self, data: bytes | bytearray, sealed: Buffer | None = None) -> bool:
        if self.refused or self.lost.done() or (self.admitted and self.closing()):
            return False
        queued = self.queued_bytes()
        if queued and queued + len(data) > BULK_QUEUED_BYTES_MAX:
            return False
        self._taken += 1
        if self.admitted:
            return self._checked(self._channel.write, data, sealed)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        return True

    def queued_bytes(self) -> int:
        return super().queued_bytes() if self.admitted else self._waiting_bytes

    def _look_after(self) -> None:
        seen = (self._taken, self.queued_bytes())
        if seen == self._seen:
            self.abort()
            return
        self._seen = seen
        self._look = asyncio.get_running_loop().call_later(BULK_IDLE_SECONDS, self._look_after)


class _Accepted(_Link):
    """A connection that a peer made: it says hello, is answered, and is read."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers)
        self._peer: _Peer | None = None
        self._main = True

    def begin(self) -> None:
        self.origin = _origin(self._address())
        self._peers.meet(self)

    def proved(self) -> bool:
        return self._channel.proved

    def heard(self) -> None:
        if self._peer is not None and self._main:
            self._peers.on_bytes(self._peer.node)

    def take(self, payload: memoryview) -> None:
        if self._peer is not None:
            message = wire.message(payload)
            if message is not None:
                self._peers.on_message(self._peer.node, message)
            return
        if is_proof(payload):
            raise Unproved("it opens with a cluster secret, and this node has none")
        hello = wire.opening(payload)
        if isinstance(hello, Refusal):
            raise Malformed("a refusal where a hello was due")
        refusal = self._channel.refusal(hello.node_id) or self._peers.refusal(hello)
        if refusal is None:
            self._join(hello)
        else:
            self._refuse(hello, refusal)

    def leave(self) -> None:
        self._peers.strangers.pop(self, None)
        peer = self._peer
        if peer is None:
            return
        if peer.bulk_accepted is self:
            peer.bulk_accepted = None
        if peer.accepted is not self:
            return
        # Most likely the peer has died. If only this connection has, new ones make both sides agree.
        if peer.address is None:
            self._peers.drop(peer)
        else:
            self._peers.cut(peer)

    def who(self) -> str:
        if self._peer is not None:
            return self._peer.node
        return self._address()

    def _address(self) -> str:
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if address else "unknown"

    def _refuse(self, hello: Hello, refusal: Refusal) -> None:
        self.refused = True
        self._peers.tell("refused peer", f"{hello.node_id[:100]} at {self.who()}", refusal.reason)
        self._channel.write(wire.frame(refusal))
        self._transport.close()

    def _join(self, hello: Hello) -> None:
        """Become the one connection of its lane from this peer."""
        self.opened()
        del self._peers.strangers[self]
        self._peer = peer = self._peers.admitted(hello)
        self._main = hello.lane == "main"
        older = [peer.bulk_accepted]
        if self._main:
            older.append(peer.accepted)
            peer.accepted, peer.bulk_accepted = self, None
        else:
            peer.bulk_accepted = self
        for link in older:
            if link is not None:
                link.abort()
        self._channel.write(wire.frame(self._peers.hello()))
        if self._main:
            self._greet(peer, hello)

    def _greet(self, peer: _Peer, hello: Hello) -> None:
        if peer.dialed is not None and not peer.is_process(hello):
            # It leads to a process that is no more, whose machine had no time to say so.
            dialed, peer.dialed = peer.dialed, None
            dialed.abort()
            peer.cut_bulk()
            self._peers.report_loss(peer)
        if peer.accepted is not self:
            return  # cut by what was just told
        peer.greeted(hello)
        if peer.dialed is None and peer.opening is None and not peer.dials_soon():
            self._peers.dial(peer)  # it is there now, however long the pause between dials has grown


def _tune(connection: socket.socket) -> None:
    """Send small messages at once, and find out about a peer whose machine has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)


def _origin(address: str) -> str:
    """Whom strangers at `address` are counted with: of IPv6 one host has 2 ** 64 addresses at least."""
    if ":" not in address or address.startswith("::ffff:"):
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))


def _parse(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _dialable(address: str) -> bool:
    try:
        host, port = _parse(address)
    except ValueError:
        return False
    return bool(host) and 0 < port < 65536
