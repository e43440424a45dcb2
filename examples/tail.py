"""Prints the messages of a queue as a node pushes them over a WebSocket, and acks each.

`python -m examples.tail lines --count 10` ends after ten.
"""

from __future__ import annotations

import argparse
import asyncio

from examples.queues import URLS
from raftq.client.client import AsyncClient

#: Messages held at most; more are pushed as these are acked.
CREDIT = 100


async def tail(queue: str, count: int | None) -> None:
    """A stream that breaks is not opened again here: start it anew, what was not acked comes again."""
    async with AsyncClient(URLS) as client, client.stream() as stream:
        printed = 0
        async for message in await stream.subscribe(queue, credit=min(CREDIT, count or CREDIT)):
            body = message.body
            print(body.decode(errors="replace") if isinstance(body, bytes) else body, flush=True)
            await stream.ack(queue, [message.receipt])
            printed += 1
            if printed == count:
                return


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.tail", description="Messages as they are pushed.")
    parser.add_argument("queue")
    parser.add_argument("--count", type=int, help="end after so many")
    given = parser.parse_args()
    asyncio.run(tail(given.queue, given.count))


if __name__ == "__main__":
    main()
