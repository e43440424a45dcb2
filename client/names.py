"""Names of queues and topics, checked before they go into a path: of a URL, or of a file."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def queue_name(name: str) -> str:
    """`name`. Raises ValueError when no queue or topic can be named so."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no name for a queue: take 1 to 128 of A-Z a-z 0-9 . _ -")
    return name
