"""What a real socket does, in the two words that the client knows: NotSent and Lost."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from raftq.client.transport import AiohttpTransport, Exchange, Lost, NotSent

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport()
    yield transport
    await transport.close()


async def exchange_with(transport: AiohttpTransport, handle: Handle, seconds: float = 5.0) -> bytes:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        exchange = Exchange("POST", f"http://127.0.0.1:{port}/x", {}, b"body", seconds)
        return (await transport.send(exchange)).body


async def test_nobody_listens(transport: AiohttpTransport) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(NotSent):
            await transport.send(Exchange("POST", f"http://127.0.0.1:{port}/x", {}, b"body", 5.0))


async def test_no_such_host(transport: AiohttpTransport) -> None:
    with pytest.raises(NotSent):
        await transport.send(Exchange("GET", "http://no-such-host.invalid/x", {}, None, 5.0))


async def test_closed_before_the_answer(transport: AiohttpTransport) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.close()

    with pytest.raises(Lost):
        await exchange_with(transport, handle)


async def test_closed_amid_the_answer(transport: AiohttpTransport) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        writer.close()

    with pytest.raises(Lost):
        await exchange_with(transport, handle)


async def test_no_answer_in_time(transport: AiohttpTransport) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client gives up
        writer.close()

    with pytest.raises(Lost):
        await exchange_with(transport, handle, seconds=0.05)


async def test_what_is_no_http(transport: AiohttpTransport) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        writer.close()

    with pytest.raises(Lost):
        await exchange_with(transport, handle)


@pytest.mark.parametrize("dies", [False, True], ids=["breaks the connection", "dies"])
@pytest.mark.parametrize("body", [None, b"body"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_what_a_node_read_is_sent_once_and_lost(
    transport: AiohttpTransport, method: str, body: bytes | None, dies: bool
) -> None:
    seen = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        if dies:
            server.close()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Lost):
        await transport.send(Exchange(method, f"http://127.0.0.1:{port}/x", {}, body, 5.0))
    assert len(seen) == 1
    server.close()


async def test_requests_say_their_length_once_and_share_a_connection(transport: AiohttpTransport) -> None:
    connections: list[list[str]] = []
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append([])
        with suppress(asyncio.IncompleteReadError):  # the end
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                said = re.findall(r"\n(?:content-length|content-type|transfer-encoding): (\S+)\r", head)
                connections[-1].append(" ".join([head.split()[0], *sorted(said)]))
                await reader.readexactly(max([int(one) for one in said if one.isdecimal()], default=0))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        ended.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sent = [("POST", 4), ("POST", 3_000_000), ("PUT", 5), ("DELETE", 0), ("PUT", 0), ("GET", 0)]
    for method, size in sent:
        body, headers = (b"x" * size, {"Content-Type": "a/b"}) if size else (None, {})
        await transport.send(Exchange(method, f"http://127.0.0.1:{port}/x", headers, body, 5.0))
    assert connections == [["post 4 a/b", "post 3000000 a/b", "put 5 a/b", "delete 0", "put 0", "get"]]
    await transport.close()
    await ended.wait()
    server.close()
