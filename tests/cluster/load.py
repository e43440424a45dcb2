"""A load that knows what it was promised: enqueuers and workers at one queue of a cluster, with the client's own
retries, in a thread of their own. Every request carries a request id, so whatever happens meanwhile each message is
there exactly once, and `check` says whether it is.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound, RaftqError
from raftq.client.models import LeasedMessage, NewMessage
from raftq.node.waiting import wait_until

QUEUE = "jobs"
#: What is leased stays leased, but for what a worker gives back.
LEASE_SECONDS = 600.0

Value = TypeVar("Value")


class Known(NamedTuple):
    """A message; no two have the same body."""

    id: str
    body: str


class Success(NamedTuple):
    """A request that was answered, its retries included."""

    kind: str
    began: float
    ended: float


class Load:
    def __init__(
        self, urls: Sequence[str], *, seed: int, enqueuers: int = 4, workers: int = 2, patience_seconds: float = 30.0
    ) -> None:
        self._urls, self._patience = urls, Patience(timeout_seconds=patience_seconds)
        self._rng = random.Random(seed)
        self._enqueuers, self._workers = enqueuers, workers
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        #: Acknowledged.
        self.enqueued: set[Known] = set()
        #: Those whose ack was acknowledged as well.
        self.acked: set[Known] = set()
        #: The highest fence that a message was leased with, by its id.
        self.fences: dict[str, int] = {}
        self.successes: list[Success] = []
        #: Requests that failed although they were retried.
        self.failed: list[str] = []
        #: Answers that no load may get, whatever happens to the cluster.
        self.wrong: list[str] = []

    def start(self) -> None:
        """Also again, after `end`."""
        self._ending.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def wait_for(self, more: int, seconds: float = 60.0) -> None:
        """Until so many more requests have succeeded."""
        wanted = len(self.successes) + more
        wait_until(lambda: len(self.successes) >= wanted, seconds, f"{more} more successful requests")

    def end(self) -> None:
        """Every request that was begun is answered, or has failed, when this returns."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def longest_gap(self, kind: str | None = None) -> float:
        """Between two successes (of this kind), in seconds."""
        ends = sorted(success.ended for success in self.successes if kind in (None, success.kind))
        return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)

    def slowest(self) -> Success:
        return max(self.successes, key=lambda success: success.ended - success.began)

    def check(self) -> None:
        """Raises Lost unless the queue holds just what it should: every message that was acknowledged, but for those
        whose ack was, and no other. Call it after `end`."""
        found, expected = asyncio.run(self._found()), self.enqueued - self.acked
        lost, more = len(expected - found), len(found - expected)
        if lost or more or self.wrong:
            raise Lost(lost, more, self.wrong)

    # In the thread

    async def _run(self) -> None:
        async with AsyncClient(self._urls, patience=self._patience) as client:
            enqueuers = [self._enqueue(client, number) for number in range(self._enqueuers)]
            workers = [self._work(client) for _ in range(self._workers)]
            await asyncio.gather(*enqueuers, *workers)

    async def _enqueue(self, client: AsyncClient, number: int) -> None:
        rng = random.Random(self._rng.random())
        bodies = self._bodies(number, rng)
        while not self._ending.is_set():
            batch = [NewMessage(body=next(bodies)) for _ in range(rng.randint(1, 8))]
            answer = await self._tried("enqueue", client.enqueue(QUEUE, batch))
            if answer is None:
                continue
            made = zip(answer.messages, batch, strict=True)
            self.enqueued |= {Known(one.id, message.body) for one, message in made}

    def _bodies(self, number: int, rng: random.Random) -> Iterator[str]:
        """From the time on, so that two starts make different ones."""
        count = time.time_ns()
        while True:
            count += 1
            yield f"{number} {count} {'x' * rng.choice((0, 100, 2000))}"

    async def _work(self, client: AsyncClient) -> None:
        rng = random.Random(self._rng.random())
        while not self.successes and not self._ending.is_set():
            await asyncio.sleep(0.01)  # the first enqueue makes the queue
        while not self._ending.is_set():
            leased = await self._tried(
                "lease", client.lease(QUEUE, max=rng.randint(1, 16), lease_seconds=LEASE_SECONDS, wait_seconds=0.2)
            )
            if leased:
                self._take(leased)
                await self._settle(client, leased, rng.choices(("ack", "release", "nack", "keep"), (6, 1, 1, 1))[0])

    def _take(self, leased: list[LeasedMessage]) -> None:
        for message in leased:
            if Known(message.id, message.body) in self.acked:
                self.wrong.append(f"{message.id} was leased after its ack was acknowledged")
            if message.fence <= self.fences.get(message.id, -1):
                self.wrong.append(f"{message.id} was leased with fence {message.fence}, no higher than before")
            self.fences[message.id] = message.fence

    async def _settle(self, client: AsyncClient, leased: list[LeasedMessage], how: str) -> None:
        settle = {"ack": client.ack, "release": client.release, "nack": client.nack}.get(how)
        if settle is None:
            return
        results = await self._tried(how, settle(QUEUE, [message.receipt for message in leased])) or []
        for message, result in zip(leased, results, strict=False):
            if result.status != "done":
                self.wrong.append(f"{how} of {message.id}, whose lease had not passed, was answered {result.status}")
            elif how == "ack":
                self.acked.add(Known(message.id, message.body))

    async def _tried(self, kind: str, request: Awaitable[Value]) -> Value | None:
        """None when it failed. An empty lease is an answer, but no success that counts."""
        began = time.monotonic()
        try:
            answer = await request
        except RaftqError as error:
            self.failed.append(f"{kind}: {error}")
            await asyncio.sleep(0.1)
            return None
        if answer != []:
            self.successes.append(Success(kind, began, time.monotonic()))
        return answer

    async def _found(self) -> set[Known]:
        """What the queue holds."""
        found: set[Known] = set()
        async with AsyncClient(self._urls, patience=self._patience) as client:
            for state in ("ready", "delayed", "leased"):
                cursor = None
                while True:
                    try:
                        page = await client.peek(QUEUE, state=state, limit=500, cursor=cursor)
                    except NotFound:
                        return set()
                    found |= {Known(message.id, message.body) for message in page.messages}
                    if (cursor := page.cursor) is None:
                        break
        return found


class Lost(AssertionError):
    """The queue does not hold what was acknowledged, or a request was answered as it must not be."""

    def __init__(self, lost: int, more: int, wrong: list[str]) -> None:
        self.lost = lost
        found = f"{lost} acknowledged messages are lost, {more} are there that should not be"
        super().__init__("; ".join([found, *wrong[:3]]))
