"""Tokens: the commands that create and revoke them, and what is kept of each.

Owns the table TOKENS. A token's secret never comes here: only its SHA-256, and whoever checks a request compares that,
the namespace, the grants and, by wall time, the moment at which the token expires. An expired token stays to be seen
in lists until it is revoked, or `EXPIRED_KEPT_MS` have passed; then it has a moment in WALL.

The count and the ids of first tokens stand in a record of their own, not in that of the cluster, which every entry
writes. Invariant: a first token is made once for each id, so that one that was revoked does not come back with the
next leader that has it in its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raftq.storage.machine import keys, records
from raftq.storage.machine.commands import CreateToken, RevokeToken
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.records import TokenRecord, TokensRecord
from raftq.storage.machine.replies import Effect, Refused, TokenCreated, TokenRevoked
from raftq.storage.machine.timetable import Timetable

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Tokens are created from this machine version on: a node of an older one would stop at the command.
TOKENS_VERSION = 3
#: More are refused.
TOKENS_MAX = 10_000
FIRSTS_MAX = 100
#: Of one token.
GRANTS_MAX = 32
DIGEST_BYTES = 32
#: So long after it expired, a token is removed.
EXPIRED_KEPT_MS = 30 * 24 * 3_600_000

_ID = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NAMES = re.compile(r"[A-Za-z0-9._-]{1,128}|[A-Za-z0-9._-]{0,128}\*")


class Tokens:
    def __init__(self, txn: Txn, wall: Timetable) -> None:
        self._txn = txn
        self._wall = wall
        #: Those that were asked for: every request to the API asks for one.
        self._found: dict[str, TokenRecord] = {}

    def find(self, token_id: str) -> TokenRecord | None:
        """None for what is no id, too."""
        token = self._found.get(token_id)
        if token is None and _ID.fullmatch(token_id) and (value := self._txn.get(keys.token(token_id))):
            token = self._found[token_id] = records.decode_token(value)
        return token

    def after(self, token_id: str | None) -> Iterator[TokenRecord]:
        """By id, those after that one, or all."""
        for _, value in self._txn.scan(keys.token(token_id or "") + b"\0", keys.TOKENS + b"\xff"):
            yield records.decode_token(value)

    def all(self) -> TokensRecord:
        value = self._txn.get(keys.TOKENS)
        return TokensRecord() if value is None else records.decode_tokens(value)

    def put_all(self, record: TokensRecord) -> None:
        self._txn.put(keys.TOKENS, records.encode(record))

    def put(self, token: TokenRecord) -> None:
        key = keys.token(token.id)
        self._found[token.id] = token
        self._txn.put(key, records.encode(token))
        if token.expires_ms is not None:
            self._wall.add(removed_ms(token.expires_ms), key)

    def delete(self, token: TokenRecord) -> None:
        key = keys.token(token.id)
        del self._found[token.id]
        self._txn.delete(key)
        if token.expires_ms is not None:
            self._wall.remove(removed_ms(token.expires_ms), key)
        record = self.all()
        record.count -= 1
        self.put_all(record)


def removed_ms(expires_ms: int) -> int:
    return keys.after(expires_ms, EXPIRED_KEPT_MS)


def create(state: State, meta: Meta, command: CreateToken) -> tuple[TokenCreated | Refused, list[Effect]]:
    """The same token twice is one: whoever proposed it may not know whether the first time was done."""
    if state.cluster.version < TOKENS_VERSION:
        return Refused("conflict", "tokens wait until every node of the cluster runs this version"), []
    tokens = state.tokens
    every = tokens.all()
    if command.first and command.id in every.firsts:
        return TokenCreated(command.id, created=False), []
    before = tokens.find(command.id)
    if before is not None and _is_of(before, command):
        return TokenCreated(command.id, created=False), []
    if before is not None:
        return Refused("conflict", f"there is another token {command.id}"), []
    if (detail := wrong(command, meta.wall_ms)) is not None:
        return Refused("invalid", detail), []
    if every.count >= TOKENS_MAX or (command.first and len(every.firsts) >= FIRSTS_MAX):
        return Refused("conflict", f"there are {TOKENS_MAX:,} tokens, or {FIRSTS_MAX} were first ones: revoke some"), []
    every.count += 1
    every.firsts += [command.id] if command.first else []
    tokens.put_all(every)
    tokens.put(
        TokenRecord(
            command.id,
            command.digest,
            command.name,
            command.namespace,
            command.grants,
            meta.wall_ms,
            meta.index,
            command.expires_ms,
        )
    )
    return TokenCreated(command.id), []


def _is_of(token: TokenRecord, command: CreateToken) -> bool:
    kept = token.digest, token.name, token.namespace, token.grants, token.expires_ms
    return kept == (command.digest, command.name, command.namespace, command.grants, command.expires_ms)


def wrong(given: CreateToken | TokenRecord, now_ms: int) -> str | None:
    """The field that is wrong, and what it should be."""
    if not _ID.fullmatch(given.id):
        return "id: is 12 lowercase hex digits"
    if len(given.digest) != DIGEST_BYTES:
        return f"digest: is {DIGEST_BYTES} bytes"
    if not _NAME.fullmatch(given.name):
        return "name: is 1 to 128 letters, digits, . _ or -"
    if given.namespace != "*" and not _NAME.fullmatch(given.namespace):
        return "namespace: is a name, or * for all"
    if not 1 <= len(given.grants) <= GRANTS_MAX:
        return f"grants: are 1 to {GRANTS_MAX}"
    if not all(_NAMES.fullmatch(grant.names) for grant in given.grants):
        return "grants: their names are a name, or a prefix that ends in *"
    if given.expires_ms is not None and not now_ms < given.expires_ms <= keys.MS_MAX:
        return "expires_ms: is a moment to come"
    return None


def revoke(state: State, _meta: Meta, command: RevokeToken) -> tuple[TokenRevoked | Refused, list[Effect]]:
    token = state.tokens.find(command.id)
    if token is None:
        return Refused("unknown_token", f"there is no token {command.id}"), []
    state.tokens.delete(token)
    return TokenRevoked(command.id), []
