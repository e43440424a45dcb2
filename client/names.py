"""Names of queues and topics, checked before they go into a path: of a URL, or of a file; and tokens, before they go
into a header."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"rq_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def queue_name(name: str) -> str:
    """`name`. Raises ValueError when no queue or topic can be named so."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no name for a queue: take 1 to 128 of A-Z a-z 0-9 . _ -")
    return name


def checked_token(text: str) -> str:
    """`text`, without blanks around it. Raises ValueError, which does not show it, when it is no token of raftq."""
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token is none of raftq: it is rq_, 12 hex digits, _, and 43 characters more")
    return token
