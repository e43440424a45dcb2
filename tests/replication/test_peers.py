"""Peers over real sockets on loopback: who is let in, what arrives, what a loss looks like, what strangers can do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from raftq.replication import peers as peers_module
from raftq.replication import wire
from raftq.replication.peers import Hello, Peers


class Node:
    """One end: its peers, and all that they reported, in order."""

    def __init__(self, name: str, addresses: dict[str, str], cluster: str = "c", boot: int = 1) -> None:
        self.name = name
        self.cluster = cluster
        self.boot = boot
        self.refuse: str | None = None
        self.events: list[tuple[Any, ...]] = []
        self.changed = asyncio.Event()
        self.peers = Peers(
            self.hello,
            addresses,
            addresses[name],
            on_message=lambda node, message: self.note("message", node, message),
            on_connected=lambda node, hello: self.note("connected", node),
            on_disconnected=lambda node: self.note("disconnected", node),
            on_bytes=lambda node: self.note("bytes", node),
            admit=lambda hello: self.refuse,
        )

    def hello(self) -> Hello:
        return Hello(1, self.cluster, self.name, f"uuid-{self.name}", self.boot, "http://x", "x:1", "0", 7, 3)

    def note(self, *event: Any) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def saw(self, *event: Any, times: int = 1) -> None:
        await self.until(lambda: self.events.count(event) >= times)

    def messages(self) -> list[dict[str, Any]]:
        return [event[2] for event in self.events if event[0] == "message"]


class Cluster:
    """Nodes by name, started with `start`, closed at the end of the test."""

    def __init__(self) -> None:
        self.addresses = {name: f"127.0.0.1:{_free_port()}" for name in ("a", "b", "c")}
        self.nodes: list[Node] = []

    async def start(self, name: str, **options: Any) -> Node:
        node = Node(name, self.addresses, **options)
        await node.peers.start()
        self.nodes.append(node)
        return node

    async def pair(self) -> tuple[Node, Node]:
        a, b = await self.start("a"), await self.start("b")
        await a.saw("connected", "b")
        await b.saw("connected", "a")
        return a, b

    async def stranger(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.addresses[name].split(":")
        return await asyncio.open_connection(host, int(port))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for node in made.nodes:
        await node.peers.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_messages_arrive_whole_in_order_and_as_sent(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    sent = [{"n": n, "s": "ü", "d": bytes(n * 50_000), "l": [[1, b"x", None]], "t": True} for n in range(20)]
    for message in sent:
        assert a.peers.send(["b", "c", "nobody"], message) == ["b"]
    await b.until(lambda: len(b.messages()) == len(sent))
    assert b.messages() == sent
    hello = b.peers.hello_of("a")
    assert hello is not None
    assert (hello.node_uuid, hello.last_index) == ("uuid-a", 7)


async def test_bytes_of_a_frame_that_is_not_whole_yet_count_as_contact(cluster: Cluster) -> None:
    b = await cluster.start("b")
    reader, writer = await cluster.stranger("b")
    writer.write(wire.frame(Node("a", cluster.addresses).hello()))
    await reader.readexactly(4)
    writer.write(wire.frame({"x": 1})[:6])
    await b.saw("bytes", "a")
    assert b.messages() == []
    writer.close()
    await b.saw("disconnected", "a")


async def test_a_peer_that_goes_is_reported_once_and_dialed_again(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    await b.peers.close()
    await a.saw("disconnected", "b")
    assert not a.peers.reachable("b")
    assert a.peers.send(["b"], {"x": 1}) == []
    again = await cluster.start("b", boot=2)
    await a.saw("connected", "b", times=2)
    await again.saw("connected", "a")
    assert [event[0] for event in a.events if event[0] != "bytes"] == ["connected", "disconnected", "connected"]
    assert a.peers.send(["b"], {"x": 2}) == ["b"]
    await again.saw("message", "a", {"x": 2})


@pytest.mark.parametrize("which", ["dialed", "accepted"])
async def test_losing_either_connection_is_a_loss_on_both_sides_and_heals(cluster: Cluster, which: str) -> None:
    a, b = await cluster.pair()
    await a.until(lambda: a.peers.peer("b").accepted is not None)
    getattr(a.peers.peer("b"), which).abort()
    await a.saw("connected", "b", times=2)
    await b.saw("connected", "a", times=2)
    assert a.events.count(("disconnected", "b")) == 1
    assert b.events.count(("disconnected", "a")) == 1
    assert a.peers.send(["b"], {"x": 1}) == ["b"]
    assert b.peers.send(["a"], {"y": 1}) == ["a"]
    await b.saw("message", "a", {"x": 1})
    await a.saw("message", "b", {"y": 1})


async def test_the_newest_connection_of_a_node_wins_without_a_loss(cluster: Cluster) -> None:
    b = await cluster.start("b")
    hello = wire.frame(Node("a", cluster.addresses).hello())
    old_reader, old = await cluster.stranger("b")
    old.write(hello)
    await old_reader.readexactly(4)
    reader, new = await cluster.stranger("b")
    new.write(hello)
    await reader.readexactly(4)
    with contextlib.suppress(ConnectionError):
        await old_reader.read()  # ends: the old one was closed
    new.write(wire.frame({"x": 1}))
    await b.saw("message", "a", {"x": 1})
    assert ("disconnected", "a") not in b.events
    new.close()
    old.close()
    await b.saw("disconnected", "a")


async def test_a_hello_of_a_new_boot_ends_the_connection_to_the_old_one(cluster: Cluster) -> None:
    a, _b = await cluster.pair()
    reader, writer = await cluster.stranger("a")
    writer.write(wire.frame(Node("b", cluster.addresses, boot=2).hello()))
    await reader.readexactly(4)
    await a.saw("disconnected", "b")
    writer.close()


async def test_another_cluster_is_refused_with_a_reason_on_both_sides(cluster: Cluster) -> None:
    expected = {
        (event, reason)
        for event in ("refused peer", "refused by peer")
        for reason in ("it is of cluster 'other', this node of 'c'", "it is of cluster 'c', this node of 'other'")
    }
    with capture_logs() as logs:
        a = await cluster.start("a")
        b = await cluster.start("b", cluster="other")
        await _until(lambda: {(entry["event"], entry["reason"]) for entry in logs} == expected)
    assert (a.events, b.events) == ([], [])


async def test_a_refusal_is_told_once_and_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "REFUSED_SECONDS", 0.01)
    with capture_logs() as logs:
        a = await cluster.start("a")
        a.refuse = "its folder is older than what was seen"
        b = Node("b", cluster.addresses)
        hellos = []
        b.peers.hello = lambda: hellos.append(1) or b.hello()  # type: ignore[func-returns-value]
        await b.peers.start()
        cluster.nodes.append(b)
        await _until(lambda: len(hellos) > 10)
        assert [entry["event"] for entry in logs].count("refused by peer") == 1
        a.refuse = None
        await b.saw("connected", "a")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": 2}, "it speaks protocol 2, this node 1"),
        ({"node_id": "z"}, "'z' is no other node of this cluster"),
        ({"node_id": "b"}, "'b' is no other node of this cluster"),
    ],
)
async def test_a_hello_that_does_not_fit_is_answered_with_the_reason(
    cluster: Cluster, change: dict[str, Any], reason: str
) -> None:
    await cluster.start("b")
    reader, writer = await cluster.stranger("b")
    writer.write(wire.frame(msgspec.structs.replace(Node("a", cluster.addresses).hello(), **change)))
    answer = wire.Splitter(1 << 16).feed(await reader.read())
    assert [wire.opening(payload) for payload in answer] == [wire.Refusal(reason)]
    writer.close()


async def test_an_address_that_answers_as_another_node_is_not_connected(cluster: Cluster) -> None:
    cluster.addresses["c"] = cluster.addresses["b"]
    with capture_logs() as logs:
        a = await cluster.start("a")
        await cluster.start("b")
        await a.saw("connected", "b")
        await _until(lambda: any("not 'c'" in entry.get("reason", "") for entry in logs))
    assert ("connected", "c") not in a.events


async def test_a_peer_that_takes_nothing_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "QUEUED_BYTES_MAX", 1 << 20)
    a = await cluster.start("a")
    deaf = _Deaf(wire.frame(Node("b", cluster.addresses).hello()))
    host, port = cluster.addresses["b"].split(":")
    server = await asyncio.get_running_loop().create_server(lambda: deaf, host, int(port))
    await a.saw("connected", "b")
    sent = 0
    while a.peers.send(["b"], {"d": bytes(1 << 19)}):
        sent += 1
        assert a.peers.queued_bytes("b") <= 1 << 20
        assert sent < 1000
    await a.saw("disconnected", "b")
    await a.peers.close()
    server.close()
    for transport in deaf.transports:
        transport.abort()
    await server.wait_closed()


async def test_closing_while_a_dial_succeeds_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop closes a connection whose making is cancelled without telling its protocol, and `close` waited for that.
    Found by a shard that was killed at the moment at which a peer came back."""
    made = peers_module._Dialed.connection_made
    closing: list[asyncio.Task[None]] = []

    def close_at_once(link: peers_module._Dialed, transport: Any) -> None:
        made(link, transport)
        if not closing and link._peers is a.peers:
            closing.append(asyncio.create_task(a.peers.close()))
            for dial in a.peers._dials:
                dial.cancel()

    monkeypatch.setattr(peers_module._Dialed, "connection_made", close_at_once)
    a = await cluster.start("a")
    await cluster.start("b")
    async with asyncio.timeout(5):
        while not closing:
            await asyncio.sleep(0)
        await closing[0]
    assert not a.peers.links


