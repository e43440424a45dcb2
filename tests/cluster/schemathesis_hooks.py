"""What schemathesis is told of this API, beside its document: how msgpack is written and read, and the few rules that
no schema can say."""

from __future__ import annotations

from typing import Any

import msgspec
import schemathesis

#: Long polls of up to a minute say nothing that short ones do not.
WAIT_SECONDS = 0.05
#: How the details begin, or go on, of refusals that a request may meet although its schema allows it. One that comes
#: with a new route is written down here only when a schema cannot say it.
BEYOND_SCHEMAS = (
    "query.cursor: ",  # it is a text that the page before gave
    "receipts: are of several queues",
    "dead_letter_queue: name another queue",
    "to: a queue cannot be redriven to itself",
    "to: there is no queue",
    "query.queues: is true with prefix",
    "backoff.max_seconds: is at least initial_seconds",
    "bytes of text",  # ids are limited in bytes, lengths in schemas are characters
    "does not fit in 64 bits",
    "groups: the queue does not keep groups",
    "filter: ",  # a language of its own, as these are
    "cron: ",
    "time_zone: ",
    "dedup_id: each tick is a message of its own",
)


@schemathesis.serializer("application/msgpack")
def to_msgpack(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(_within_64_bits(value))


@schemathesis.deserializer("application/msgpack")
def from_msgpack(context: Any, response: Any) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.check
def what_the_schemas_allow_is_taken(context: Any, response: Any, case: Any) -> None:
    if response.status_code not in (400, 415, 422) or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    detail = response.json()["detail"] if response.content else ""
    assert detail == "" or any(known in detail for known in BEYOND_SCHEMAS), f"refused: {detail}"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    # Half of them would end at a redirect, which is not followed: tests/api has those.
    case.headers.setdefault("Raftq-Forward", "proxy")
    if isinstance(case.body, dict | list):
        case.body = _whole(case.body)
    for given, name in ((case.body, "wait_seconds"), (case.query, "wait")):
        if isinstance(given, dict) and WAIT_SECONDS < _seconds(given.get(name)) <= 60:
            given[name] = WAIT_SECONDS


def _seconds(value: Any) -> float:
    """In a query it may be a text by now."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _whole(value: Any) -> Any:
    """To JSON Schema 3.0 is an integer; here it is none."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def _within_64_bits(value: Any) -> Any:
    """msgpack has no larger integers."""
    if isinstance(value, dict):
        return {key: _within_64_bits(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_within_64_bits(inner) for inner in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return float(value) if abs(value) < 1 << 1000 else []
    return value
