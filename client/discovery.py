"""Which node to ask: the leader while it is known, else each known node in turn.

Starts from any one seed. What `/v1/cluster` says replaces what was known before, so that the nodes may be exchanged one
by one; the seeds are kept as a last resort. All of it is a guess: a node that is asked in vain says so, and nothing
here can make an answer wrong.

With a token it matters who is asked, since it is sent to them: then a node is a seed, or named by `/v1/cluster` of one
that is, and a redirect to any other is not followed. And with a seed at https, no other node is asked in plain HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from raftq.client.models import Cluster

#: Asks the node at a URL for `/v1/cluster`; None when it does not answer.
Look = Callable[[str], Awaitable[Cluster | None]]


def origin(url: str) -> str:
    """Scheme, host and port of `url`. Raises ValueError when it is not an HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not the URL of a node; give one like http://127.0.0.1:7701")
    return f"{parts.scheme}://{parts.netloc}"


class Discovery:
    def __init__(self, seeds: Sequence[str], look: Look, *, has_token: bool = False) -> None:
        if not seeds:
            raise ValueError("give the URL of at least one node")
        self.seeds = [origin(seed) for seed in seeds]
        self._has_token = has_token
        self._secure = any(seed.startswith("https:") for seed in self.seeds)
        self.leader: str | None = None
        self._look = look
        self._known: list[str] = []
        self._turn = 0
        #: The leader that failed last. Its followers name it until they notice; then it is not to be believed.
        self._suspect: str | None = None

    def choose(self) -> str:
        """The URL of the node to ask next."""
        if self.leader:
            return self.leader
        nodes = self.nodes()
        self._turn += 1
        return nodes[self._turn % len(nodes)]

    def nodes(self) -> list[str]:
        return list(dict.fromkeys([*self._known, *self.seeds]))

    async def redirected(self, location: str) -> bool:
        """A node named the leader: it is believed, even one that failed before. False of one that must not be asked."""
        leader = origin(location)
        if self._has_token and leader not in self.nodes():
            await self.refresh()
            if leader not in self.nodes():
                return False
        if not self._may_ask(leader):
            return False
        self.leader, self._suspect = leader, None
        return True

    def failed(self, url: str) -> None:
        if self.leader == url:
            self.leader, self._suspect = None, url

    async def refresh(self) -> None:
        """Ask all known nodes at once, until one names a leader that has not just failed."""
        looks = [asyncio.ensure_future(self._look(node)) for node in self.nodes()]
        try:
            for look in asyncio.as_completed(looks):
                cluster = await look
                if cluster is not None and self._learn(cluster):
                    return
        finally:
            for pending in looks:
                pending.cancel()

    def _learn(self, cluster: Cluster) -> bool:
        # A node that was just started does not know yet where its peers serve.
        told = {node.id: origin(node.api_url) for node in cluster.nodes if node.api_url}
        urls = {node: url for node, url in told.items() if self._may_ask(url)}
        self._known = list(urls.values()) or self._known
        leader = urls.get(cluster.leader or "")
        if leader is None or leader == self._suspect:
            return False
        self.leader, self._suspect = leader, None
        return True

    def _may_ask(self, url: str) -> bool:
        return url in self.seeds or url.startswith("https:") or not self._secure
