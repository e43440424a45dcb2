"""The network between the machines, and the peers of a node on it.

`Network` owns which machine hears which, how late, and every connection; `SimPeers` is what `replication.peers.Peers`
is on sockets: it dials, says who it is, admits or refuses, and is told of losses. Messages go through the real frames,
so that what arrives is a plain value and shares nothing with its sender.

A connection carries its messages in order, as TCP does, but worse can be had: a message may be lost, repeated or
overtaken while its connection lives. What is cut is either lost or kept, to arrive when the cut ends. An end whose data
or acknowledgements are cut gives its connection up after a while, each end at a time of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from raftq.chaos.simulation.disk import Process
from raftq.chaos.simulation.loop import NodeLoop, Scheduler
from raftq.chaos.simulation.trace import Trace
from raftq.replication import wire
from raftq.replication.security import PeerSecurity
from raftq.replication.wire import Hello, Refusal

OPENING_SECONDS: Final = 1.0
REDIAL_SECONDS_MIN: Final = 0.05
REDIAL_SECONDS_MAX: Final = 0.5
REFUSED_SECONDS: Final = 1.0
#: An end notices that nothing is acknowledged any more.
UNACKNOWLEDGED_SECONDS: Final = (0.5, 4.0)
#: However many things make a way slow: it is to be as fast as before soon after they end.
SLOW_MAX: Final = 400.0
_PREFIX_BYTES: Final = 4


class Link(msgspec.Struct):
    """The way from one machine to another."""

    delay: float
    slow: float = 1.0
    #: Seconds on top.
    late: float = 0.0
    #: How many cuts are on it.
    cuts: int = 0
    #: What waits for the last cut to end; None: it is lost.
    kept: list[tuple[Connection, bytes]] | None = None


class Chances(msgspec.Struct):
    """Of each message."""

    lost: float = 0.0
    repeated: float = 0.0
    overtaken: float = 0.0


class Connection:
    """From the machine that dialed to the one that accepted; messages go in this direction alone."""

    __slots__ = (
        "accepted_open", "acceptor", "arrived", "busy", "dialed", "dialed_open", "dialer", "greeted", "lane", "number"
    )  # fmt: skip

    def __init__(self, number: int, dialer: SimPeers, acceptor: SimPeers, lane: str) -> None:
        self.number, self.dialer, self.acceptor, self.lane = number, dialer, acceptor, lane
        self.dialed_open = self.accepted_open = True
        #: The node that was dialed, and the node that was greeted once it was admitted.
        self.dialed: str | None = None
        self.greeted: str | None = None
        #: When the last message arrives, and when the last byte has left.
        self.arrived = self.busy = 0.0


class Network:
    def __init__(self, scheduler: Scheduler, trace: Trace) -> None:
        self.scheduler, self.trace = scheduler, trace
        self.dice = scheduler.dice_for("network")
        self.chances = Chances()
        self.bytes_per_second = 50e6
        #: Every way takes so many times as long.
        self.slow = 1.0
        self._links: dict[tuple[str, str], Link] = {}
        self._listening: dict[str, SimPeers] = {}
        self._connections: dict[int, Connection] = {}
        self._number = 0
        #: Messages sent, and what became of them.
        self.sent = self.lost = self.repeated = self.overtaken = 0
        #: Between clients and nodes, which no cut parts: chance of a request or an answer to be lost.
        self.client_lost = 0.002
        self.client_dice = scheduler.dice_for("clients' network")

    # Faults

    def link(self, source: str, target: str) -> Link:
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = Link(0.0002 + self.dice.random() * 0.001)
        return found

    def cut(self, source: str, target: str, *, keep: bool) -> None:
        """Nothing gets from `source` to `target` until `mend`."""
        link = self.link(source, target)
        link.cuts += 1
        if keep and link.kept is None:
            link.kept = []
        patience = self._patience() * (3 if keep else 1)  # what is kept may arrive long after
        self.scheduler.after(patience, self._give_up, source, target, link)

    def mend(self, source: str, target: str) -> None:
        link = self.link(source, target)
        link.cuts -= 1
        if link.cuts == 0:
            kept, link.kept = link.kept or [], None
            for connection, data in kept:
                self._carry(link, connection, data)

    def reset(self, one: str, other: str) -> None:
        """The connections between two machines break; both ends are told."""
        for connection in self._between(one, other):
            self._tell(connection, connection.dialer, self.delay(one, other))
            self._tell(connection, connection.acceptor, self.delay(other, one))

    def _give_up(self, source: str, target: str, link: Link) -> None:
        if link.cuts:
            for connection in self._between(source, target):
                self._tell(connection, connection.dialer, 0.0)
                self._tell(connection, connection.acceptor, self._patience())

    def _patience(self) -> float:
        low, high = UNACKNOWLEDGED_SECONDS
        return low + (high - low) * self.dice.random()

    def _between(self, one: str, other: str) -> list[Connection]:
        ends = ((one, other), (other, one))
        return [each for each in self._connections.values() if (each.dialer.address, each.acceptor.address) in ends]

    # Connections

    def listen(self, peers: SimPeers) -> None:
        """A process begins to listen. What is left of an earlier one at this address is answered with a reset."""
        if peers.address in self._listening:
            raise OSError(f"{peers.address} is taken")
        self._listening[peers.address] = peers
        for connection in list(self._connections.values()):
            for end, other in ((connection.dialer, connection.acceptor), (connection.acceptor, connection.dialer)):
                if end.address == peers.address and end is not peers:
                    self._tell(connection, other, self.delay(end.address, other.address))

    def vanish(self, peers: SimPeers, *, told: bool) -> None:
        """A process is gone. Its kernel tells the others, unless the machine went with it."""
        if self._listening.get(peers.address) is peers:
            del self._listening[peers.address]
        for connection in list(self._connections.values()):
            if connection.dialer is peers or connection.acceptor is peers:
                self.close(connection, peers, told=told)

    def dial(self, peers: SimPeers, address: str, lane: str, opened: Callable[[Connection | None], None]) -> None:
        """`opened` is called in the process of `peers`, with None when nobody is there."""
        ways = self.link(peers.address, address), self.link(address, peers.address)
        if any(way.cuts for way in ways):
            peers.loop.deliver(self.scheduler.now + OPENING_SECONDS, opened, None)
            return
        trip = self.delay(peers.address, address) + self.delay(address, peers.address)
        self.scheduler.after(trip, self._open, peers, address, lane, opened)

    def _open(self, peers: SimPeers, address: str, lane: str, opened: Callable[[Connection | None], None]) -> None:
        there = self._listening.get(address)
        connection = None
        if there is not None and peers.alive:
            self._number += 1
            connection = self._connections[self._number] = Connection(self._number, peers, there, lane)
        peers.loop.deliver(self.scheduler.now, opened, connection)

    def close(self, connection: Connection, by: SimPeers, *, told: bool = True) -> None:
        """One end closes; the other is told, or finds out."""
        if by is connection.dialer:
            connection.dialed_open, other = False, connection.acceptor
        else:
            connection.accepted_open, other = False, connection.dialer
        if not connection.dialed_open and not connection.accepted_open:
            self._connections.pop(connection.number, None)
            return
        reaches = told and not self.link(by.address, other.address).cuts
        self._tell(connection, other, self.delay(by.address, other.address) if reaches else self._patience())

    def _tell(self, connection: Connection, end: SimPeers, after: float) -> None:
        end.loop.deliver(self.scheduler.now + after, end.lost, connection)

    # Messages

    def delay(self, source: str, target: str) -> float:
        return self._delay_of(self.link(source, target))

    def _delay_of(self, link: Link) -> float:
        return link.late + link.delay * min(link.slow * self.slow, SLOW_MAX) * (1 + 4 * self.dice.random() ** 6)

    def send(self, connection: Connection, data: bytes) -> None:
        """A message, on its way."""
        self.sent += 1
        link = self.link(connection.dialer.address, connection.acceptor.address)
        if link.cuts:
            if link.kept is not None:
                link.kept.append((connection, data))
            return
        chances = self.chances
        if chances.lost and self.dice.random() < chances.lost:
            self.lost += 1
            return
        self._carry(link, connection, data)
        if chances.repeated and self.dice.random() < chances.repeated:
            self.repeated += 1
            self._carry(link, connection, data)

    def _carry(self, link: Link, connection: Connection, data: bytes) -> None:
        now = self.scheduler.now
        connection.busy = max(connection.busy, now) + len(data) / self.bytes_per_second
        arrives = connection.busy + self._delay_of(link)
        if self.chances.overtaken and self.dice.random() < self.chances.overtaken:
            self.overtaken += 1
            arrives += 10 * link.delay * link.slow * 10 ** (2.5 * self.dice.random())  # into a later term, even
        else:
            arrives = connection.arrived = max(arrives, connection.arrived)
        receiver = connection.acceptor
        receiver.loop.deliver(arrives, receiver.arrived, connection, data)

    def open_with(self, connection: Connection, by: SimPeers, value: Hello | Refusal) -> None:
        """The two frames that open a connection."""
        other = connection.acceptor if by is connection.dialer else connection.dialer
        if not self.link(by.address, other.address).cuts:
            data = bytes(wire.frame(value))
            other.loop.deliver(
                self.scheduler.now + self.delay(by.address, other.address), other.opening, connection, data
            )


class _Lane:
    """One connection to a peer, ours to send on, and one from it."""

    __slots__ = ("accepted", "dialed", "dialing", "pause")

    def __init__(self) -> None:
        self.dialed: Connection | None = None
        self.accepted: Connection | None = None
        self.dialing = False
        self.pause = REDIAL_SECONDS_MIN


class _Peer:
    __slots__ = ("address", "hello", "lanes", "member", "node", "present")

    def __init__(self, node: str, address: str, *, member: bool) -> None:
        self.node, self.address, self.member = node, address, member
        self.hello: Hello | None = None
        self.present = False
        self.lanes = {"main": _Lane(), "bulk": _Lane()}


class SimPeers:
    """See `replication.peers.Peers`."""

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
        security: PeerSecurity | None = None,  # noqa: ARG002  (there are no strangers here)
        network: Network,
        loop: NodeLoop,
        process: Process,
        decode: Callable[[memoryview], dict[str, Any] | None] = wire.message,
    ) -> None:
        self.hello, self.address = hello, listen
        self.on_message, self.on_connected, self.on_disconnected = on_message, on_connected, on_disconnected
        self.on_bytes, self.on_refused = on_bytes, on_refused
        self._admit = admit
        self.network, self.loop, self.process, self._decode = network, loop, process, decode
        self.alive = False
        self._own = hello().node_id
        self._peers: dict[str, _Peer] = {}

    # What the shard calls

    def set_members(self, addresses: dict[str, str]) -> None:
        for node in [node for node in self._peers if node not in addresses]:
            self._forget(self._peers.pop(node))
        for node, address in addresses.items():
            if node == self._own:
                continue
            peer = self._peers.get(node)
            if peer is None:
                peer = self._peers[node] = _Peer(node, address, member=True)
            peer.member, peer.address = True, address
            self._dial(peer, "main")
        for peer in [peer for peer in self._peers.values() if not peer.member]:
            if peer.hello is not None and self._admit(peer.hello) is not None:
                self._forget(self._peers.pop(peer.node))

    async def start(self) -> None:
        self.network.listen(self)
        self.alive = True
        for peer in self._peers.values():
            self._dial(peer, "main")

    async def close(self) -> None:
        self.vanish(told=True)

    def vanish(self, *, told: bool) -> None:
        if self.alive:
            self.alive = False
            self.network.vanish(self, told=told)

    def send(self, nodes: Sequence[str], message: dict[str, Any], *, bulk: bool = False) -> list[str]:
        reached: list[str] = []
        data = b""
        for node in nodes:
            connection = self._sending(node, bulk)
            if connection is not None:
                self.process.reach("send")
                self.process.sent(node, message)
                data = data or bytes(wire.frame(message))
                self.network.send(connection, data)
                reached.append(node)
        return reached

    def reachable(self, node: str) -> bool:
        return self._sending(node, bulk=False) is not None

    def queued_bytes(self, node: str, *, bulk: bool = False) -> int:
        connection = self._sending(node, bulk)
        if connection is None:
            return 0
        return int(max(connection.busy - self.network.scheduler.now, 0.0) * self.network.bytes_per_second)

    def hello_of(self, node: str) -> Hello | None:
        peer = self._peers.get(node)
        return None if peer is None else peer.hello

    # Dialing

    def _sending(self, node: str, bulk: bool) -> Connection | None:
        peer = self._peers.get(node)
        if peer is None:
            return None
        if not bulk:
            return peer.lanes["main"].dialed
        if peer.lanes["main"].dialed is not None:
            self._dial(peer, "bulk")
        return peer.lanes["bulk"].dialed

    def _dial(self, peer: _Peer, lane: str) -> None:
        at = peer.lanes[lane]
        if self.alive and at.dialed is None and not at.dialing and self._peers.get(peer.node) is peer:
            at.dialing = True
            address = peer.hello.peer_address if peer.hello is not None else peer.address
            self.network.dial(self, address, lane, lambda connection: self._opened(peer, lane, connection))

    def _again(self, peer: _Peer, lane: str, pause: float | None = None) -> None:
        """Dial after a pause, which grows; a guest only while it is connected, the bulk lane when it is needed."""
        at = peer.lanes[lane]
        wait, at.pause = pause or at.pause, min(at.pause * 2, REDIAL_SECONDS_MAX)
        self.loop.call_later(wait, self._redial, peer, lane)

    def _redial(self, peer: _Peer, lane: str) -> None:
        peer.lanes[lane].dialing = False
        if lane == "main" and (peer.member or peer.lanes["main"].accepted is not None):
            self._dial(peer, lane)

    def _opened(self, peer: _Peer, lane: str, connection: Connection | None) -> None:
        if connection is None or not self.alive or self._peers.get(peer.node) is not peer:
            if connection is not None:
                self.network.close(connection, self)
            self._again(peer, lane)
            return
        connection.dialed = peer.node
        self.network.open_with(connection, self, self._introduction(lane, peer.node))
        self.loop.call_later(OPENING_SECONDS, self._impatient, peer, connection)

    def _impatient(self, peer: _Peer, connection: Connection) -> None:
        if connection.dialed_open and peer.lanes[connection.lane].dialed is not connection:
            self.network.close(connection, self)
            self._again(peer, connection.lane)

    def opening(self, connection: Connection, data: bytes) -> None:
        """A hello, or what was answered to ours."""
        said = wire.opening(memoryview(data)[_PREFIX_BYTES:])
        if not self.alive:
            return
        if connection.acceptor is self:
            if connection.accepted_open and isinstance(said, Hello):
                self._greeted(connection, said)
        elif connection.dialed_open and connection.dialed is not None:
            peer = self._peers.get(connection.dialed)
            if peer is not None:
                self._answered(peer, connection, said)

    def _answered(self, peer: _Peer, connection: Connection, said: Hello | Refusal) -> None:
        lane = peer.lanes[connection.lane]
        refused = isinstance(said, Refusal) or said.node_id != peer.node or self._refusal(said) is not None
        if refused or isinstance(said, Refusal):
            self.network.close(connection, self)
            self._again(peer, connection.lane, REFUSED_SECONDS)
            if isinstance(said, Refusal):
                self.on_refused(peer.node, said)
            return
        lane.dialed, lane.dialing, lane.pause = connection, False, REDIAL_SECONDS_MIN
        peer.hello = said
        if connection.lane == "main":
            peer.present = True
            self.on_connected(peer.node, said)

    def _greeted(self, connection: Connection, hello: Hello) -> None:
        refusal = self._refusal(hello)
        if refusal is not None:
            self.network.open_with(connection, self, refusal)
            self.network.close(connection, self)
            return
        peer = self._peers.get(hello.node_id)
        if connection.lane == "bulk" and (peer is None or peer.lanes["main"].accepted is None):
            self.network.close(connection, self)
            return
        if peer is None:
            peer = self._peers[hello.node_id] = _Peer(hello.node_id, hello.peer_address, member=False)
        connection.greeted = peer.node
        lane = peer.lanes[connection.lane]
        older, lane.accepted = lane.accepted, connection
        if older is not None:
            self.network.close(older, self)
        if connection.lane == "main":
            dialed = lane.dialed
            if dialed is not None and peer.hello is not None and hello.boot != peer.hello.boot:
                self._drop(dialed)  # it leads to a process that is no more
            peer.present = True
        peer.hello = hello
        self.network.open_with(connection, self, self._introduction(connection.lane, ""))
        self._dial(peer, "main")

    def _introduction(self, lane: str, to: str) -> Hello:
        return msgspec.structs.replace(self.hello(), lane=lane, to=to)

    def _refusal(self, hello: Hello) -> Refusal | None:
        own = self.hello()
        if hello.protocol != own.protocol or hello.cluster_id != own.cluster_id:
            return Refusal("another protocol, or another cluster")
        if hello.node_id == self._own or hello.to not in ("", self._own):
            return Refusal("meant for another")
        return self._admit(hello)

    # Losses

    def lost(self, connection: Connection) -> None:
        """This end finds that the connection is over."""
        if self.alive and (connection.dialed_open if connection.dialer is self else connection.accepted_open):
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self.network.close(connection, self)
        node = connection.dialed if connection.dialer is self else connection.greeted
        peer = self._peers.get(node) if node is not None else None
        if peer is None:
            return
        lane = peer.lanes[connection.lane]
        if connection.dialer is self:
            lane.dialing = True
            self._again(peer, connection.lane)
            if lane.dialed is connection:
                lane.dialed = None
                self._report_loss(peer, connection.lane)
        elif lane.accepted is connection:
            lane.accepted = None
            if lane.dialed is not None:
                self._drop(lane.dialed)
            self._report_loss(peer, connection.lane)
            if not peer.member and connection.lane == "main":
                del self._peers[peer.node]

    def _report_loss(self, peer: _Peer, lane: str) -> None:
        if lane == "main" and peer.present:
            peer.present = False
            self.on_disconnected(peer.node)

    def _forget(self, peer: _Peer) -> None:
        """It is no member any more."""
        for lane in peer.lanes.values():
            for connection in (lane.dialed, lane.accepted):
                if connection is not None:
                    self.network.close(connection, self)
        self._report_loss(peer, "main")

    # Messages

    def arrived(self, connection: Connection, data: bytes) -> None:
        node = connection.greeted
        if node is None or not connection.accepted_open or not self.alive:
            return
        peer = self._peers.get(node)
        if peer is None or peer.lanes[connection.lane].accepted is not connection:
            return
        network = self.network
        network.scheduler.note(data)
        message = self._decode(memoryview(data)[_PREFIX_BYTES:])
        self.on_bytes(node)
        if message is not None:
            if network.trace.on:
                network.trace.message(self._own, node, message)
            self.on_message(node, message)
