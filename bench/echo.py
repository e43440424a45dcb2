"""The reference: a bare aiohttp server on uvloop, one route that returns the body of a POST.

It is what any Python service on aiohttp pays before it does anything. Run as `python -m raftq.bench.echo`, it prints
its URL and serves until it is terminated.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop
from aiohttp import web


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="application/json")


async def serve() -> None:
    app = web.Application()
    app.router.add_post("/", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}/", flush=True)
    await asyncio.Event().wait()


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """URL and pid of an echo server in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "raftq.bench.echo"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    uvloop.run(serve())
