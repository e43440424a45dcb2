"""Commands on their way into the log, and their replies back: refusals become problems here."""

from __future__ import annotations

from time import monotonic
from typing import TypeVar

from raftq.api import names, problems
from raftq.api.call import Call
from raftq.api.schemas import milliseconds
from raftq.replication.shard import Committed
from raftq.storage.machine import commands, replies

Reply = TypeVar("Reply")

#: How long the first answer to a `request_id` is kept for retries.
REQUEST_SECONDS = 300.0


async def propose(call: Call, command: commands.Command, kind: type[Reply], queue: str) -> tuple[Reply, Committed]:
    """The reply, of type `kind`, once it is durable on a majority. Raises ShardError, or Problem for a refusal."""
    encoded = commands.encode(command)
    if call.came:
        call.api.parsed.observe(monotonic() - call.came)
        call.came = 0.0
    committed = await call.node.shard.propose(encoded)
    return accepted(committed, kind, queue), committed


def accepted(committed: Committed, kind: type[Reply], queue: str) -> Reply:
    reply = committed.reply
    if isinstance(reply, replies.Refused):
        raise problems.refused(reply.reason, reply.detail, reply.queue or queue)
    assert isinstance(reply, kind), reply
    return reply


def request_of(request_id: str | None, request_seconds: float | None) -> commands.Request | None:
    """Raises Problem 422."""
    if request_id is None:
        if request_seconds is not None:
            raise problems.invalid("request_seconds", "says how long a request_id is kept: give one")
        return None
    keep = REQUEST_SECONDS if request_seconds is None else request_seconds
    return commands.Request(names.checked_id("request_id", request_id), milliseconds(keep))
