"""The digests of all nodes at one index.

A logged mark makes every node stop applying, commit, and hash its tables as they are right after it, in a thread over a
read transaction of that state; then it tells the others. Invariant: a digest is of exactly the tables at its index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftq.storage import digest
from raftq.storage.environment import Environment

#: Digests of this many marks are remembered.
_MARKS_MAX = 16


class Digests:
    def __init__(self, environment: Environment, node_id: str) -> None:
        self._environment, self._node_id = environment, node_id
        self._asked: int | None = None
        self._found: dict[int, dict[str, str]] = {}
        #: In the order in which they asked.
        self._changed: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def due(self) -> bool:
        """A mark was applied: apply nothing more until it is durable and `begin` was called."""
        return self._asked is not None

    def ask(self, index: int) -> None:
        self._asked = index

    def begin(self, loop: asyncio.AbstractEventLoop, announce: Callable[[int, str], None]) -> None:
        """The mark is durable: take a read transaction of this state, and hash it in a thread."""
        asked, self._asked = self._asked, None
        assert asked is not None
        state = digest.State(self._environment)
        assert state.applied == asked, f"the digest at {asked} would be of {state.applied}"
        task = loop.create_task(self._hash(state, announce))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """No thread reads the environment any more: it may be closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    async def _hash(state: digest.State, announce: Callable[[int, str], None]) -> None:
        announce(state.applied, await asyncio.to_thread(state.digest))

    def told(self, node: str, index: int, hexadecimal: str) -> None:
        self._found.setdefault(index, {})[node] = hexadecimal
        while len(self._found) > _MARKS_MAX:
            del self._found[min(self._found)]
        for event in self._changed:
            event.set()

    async def gather(self, index: int, nodes: list[str], within: float) -> dict[str, str | None]:
        """The digest of each of `nodes` at `index`; None for one that has not told it `within` seconds."""
        event = asyncio.Event()
        self._changed.append(event)
        try:
            async with asyncio.timeout(within):
                while len(self._found.get(index, {})) < len(nodes):
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            self._changed.remove(event)
        found = self._found.get(index, {})
        return {node: found.get(node) for node in nodes}
