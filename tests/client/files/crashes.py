"""A process killed at any step, in this process: `Crash` is raised where the kill would fall.

Two kinds of places: the named steps that the code reports (`reached`), and the system calls with which it changes the
disk. A write that is hit has written half; nothing of the call is undone. The code under test closes its files on the
way out, as the system would, but cannot change the disk any more: every later call raises again. Before and after
each exchange with a node is a place as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raftq.client.client import AsyncClient
from raftq.client.files import output, sidecar, spool
from raftq.client.transport import AiohttpTransport, Answer, Exchange
from tests.client.nodes import IMPATIENT


class Crash(BaseException):
    """The process was killed."""


class Crasher:
    """Kills at the `at`-th place, counted from 1; never when it is None. `count` says how many there were."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0

    def reached(self, _step: str) -> None:
        self.pass_through()

    def pass_through(self) -> None:
        self.count += 1
        if self.at is not None and self.count >= self.at:
            raise Crash

    def client(self, url: str) -> AsyncClient:
        return AsyncClient(url, patience=IMPATIENT, transport=_CrashingTransport(self))

    @contextmanager
    def on_disk(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Count the system calls of the code that moves files as well."""
        with monkeypatch.context() as patch:
            for module in (sidecar, spool, output):
                patch.setattr(module, "os", _Calls(self))
            rename = Path.rename
            patch.setattr(Path, "rename", lambda path, target: self.pass_through() or rename(path, target))
            yield


class _CrashingTransport(AiohttpTransport):
    def __init__(self, crasher: Crasher) -> None:
        super().__init__()
        self._crasher = crasher

    async def send(self, exchange: Exchange) -> Answer:
        self._crasher.pass_through()
        answer = await super().send(exchange)
        self._crasher.pass_through()
        return answer


class _Calls:
    def __init__(self, crasher: Crasher) -> None:
        self._crasher = crasher

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: bytes) -> int:
        try:
            self._crasher.pass_through()
        except Crash:
            os.write(fd, data[: len(data) // 2])
            raise
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        self._crasher.pass_through()  # no fsync: a killed process loses nothing that it wrote

    def ftruncate(self, fd: int, length: int) -> None:
        self._crasher.pass_through()
        os.ftruncate(fd, length)
