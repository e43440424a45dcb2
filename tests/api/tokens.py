"""Tokens for tests: made in the machine itself, as a request is sent with them."""

from __future__ import annotations

from raftq.api import token
from raftq.storage.machine import commands
from raftq.storage.machine.commands import Grant
from raftq.storage.machine.tokens import TOKENS_VERSION
from tests.api.conftest import Client, Serve

ALL = ("produce:*", "consume:*", "admin:*")


def made(client: Client, *grants: str, namespace: str = "default", expires_ms: int | None = None) -> token.Token:
    """Of grants as `produce:orders.*`."""
    made = token.new()
    given = [Grant(*grant.split(":")) for grant in grants]  # type: ignore[arg-type]
    digest = token.digest(made.secret)
    client.shard.apply(commands.CreateToken(made.id, digest, "tests", namespace, given, expires_ms))
    return made


def header(made: token.Token) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.text(made)}"}


def bearer(client: Client, *grants: str, namespace: str = "default", expires_ms: int | None = None) -> dict[str, str]:
    """The headers of a request with a new token."""
    return header(made(client, *grants, namespace=namespace, expires_ms=expires_ms))


async def guarded(serve: Serve) -> Client:
    """A node that needs tokens."""
    client = await serve()
    client.shard.apply(commands.SetVersion(TOKENS_VERSION))
    client.node.tokens_required = True
    return client
