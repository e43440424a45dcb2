"""Dead letters under leader kills: workers ack messages, nack them until they are dead, reject them, or leave them to
expire, while the leader is killed with SIGKILL again and again and restarted; then a part of the dead letters is
redriven, under kills as well. At the end each message is in exactly one place, counted by its body: acked, in the
dead-letter queue, or back in its own.

As a script, by hand or by `make deadletters`: `python -m tests.cluster.deadletters --messages 10000 --kill-leader 3`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.models import LeasedMessage, Message, NewMessage
from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from tests.cluster.client import ask
from tests.cluster.leader_kills import LeaderKills

QUEUE, DEAD = "jobs", "dead"
#: What workers do with a message, at each delivery; and how many of 20 messages are to have it.
FATES: Final = {"ack": 8, "nack": 4, "reject": 4, "expire": 4}
#: These are redriven; the others stay dead.
REDRIVEN: Final = ("nack", "expire")
REASON = "poison"


@dataclass(kw_only=True)
class Plan:
    messages: int
    #: The leader is killed at once, and then so often.
    kill_leader_seconds: float
    seed: int
    workers: int = 4
    #: Of one request.
    batch: int = 100
    max_failures: int = 3
    lease_seconds: float = 1.0
    backoff_seconds: float = 0.2
    #: That the redrive is throttled to take about.
    redrive_seconds: float = 4.0


class Story:
    def __init__(self, plan: Plan, cluster: LocalCluster) -> None:
        self.plan, self._cluster, self._rng = plan, cluster, random.Random(plan.seed)
        #: By the body of the message, which is its number.
        self._fates = self._rng.choices(list(FATES), list(FATES.values()), k=plan.messages)
        self._enqueued = False
        #: Those whose settlement was answered with done, by fate; of a nack as often as it was.
        self._done: dict[str, Counter[int]] = {fate: Counter() for fate in FATES}
        #: Leader kills, by what went on meanwhile.
        self.kills: dict[str, LeaderKills] = {}
        #: Messages by the place that they ended in, and dead letters by reason.
        self.ended: Counter[str] = Counter()

    def run(self) -> None:
        """Raises AssertionError, and RaftqError for a request that failed although it was retried."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        plan, urls = self.plan, [node.api_url for node in self._cluster.nodes]
        # So patient that every request is answered: what was acked is known for certain.
        async with AsyncClient(urls, patience=Patience(timeout_seconds=60)) as client:
            backoff = {"initial_seconds": plan.backoff_seconds, "factor": 2, "max_seconds": 1}
            settings = {"dead_letter_queue": DEAD, "max_failures": plan.max_failures, "backoff": backoff}
            await client.define_queue(QUEUE, settings)
            with self._kills("work"):
                await asyncio.gather(self._enqueue(client), *(self._work(client) for _ in range(plan.workers)))
            dead = await self._dead_letters(client)
            with self._kills("redrive"):
                await self._redrive(client, dead)
            await self._check(client, dead)

    def _kills(self, during: str) -> AbstractContextManager[None]:
        self.kills[during] = LeaderKills(self._cluster, self.plan.kill_leader_seconds)
        return self.kills[during].going_on()

    async def _enqueue(self, client: AsyncClient) -> None:
        numbers = range(self.plan.messages)
        for first in range(0, len(numbers), self.plan.batch):
            batch = numbers[first : first + self.plan.batch]
            messages = [NewMessage(body=number, attributes={"fate": self._fates[number]}) for number in batch]
            await client.enqueue(QUEUE, messages)
        self._enqueued = True

    async def _work(self, client: AsyncClient) -> None:
        """Until no message is left."""
        plan = self.plan
        while True:
            enqueued = self._enqueued
            most = self._rng.randint(1, plan.batch)
            leased = await client.lease(QUEUE, max=most, lease_seconds=plan.lease_seconds, wait_seconds=0.2)
            if not leased and enqueued and not _live(await client.stats(QUEUE)):
                return
            by_fate: dict[str, list[LeasedMessage]] = {}
            for message in leased:
                by_fate.setdefault(self._fates[message.body], []).append(message)
            for fate, messages in by_fate.items():
                await self._settle(client, fate, messages)

    async def _settle(self, client: AsyncClient, fate: str, messages: list[LeasedMessage]) -> None:
        receipts = [message.receipt for message in messages]
        if fate == "ack":
            results = await client.ack(QUEUE, receipts)
        elif fate == "nack":
            results = await client.nack(QUEUE, receipts)
        elif fate == "reject":
            results = await client.reject(QUEUE, receipts, reason=REASON)
        else:
            return
        # The lease of one that is gone passed, as it may when a leader is killed: it was delivered again, or is dead.
        done = [message.body for message, result in zip(messages, results, strict=True) if result.status == "done"]
        self._done[fate].update(done)

    async def _dead_letters(self, client: AsyncClient) -> dict[int, Message]:
        """By body: all but what was acked, each once, with the reason that it died of."""
        letters = await _peek(client, DEAD)
        found = Counter(letter.body for letter in letters)
        acked, rejected = self._done["ack"], self._done["reject"]
        assert found + acked == Counter(range(self.plan.messages)), "not each was acked or is dead, once"
        for letter in letters:
            why = letter.dead_letter
            assert why is not None
            self.ended[why.reason] += 1
            if letter.body in rejected:
                assert why.reason == f"rejected: {REASON}", letter
                assert why.failures == why.deliveries - 1, letter
            else:
                assert why.reason == "max_failures", letter
                assert why.failures == why.deliveries == self.plan.max_failures, letter
                assert self._done["nack"][letter.body] <= why.failures, letter
        assert (await client.stats(QUEUE))["totals"]["dead_lettered"] == len(letters)
        return {letter.body: letter for letter in letters}

    async def _redrive(self, client: AsyncClient, dead: dict[int, Message]) -> None:
        """Of some of the dead letters, until it has ended."""
        wanted = sum(self._fates[number] in REDRIVEN for number in dead)
        per_second = max(int(wanted / self.plan.redrive_seconds), 1)
        redrive = await client.redrive(DEAD, filter={"fate": list(REDRIVEN)}, messages_per_second=per_second)
        while redrive.state == "running":
            await asyncio.sleep(0.1)
            redrive = await client.redrive_state(DEAD)
        assert (redrive.state, redrive.moved, redrive.skipped) == ("done", wanted, len(dead) - wanted), redrive

    async def _check(self, client: AsyncClient, dead: dict[int, Message]) -> None:
        """Every message can be had in exactly one place."""
        back = {number for number in dead if self._fates[number] in REDRIVEN}
        in_queue, in_dead = await _drained(client, QUEUE), await _drained(client, DEAD)
        assert in_queue == Counter(back), "not each that was redriven is back once, and no other"
        assert in_dead == Counter(dead.keys() - back), "not each that was not redriven is still dead, once"
        totals = (await client.stats(QUEUE))["totals"]
        assert totals["acked"] == len(self._done["ack"]) + len(back)
        assert totals["discarded"] == 0
        self.ended.update(acked=len(self._done["ack"]), back=len(back), dead=len(in_dead))
        digests = ask("GET", f"{self._cluster.url('n1')}/v1/cluster/digest").json()["nodes"]
        assert len(digests) == len(self._cluster.nodes)
        assert len(set(digests.values())) == 1