async def test_a_taken_port_is_an_os_error(cluster: Cluster) -> None:
    await cluster.start("a")
    with pytest.raises(OSError, match="address already in use"):
        await Node("a", cluster.addresses).peers.start()


async def test_a_stranger_that_says_nothing_is_sent_away(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 0.05)
    await cluster.start("a")
    reader, writer = await cluster.stranger("a")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("known", [False, True])
async def test_a_huge_frame_is_refused_when_announced(cluster: Cluster, known: bool) -> None:
    b = await cluster.start("b")
    reader, writer = await cluster.stranger("b")
    if known:
        writer.write(wire.frame(Node("a", cluster.addresses).hello()))
        await reader.readexactly(4)
    with capture_logs() as logs:
        writer.write((wire.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        with contextlib.suppress(ConnectionError):
            await reader.read()
    assert [entry["event"] for entry in logs] == ["peer malformed"]
    assert b.messages() == []
    writer.close()


_HELLO = bytes(wire.frame(Hello(1, "c", "a", "uuid-a", 1, "http://x", "x:1", "0", 7, 3)))
_FRAMED = st.binary(max_size=200).map(lambda payload: len(payload).to_bytes(4, "big") + payload)
_JUNK = st.lists(st.one_of(st.binary(max_size=100), _FRAMED), max_size=5).map(b"".join)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opening=st.sampled_from([b"", _HELLO]), junk=_JUNK)
def test_junk_at_the_port_neither_stops_nor_blocks_a_node(opening: bytes, junk: bytes) -> None:
    asyncio.run(_survives(opening + junk))


async def _survives(junk: bytes) -> None:
    cluster = Cluster()
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    b = await cluster.start("b")
    _, writer = await cluster.stranger("b")
    writer.write(junk)
    writer.write_eof()
    a = await cluster.start("a")
    await a.saw("connected", "b")
    a.peers.send(["b"], {"still": "there"})
    await b.saw("message", "a", {"still": "there"})
    writer.close()
    await a.peers.close()
    await b.peers.close()
    assert failures == []


@given(
    payloads=st.lists(st.dictionaries(st.text(), st.one_of(st.integers(0, 1 << 63), st.binary(), st.none()))),
    cuts=st.lists(st.integers(1, 40)),
)
def test_frames_are_the_same_however_the_bytes_are_cut(payloads: list[dict[str, Any]], cuts: list[int]) -> None:
    data = b"".join(wire.frame(payload) for payload in payloads)
    splitter, found = wire.Splitter(1 << 20), []
    for cut in [*cuts, len(data) + 1]:
        found += [wire.message(payload) for payload in splitter.feed(data[:cut])]
        data = data[cut:]
    assert found == payloads


@given(st.binary(max_size=300))
def test_what_is_no_message_is_malformed_and_nothing_else(payload: bytes) -> None:
    for decode in (wire.opening, wire.message):
        with contextlib.suppress(wire.Malformed):
            decode(memoryview(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # an array that says it has 4 billion elements
        b"\x81\xa1a" + b"\x91" * 100_000,  # deeper than any stack
        b"\x81\xa1a\xa1\xff",  # text that is not UTF-8
        b"\x81\xa1a\xd4\x05\x00",  # an extension type
        b"\x81\x01\x01",  # a key that is no text
        b"\x81\xa1a\x01\x01",  # more than one value
        b"",
    ],
)
def test_a_hostile_message_is_malformed(payload: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.message(memoryview(payload))


def test_a_message_too_long_to_be_received_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 100)
    assert len(wire.frame({"d": bytes(90)})) <= 104
    with pytest.raises(ValueError, match="over the 100 of a frame"):
        wire.frame({"d": bytes(101)})


class _Deaf(asyncio.Protocol):
    """Says hello to whoever comes, and reads nothing."""

    def __init__(self, hello: bytearray) -> None:
        self.hello = hello
        self.transports: list[asyncio.Transport] = []

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()
        transport.write(self.hello)
        self.transports.append(transport)


async def _until(condition: Callable[[], bool]) -> None:
    """For what only the log tells."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
