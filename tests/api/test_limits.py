"""What the front takes of a client before it knows what is asked, and what it holds for one that is slow."""

from __future__ import annotations

import asyncio
import datetime
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from raftq.api import connections
from raftq.api.connections import SPARE, SPARE_LOCAL
from raftq.api.metrics import LIMITS
from raftq.api.ports import Limits
from tests.api.conftest import Client, Serve
from tests.api.shard import LocalNode
from tests.api.test_leases import until

GET = b"GET /v1/queues HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LEASE = "/v1/queues/jobs/lease"


class Answered(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def limit(self) -> str:
        problem = msgspec.json.decode(self.body)
        assert b"Content-Type: application/problem+json\r\n" in self.head
        assert problem["applied"] == "no"
        assert problem["status"] == self.status
        return str(problem["limit"])

    @property
    def is_last(self) -> bool:
        return b"Connection: close\r\n" in self.head


class Raw:
    """A connection, in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> Answered:
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> Answered:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            return Answered(int(head[9:12]), head, await self.reader.readexactly(size))

    async def rest(self) -> bytes:
        """All that comes until the node closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


Open = Callable[[Client], Awaitable[Raw]]


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    opened: list[Raw] = []

    async def open_one(client: Client) -> Raw:
        opened.append(Raw(*await asyncio.open_connection("127.0.0.1", client.node.port)))
        return opened[-1]

    yield open_one
    for raw in opened:
        raw.writer.close()


def met(client: Client) -> dict[str, int]:
    return dict(client.node.api.met)


# Heads


def head(*, target: int = 0, field: int = 0, fields: int = 1) -> bytes:
    """A request with a target and a header's value of so many bytes, and so many headers."""
    path = b"/v1/queues?prefix=".ljust(target, b"a")
    lines = [b"Host: x", *[b"X-%03d: y" % number for number in range(fields - 1 - bool(field))]]
    if field:
        lines.append(b"X-Long: " + b"z" * field)
    return b"GET " + path + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("most", "over", "status", "limit"),
    [
        (head(target=600), head(target=601), 414, "target_bytes_max"),
        (head(field=700), head(field=701), 431, "field_bytes_max"),
        (head(fields=9), head(fields=10), 431, "fields_max"),
    ],
)
async def test_a_head_over_a_limit_is_refused_exactly(
    serve: Serve, connect: Open, most: bytes, over: bytes, status: int, limit: str
) -> None:
    client = await serve(Limits(target_bytes=600, field_bytes=700, fields=9))
    raw = await connect(client)
    assert (await raw.ask(most)).status in (200, 422)
    answered = await raw.ask(over)
    assert (answered.status, answered.limit, answered.is_last) == (status, limit, True)
    assert await raw.rest() == b""
    assert met(client) == {limit: 1}
    assert (await client("GET", "/healthz")).status == 200


def whole_head(size: int) -> bytes:
    """A target and headers of `size` bytes together, as the limit counts them."""
    one = b"X-Some: " + b"y" * 94 + b"\r\n"  # 100 bytes of name and value
    fixed = len(b"/v1/queues") + len(b"Hostx")
    count, rest = divmod(size - fixed, 100)
    last = b"Z: " + b"z" * (rest - 1) + b"\r\n" if rest else b""
    return b"GET /v1/queues HTTP/1.1\r\nHost: x\r\n" + one * count + last + b"\r\n"


