from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from raftq.client.client import AsyncClient
from tests.client.nodes import Node, client_of, running


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


@pytest.fixture
async def client(node: Node) -> AsyncIterator[AsyncClient]:
    async with client_of(node) as client:
        yield client
