from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftq.client.files.reading import FileReader, ReadState
from raftq.client.files.source import Limits
from raftq.client.files.writing import FileWriter, Written
from tests.client.files.crashes import Crash, Crasher
from tests.client.nodes import Node

#: Small, so that a short file has many batches and long lines.
LIMITS = Limits(batch_lines=3, line_bytes=40, part_bytes=16)

#: Empty lines, bytes that are no text, \r\n, two long lines, and no \n at the end.
LINES = [b"one", b"", "zwölf\r".encode(), b"\xff\x00\xfe", b"L" * 100, b"", b"five", b"six", b"M" * 41, b"the end"]
CONTENT = b"\n".join(LINES)


class Mover:
    """Writes and reads files through one node, each call a process of its own."""

    def __init__(self, node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node, self.folder, self._monkeypatch = node, folder, monkeypatch

    def file(self, name: str, content: bytes = CONTENT) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    async def write(
        self, queue: str, path: Path, crasher: Crasher | None = None, *, again: bool = False, **options: Any
    ) -> Written:
        crasher = crasher or Crasher()
        options = {"limits": LIMITS, "save_seconds": 0.0} | options
        async with crasher.client(self.node.url) as client:
            with crasher.on_disk(self._monkeypatch):
                return await FileWriter(client, queue, path, reached=crasher.reached, **options).run(again=again)

    async def read(self, queue: str, path: Path, crasher: Crasher | None = None, **options: Any) -> ReadState:
        crasher = crasher or Crasher()
        options = {"until_empty": 0.0, "lines_max": 4} | options
        async with crasher.client(self.node.url) as client:
            with crasher.on_disk(self._monkeypatch):
                return await FileReader(client, queue, path, reached=crasher.reached, **options).run()

    async def content(self, queue: str) -> bytes:
        """All lines of the queue; they are taken out of it."""
        path = self.folder / f"content-of-{queue}"
        await self.read(queue, path)
        return path.read_bytes()

    async def assert_nothing_left_but(self, queue: str) -> None:
        """No side queue is there, and no message. Deletes the queue."""
        async with Crasher().client(self.node.url) as client:
            stats = await client.stats()
            assert (stats["queues"], stats["ready"], stats["leased"]) == (1, 0, 0), f"beside {queue}"
            await client.delete_queue(queue)


async def crashed(run: Callable[[Crasher], Any], at: int) -> bool:
    """Whether `run` came as far as place `at`; it was killed there."""
    try:
        await run(Crasher(at))
    except Crash:
        return True
    return False


@pytest.fixture
def mover(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mover:
    return Mover(node, tmp_path, monkeypatch)
