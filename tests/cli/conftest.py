"""Real `raftq` commands against a node in this process (`tests.client.nodes`)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.client.nodes import Node, running


class Ended(NamedTuple):
    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


class Raftq:
    """Runs commands in `folder`, with the node as RAFTQ_URL."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self.folder = node, folder
        self.environment = os.environ | {"RAFTQ_URL": node.url}

    async def __call__(self, *arguments: str) -> Ended:
        process = await self.start(*arguments)
        out, error = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), error.decode())

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-P", "-m", "raftq.cli", *arguments]
        return await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=pipe, env=self.environment, cwd=self.folder
        )


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


@pytest.fixture
def raftq(node: Node, tmp_path: Path) -> Raftq:
    return Raftq(node, tmp_path)
