"""What is counted: of one queue, of all together, and how fast the totals grow. No answer looks at every queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from raftq.api import names, problems
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.reads import PAGE_MAX, name_text, queue_of, view_of, whole_number
from raftq.replication.shard import NotLeader, Shard
from raftq.storage.machine.tallies import COUNTS, TOTALS
from raftq.storage.machine.views import QueueInfo, View

#: Seconds that rates are told over.
WINDOWS = (10, 60)
#: Of up to as many queues the oldest message is looked for at once.
_AT_ONCE = 100
#: Queues that a look goes over in one go; seconds of the pause after them, between two looks, and for which what one
#: has found is told.
_IN_ONE_GO = 25
_PAUSE_SECONDS = 0.01
_BETWEEN_SECONDS = 1.0
_KEPT_SECONDS = 300.0


async def of_queue(call: Call) -> Answer:
    """GET /v1/queues/{queue}/stats: Count the messages of a queue."""
    queue = call.queue
    view = await view_of(call)
    info = queue_of(view, queue)
    return call.answer({"name": names.queue_name(queue)} | counted(view, info, call.node.shard.wall_ms()))


async def of_all(call: Call) -> Answer:
    """GET /v1/stats: Count the messages of all queues together."""
    view, shard = await view_of(call), call.node.shard
    now_ms = shard.wall_ms()
    sums = view.sums()
    oldest = {"oldest_ready_seconds": age_seconds(call.api.oldest.ready_ms(shard), now_ms)}
    return call.answer({"queues": sums["queues"]} | _shown(view, None, sums, now_ms) | oldest)


async def of_each(call: Call) -> Answer:
    """GET /healthz?queues=true: the messages of each queue, a page of them, as this node has applied them."""
    prefix, cursor = name_text(call, "prefix"), name_text(call, "cursor")
    limit = whole_number(call, "limit", 100, least=1, most=PAGE_MAX)
    page, cursor = call.node.shard.stale().tallies(names.namespace(), prefix or "", limit, cursor, oldest=False)
    queues = {}
    for tally in page:
        ready, leased, delayed, _ = tally.values[: len(COUNTS)]
        counts = {"messages": ready + leased + delayed, "ready": ready, "leased": leased, "delayed": delayed}
        queues[names.queue_name(tally.key)] = counts
    return call.answer({"status": "ok", "queues": queues, "cursor": cursor})


def counted(view: View, info: QueueInfo, now_ms: int) -> dict[str, Any]:
    """Counts, bytes, totals, rates and the oldest message of a queue."""
    shown = _shown(view, info.key, view.counted(info.key), now_ms)
    return shown | {"oldest_ready_seconds": age_seconds(info.oldest_ready_ms, now_ms)}


def _shown(view: View, key: str | None, values: dict[str, int], now_ms: int) -> dict[str, Any]:
    return {name: values[name] for name in COUNTS} | {
        "totals": {name: values[name] for name in TOTALS},
        "rates": {f"last_{seconds}_seconds": _rates(view, key, seconds, now_ms) for seconds in WINDOWS},
    }


def _rates(view: View, key: str | None, seconds: int, now_ms: int) -> dict[str, float]:
    """A second, and `seconds`: what they are over in truth."""
    grown, took_ms = view.growth(key, seconds * 1000, now_ms)
    return {"seconds": took_ms / 1000} | {name: round(count * 1000 / took_ms, 3) for name, count in grown.items()}


def age_seconds(since_ms: int | None, now_ms: int) -> float | None:
    """In cluster time, so that all nodes say about the same; it goes on when nothing is done."""
    return None if since_ms is None else max(0, now_ms - since_ms) / 1000


class Oldest:
    """When the oldest ready message of all queues was enqueued.

    Of few queues it is looked for at once. Many are looked at in the background, piece by piece, when somebody asks;
    the answer is what the last look found, and nothing before the first one has ended."""

    def __init__(self) -> None:
        self._found: int | None = None
        self._looked = float("-inf")
        self._look: asyncio.Task[None] | None = None

    def ready_ms(self, shard: Shard) -> int | None:
        """Wall time; None when no message is ready, or it is not known. Raises NotLeader as `Shard.stale` does."""
        view = shard.stale()
        if view.sums()["queues"] <= _AT_ONCE:
            return _least(tally.oldest_ready_ms for tally in view.tallies(None, limit=_AT_ONCE)[0])
        now = asyncio.get_running_loop().time()
        if self._look is None and now >= self._looked + _BETWEEN_SECONDS:
            self._look = asyncio.create_task(self._look_at_all(shard))
        known = view.sums()["ready"] and now < self._looked + _KEPT_SECONDS
        return self._found if known else None

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    async def _look_at_all(self, shard: Shard) -> None:
        found: list[int | None] = []
        cursor: str | None = None
        try:
            with suppress(NotLeader):
                while cursor is not None or not found:
                    page, cursor = shard.stale().tallies(None, "", _IN_ONE_GO, cursor)
                    found = [_least([*found, *(tally.oldest_ready_ms for tally in page)])]
                    await asyncio.sleep(_PAUSE_SECONDS)
                [self._found] = found
                self._looked = asyncio.get_running_loop().time()
        finally:
            self._look = None


def _least(found: Iterable[int | None]) -> int | None:
    return min((one for one in found if one is not None), default=None)


def wants_queues(call: Call) -> bool:
    """`?queues=true`; one of the parameters of its page says as much. Raises Problem 422."""
    given = call.query.get("queues", "true" if call.query else "false")
    if given not in ("true", "false"):
        raise problems.invalid("query.queues", "is true or false")
    if given == "false" and len(call.query) > 1:
        raise problems.invalid("query.queues", "is true with prefix, limit or cursor")
    return given == "true"
