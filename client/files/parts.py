"""The parts of one long line, in order, read from its side queue without a lease: its pointer's is enough."""

from __future__ import annotations

from collections.abc import AsyncIterator

from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound
from raftq.client.files.lines import Pointer

#: Parts of one page. They are in memory together.
_PAGE_PARTS = 4


class PartsMissing(Exception):
    """The side queue does not hold the whole line."""


async def parts(client: AsyncClient, pointer: Pointer) -> AsyncIterator[bytes]:
    """Raises PartsMissing, when it ends if not before: only then was the line whole."""
    count = line_bytes = 0
    cursor: str | None = None
    while True:
        try:
            page = await client.peek(pointer.side_queue, limit=_PAGE_PARTS, cursor=cursor)
        except NotFound as error:
            raise PartsMissing from error
        for message in page.messages:
            count, line_bytes = count + 1, line_bytes + len(message.body)
            yield message.body
        cursor = page.cursor
        if cursor is None:
            break
    if (count, line_bytes) != (pointer.parts, pointer.line_bytes):
        raise PartsMissing
