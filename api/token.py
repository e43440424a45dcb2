"""The text of a token, `rq_<id>_<secret>`: made, read back and digested here, and nowhere else.

The id is public: it names the token in lists, logs and answers. The secret is told once, to who makes the token, and
kept nowhere: a cluster keeps its digest. That is a plain SHA-256, which takes a microsecond, since a secret of 256
random bits cannot be guessed however fast its guesses are: slow hashes are for passwords that people choose.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import NamedTuple

_ID_BYTES = 6
_SECRET_BYTES = 32
#: 43 characters of base64url hold 32 bytes.
_TEXT = re.compile(r"rq_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_IN_TEXT = re.compile(r"rq_([0-9a-f]{12})_[A-Za-z0-9_-]+", re.ASCII)


class Token(NamedTuple):
    id: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret: what is printed or logged by mistake gives nothing away."""
        return f"Token(id={self.id!r})"


def new() -> Token:
    return Token(secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES))


def text(token: Token) -> str:
    return f"rq_{token.id}_{token.secret}"


def parse(text: str) -> Token | None:
    """None when it is no token."""
    found = _TEXT.fullmatch(text)
    return Token(found[1], found[2]) if found else None


def digest(secret: str) -> bytes:
    """32 bytes, what is kept of a secret."""
    return hashlib.sha256(secret.encode("ascii")).digest()


def redacted(text: str) -> str:
    """With the secret taken out of whatever looks like a token, be it cut short."""
    return _IN_TEXT.sub(r"rq_\1_***", text)