def _live(stats: dict[str, Any]) -> int:
    return int(stats["ready"] + stats["leased"] + stats["delayed"])


async def _peek(client: AsyncClient, queue: str) -> list[Message]:
    """All that is ready."""
    found: list[Message] = []
    cursor = None
    while True:
        page = await client.peek(queue, limit=500, cursor=cursor)
        found += page.messages
        if (cursor := page.cursor) is None:
            return found


async def _drained(client: AsyncClient, queue: str) -> Counter[int]:
    """The bodies of all messages, leased and acked; nothing is left."""
    found: Counter[int] = Counter()
    while leased := await client.lease(queue, max=500, lease_seconds=60):
        found.update(message.body for message in leased)
        results = await client.ack(queue, [message.receipt for message in leased])
        assert all(result.status == "done" for result in results)
    assert not _live(await client.stats(queue))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--kill-leader", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    plan = Plan(messages=given.messages, kill_leader_seconds=given.kill_leader, redrive_seconds=10, seed=given.seed)
    print(plan)
    with tempfile.TemporaryDirectory(prefix="raftq-deadletters-") as folder:
        cluster = LocalCluster(Path(folder) / "cluster", size=3, port=free_first(3, PEER_PORTS))
        try:
            cluster.start_all()
            cluster.wait_ready()
            story, begun = Story(plan, cluster), time.monotonic()
            story.run()
            print(f"each in one place, after {time.monotonic() - begun:.1f} s: {dict(story.ended)}")
            print("leader kills:", {during: kills.count for during, kills in story.kills.items()})
        finally:
            cluster.close()


if __name__ == "__main__":
    main()
