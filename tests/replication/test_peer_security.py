"""What reaches a node through its peer port, and what does not: strangers, old bytes, changed bytes, floods of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from raftq.replication import peers as peers_module
from raftq.replication import security as security_module
from raftq.replication import wire
from raftq.replication.channel import Channel
from raftq.replication.peers import Hello, Refusal
from raftq.replication.progress import Timing
from raftq.replication.security import SECRET_BYTES_MIN, PeerSecurity, Unproved
from tests.replication.certificates import Authority
from tests.replication.peer_nodes import Cluster, Node, chunk, mark, until
from tests.replication.shards import shards
from tests.replication.shards import until as until_soon
from tests.replication.test_snapshots import SHORT, same, write_until_cut

SECRET: Final = bytes(range(SECRET_BYTES_MIN))
OTHER: Final = bytes(SECRET_BYTES_MIN)
MODES: Final = ["secret", "tls", "both"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def modes(authority: Authority) -> dict[str, PeerSecurity]:
    tls = authority.tls()
    return {
        "none": PeerSecurity(),
        "secret": PeerSecurity(SECRET),
        "tls": PeerSecurity(tls=tls),
        "both": PeerSecurity(SECRET, tls),
    }


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for node in made.nodes:
        await node.peers.close()
        assert not node.peers.links
        assert not node.peers.strangers
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def pair(cluster: Cluster, security: PeerSecurity) -> tuple[Node, Node]:
    a = await cluster.start("a", "ab", security=security)
    b = await cluster.start("b", "ab", security=security)
    await a.saw("connected", "b")
    await b.saw("connected", "a")
    return a, b


async def goes_on(a: Node, b: Node, number: int) -> None:
    """Nothing that happened meanwhile has cost the two their connections."""
    assert a.peers.send(["b"], mark(number)) == ["b"]
    await b.saw("message", "a", mark(number))
    assert (a.changes(), b.changes()) == ([("connected", "b")], [("connected", "a")])


# Peers of one cluster


@pytest.mark.parametrize("mode", MODES)
async def test_messages_arrive_whole_on_both_lanes(cluster: Cluster, modes: dict[str, PeerSecurity], mode: str) -> None:
    a, b = await pair(cluster, modes[mode])
    sent = [chunk(number, size) for number, size in enumerate((0, 900, 1000, 1100, 16_300, 16_400, 70_000, 3 << 20))]
    for bulk in (False, True):
        for message in sent:
            await until(lambda message=message, bulk=bulk: a.peers.send(["b"], message, bulk=bulk) == ["b"])  # type: ignore[misc]
        await b.until(lambda: len(b.messages()) >= len(sent))
        assert b.messages() == sent
        b.events = [event for event in b.events if event[0] != "message"]
    assert len(a.peers.links) == 3
    await goes_on(a, b, 1)
    assert b.peers.send(["a"], mark(2)) == ["a"]
    await a.saw("message", "b", mark(2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2))
async def test_after_any_storm_all_are_connected_again(
    cluster: Cluster, modes: dict[str, PeerSecurity], mode: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "REFUSED_SECONDS", 0.01)
    dice = random.Random(seed)
    nodes = {name: await cluster.start(name, security=modes[mode]) for name in "abc"}
    for step in range(100):
        name = dice.choice("abc")
        node = nodes[name]
        match dice.randrange(6):
            case 0 | 1 if node.peers.links:
                dice.choice(list(node.peers.links)).abort()
            case 2 if step % 10 == 0:
                await node.peers.close()
                nodes[name] = await cluster.start(name, boot=node.boot + 1, security=modes[mode])
            case _:
                node.peers.send("abc", chunk(step, 1000), bulk=dice.random() < 0.5)
        for _ in range(dice.randrange(10)):
            await asyncio.sleep(0)
    for name, node in nodes.items():
        for other in set("abc") - {name}:
            for number, bulk in ((1000, False), (1001, True)):
                heard = ("message", name, mark(number))
                await until(lambda: bool(node.peers.send([other], mark(number), bulk=bulk)) and heard in nodes[other].events)  # fmt: skip  # noqa: B023, E501


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_each_version_of_tls_does(cluster: Cluster, authority: Authority, version: ssl.TLSVersion) -> None:
    a, b = await pair(cluster, PeerSecurity(tls=authority.tls(versions=version)))
    for number in range(50):
        a.peers.send(["b"], chunk(number, 30_000))
    await b.until(lambda: len(b.messages()) == 50)
    await goes_on(a, b, 1)


async def test_certificates_are_asked_for_anew_with_each_connection(cluster: Cluster, authority: Authority) -> None:
    """So that they can be changed under a node that runs."""
    tls = authority.tls()
    a, b = await pair(cluster, PeerSecurity(tls=tls))
    asked = tls.asked
    tls.certificate = (renewed := authority.tls()).certificate
    tls.key = renewed.key
    b.peers.peer("a").dialed.abort()  # type: ignore[union-attr]
    await b.saw("connected", "a", times=2)
    await a.saw("connected", "b", times=2)
    assert tls.asked > asked


@pytest.mark.parametrize("mode", MODES)
async def test_a_cluster_of_shards_works_and_catches_up_by_a_snapshot(
    tmp_path: Path, modes: dict[str, PeerSecurity], mode: str
) -> None:
    patient = Timing(election_min=1.0, election_max=2.0)  # no write of this test may meet an election
    async with shards(tmp_path, **SHORT, timing=patient, peer_security=modes[mode]) as cluster:
        leader = await cluster.leader()
        name = next(name for name in cluster.running if name != leader.config.node_id)
        await cluster.kill(name)
        await write_until_cut(leader)
        follower = await cluster.start(name)
        await until_soon(lambda: follower.status().first_index > 1)
        await same(cluster, ["n1", "n2", "n3"])
        assert follower.snapshots_installed == 1


# Who has not what is asked for


async def test_a_stranger_without_the_secret_gets_no_byte(cluster: Cluster) -> None:
    a, b = await pair(cluster, PeerSecurity(SECRET))
    hello = bytes(wire.frame(b.hello()))
    first = wire.framed(PeerSecurity(OTHER).secret.open()[1])  # type: ignore[union-attr]
    with capture_logs() as logs:
        for said in (
            hello,
            first,
            wire.framed(first[4:-1]),
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x00\xff",
            bytes(72),
        ):
            reader, writer = await cluster.stranger("a")
            writer.write(said)
            assert await _rest(reader) == b""
            writer.close()
    assert [(entry["event"], entry["peer"], entry["reason"]) for entry in logs[:2]] == [
        ("unproved peer", "127.0.0.1", "it opens without a cluster secret, and this node asks for one"),
        ("unproved peer", "127.0.0.1", "it has another cluster secret"),
    ]
    await goes_on(a, b, 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "said", "heard"),
    [
        (
            "secret",
            "none",
            "it opens without a cluster secret, and this node asks for one",
            "neither a cluster secret nor",
        ),
        ("secret", "other", "it has another cluster secret", "opens with a cluster secret:"),
        ("none", "secret", "it opens with a cluster secret, and this node has none", "opens with a cluster secret:"),
        ("none", "tls", "it speaks TLS, and this node does not", "opens with TLS:"),
        ("tls", "none", "TLS fails: ", "this node, which opens with neither a cluster secret nor TLS"),
        ("both", "tls", "it opens without a cluster secret, and this node asks for one", "opens with TLS:"),
        ("tls", "both", "it opens with a cluster secret, and this node has none", "a cluster secret and TLS:"),
        ("secret", "tls", "it speaks TLS", "opens with TLS:"),
    ],
)
async def test_nodes_that_do_not_fit_say_so_in_both_logs(
    cluster: Cluster, modes: dict[str, PeerSecurity], ours: str, theirs: str, said: str, heard: str
) -> None:
    """a only accepts, b only dials: the log of a says what b lacks, that of b what may be the matter."""
    with capture_logs() as logs:
        a = await cluster.start("a", "a", security=modes[ours])
        b = await cluster.start("b", "ab", security={**modes, "other": PeerSecurity(OTHER)}[theirs])
        await until(lambda: any(e.get("peer") == "127.0.0.1" and said in e["reason"] for e in logs))
        await until(lambda: any(e.get("peer") == "a" and heard in e["reason"] for e in logs))
    assert (a.events, b.events) == ([], [])
    assert all(entry["log_level"] == "warning" for entry in logs)
    assert not any(SECRET.hex() in str(entry) or repr(SECRET) in str(entry) for entry in logs)


async def test_a_dialer_tells_nothing_to_who_does_not_know_the_secret(cluster: Cluster) -> None:
    """Not even its name: all that leaves is a nonce and a proof."""
    heard = bytearray()
    came = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readexactly(76))
        writer.write(wire.frame(Node("b", cluster.addresses).hello()))
        heard.extend(await _rest(reader))
        writer.close()
        came.set()

    host, port = cluster.addresses["b"].split(":")
    async with await asyncio.start_server(listen, host, int(port)):
        a = await cluster.start("a", "ab", security=PeerSecurity(SECRET))
        await came.wait()
        assert len(heard) == 76
        assert a.events == []
        await a.peers.close()


@pytest.mark.parametrize("flaw", ["none", "other ca", "expired", "self signed"])
async def test_a_certificate_that_does_not_do_is_not_spoken_with(
    cluster: Cluster, authority: Authority, tmp_path: Path, flaw: str
) -> None:
    a, b = await pair(cluster, PeerSecurity(tls=authority.tls()))
    shown = {
        "none": None,
        "other ca": Authority(tmp_path, "other").tls(),
        "expired": authority.tls(days=-1),
        "self signed": Authority(tmp_path, "self").tls(),
    }[flaw]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    host, port = cluster.addresses["a"].split(":")
    with capture_logs() as logs, contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(wire.frame(b.hello()))
        assert await _rest(reader) == b""
        writer.close()
    await until(lambda: len(a.peers.strangers) == 0)
    assert [entry["event"] for entry in logs] == ["unproved peer"]
    assert logs[0]["reason"].startswith("TLS fails: ")
    await goes_on(a, b, 1)


@pytest.mark.parametrize(
    ("names", "fits"),
    [
        (["b.raftq"], True),
        (["raftq://node/b"], True),
        (["x.raftq", "b.raftq", "somewhere.example.com"], True),
        (["somewhere.example.com"], True),
        (["c.raftq"], False),
        (["raftq://node/B"], False),
        (["b.raftq.example.com", "c.raftq"], False),
        (["*.raftq"], False),
    ],
)
async def test_a_certificate_that_names_a_node_is_for_no_other(
    cluster: Cluster, authority: Authority, names: list[str], fits: bool
) -> None:
    """Each side refuses, and says why to the other, who has a certificate of the cluster."""
    with capture_logs() as logs:
        a = await cluster.start("a", "ab", security=PeerSecurity(tls=authority.tls("a.raftq")))
        b = await cluster.start("b", "ab", security=PeerSecurity(tls=authority.tls(*names)))
        if fits:
            await a.saw("connected", "b")
            await b.saw("connected", "a")
            return
        await until(lambda: {"refused peer", "refused by peer"} <= {entry["event"] for entry in logs})
        assert all("its certificate is for" in entry["reason"] and "not for 'b'" in entry["reason"] for entry in logs)
        assert a.changes() == b.changes() == []


def test_what_would_protect_nothing_is_refused(authority: Authority) -> None:
    with pytest.raises(ValueError, match="less than 32 bytes"):
        PeerSecurity(b"short")
    for attribute, value in (("check_hostname", True), ("verify_mode", ssl.CERT_NONE)):
        tls = authority.tls()
        context = tls.client_context()
        setattr(context, attribute, value)
        tls.client_context = lambda context=context: context  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="must require a certificate of both sides"):
            PeerSecurity(tls=tls)


def test_a_secret_is_not_shown() -> None:
    for text in (repr(PeerSecurity(SECRET)), repr(PeerSecurity(SECRET).secret), PeerSecurity(SECRET).shown()):
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text


# Old bytes


async def test_an_opening_that_is_repeated_learns_nothing_and_cuts_nothing(cluster: Cluster) -> None:
    """All that b once said to a is said again: it is answered by a nonce and a proof, and by nothing after them."""
    security = PeerSecurity(SECRET)
    a = await cluster.start("a", "a", security=security)
    async with Way(cluster, "a") as way:
        b = Node("b", {**cluster.addresses, "a": way.address}, security=security)
        b.peers.set_members({"a": way.address})
        await b.peers.start()
        cluster.nodes.append(b)
        await b.saw("connected", "a")
        await a.saw("connected", "b")
        b.peers.send(["a"], mark(1))
        await a.saw("message", "b", mark(1))
        recorded = bytes(way.to_target)
        events = list(a.events)
        with capture_logs() as logs:
            reader, writer = await cluster.stranger("a")
            writer.write(recorded[:76])
            answer = await reader.readexactly(76)
            assert answer[:4] == (72).to_bytes(4, "big")
            assert b"uuid" not in answer
            writer.write(recorded[76:])
            assert await _rest(reader) == b""
            writer.close()
        assert [entry["event"] for entry in logs] == ["unproved peer"]
        assert a.events == events
        assert b.peers.send(["a"], mark(2)) == ["a"]
        await a.saw("message", "b", mark(2))


async def test_who_is_sent_back_its_own_bytes_lets_nobody_in(cluster: Cluster) -> None:
    """A dialer's bytes go back to itself, as the answer and to its own port."""
    security = PeerSecurity(SECRET)

    async def reflect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    host, port = cluster.addresses["b"].split(":")
    async with await asyncio.start_server(reflect, host, int(port)):
        with capture_logs() as logs:
            a = await cluster.start("a", "ab", security=security)
            await until(lambda: ("unproved peer", "b") in [(entry["event"], entry.get("peer")) for entry in logs])
        assert a.events == []
        await a.peers.close()
    async with Way(cluster, "a") as way:
        a = Node("a", {**cluster.addresses, "b": way.address}, security=security)
        cluster.nodes.append(a)
        with capture_logs() as logs:
            await a.peers.start()
            await until(lambda: bool(logs))
        assert "this is 'a', not 'b'" in logs[0]["reason"]
        assert a.changes() == []


