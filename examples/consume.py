"""Three kinds of consumer, by how their work ends: well, badly for good, or badly for now.

    python -m examples.consume succeed --workers 4
    python -m examples.consume reject
    python -m examples.consume retry

Each tells what it does with every message. SIGTERM and Ctrl-C let what is in hand be finished.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from examples.queues import URLS, define
from raftq.client.client import AsyncClient
from raftq.client.errors import OutcomeUnknown, Unavailable
from raftq.client.models import LeasedMessage

Work = Callable[[LeasedMessage], Awaitable[None]]

#: How long a look for messages waits for one, and so how long an idle worker takes to stop.
WAIT_SECONDS = 1.0


class ForGood(Exception):
    """It will never succeed: the message goes to the dead letters at once, with this as the reason."""


async def succeed(_message: LeasedMessage) -> None:
    """The work is done."""


async def reject(message: LeasedMessage) -> None:
    raise ForGood(f"nobody knows what to do with {message.body!r}")


async def retry(_message: LeasedMessage) -> None:
    raise ConnectionError("the other side does not answer")


class Consumer:
    """Leases, works, and tells the queue how it went: a return is acked, ForGood rejected, any other error nacked.
    `run` may run many times at once: each is a worker."""

    def __init__(self, client: AsyncClient, queue: str, work: Work) -> None:
        self._client, self._queue, self._work = client, queue, work
        self._stopping = False
        #: When each message that was nacked was last seen.
        self._seen: dict[str, float] = {}

    async def run(self, *, until_empty: bool) -> None:
        while not self._stopping:
            try:
                messages = await self._client.lease(self._queue, wait_seconds=WAIT_SECONDS)
                for message in messages:
                    await self._handle(message)
                if not messages and until_empty and await self._is_empty():
                    return
            except (Unavailable, OutcomeUnknown) as error:
                # A lease or an ack whose fate is not known: if it did not happen, the message comes again.
                print(f"going on in spite of: {error}", flush=True)

    def stop(self) -> None:
        self._stopping = True

    async def _handle(self, message: LeasedMessage) -> None:
        try:
            await self._work(message)
        except ForGood as error:
            self._tell(message, f"rejected: {error}")
            settled = await self._client.reject(self._queue, [message.receipt], reason=str(error))
        except Exception as error:
            self._tell(message, f"failure {message.failures + 1}{self._gap(message)}, nacked: {error}")
            settled = await self._client.nack(self._queue, [message.receipt])
        else:
            self._tell(message, "acked")
            settled = await self._client.ack(self._queue, [message.receipt])
        if settled[0].status == "gone":
            self._tell(message, "too late: its lease has passed")

    def _gap(self, message: LeasedMessage) -> str:
        now = time.monotonic()
        last, self._seen[message.id] = self._seen.get(message.id), now
        return "" if last is None else f" after {now - last:.2f} s"

    async def _is_empty(self) -> bool:
        stats = await self._client.stats(self._queue)
        return not any(stats[state] for state in ("ready", "leased", "delayed"))

    def _tell(self, message: LeasedMessage, what: str) -> None:
        print(f"{self._queue} {message.id} {what}", flush=True)


async def consume(kind: str, *, workers: int, seconds: float, until_empty: bool) -> None:
    async def work(message: LeasedMessage) -> None:
        await asyncio.sleep(seconds)
        await WORK[kind](message)

    async with AsyncClient(URLS) as client:
        await define(client)
        consumer = Consumer(client, kind, work)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, consumer.stop)
        await asyncio.gather(*[consumer.run(until_empty=until_empty) for _ in range(workers)])


WORK: dict[str, Work] = {"succeed": succeed, "reject": reject, "retry": retry}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.consume", description="A consumer of one kind.")
    parser.add_argument("kind", choices=WORK, help="how its work ends, and the queue that it works off")
    parser.add_argument("--workers", type=int, default=1, help="messages at once (1)")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the work of one message takes (0)")
    parser.add_argument("--until-empty", action="store_true", help="end when the queue holds nothing any more")
    given = parser.parse_args()
    asyncio.run(consume(given.kind, workers=given.workers, seconds=given.seconds, until_empty=given.until_empty))


if __name__ == "__main__":
    main()
