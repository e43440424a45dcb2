"""The crowd of `crowd.py`: thousands of connections to one node, in a process of its own.

`python -m raftq.bench.crowd_clients URL` does what each line of its standard input says, and answers with a line:

    {"idle": 10000}             opens so many connections, on each of which one request is answered
    {"poll": ["a", "b"]}        opens a connection for each, which waits for a message of that queue
    {"answers": 2}              waits until so many polls were answered since the last time; when the last one was
    {"close": 2}                closes the connections that were opened last
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvloop

from raftq.bench.load import LoadFailed
from raftq.bench.paced import answer_bytes

#: Each source address has ports of its own.
SOURCES = 4
#: That are opened at once.
OPENING_MAX = 100
WAIT_SECONDS = 60
ANSWER_SECONDS_MAX = 120.0


class Crowd:
    """The process, as the benchmark speaks with it. Raises LoadFailed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def idle(self, count: int) -> float:
        """The seconds it took."""
        return float(self._do({"idle": count}))

    def poll(self, queues: Sequence[str]) -> float:
        return float(self._do({"poll": queues}))

    def answered(self, count: int) -> float:
        """Monotonic time of the last answer."""
        return float(self._do({"answers": count}))

    def close(self, count: int) -> None:
        self._do({"close": count})

    def _do(self, what: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"failed": "it has ended"}')
        if "failed" in answer:
            raise LoadFailed(f"the crowd failed: {answer['failed']}")
        return answer["done"]


@contextmanager
def running(url: str) -> Iterator[Crowd]:
    command = [sys.executable, "-m", "raftq.bench.crowd_clients", url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Crowd(process)
    finally:
        process.kill()
        process.communicate()


class Client(asyncio.Protocol):
    """Asks once; a poll that found nothing asks again."""

    def __init__(self, crowd: Clients, request: bytes, *, polls: bool) -> None:
        self._crowd, self._request, self._polls = crowd, request, polls
        self._answer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        size = answer_bytes(self._answer)
        if size is None or len(self._answer) < size:
            return
        answer, self._answer = self._answer, b""
        if not answer.startswith(b"HTTP/1.1 200 "):
            self._crowd.fail(f"an answer was {answer[:300]!r}")
        elif self._polls and answer.endswith(b'{"messages":[]}'):
            self.transport.write(self._request)
        else:
            self._crowd.answered(polls=self._polls)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._crowd.closing:
            self._crowd.fail(f"a connection was lost: {exc}")


class Clients:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._host = parts.netloc
        self._transports: list[asyncio.Transport] = []
        self._failed: str | None = None
        self.closing = False
        self._polls_answered = self._idle_answered = 0
        self._last = 0.0
        self._changed = asyncio.Event()

    def fail(self, why: str) -> None:
        self._failed = self._failed or why
        self._changed.set()

    def answered(self, *, polls: bool) -> None:
        if polls:
            self._polls_answered += 1
            self._last = time.monotonic()
        else:
            self._idle_answered += 1
        self._changed.set()

    async def do(self, what: dict[str, Any]) -> float:
        began = time.monotonic()
        match what:
            case {"idle": int(count)}:
                wanted = self._idle_answered + count
                await self._open([f"GET /healthz HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode()] * count, polls=False)
                await self._until(lambda: self._idle_answered >= wanted)
            case {"poll": list(queues)}:
                await self._open([self._poll(queue) for queue in queues], polls=True)
            case {"answers": int(count)}:
                await self._until(lambda: self._polls_answered >= count)
                self._polls_answered -= count
                return self._last
            case {"close": int(count)}:
                self.closing = True
                for transport in self._transports[-count:]:
                    transport.abort()
                del self._transports[-count:]
                await asyncio.sleep(0)
        return time.monotonic() - began

    def _poll(self, queue: str) -> bytes:
        body = json.dumps({"wait_seconds": WAIT_SECONDS, "lease_seconds": 3600})
        head = f"POST /v1/queues/{queue}/lease HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    async def _open(self, requests: list[bytes], *, polls: bool) -> None:
        self.closing = False
        room = asyncio.Semaphore(OPENING_MAX)

        async def one(place: int, request: bytes) -> None:
            async with room:
                own = socket.socket()
                own.setblocking(False)
                own.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
                own.bind((f"127.0.0.{place % SOURCES + 1}", 0))
                loop = asyncio.get_running_loop()
                await loop.sock_connect(own, self._address)
                transport, _ = await loop.create_connection(lambda: Client(self, request, polls=polls), sock=own)
                self._transports.append(transport)

        await asyncio.gather(*(one(place, request) for place, request in enumerate(requests)))

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            while not condition():
                if self._failed:
                    raise LoadFailed(self._failed)
                self._changed.clear()
                await self._changed.wait()


async def _serve(url: str) -> None:
    clients = Clients(url)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer: dict[str, Any] = {"done": await clients.do(json.loads(line))}
        except (OSError, TimeoutError, LoadFailed) as error:
            answer = {"failed": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve(sys.argv[1]))