# Changed bytes


class End:
    """One end of a connection that has no socket: what it writes, and what it lets through."""

    def __init__(self, security: PeerSecurity, hello: bytes, *, accepted: bool) -> None:
        self.hello, self.accepted = hello, accepted
        self.written: list[bytes] = []
        self.taken: list[bytes] = []
        self.over = False
        self.channel = Channel(self, security, accepted=accepted, on_ready=self._ready)  # type: ignore[arg-type]

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def _ready(self) -> None:
        if not self.accepted:
            self.channel.write(self.hello)

    def hear(self, data: bytes) -> None:
        if self.over:
            return
        try:
            for payload in self.channel.frames(self.channel.decrypt(data)):
                self.taken.append(bytes(payload))
                if len(self.taken) == 1:
                    self._greeted()
        except wire.Malformed:
            self.over = True

    def _greeted(self) -> None:
        self.channel.opened()
        if self.accepted:
            self.channel.write(self.hello)
        else:
            for message in MESSAGES:
                self.channel.write(message)


def frame_of(size: int) -> bytes:
    return bytes(wire.frame(chunk(size, size)))


MESSAGES: Final = [frame_of(size) for size in (0, 1, 30, 400, 2000, 17_000)]
HELLOS: Final = [bytes(wire.frame(Hello(2, "c", name, "u", 1, "", "", "0", 7, 3))) for name in "ab"]
#: Takes (from the dialer, number of what is said, what is said) to what arrives, each with whether at the dialer.
Tamper = Callable[[bool, int, bytes], list[tuple[bool, bytes]]]


