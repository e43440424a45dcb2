"""The token that a cluster begins with: named by a file that every node has, and proposed by whichever leads.

The file holds the token's id and digest. Its secret was told to a person, once, and is kept nowhere. The cluster takes
each id once, so that a first token which was revoked does not come back.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from raftq.api import token
from raftq.node.secret_file import Unusable
from raftq.replication.shard import OutcomeUnknown, Shard, ShardError
from raftq.storage.machine import commands
from raftq.storage.machine.commands import CreateToken, Grant
from raftq.storage.machine.replies import Refused
from raftq.storage.machine.tokens import TOKENS_VERSION

NAME = "first"
AGAIN_SECONDS = 0.2
#: Once the cluster has said no: it says so until somebody changes something.
REFUSED_SECONDS = 60.0

_log = structlog.get_logger("raftq.node")


class FirstToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    #: In hex, of its secret.
    sha256: str


class _Leader(Protocol):
    @property
    def shard(self) -> Shard: ...

    def leads(self) -> bool: ...


def make() -> tuple[str, bytes]:
    """The text of a new token, and what the file is to hold of it."""
    made = token.new()
    kept = FirstToken(made.id, token.digest(made.secret).hex())
    return token.text(made), msgspec.json.encode(kept) + b"\n"


def read(path: Path) -> CreateToken:
    """Raises Unusable."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=FirstToken)
        digest = bytes.fromhex(found.sha256)
    except OSError as error:
        raise Unusable(f"first_token_file: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable(f"first_token_file: {path} is not what `raftq tokens first {path}` writes") from error
    grants = [Grant("produce", "*"), Grant("consume", "*"), Grant("admin", "*")]
    return CreateToken(found.id, digest, NAME, "*", grants, first=True)


async def see_to(node: _Leader, command: CreateToken) -> None:
    """Until the cluster has the token, or had it: whenever this node leads, it proposes it."""
    while (wait := await _step(node, command)) is not None:
        await asyncio.sleep(wait)


async def _step(node: _Leader, command: CreateToken) -> float | None:
    """Seconds to wait, None once it is done."""
    try:
        view = node.shard.stale()
        if view.token(command.id) is not None:
            return None
        if not node.leads() or view.version < TOKENS_VERSION:
            return AGAIN_SECONDS
        committed = await node.shard.propose(commands.encode(command))
    except (ShardError, OutcomeUnknown):
        return AGAIN_SECONDS
    if isinstance(committed.reply, Refused):
        _log.error("the first token was refused", id=command.id, reason=committed.reply.detail)
        return REFUSED_SECONDS
    return None
