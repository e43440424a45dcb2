"""Tokens: make, list, read and revoke them. The text of one is told once, in the answer that makes it."""

from __future__ import annotations

import re
from typing import Any

from raftq.api import auth, names, problems, schemas, token
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.problems import Problem
from raftq.api.proposals import propose
from raftq.api.reads import PAGE_MAX, view_of, whole_number
from raftq.api.schemas import milliseconds
from raftq.replication.shard import OutcomeUnknown
from raftq.storage.machine import commands, replies
from raftq.storage.machine.commands import Grant
from raftq.storage.machine.records import TokenRecord
from raftq.storage.machine.tokens import GRANTS_MAX, TOKENS_VERSION

_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
#: Whoever is on the way must not keep what is told once.
_NOT_KEPT = [("Cache-Control", "no-store")]


async def create(call: Call) -> Answer:
    """POST /v1/tokens: Make a token. Its text is in this answer, and nowhere else: only a digest is kept."""
    given = await call.decode(schemas.TOKEN)
    _check_version(call)
    name, grants = names.checked_name("name", given.name), _grants(given.grants)
    namespace = given.namespace if given.namespace == auth.ALL else names.checked_name("namespace", given.namespace)
    lifetime = given.expires_seconds
    expires_ms = None if lifetime is None else call.node.shard.wall_ms() + milliseconds(lifetime)
    made = token.new()
    command = commands.CreateToken(made.id, token.digest(made.secret), name, namespace, grants, expires_ms)
    try:
        _, committed = await propose(call, command, replies.TokenCreated, "")
    except OutcomeUnknown as error:
        detail = f"It may have been made, as {made.id}: revoke it if it is in GET /v1/tokens, and make another."
        raise Problem("outcome-unknown", detail, applied="unknown", retry_after=1) from error
    record = TokenRecord(
        made.id, command.digest, name, namespace, grants, committed.wall_ms, committed.index, expires_ms
    )
    return call.answer({"token": token.text(made)} | _described(record), 201, _NOT_KEPT)


def _check_version(call: Call) -> None:
    """Raises Problem 409."""
    if call.node.shard.stale().version < TOKENS_VERSION:
        detail = "Upgrade all nodes first: an older one would stop at a token. Nothing was changed."
        raise Problem("conflict", detail, reason="version")


def _grants(given: list[schemas.GrantGiven]) -> list[Grant]:
    """Raises Problem 422."""
    if not 1 <= len(given) <= GRANTS_MAX:
        raise problems.invalid("grants", f"give 1 to {GRANTS_MAX}")
    return [Grant(grant.scope, _names(f"grants[{at}].names", grant.names)) for at, grant in enumerate(given)]


def _names(field: str, text: str) -> str:
    """Raises Problem 422."""
    if text.endswith(auth.ALL):
        # Names may begin with dots, and not be them.
        names.checked_name(field, f"{text[:-1]}_")
    else:
        names.checked_name(field, text)
    return text


async def list_all(call: Call) -> Answer:
    """GET /v1/tokens?limit=&cursor=: List the tokens by id, expired ones too, never with what proves one."""
    limit = whole_number(call, "limit", 100, least=1, most=PAGE_MAX)
    cursor = call.query.get("cursor")
    if cursor is not None and not _ID.fullmatch(cursor):
        raise problems.invalid("query.cursor", "is not one that an earlier page gave")
    found, cursor = (await view_of(call)).tokens(limit, cursor)
    return call.answer({"tokens": [_described(one) for one in found], "cursor": cursor})


async def read(call: Call) -> Answer:
    """GET /v1/tokens/{id}: Read what a token may do, and until when."""
    token_id = _id(call)
    found = (await view_of(call)).token(token_id)
    if found is None:
        raise problems.unknown_token()
    return call.answer(_described(found))


async def revoke(call: Call) -> Answer:
    """DELETE /v1/tokens/{id}: Revoke a token: from here on it is good for nothing, and its streams end."""
    await propose(call, commands.RevokeToken(_id(call)), replies.TokenRevoked, "")
    return Answer(status=204, content_type="")


def _id(call: Call) -> str:
    """Of the path. Raises Problem 404."""
    token_id = call.parameters[0]
    if not _ID.fullmatch(token_id):
        raise problems.unknown_token()
    return token_id


def _described(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "namespace": record.namespace,
        "grants": [{"scope": grant.scope, "names": grant.names} for grant in record.grants],
        "created_at_ms": record.created_ms,
        "expires_at_ms": record.expires_ms,
    }