def talk(security: PeerSecurity, tamper: Tamper) -> tuple[End, End]:
    dialer, acceptor = End(security, HELLOS[0], accepted=False), End(security, HELLOS[1], accepted=True)
    acceptor.channel.begin()
    dialer.channel.begin()
    said = {True: 0, False: 0}
    while dialer.written or acceptor.written:
        end = dialer if dialer.written else acceptor
        number, said[end is dialer] = said[end is dialer], said[end is dialer] + 1
        for at_dialer, data in tamper(end is dialer, number, end.written.pop(0)):
            (dialer if at_dialer else acceptor).hear(data)
    return dialer, acceptor


def as_sent(dialer: End, acceptor: End) -> bool:
    """All that was said arrived; if not, then what did is where it begins."""
    to_dialer, to_acceptor = [HELLOS[1][4:]], [HELLOS[0][4:], *[message[4:] for message in MESSAGES]]
    assert dialer.taken == to_dialer[: len(dialer.taken)]
    assert acceptor.taken == to_acceptor[: len(acceptor.taken)]
    return (dialer.taken, acceptor.taken) == (to_dialer, to_acceptor)


def straight(from_dialer: bool, _number: int, data: bytes) -> list[tuple[bool, bytes]]:
    return [(not from_dialer, data)]


