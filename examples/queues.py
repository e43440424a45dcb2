"""The queues of the examples: one for each way in which work may end, and one for what did not end well."""

from __future__ import annotations

import os
from typing import Any

from raftq.client.client import AsyncClient

#: A node, or several after commas; the others are found from it.
URLS = os.environ.get("RAFTQ_URL", "http://127.0.0.1:7701").split(",")

DEAD = "dead"
QUEUES: dict[str, dict[str, Any]] = {
    "succeed": {},
    "reject": {"dead_letter_queue": DEAD},
    # Tried again after 0.4, 0.8 and 1.6 seconds; the fourth failure is the last.
    "retry": {
        "dead_letter_queue": DEAD,
        "max_failures": 4,
        "backoff": {"initial_seconds": 0.4, "factor": 2, "max_seconds": 60},
    },
    DEAD: {},
}


async def define(client: AsyncClient) -> None:
    """As often as you like: the settings of these queues are set to these again, and their messages stay."""
    for queue, settings in QUEUES.items():
        await client.define_queue(queue, settings)