@pytest.mark.parametrize("pieces", [1, 7])
async def test_all_of_a_head_is_counted_however_it_comes(serve: Serve, connect: Open, pieces: int) -> None:
    client = await serve(Limits(head_bytes=5_000))
    raw = await connect(client)
    for size, status in ((4_500, 200), (5_001, 431)):
        data = whole_head(size)
        step = -(-len(data) // pieces)
        for at in range(0, len(data), step):
            raw.writer.write(data[at : at + step])
            await raw.writer.drain()
            await asyncio.sleep(0)
        answered = await raw.answer()
        assert answered.status == status
    assert (answered.limit, answered.is_last) == ("head_bytes_max", True)


async def test_a_head_in_one_piece_may_take_all_of_its_limit(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(head_bytes=5_000))
    raw = await connect(client)
    assert (await raw.ask(whole_head(5_000))).status == 200
    # Behind each other in one piece, the second over the limit: the first is answered.
    raw.writer.write(whole_head(5_000) + whole_head(5_001) + GET)
    assert (await raw.answer()).status == 200
    assert (await raw.answer()).limit == "head_bytes_max"
    assert await raw.rest() == b""


async def test_a_head_without_end_is_refused_while_it_comes(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(head_bytes=5_000, fields=10_000))
    raw = await connect(client)
    answered = await raw.ask(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 2_000)
    assert (answered.status, answered.limit) == (431, "head_bytes_max")


async def test_what_is_no_http_is_a_problem_that_shows_nothing_of_it(client: Client, connect: Open) -> None:
    for data in (
        b"secret\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthori zation: secret\r\n\r\n",
        b"GET secret HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nsecret: x\r\n\r\n",
        b"\x16\x03\x01secret\r\n\r\n",
        b"POST /q/a HTTP/1.1\r\nHost: x\r\nContent-Length: secret\r\n\r\n",
        b"POST /q/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        raw = await connect(client)
        answered = await raw.ask(data)
        problem = msgspec.json.decode(answered.body)
        assert (answered.status, problem["type"]) == (400, "https://raftq.dev/problems/malformed"), data
        assert b"secret" not in answered.body
        assert answered.is_last
        assert await raw.rest() == b""
    assert client.node.api.unrouted[400] == 8


# Connections


async def test_beyond_the_limit_health_alone_is_told_and_then_nothing(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(connections=2))
    first, second = await connect(client), await connect(client)
    assert (await first.ask(GET)).status == (await second.ask(GET)).status == 200
    spare = await connect(client)
    answered = await spare.ask(HEALTH)
    assert (answered.status, answered.is_last) == (200, True)
    other = await connect(client)
    answered = await other.ask(GET)
    assert (answered.status, answered.limit, answered.is_last) == (503, "connections_max", True)
    assert b"Retry-After: 1\r\n" in answered.head
    await until(lambda: client.node.api.front.open == 2)
    held = [await connect(client) for _ in range(SPARE + SPARE_LOCAL)]
    await until(lambda: client.node.api.front.open == 2 + len(held))
    # Nothing is read any more: the answer is there before the question.
    answered = await (await connect(client)).answer()
    assert (answered.status, answered.limit, answered.is_last) == (503, "connections_max", True)
    assert (await first.ask(GET)).status == 200
    for raw in (second, *held):
        raw.writer.close()
    await until(lambda: client.node.api.front.open == 1)
    assert (await (await connect(client)).ask(GET)).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1", "::1", "192.0.2.7"])
async def test_some_of_the_spare_connections_are_for_this_machine(
    serve: Serve, connect: Open, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    client = await serve(Limits(connections=1))
    front = client.node.api.front
    take = front._take
    monkeypatch.setattr(front, "_take", lambda accepted, _: take(accepted, host))
    most = 1 + SPARE + (SPARE_LOCAL if host != "192.0.2.7" else 0)
    held = [await connect(client) for _ in range(most)]
    await until(lambda: front.open == len(held))
    assert (await (await connect(client)).answer()).limit == "connections_max"
    assert (await held[-1].ask(HEALTH)).status == 200


async def test_one_address_has_so_many_connections(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(connections_per_client=2))
    first, second = await connect(client), await connect(client)
    assert (await first.ask(GET)).status == (await second.ask(GET)).status == 200
    assert (await (await connect(client)).answer()).limit == "connections_per_client_max"
    reader, writer = await asyncio.open_connection("127.0.0.1", client.node.port, local_addr=("127.0.0.2", 0))
    assert (await Raw(reader, writer).ask(GET)).status == 200
    writer.close()
    first.writer.close()
    await until(lambda: client.node.api.front.open == 1)
    assert (await (await connect(client)).ask(GET)).status == 200
    assert met(client) == {"connections_per_client_max": 1}


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_an_ipv6_client_is_its_network(host: str, client: str) -> None:
    assert connections._client(host) == client


async def test_without_descriptors_nobody_is_accepted_and_later_all_are(
    client: Client, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = client.node.api.front
    bound, asked = front._bound, 0

    class Empty:
        def accept(self) -> Any:
            nonlocal asked
            asked += 1
            if asked < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return bound.accept()  # type: ignore[union-attr]

        def fileno(self) -> int:
            return bound.fileno()  # type: ignore[union-attr]

        def close(self) -> None:
            bound.close()  # type: ignore[union-attr]

    monkeypatch.setattr(connections, "_PAUSE_SECONDS", 0.01)
    front._bound = Empty()  # type: ignore[assignment]
    raws = [await connect(client) for _ in range(3)]
    assert [(await raw.ask(GET)).status for raw in raws] == [200] * 3
    assert asked >= 3 + 3  # one at a time while there are none


async def test_a_client_that_goes_at_once_leaves_nothing(client: Client) -> None:
    for linger in (b"\1\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\0"):
        for _ in range(20):
            gone = socket.create_connection(("127.0.0.1", client.node.port))
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            gone.close()
    assert (await client("GET", "/v1/queues")).status == 200
    await until(lambda: client.node.api.front.open == 1)
    assert len(client.node.api.front._heads) == 0


# Slow and idle clients


async def test_a_connection_that_says_nothing_is_closed(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(head_seconds=0.05))
    assert await (await connect(client)).rest() == b""
    assert met(client) == {"head_seconds_max": 1}
    await until(lambda: not client.node.api.front.open)


@pytest.mark.parametrize("before", [b"", GET])
async def test_a_head_that_does_not_arrive_is_408(serve: Serve, connect: Open, before: bytes) -> None:
    client = await serve(Limits(head_seconds=0.05))
    raw = await connect(client)
    if before:
        assert (await raw.ask(before)).status == 200
    ended = asyncio.ensure_future(raw.answer())
    for byte in GET[:-1]:
        raw.writer.write(bytes([byte]))
        await asyncio.wait([ended], timeout=0.01)
        if ended.done():
            break
    answered = await ended
    assert (answered.status, answered.limit, answered.is_last) == (408, "head_seconds_max", True)
    assert await raw.rest() == b""
    assert met(client) == {"head_seconds_max": 1}


async def test_a_slow_head_behind_a_wait_is_answered_after_it(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(head_seconds=0.05))
    await client("PUT", "/v1/queues/jobs", {})
    raw = await connect(client)
    body = b'{"wait_seconds":0.3}'
    raw.writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (LEASE.encode(), len(body), body))
    await until(client.node.api.waiters.waiting)
    raw.writer.write(GET[:10])
    assert (await raw.answer()).body == b'{"messages":[]}'
    assert (await raw.answer()).limit == "head_seconds_max"


async def test_time_between_requests_is_no_slow_head(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(head_seconds=0.02, keepalive_seconds=0.3))
    raw = await connect(client)
    loop = asyncio.get_running_loop()
    assert (await raw.ask(b"POST /q/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")).status == 201
    began = loop.time()
    raw.writer.write(b"\r\n")  # as some send after a body
    assert await raw.rest() == b""
    assert loop.time() - began >= 0.25
    assert met(client) == {"idle_seconds_max": 1}


async def test_a_body_in_trickles_is_cut_by_the_time_of_all_of_it(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(read_seconds=0.1, linger_seconds=0.05))
    raw = await connect(client)
    raw.writer.write(b"POST /q/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    ended = asyncio.ensure_future(raw.answer())
    while not ended.done():
        raw.writer.write(b"1\r\nx\r\n")
        await asyncio.wait([ended], timeout=0.01)
    answered = await ended
    assert (answered.status, answered.limit, answered.is_last) == (408, "body_seconds_max", True)
    assert met(client) == {"body_seconds_max": 1}
    assert await raw.rest() == b""


async def test_what_is_left_of_a_refused_body_is_taken_in_for_a_while(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(linger_seconds=0.1))
    raw = await connect(client)
    answered = await raw.ask(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    assert answered.status == 404
    loop = asyncio.get_running_loop()
    began, ended = loop.time(), asyncio.ensure_future(raw.rest())
    while not ended.done():
        raw.writer.write(b"x" * 1000)
        await asyncio.wait([ended], timeout=0.005)
    assert loop.time() - began < 5
    await until(lambda: not client.node.api.front.open)


async def small_window(client: Client) -> Raw:
    """A connection that takes little before it is read."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", client.node.port))
    reader, writer = await asyncio.open_connection(sock=own)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return Raw(reader, writer)


needs_user_timeout = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel here does not cut who does not read"
)


@needs_user_timeout
async def test_who_does_not_read_an_answer_is_cut(serve: Serve) -> None:
    client = await serve(Limits(write_seconds=0.3))
    await client.enqueue(*["x" * 900_000] * 8)
    raw = await small_window(client)
    raw.writer.write(b"GET /v1/queues/jobs/messages?limit=8 HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: met(client) == {"write_seconds_max": 1})
    await until(lambda: client.node.api.front.open == 1)
    raw.writer.transport.abort()


@needs_user_timeout
async def test_a_closed_connection_whose_answer_nobody_reads_is_cut(serve: Serve) -> None:
    client = await serve(Limits(write_seconds=0.3))
    await client.enqueue(*["x" * 900_000] * 8)
    raw = await small_window(client)
    raw.writer.write(b"GET /v1/queues/jobs/messages?limit=8 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await until(lambda: client.node.api.front.open == 2)
    await until(lambda: client.node.api.front.open == 1)
    raw.writer.transport.abort()


@needs_user_timeout
async def test_who_does_not_read_its_websocket_is_cut(serve: Serve) -> None:
    client = await serve(Limits(write_seconds=0.3))
    await client.enqueue(*["x" * 900_000] * 8)
    raw = await small_window(client)
    raw.writer.write(
        b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await until(lambda: client.node.api.connections)
    text = b'{"id":1,"op":"subscribe","queue":"jobs","credit":8}'
    raw.writer.write(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    await until(lambda: not client.node.api.connections)
    await until(lambda: client.node.api.front.open == 1)
    raw.writer.transport.abort()


async def test_answers_that_are_not_read_do_not_pile_up(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    await client.enqueue(*["x" * 1000] * 50)
    raw = await small_window(client)
    api = client.node.api
    route, _ = api.routes.find("GET", "/v1/queues/jobs/messages")
    asked = b"GET /v1/queues/jobs/messages?limit=50 HTTP/1.1\r\nHost: x\r\n\r\n" * 400
    raw.writer.write(asked)
    answered, still = -1, 0
    while still < 20:
        await asyncio.sleep(0.005)
        still = still + 1 if route.answered[200] == answered else 0
        answered = route.answered[200]
    # The kernel takes some MiB at most; of 23 MiB of answers most were not even made.
    assert 0 < answered < 200
    [connection] = [one for one in api.front.server.connections if one.writing_paused]
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 256 * 1024
    assert len(connection._messages) <= 32
    # Once they are read, all are answered.
    own = raw.writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(400):
        assert (await raw.answer()).status == 200
    raw.writer.close()


async def test_requests_behind_one_that_takes_long_are_not_all_read(client: Client, connect: Open) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    raw = await connect(client)
    body = b'{"wait_seconds":30}'
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    raw.writer.write(head % (LEASE.encode(), len(body)) + body)
    await until(client.node.api.waiters.waiting)
    behind = b"x" * 100_000
    one = head % (b"/q/other", len(behind)) + behind
    raw.writer.write(one * 100)
    own = raw.writer.get_extra_info("sockname")
    [connection] = [one for one in client.node.api.front.server.connections if one.peername == own]
    await until(lambda: connection._buffer_paused)
    assert sum(body.total_bytes for _, body in connection._messages) < 1_000_000
    await client.enqueue("a")
    assert (await raw.answer()).status == 200
    assert [(await raw.answer()).status for _ in range(100)] == [201] * 100


# TLS


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8
    own = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(pem + own)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


Secure = Callable[[Limits], Awaitable[tuple[LocalNode, Callable[..., Awaitable[Raw]]]]]


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    """Starts a node that speaks TLS; what it gives connects to it, with TLS or without."""
    server, trusting = contexts(tmp_path)
    nodes: list[LocalNode] = []
    opened: list[Raw] = []

    async def start(limits: Limits) -> tuple[LocalNode, Callable[..., Awaitable[Raw]]]:
        bound = socket.create_server(("127.0.0.1", 0))
        address = bound.getsockname()
        nodes.append(LocalNode(limits=limits))
        await nodes[-1].api.start(bound, server)

        async def connect(*, tls: bool) -> Raw:
            opened.append(Raw(*await asyncio.open_connection(*address, ssl=trusting if tls else None)))
            return opened[-1]

        return nodes[-1], connect

    yield start
    for raw in opened:
        raw.writer.close()
    for node in nodes:
        await until(lambda node=node: not node.api.front.open)
        await node.api.stop()


async def test_a_tls_handshake_that_does_not_end_is_cut(secure: Secure) -> None:
    node, connect = await secure(Limits(head_seconds=0.1))
    assert await (await connect(tls=False)).rest() == b""
    assert node.api.met == {"head_seconds_max": 1}
    assert node.api.front.open == 0


async def test_who_speaks_no_tls_takes_no_place(secure: Secure) -> None:
    node, connect = await secure(Limits(connections_per_client=1))
    plain = await connect(tls=False)
    plain.writer.write(GET)
    assert b"HTTP" not in await plain.rest()
    await until(lambda: not node.api.front.open)
    assert (await (await connect(tls=True)).ask(GET)).status == 200
    # Nobody is told so in plain text where TLS is spoken.
    assert await (await connect(tls=False)).rest() == b""
    assert node.api.met == {"connections_per_client_max": 1}


# Waits, WebSockets, what is passed on


async def test_a_lease_over_the_limit_gets_what_there_is_but_does_not_wait(serve: Serve) -> None:
    client = await serve(Limits(waits=1))
    await client("PUT", "/v1/queues/jobs", {})
    waiting = asyncio.ensure_future(client.lease(wait_seconds=30))
    await until(client.node.api.waiters.waiting)
    reply = await client("POST", LEASE, {"wait_seconds": 1})
    assert (reply.status, reply.json["limit"], reply.headers["Retry-After"]) == (429, "waits_max", "1")
    assert await client.lease() == []
    await client.enqueue("a", queue="other")
    assert len(await client.lease(queue="other", wait_seconds=1)) == 1
    await client.enqueue("b")
    assert len(await waiting) == 1
    assert await client.lease(wait_seconds=0.01) == []
    assert met(client) == {"waits_max": 1}
    assert client.node.api.waiters.polls == 0


async def test_a_subscription_goes_on_when_there_is_room_to_wait(serve: Serve) -> None:
    client = await serve(Limits(waits=1))
    await client("PUT", "/v1/queues/jobs", {})
    waiting = asyncio.ensure_future(client.lease(queue="jobs", wait_seconds=30))
    await until(client.node.api.waiters.waiting)
    async with client.session.ws_connect(client.node.url + "/v1/stream", protocols=("raftq.v1.json",)) as stream:
        await stream.send_json({"id": 1, "op": "subscribe", "queue": "jobs", "credit": 1})
        assert (await stream.receive_json())[0]["answer"] == {"credit": 1}
        await until(lambda: met(client) == {"waits_max": 1})
        await client.enqueue("a")
        assert len(await waiting) == 1
        await client.enqueue("b")
        async with asyncio.timeout(10):
            [pushed] = await stream.receive_json()
        assert pushed["push"]["messages"][0]["body"] == "b"


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/events"])
async def test_a_websocket_over_the_limit_is_429(serve: Serve, path: str) -> None:
    client = await serve(Limits(streams=1))
    async with client.session.ws_connect(client.node.url + path):
        await until(lambda: len(client.node.api.connections) == 1)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429") as refused:
            await client.session.ws_connect(client.node.url + path)
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "1"
    await until(lambda: not client.node.api.connections)
    async with client.session.ws_connect(client.node.url + path):
        assert met(client) == {"streams_max": 1}


async def test_a_node_passes_so_much_on_to_the_leader(serve: Serve) -> None:
    follower, leader = await serve(Limits(forwards=1)), await serve()
    follower.node.follow(leader.node.url)
    await leader("PUT", "/v1/queues/jobs", {})
    proxy = {"Raftq-Forward": "proxy"}
    waiting = asyncio.ensure_future(follower("POST", LEASE, {"wait_seconds": 30}, headers=proxy))
    await until(leader.node.api.waiters.waiting)
    reply = await follower("POST", LEASE, {}, headers=proxy)
    assert (reply.status, reply.json["limit"]) == (429, "forwards_max")
    with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
        await follower.session.ws_connect(follower.node.url + "/v1/stream")
    assert (await follower("POST", LEASE, {})).status == 307
    await leader.enqueue("a")
    assert (await waiting).status == 200
    assert (await follower("POST", LEASE, {}, headers=proxy)).status == 200
    assert follower.node.api.leader.forwards == 0


async def test_every_limit_is_counted_in_the_metrics(serve: Serve, connect: Open) -> None:
    client = await serve(Limits(target_bytes=600))
    assert (await (await connect(client)).ask(head(target=601))).status == 414
    text = (await client("GET", "/metrics")).data.decode()
    for limit in LIMITS:
        count = float(limit == "target_bytes_max")
        assert f'raftq_limits_met_total{{limit="{limit}"}} {count}\n' in text
    assert "\nraftq_connections 2.0\n" in text or "\nraftq_connections 1.0\n" in text
    assert "\nraftq_connections_limit 20000.0\n" in text