@pytest.mark.parametrize("mode", ["none", *MODES])
def test_what_is_not_touched_arrives(modes: dict[str, PeerSecurity], mode: str) -> None:
    assert as_sent(*talk(modes[mode], straight))


@pytest.mark.parametrize("from_dialer", [True, False])
def test_no_bit_of_the_opening_and_of_short_frames_can_be_changed(from_dialer: bool) -> None:
    """Every one of them: of both proofs, both hellos, their lengths and seals, and the first messages."""
    security = PeerSecurity(SECRET)
    sizes: dict[int, int] = {}

    def measure(by_dialer: bool, number: int, data: bytes) -> list[tuple[bool, bytes]]:
        if by_dialer is from_dialer and len(data) < 1000:
            sizes[number] = 8 * len(data)
        return straight(by_dialer, number, data)

    talk(security, measure)
    assert len(sizes) == (7 if from_dialer else 2)  # also the seal that follows a long frame
    for changed, bits in sizes.items():
        for bit in range(bits):

            def flip(by_dialer: bool, number: int, data: bytes) -> list[tuple[bool, bytes]]:
                hit = by_dialer is from_dialer and number == changed  # noqa: B023
                return straight(by_dialer, number, flipped(data, bit) if hit else data)  # noqa: B023

            assert not as_sent(*talk(security, flip))


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(from_dialer=st.booleans(), number=st.integers(0, 9), where=st.floats(0, 1, exclude_max=True))
def test_a_bit_that_is_changed_on_the_way_lets_nothing_else_in(
    modes: dict[str, PeerSecurity], mode: str, from_dialer: bool, number: int, where: float
) -> None:
    hit = False

    def flip(by_dialer: bool, said: int, data: bytes) -> list[tuple[bool, bytes]]:
        nonlocal hit
        if (by_dialer, said) == (from_dialer, number):
            hit, data = True, flipped(data, int(where * 8 * len(data)))
        return straight(by_dialer, said, data)

    whole = as_sent(*talk(modes[mode], flip))
    assert whole is not hit or mode != "secret"  # of TLS, a few bits that say what the first records are, say nothing


