"""Takes the lines of one lease into the spool, the parts of long ones as well, while the lease is kept from passing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from raftq.client.client import AsyncClient
from raftq.client.errors import FileRefused
from raftq.client.files.lines import Pointer, piece
from raftq.client.files.parts import PartsMissing, parts
from raftq.client.files.spool import Held, SpoolWriter
from raftq.client.models import LeasedMessage


class Holding:
    def __init__(self, client: AsyncClient, queue: str, spool: Path, lease_seconds: float) -> None:
        self._client, self._queue, self._spool, self._lease_seconds = client, queue, spool, lease_seconds

    async def take(self, leased: Sequence[LeasedMessage]) -> Held | None:
        """The lines, durable in the spool; None when the lease has passed meanwhile. Raises FileRefused when the parts
        of a line that this lease still holds are not there."""
        self._receipts = [message.receipt for message in leased]
        # A lease that was asked for again may be near its end: the first long line extends it at once.
        self._extended_at = float("-inf")
        writer = SpoolWriter(self._spool)
        try:
            for message in leased:
                if not await self._take(writer, message):
                    await self._client.release(self._queue, self._receipts)
                    return None
            return writer.finish()
        finally:
            writer.close()

    async def _take(self, writer: SpoolWriter, message: LeasedMessage) -> bool:
        taken = piece(message)
        if isinstance(taken.content, Pointer):
            if not await self._assemble(writer, taken.content, message.receipt):
                return False
            writer.end(message.receipt, open_end=taken.open_end, side_queue=taken.content.side_queue)
        else:
            writer.add(taken.content)
            writer.end(message.receipt, open_end=taken.open_end)
        return True

    async def _assemble(self, writer: SpoolWriter, pointer: Pointer, receipt: str) -> bool:
        try:
            async for part in parts(self._client, pointer):
                writer.add(part)
                await self._keep_lease()
        except PartsMissing as error:
            # Whoever acks a pointer deletes its parts. While it is ours, nobody may have.
            if await self._is_ours(receipt):
                give_up = f"to give the line up: raftq ack {self._queue} {receipt}"
                raise FileRefused(f"the parts of a line are missing in {pointer.side_queue} ({give_up})") from error
            return False
        return True

    async def _keep_lease(self) -> None:
        if time.monotonic() - self._extended_at > self._lease_seconds / 3:
            await self._client.extend(self._queue, self._receipts, lease_seconds=self._lease_seconds)
            self._extended_at = time.monotonic()

    async def _is_ours(self, receipt: str) -> bool:
        results = await self._client.extend(self._queue, [receipt], lease_seconds=self._lease_seconds)
        return results[0].status == "done"
