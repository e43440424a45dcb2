from __future__ import annotations

import hashlib

import pytest

from raftq.api import token
from raftq.api.token import Token


def test_a_token_reads_back_from_its_text() -> None:
    made = token.new()
    assert token.parse(token.text(made)) == made
    assert len(made.id) == 12
    assert len(made.secret) == 43


def test_two_tokens_share_nothing() -> None:
    one, other = token.new(), token.new()
    assert one.id != other.id
    assert one.secret != other.secret


def test_an_underscore_in_the_secret_is_of_the_secret() -> None:
    assert token.parse(f"rq_0123456789ab_{'_' * 43}") == Token("0123456789ab", "_" * 43)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rq_",
        "rq__",
        f"rq_0123456789ab_{'a' * 42}",
        f"rq_0123456789ab_{'a' * 44}",
        f"rq_0123456789ab_{'a' * 43}\n",
        f"rq_0123456789AB_{'a' * 43}",
        f"rq_0123456789a_{'a' * 43}",
        f"RQ_0123456789ab_{'a' * 43}",
        f" rq_0123456789ab_{'a' * 43}",
        f"rq_0123456789ab_{'a' * 42}+",
        f"rq_0123456789ab_{'a' * 42}é",
        f"rq_\u0660123456789ab_{'a' * 43}",
    ],
)
def test_what_is_no_token_is_none(text: str) -> None:
    assert token.parse(text) is None


def test_the_digest_is_sha_256_of_the_secret() -> None:
    assert token.digest("abc") == hashlib.sha256(b"abc").digest()


def test_the_secret_is_in_no_repr() -> None:
    made = token.new()
    assert made.secret not in f"{made!r} {made} {[made]}"
    assert made.id in repr(made)