_TRICKS = st.lists(
    st.tuples(st.sampled_from(["drop", "repeat", "hold", "reflect", "junk", "cut"]), st.booleans(), st.integers(0, 9)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tricks=_TRICKS, junk=st.binary(min_size=1, max_size=100))
@example(tricks=[("drop", True, 3)], junk=b"x")
@example(tricks=[("repeat", True, 2)], junk=b"x")
@example(tricks=[("hold", True, 3)], junk=b"x")
@example(tricks=[("reflect", True, 0)], junk=b"x")
@example(tricks=[("reflect", True, 1)], junk=b"x")
def test_who_sits_in_between_can_only_cut(
    modes: dict[str, PeerSecurity], mode: str, tricks: list[tuple[str, bool, int]], junk: bytes
) -> None:
    """Whole frames are dropped, repeated, reordered, sent back, or followed by others. With TLS: whole records."""
    held: list[tuple[bool, bytes]] = []

    def tamper(by_dialer: bool, number: int, data: bytes) -> list[tuple[bool, bytes]]:
        arriving = [(not by_dialer, data)]
        for trick, of_dialer, at in tricks:
            if (by_dialer, number) != (of_dialer, at):
                continue
            match trick:
                case "drop":
                    arriving = []
                case "repeat":
                    arriving = arriving * 2
                case "hold":
                    held.extend(arriving)
                    return []
                case "reflect":
                    arriving = [(by_dialer, data), *arriving]
                case "junk":
                    arriving = [*arriving, (not by_dialer, junk)]
                case _:
                    arriving = [(at_dialer, part[: len(part) // 2]) for at_dialer, part in arriving]
        if held and arriving:
            arriving += [held.pop(0)]
        return arriving

    as_sent(*talk(modes[mode], tamper))


def test_a_frame_of_another_connection_is_not_let_through() -> None:
    """In the same place, of the same two nodes, with the same secret."""
    security = PeerSecurity(SECRET)
    recorded: list[bytes] = []

    def record(by_dialer: bool, number: int, data: bytes) -> list[tuple[bool, bytes]]:
        if by_dialer:
            recorded.append(data)
        return straight(by_dialer, number, data)

    talk(security, record)

    def splice(by_dialer: bool, number: int, data: bytes) -> list[tuple[bool, bytes]]:
        return straight(by_dialer, number, recorded[number] if by_dialer and number == 4 else data)

    dialer, acceptor = talk(security, splice)
    assert not as_sent(dialer, acceptor)
    assert len(acceptor.taken) == 3


def test_a_long_frame_is_not_taken_for_the_short_one_that_is_its_digest() -> None:
    seal = security_module.Seal(bytes(32))
    long = bytes(2000)
    digest = security_module.sealed_of(memoryview(long))
    assert len(digest) == 32
    sealed = bytes(digest) + seal.next(len(long), digest)
    with pytest.raises(Unproved):
        security_module.Seal(bytes(32)).opened(memoryview(sealed))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# Who has the secret, or stolen it


class Speaker:
    """A peer by hand, that can prove what is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, security: PeerSecurity) -> None:
        self.reader, self.writer = reader, writer
        self.channel = Channel(writer.transport, security, accepted=False, on_ready=lambda: None)

    async def open(self, hello: Hello) -> Hello | Refusal:
        self.channel.begin()
        while not self.channel.ready:
            self.channel.frames(self.channel.decrypt(await self.reader.read(1 << 16)))
        self.channel.write(wire.frame(hello))
        while True:
            if payloads := self.channel.frames(self.channel.decrypt(await self.reader.read(1 << 16))):
                return wire.opening(payloads[0])


async def speaker(cluster: Cluster, security: PeerSecurity, hello: Hello) -> tuple[Speaker, Hello | Refusal]:
    made = Speaker(*await cluster.stranger("b"), security)
    return made, await made.open(hello)


@pytest.mark.parametrize("mode", MODES)
async def test_who_proved_the_secret_is_told_why_it_is_refused(
    cluster: Cluster, modes: dict[str, PeerSecurity], mode: str
) -> None:
    await cluster.start("b", "b", security=modes[mode])
    hello = msgspec.structs.replace(Node("a", cluster.addresses).hello(), cluster_id="other")
    speaks, answer = await speaker(cluster, modes[mode], hello)
    assert answer == Refusal("it is of cluster 'other', this node of 'c'")
    assert await _rest(speaks.reader) == b""
    speaks.writer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "frame",
    [
        wire.frame({"type": "append", "term": "high"}),
        wire.frame(HELLOS),
        wire.framed(b""),
        wire.framed(b"\xc1"),
        wire.framed(bytes(5000)),
    ],
)
async def test_a_frame_of_a_wrong_kind_costs_its_connection_alone(
    cluster: Cluster, modes: dict[str, PeerSecurity], mode: str, frame: bytes
) -> None:
    a, b = await pair(cluster, modes[mode])
    speaks, answer = await speaker(
        cluster, modes[mode], msgspec.structs.replace(a.hello(), node_id="z", node_uuid="z", peer_address="127.0.0.1:1")
    )
    assert isinstance(answer, Hello)
    speaks.channel.write(frame)
    assert await _rest(speaks.reader) == b""
    speaks.writer.close()
    await b.until(lambda: b.peers.hello_of("z") is None)
    assert b.messages() == []
    await b.saw("disconnected", "z")
    b.events = [event for event in b.events if event[1] != "z"]
    await goes_on(a, b, 1)


async def test_memory_follows_what_came_and_not_what_is_announced(cluster: Cluster) -> None:
    """A peer says that 64 MiB follow, and sends 1 KiB of them, on as many connections as it may have."""
    security = PeerSecurity(SECRET)
    b = await cluster.start("b", "b", security=security)
    hello = msgspec.structs.replace(Node("a", cluster.addresses).hello(), peer_address="127.0.0.1:1")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    speakers = []
    for name in range(peers_module.GUESTS_MAX):
        speaks, answer = await speaker(cluster, security, msgspec.structs.replace(hello, node_id=f"g{name}"))
        assert isinstance(answer, Hello)
        speaks.writer.write(wire.FRAME_BYTES_MAX.to_bytes(4, "big") + bytes(1024))
        speakers.append(speaks)
    await until(lambda: all(("bytes", f"g{name}") in b.events for name in range(peers_module.GUESTS_MAX)))
    assert tracemalloc.get_traced_memory()[0] - before < 4 << 20
    tracemalloc.stop()
    for speaks in speakers:
        speaks.writer.close()
    await until(lambda: not b.peers.links)


# Slow ones, many, and any bytes


@pytest.mark.parametrize("mode", ["none", *MODES])
@pytest.mark.parametrize("said", [b"", b"\x00", b"\x00\x00\x3f\xff"])
async def test_a_stranger_that_trickles_is_cut_in_time(
    cluster: Cluster, modes: dict[str, PeerSecurity], mode: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 0.1)
    await cluster.start("a", "a", security=modes[mode])
    reader, writer = await cluster.stranger("a")
    writer.write(said)
    ended = asyncio.create_task(_rest(reader))
    while not ended.done():
        with contextlib.suppress(ConnectionError):
            writer.write(b"\x00" if said else b"")
        await asyncio.sleep(0.01)
    writer.close()


@pytest.mark.parametrize("mode", ["secret", "tls"])
async def test_who_has_proved_only_the_first_half_is_cut_in_time(
    cluster: Cluster, modes: dict[str, PeerSecurity], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 0.2)
    await cluster.start("b", "b", security=modes[mode])
    speaks = Speaker(*await cluster.stranger("b"), modes[mode])
    speaks.channel.begin()
    while not speaks.channel.ready:
        speaks.channel.frames(speaks.channel.decrypt(await speaks.reader.read(1 << 16)))
    await _rest(speaks.reader)
    speaks.writer.close()


@pytest.mark.parametrize("mode", ["none", *MODES])
async def test_strangers_are_bounded_and_a_flood_sends_away_its_own(
    cluster: Cluster, modes: dict[str, PeerSecurity], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger from another address waits through a flood of them; it went when it was the oldest."""
    monkeypatch.setattr(peers_module, "STRANGERS_MAX", 20)
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 60.0)
    b = await cluster.start("b", "b", security=modes[mode])
    host, port = cluster.addresses["b"].split(":")
    waiting = await asyncio.open_connection(host, int(port), local_addr=("127.0.0.2", 0))
    flood = []
    for _ in range(100):
        flood.append(await cluster.stranger("b"))
        assert len(b.peers.strangers) <= 20
    for reader, _ in flood[:70]:
        await _rest(reader)
    await until(lambda: len(b.peers.links) == 20)
    assert next(iter(b.peers.strangers)).origin == "127.0.0.2"
    speaks = Speaker(*waiting, modes[mode])
    assert isinstance(await speaks.open(Node("a", cluster.addresses).hello()), Hello)
    for _, writer in [*flood, (None, speaks.writer)]:
        writer.close()


async def test_of_one_address_who_proved_something_stays(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "STRANGERS_MAX", 20)
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 60.0)
    security = PeerSecurity(SECRET)
    b = await cluster.start("b", "b", security=security)
    speaks = Speaker(*await cluster.stranger("b"), security)
    speaks.channel.begin()
    while not speaks.channel.ready:
        speaks.channel.frames(speaks.channel.decrypt(await speaks.reader.read(1 << 16)))
    flood = [await cluster.stranger("b") for _ in range(100)]
    for reader, _ in flood[:70]:
        await _rest(reader)
    assert next(iter(b.peers.strangers)).proved()
    speaks.channel.write(wire.frame(Node("a", cluster.addresses).hello()))
    assert speaks.channel.frames(await speaks.reader.read(1 << 16))
    for _, writer in [*flood, (None, speaks.writer)]:
        writer.close()


async def test_a_node_gets_in_through_a_flood(cluster: Cluster, modes: dict[str, PeerSecurity]) -> None:
    """All of one address, as behind a proxy: some connect and say nothing, some say junk, as fast as they can."""
    b = await cluster.start("b", "ab", security=modes["both"])
    flooding = True

    async def flood(junk: bytes) -> None:
        kept: list[asyncio.StreamWriter] = []
        while flooding:
            with contextlib.suppress(OSError):
                _, writer = await cluster.stranger("b")
                writer.write(junk)
                kept.append(writer)
            if len(kept) > 100:
                kept.pop(0).transport.abort()
        for writer in kept:
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for junk in (b"", b"", b"\x16\x03\x01\x02\x00\x01", random.Random(1).randbytes(100)):
            group.create_task(flood(junk))
        a = await cluster.start("a", "ab", security=modes["both"])
        await a.saw("connected", "b")
        await b.saw("connected", "a")
        a.peers.send(["b"], mark(1))
        await b.saw("message", "a", mark(1))
        flooding = False
    assert len(b.peers.strangers) <= peers_module.STRANGERS_MAX


async def test_strangers_cannot_fill_the_log(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "_TOLD_MAX", 5)
    b = await cluster.start("b", "b")
    with capture_logs() as logs:
        for number in range(50):
            reader, writer = await cluster.stranger("b")
            writer.write(
                wire.frame(msgspec.structs.replace(Node("a", cluster.addresses).hello(), cluster_id=str(number)))
            )
            assert await _rest(reader)
            writer.close()
    assert len(logs) == 5
    assert b.events == []


_FIRST: Final = wire.framed(PeerSecurity(SECRET).secret.open()[1])  # type: ignore[union-attr]
_SAID: Final = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.binary(max_size=200).map(wire.framed),
        st.sampled_from([HELLOS[0], _FIRST, *MESSAGES[:3], b"\x16\x03\x01\x00\x05"]),
    ),
    min_size=1,
    max_size=6,
)


