"""Tokens are created once, refused when they are not well formed, and gone for good when they are revoked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raftq.storage.machine import audit, keys, records, tokens
from raftq.storage.machine.commands import CreateToken, Expire, Grant, RevokeToken, SetVersion, decode, encode, grows
from raftq.storage.machine.invariants import InvariantBroken
from raftq.storage.machine.records import TokenRecord
from raftq.storage.machine.replies import Refused, TokenCreated, TokenRevoked
from raftq.storage.machine.tokens import EXPIRED_KEPT_MS, TOKENS_VERSION
from tests.storage.conftest import Hands

TOKEN = "00000000beef"
GIVEN = CreateToken(TOKEN, b"\x01" * 32, "worker", "default", [Grant("consume", "jobs"), Grant("produce", "orders.*")])


def given(**fields: Any) -> CreateToken:
    return msgspec.structs.replace(GIVEN, **fields)


@pytest.fixture
def three(hands: Hands) -> Hands:
    hands.do(SetVersion(TOKENS_VERSION))
    hands.do(Expire())
    return hands


def ids(hands: Hands) -> list[str]:
    return [token.id for token in hands.machine.view().tokens()[0]]


@pytest.mark.parametrize("command", [GIVEN, given(expires_ms=7, first=True), RevokeToken(TOKEN)])
def test_commands_are_read_as_they_were_written(command: CreateToken | RevokeToken) -> None:
    assert decode(encode(command)) == command
    assert msgspec.msgpack.decode(encode(command))[0] == (27 if isinstance(command, CreateToken) else 28)
    assert not grows(encode(command))


def test_a_token_is_seen_until_it_is_revoked(three: Hands) -> None:
    assert three.do(GIVEN) == TokenCreated(TOKEN)
    kept = TokenRecord(TOKEN, GIVEN.digest, "worker", "default", GIVEN.grants, three.wall_ms, three.index, None)
    for _ in range(2):
        assert three.machine.view().token(TOKEN) == kept
        assert three.machine.view().tokens() == ([kept], None)
        three.restart()
    assert three.do(RevokeToken(TOKEN)) == TokenRevoked(TOKEN)
    assert three.machine.view().token(TOKEN) is None
    assert three.do(RevokeToken(TOKEN)) == Refused("unknown_token", f"there is no token {TOKEN}")
    three.restart()
    assert ids(three) == []
    assert three.do(given(digest=b"\x02" * 32)) == TokenCreated(TOKEN)


def test_a_token_that_is_asked_for_again_is_not_read_again(three: Hands) -> None:
    three.do(GIVEN)
    three.restart()
    first = three.machine.view().token(TOKEN)
    assert first is not None
    assert three.machine.view().token(TOKEN) is first


@pytest.mark.parametrize("token", ["", "00", "0000000000000", "00000000BEEF", "00000000bee\n", "é" * 300, "\0"])
def test_what_is_no_id_is_no_token(three: Hands, token: str) -> None:
    """Also where tokens are counted: under no id."""
    three.do(GIVEN)
    assert three.machine.view().token(token) is None
    assert three.do(RevokeToken(token)).reason == "unknown_token"


def test_the_same_token_twice_is_one(three: Hands) -> None:
    three.do(GIVEN)
    three.wall_ms += 1_000
    assert three.do(GIVEN) == TokenCreated(TOKEN, created=False)
    assert three.do(given(digest=b"\x02" * 32)) == Refused("conflict", f"there is another token {TOKEN}")
    assert three.do(given(name="other")).reason == "conflict"
    assert len(ids(three)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("id", value) for value in ("", "0" * 11, "0" * 13, "00000000BEEF", "00000000beeg", "00000000bee\n")),
        *(("digest", value) for value in (b"", b"1" * 31, b"1" * 33)),
        *(("name", value) for value in ("", "*", "a b", "a/b", "a" * 129, "é", "a\n")),
        *(("namespace", value) for value in ("", "a*", "**", "a/b", "a" * 129)),
        *(("grants", value) for value in ([], [Grant("admin", "*")] * 33)),
        *(("grants", [Grant("admin", value)]) for value in ("", "**", "a*b", "*a", "a b", "a/b", "a" * 130, "a*\n")),
        *(("expires_ms", value) for value in (-1, 0, 1_700_000_000_000, 1 << 63)),
    ],
)
def test_what_is_not_well_formed_is_refused(three: Hands, field: str, value: Any) -> None:
    refused = three.do(given(**{field: value}))
    assert (refused.reason, refused.detail.partition(": ")[0]) == ("invalid", field)
    assert ids(three) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a" * 128, "namespace": "*"},
        {"grants": [Grant("admin", "*")] * 32},
        {"grants": [Grant("produce", "a" * 128), Grant("consume", "a" * 128 + "*")]},
        {"expires_ms": 1_700_000_000_001},
        {"expires_ms": keys.MS_MAX},
    ],
)
def test_the_longest_and_the_shortest_are_taken(three: Hands, fields: dict[str, Any]) -> None:
    assert three.do(given(**fields)) == TokenCreated(TOKEN)
    assert ids(three) == [TOKEN]


def test_a_revoked_first_token_does_not_come_back(three: Hands) -> None:
    """Whatever a leader has in its configuration."""
    first = given(first=True)
    assert three.do(first) == TokenCreated(TOKEN)
    assert three.do(first) == TokenCreated(TOKEN, created=False)
    three.do(RevokeToken(TOKEN))
    three.restart()
    for again in (first, given(first=True, digest=b"\x02" * 32)):
        assert three.do(again) == TokenCreated(TOKEN, created=False)
    assert ids(three) == []
    assert three.do(given(id="0" * 12, first=True)) == TokenCreated("0" * 12)


def test_a_first_token_that_expired_does_not_come_back(three: Hands) -> None:
    three.do(given(first=True, expires_ms=three.wall_ms + 1))
    three.wall_ms += EXPIRED_KEPT_MS + 1
    assert three.do(Expire()).forgotten == 1
    assert three.do(given(first=True)) == TokenCreated(TOKEN, created=False)
    assert ids(three) == []


def test_there_are_so_many_tokens_at_most(three: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_MAX", 2)
    for at in range(2):
        assert three.do(given(id=f"{at:012x}")) == TokenCreated(f"{at:012x}")
    assert three.do(given(id="f" * 12)).reason == "conflict"
    assert three.do(given(id="0" * 12)) == TokenCreated("0" * 12, created=False)
    three.do(RevokeToken("0" * 12))
    assert three.do(given(id="f" * 12)) == TokenCreated("f" * 12)


def test_there_are_so_many_first_tokens_ever(three: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FIRSTS_MAX", 1)
    three.do(given(first=True))
    three.do(RevokeToken(TOKEN))
    assert three.do(given(id="0" * 12, first=True)).reason == "conflict"
    assert three.do(given(id="0" * 12)) == TokenCreated("0" * 12)


def test_tokens_are_listed_by_id_in_pages(three: Hands) -> None:
    names = [f"{at * 7919 % 65_536:012x}" for at in range(5)]
    for name in names:
        three.do(given(id=name))
    found, after = three.machine.view().tokens(2)
    assert [token.id for token in found] == sorted(names)[:2]
    assert after == sorted(names)[1]
    found, after = three.machine.view().tokens(3, after)
    assert [token.id for token in found] == sorted(names)[2:]
    assert after is None
    assert three.machine.view().tokens(3, "f" * 12) == ([], None)


def test_an_expired_token_stays_for_a_while_and_is_removed_by_a_step(three: Hands) -> None:
    """Whoever checks it compares the time."""
    expires_ms = three.wall_ms + 1_000
    three.do(given(expires_ms=expires_ms))
    three.do(given(id="0" * 12))
    assert three.machine.next_due() == (None, expires_ms + EXPIRED_KEPT_MS)
    three.wall_ms = expires_ms + EXPIRED_KEPT_MS - 1
    assert three.do(Expire()).forgotten == 0
    assert ids(three) == ["0" * 12, TOKEN]
    three.wall_ms += 1
    three.restart()
    assert three.do(Expire()).forgotten == 1
    assert ids(three) == ["0" * 12]
    assert three.machine.next_due() == (None, None)


def test_a_step_removes_so_many_at_most(three: Hands) -> None:
    for at in range(3):
        three.do(given(id=f"{at:012x}", expires_ms=three.wall_ms + 1))
    three.wall_ms += EXPIRED_KEPT_MS + 1
    assert three.do(Expire(2)).more
    assert len(ids(three)) == 1
    assert not three.do(Expire(2)).more
    assert ids(three) == []


def test_a_revoked_token_leaves_no_moment(three: Hands) -> None:
    three.do(given(expires_ms=three.wall_ms + 1))
    three.do(RevokeToken(TOKEN))
    assert three.machine.next_due() == (None, None)
    assert three.keys(keys.WALL) == []


def test_the_record_that_every_entry_writes_says_nothing_of_tokens(three: Hands) -> None:
    before = len(three.txn.values[keys.CLUSTER])
    for at in range(100):
        three.do(given(id=f"{at:012x}", first=True))
    assert len(three.txn.values[keys.CLUSTER]) == before
    assert records.decode_tokens(three.txn.values[keys.TOKENS]).count == 100


@pytest.mark.parametrize("digest", [b"\x01" * 31, b""])
def test_the_audit_finds_a_token_that_is_not_well_formed(three: Hands, digest: bytes) -> None:
    three.do(GIVEN)
    [token] = three.machine.view().tokens()[0]
    three.txn.put(keys.token(TOKEN), records.encode(msgspec.structs.replace(token, digest=digest)))
    with pytest.raises(InvariantBroken, match="malformed tokens"):
        audit.check(three.txn)


def test_the_audit_counts_tokens_and_their_moments(three: Hands) -> None:
    three.do(given(expires_ms=three.wall_ms + 1))
    value = three.txn.values[keys.token(TOKEN)]
    three.txn.delete(keys.token(TOKEN))
    with pytest.raises(InvariantBroken, match="tokens: found 1, expected 0"):
        audit.check(three.txn)
    three.txn.put(keys.token(TOKEN), value)
    [moment] = three.keys(keys.WALL)
    three.txn.delete(moment)
    with pytest.raises(InvariantBroken, match="moments of wall time"):
        audit.check(three.txn)
