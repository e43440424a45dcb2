"""The simulated network: connections as TCP has them, and worse; and peers as sockets have them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from raftq.chaos.simulation.disk import Point, Process
from raftq.chaos.simulation.loop import Clock, NodeLoop, Scheduler
from raftq.chaos.simulation.network import SLOW_MAX, Chances, Network, SimPeers
from raftq.chaos.simulation.trace import Trace
from raftq.replication.peers import Peers
from raftq.replication.wire import PROTOCOL, Hello, Refusal


class Machine(Process):
    """One process after the other at an address, and what its peers tell it."""

    def __init__(self, town: Town, name: str) -> None:
        self.town, self.name, self.address = town, name, f"{name}:1"
        self.boot = 0
        self.told: list[Any] = []
        self.refused_for: str | None = None
        self.peers: SimPeers

    def start(self) -> None:
        self.boot += 1
        clock = Clock(self.town.scheduler, monotonic=0.0, wall=0.0)
        dice = self.town.scheduler.dice_for(self.name)
        self.loop = NodeLoop(self.town.scheduler, clock, dice, self.town.errors.append)  # type: ignore[abstract]
        self.peers = SimPeers(
            self.hello,
            self.address,
            on_message=lambda node, message: self.told.append((node, message["round"])),
            on_connected=lambda node, _hello: self.told.append(("connected", node)),
            on_disconnected=lambda node: self.told.append(("disconnected", node)),
            on_bytes=lambda _node: None,
            on_refused=lambda node, refusal: self.told.append(("refused", node, refusal.reason)),
            admit=self.admit,
            network=self.town.network,
            loop=self.loop,
            process=self,
        )
        self.peers.set_members({name: f"{name}:1" for name in self.town.members})
        self.loop.create_task(self.peers.start())

    def hello(self) -> Hello:
        return Hello(PROTOCOL, "c", self.name, f"u-{self.name}", self.boot, "", self.address, "0", 1, 1)

    def admit(self, hello: Hello) -> Refusal | None:
        return Refusal("not you") if hello.node_id == self.refused_for else None

    def crash(self, *, told: bool = True) -> None:
        self.loop.close()
        self.peers.vanish(told=told)

    def send(self, target: Machine, number: int) -> list[str]:
        return self.peers.send([target.name], {"type": "echo", "term": 1, "round": number})

    @property
    def numbers(self) -> list[int]:
        return [told[1] for told in self.told if isinstance(told[1], int)]

    def reach(self, point: Point) -> None: ...
    def sent(self, target: str, message: dict[str, Any]) -> None: ...


class Town:
    def __init__(self, *members: str) -> None:
        self.members = members
        self.scheduler = Scheduler(5)
        self.network = Network(self.scheduler, Trace(self.scheduler, None))
        self.errors: list[BaseException] = []
        self.machines = {name: Machine(self, name) for name in members}

    def wait(self, seconds: float) -> None:
        self.scheduler.run(self.scheduler.now + seconds)
        assert self.errors == []


@pytest.fixture
def pair() -> tuple[Town, Machine, Machine]:
    town = Town("a", "b")
    a, b = town.machines.values()
    a.start()
    b.start()
    town.wait(1.0)
    assert a.told == [("connected", "b")]
    assert b.told == [("connected", "a")]
    return town, a, b


def test_it_shows_what_real_peers_show() -> None:
    shown = [name for name, _ in inspect.getmembers(Peers, inspect.isfunction) if not name.startswith("_")]
    internal = {"peer", "refusal", "admitted", "meet", "dial", "cut", "drop", "report_loss", "tell"}
    for name in set(shown) - internal:
        real, ours = (inspect.signature(getattr(kind, name)) for kind in (Peers, SimPeers))
        assert list(real.parameters) == list(ours.parameters), name
    real_arguments = list(inspect.signature(Peers).parameters)
    assert list(inspect.signature(SimPeers).parameters)[: len(real_arguments)] == real_arguments


def test_messages_of_a_connection_arrive_in_order_as_values_of_their_own(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    for number in range(200):
        assert a.send(b, number) == ["b"]
    town.wait(1.0)
    assert b.numbers == list(range(200))


def test_messages_can_be_lost_repeated_and_overtaken(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    town.network.chances = Chances(lost=0.2, repeated=0.2, overtaken=0.2)
    for number in range(300):
        a.send(b, number)
        town.wait(0.0005)
    town.wait(1.0)
    assert len(set(b.numbers)) < 300
    assert len(b.numbers) > len(set(b.numbers))
    assert b.numbers != sorted(b.numbers)


@pytest.mark.parametrize("keep", [True, False])
def test_a_cut_stops_one_way_alone(pair: tuple[Town, Machine, Machine], keep: bool) -> None:
    town, a, b = pair
    town.network.cut("a:1", "b:1", keep=keep)
    a.send(b, 1)
    b.send(a, 2)
    town.wait(0.1)
    assert (a.numbers, b.numbers) == ([2], [])
    town.network.mend("a:1", "b:1")
    a.send(b, 3)
    town.wait(0.4)
    assert b.numbers == ([1, 3] if keep else [3])


def test_a_slow_network_is_slow_on_every_way_and_within_bounds(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    before = town.network.delay("a:1", "b:1")
    town.network.slow = 50.0
    assert town.network.delay("a:1", "b:1") > 8 * before
    a.send(b, 1)
    town.wait(0.005)
    assert b.numbers == []
    town.network.link("a:1", "b:1").slow = 400.0
    assert town.network.delay("a:1", "b:1") < 5 * SLOW_MAX * 0.0012
    town.wait(0.5)
    assert b.numbers == [1]


def test_a_long_cut_ends_the_connections_and_mending_brings_them_back(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    town.network.cut("a:1", "b:1", keep=False)
    town.wait(10.0)
    assert a.told[-1] == ("disconnected", "b")
    assert b.told[-1] == ("disconnected", "a")
    assert a.send(b, 1) == []
    town.network.mend("a:1", "b:1")
    town.wait(3.0)
    assert a.told[-1] == ("connected", "b")
    assert a.send(b, 2) == ["b"]


@pytest.mark.parametrize("told", [True, False])
def test_a_crash_is_noticed_and_the_next_process_is_met(pair: tuple[Town, Machine, Machine], told: bool) -> None:
    town, a, b = pair
    b.crash(told=told)
    town.wait(0.1)
    assert (("disconnected", "b") in a.told) is told
    b.start()
    town.wait(3.0)
    assert a.told == [("connected", "b"), ("disconnected", "b"), ("connected", "b")]
    hello = a.peers.hello_of("b")
    assert hello is not None
    assert hello.boot == 2
    a.send(b, 7)
    town.wait(0.1)
    assert b.numbers == [7]


def test_what_was_sent_to_a_process_does_not_reach_the_next(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    town.network.link("a:1", "b:1").slow = 200.0
    a.send(b, 1)
    b.crash()
    b.start()
    town.wait(5.0)
    assert b.numbers == []


def test_who_is_not_admitted_is_told_why(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    b.refused_for = "a"
    a.crash()
    a.told.clear()
    a.start()
    town.wait(3.0)
    assert ("refused", "b", "not you") in a.told
    assert ("connected", "b") not in a.told


def test_a_member_left_out_is_cut_and_a_guest_stays_as_long_as_it_is_connected() -> None:
    town = Town("a", "b")
    a, b = town.machines.values()
    a.start()
    b.start()
    a.peers.set_members({})  # it does not know b, which dials it
    town.wait(1.0)
    assert a.told == [("connected", "b")]
    a.peers.set_members({"b": "b:1"})
    a.peers.set_members({})
    assert a.told[-1] == ("disconnected", "b")
    assert not a.peers.reachable("b")


def test_the_bulk_lane_is_made_when_needed(pair: tuple[Town, Machine, Machine]) -> None:
    town, a, b = pair
    message = {"type": "echo", "term": 1, "round": 5}
    a.peers.send(["b"], message, bulk=True)
    town.wait(0.5)
    assert a.peers.send(["b"], message, bulk=True) == ["b"]
    assert a.peers.queued_bytes("b", bulk=True) > 0
    assert a.peers.queued_bytes("b") == 0
    town.wait(0.5)
    assert b.numbers[-1:] == [5]
    assert a.peers.queued_bytes("b", bulk=True) == 0