# A loop that ends may have accepted a connection that it told nobody of yet.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=_SAID)
def test_any_bytes_at_the_port_let_nobody_in_and_stop_nothing(
    modes: dict[str, PeerSecurity], mode: str, said: list[bytes]
) -> None:
    asyncio.run(_survives(modes[mode], said))


async def _survives(security: PeerSecurity, said: list[bytes]) -> None:
    cluster = Cluster()
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    b = await cluster.start("b", "ab", security=security)
    _, writer = await cluster.stranger("b")
    for part in said:
        writer.write(part)
    writer.write_eof()
    assert b.events == []
    a = await cluster.start("a", "ab", security=security)
    await a.saw("connected", "b")
    await b.saw("connected", "a")  # else the loop could end while a connection is being accepted
    a.peers.send(["b"], mark(1))
    await b.saw("message", "a", mark(1))
    assert b.messages() == [mark(1)]
    writer.close()
    await a.peers.close()
    await b.peers.close()
    assert failures == []


class Way:
    """A way to a node that leads through here, and what went over it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._target = cluster.addresses[name].split(":")
        self.to_target = bytearray()
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Way:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._target[0], int(self._target[1]))
        self._writers += [writer, there[1]]
        task = asyncio.create_task(self._pass(reader, there[1], self.to_target))
        self._tasks += [task, asyncio.current_task()]  # type: ignore[list-item]
        await self._pass(there[0], writer, bytearray())
        await task

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                kept += data
                writer.write(data)
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection is over, however it ends."""
    said = bytearray()
    with contextlib.suppress(OSError):
        while part := await reader.read(1 << 16):
            said += part
    return bytes(said)
