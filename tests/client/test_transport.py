"""What a real socket does, in the two words that the client knows: NotSent and Lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

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
