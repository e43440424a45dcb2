"""A front end: `POST /publish` puts a message into a queue, `GET /health` tells how many each queue holds.

`python -m examples.front --port 8080` serves it on this machine.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
from aiohttp import web

from examples.queues import QUEUES, URLS, define
from raftq.client.client import AsyncClient
from raftq.client.errors import OutcomeUnknown, RaftqError, Refused, Unavailable
from raftq.client.models import NewMessage

CLIENT = web.AppKey("client", AsyncClient)


class Publish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    body: Any
    queue: Literal["succeed", "reject", "retry"] = "succeed"
    #: Of the caller's choice: sent again within five minutes, the same id publishes nothing new.
    dedup_id: str | None = None


async def publish(request: web.Request) -> web.Response:
    try:
        given = msgspec.json.decode(await request.read(), type=Publish)
    except msgspec.DecodeError as error:
        return web.json_response({"error": str(error)}, status=400)
    message = NewMessage(body=given.body, dedup_id=given.dedup_id)
    try:
        enqueued = await request.app[CLIENT].enqueue(given.queue, [message])
    except RaftqError as error:
        return failed(error)
    return web.json_response(msgspec.to_builtins(enqueued.messages[0]), status=201)


async def health(request: web.Request) -> web.Response:
    """503 while the cluster cannot tell."""
    try:
        stats = {queue: await request.app[CLIENT].stats(queue) for queue in QUEUES}
    except RaftqError as error:
        return failed(error)
    counts = {queue: sum(of[state] for state in ("ready", "leased", "delayed")) for queue, of in stats.items()}
    return web.json_response({"status": "ok", "queues": counts})


def failed(error: RaftqError) -> web.Response:
    """`published` tells whether it certainly did not happen: if not, publish again with the same `dedup_id`."""
    status = 503 if isinstance(error, Unavailable | OutcomeUnknown) else 500
    if isinstance(error, Refused):
        status = error.status
    published = "unknown" if isinstance(error, OutcomeUnknown) else "no"
    return web.json_response({"error": str(error), "published": published}, status=status)


async def connected(app: web.Application) -> AsyncIterator[None]:
    async with AsyncClient(URLS) as app[CLIENT]:
        await define(app[CLIENT])
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.front", description="The front end.")
    parser.add_argument("--port", type=int, default=8080)
    app = web.Application()
    app.cleanup_ctx.append(connected)
    app.add_routes([web.post("/publish", publish), web.get("/health", health)])
    web.run_app(app, host="127.0.0.1", port=parser.parse_args().port)


if __name__ == "__main__":
    main()
