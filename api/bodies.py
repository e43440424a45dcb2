"""Bodies and attributes between their forms on the wire and the packed form that is stored.

A JSON body is stored as the text that came, a binary one as bytes. A msgpack body that is not binary is converted to
JSON text once, here; a JSON body is converted to msgpack once an answer. Nothing is stored that a later reader could
not decode: text is valid Unicode, nesting is bounded.
"""

from __future__ import annotations

import binascii
import math
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

import msgspec

from raftq.api import names, problems
from raftq.api.answers import JSON
from raftq.api.ports import Limits
from raftq.api.schemas import MessageGiven
from raftq.storage.machine import packing

ATTRIBUTES_MAX = 64
ATTRIBUTES_BYTES_MAX = 8 * 1024
#: Arrays and objects within each other. Python's own JSON reader, and others, give up at some depth.
DEPTH_MAX = 64

#: Bytes before the body of a plain message.
PLAIN_HEAD = len(packing.PLAIN_JSON)
#: First bytes of msgpack's bin 8, 16 and 32.
_BIN = b"\xc4\xc5\xc6"
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def packed(given: MessageGiven, content_type: str, field: str, limits: Limits) -> bytes:
    """The message as it is stored. `field` names it in problems: `` or `messages[3].`. Raises Problem 413 or 422."""
    body, kind = _body(given, content_type, field)
    if len(body) > limits.body_bytes:
        detail = f"A body takes at most {limits.body_bytes:,} bytes, this has {len(body):,}: split it."
        raise problems.too_large(f"{field}body", detail)
    attributes = _attributes(given.attributes, field) if given.attributes else b""
    group = b"" if given.group is None else names.checked_id(f"{field}group", given.group).encode()
    return packing.pack_message(body, kind=kind, attributes=attributes, group=group)


def _body(given: MessageGiven, content_type: str, field: str) -> tuple[bytes, int]:
    raw = bytes(given.body)
    if not raw:
        raise problems.invalid(f"{field}body", "give one: any JSON value, null as well")
    if content_type is not JSON:
        if raw[0] in _BIN:
            return msgspec.msgpack.decode(raw, type=bytes), packing.BINARY
        raw = _json_text(raw, field)
    if given.encoding is not None:
        return _from_base64(raw, field), packing.BINARY
    return checked_depth(raw, f"{field}body"), packing.JSON


def _json_text(raw: bytes, field: str) -> bytes:
    """The JSON text of a msgpack value."""
    try:
        value = msgspec.msgpack.decode(raw)
        text = msgspec.json.encode(value)
    except (msgspec.MsgspecError, UnicodeError, TypeError, ValueError, RecursionError) as error:
        raise problems.invalid(f"{field}body", f"has no JSON form ({error}): send it as binary") from error
    # msgspec writes NaN and infinities as null: they must not change in silence.
    if b"null" in text and not _is_finite(value):
        raise problems.invalid(f"{field}body", "NaN and infinity have no JSON form: send them as text")
    return text


def _is_finite(value: Any) -> bool:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, list | tuple):
            rest.extend(item)
        elif isinstance(item, dict):
            rest.extend(item)
            rest.extend(item.values())
    return True


def _from_base64(raw: bytes, field: str) -> bytes:
    try:
        return b64decode(msgspec.json.decode(raw, type=str), validate=True)
    except (msgspec.MsgspecError, ValueError, binascii.Error) as error:
        raise problems.invalid(f"{field}body", f"is not a base64 text ({error})") from error


def check_json(text: bytes) -> None:
    """Raises Problem 400 unless `text` is one JSON value, 422 when it is nested too deeply."""
    try:
        text.decode()
        _any_json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise problems.undecodable(error) from error
    checked_depth(text, "body")


#: Checks the syntax and builds nothing.
_any_json = msgspec.json.Decoder(msgspec.Raw)


#: What a JSON text that is no object and no array begins with: it cannot be nested.
_SCALAR_BEGINS = b'"-0123456789tfn'


def plain(given: Sequence[MessageGiven], request: bytes, limits: Limits) -> list[bytes] | None:
    """The messages of a JSON request as they are stored, when they are plain: JSON bodies with nothing beside them, and
    nothing to complain of. Nearly always so, and four times as fast as one by one; None: take them one by one."""
    packed = [
        packing.PLAIN_JSON + one.body
        for one in given
        if one.attributes is None and one.encoding is None and one.group is None
    ]
    if len(packed) < len(given) or min(map(len, packed)) <= PLAIN_HEAD:
        return None
    if len(request) > limits.body_bytes and max(map(len, packed)) > limits.body_bytes + PLAIN_HEAD:
        return None
    if not bytes([one[PLAIN_HEAD] for one in packed]).translate(None, _SCALAR_BEGINS):
        return packed
    # One is each message's own; what is left cannot make a body too deep.
    if request.count(b"[") + request.count(b"{") <= len(given) + DEPTH_MAX:
        return packed
    return None if any(one.count(b"[") + one.count(b"{") > DEPTH_MAX for one in packed) else packed


def checked_depth(text: bytes, field: str) -> bytes:
    """`text`, which is valid JSON. Raises Problem 422 when it is nested more than DEPTH_MAX deep."""
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX and _is_deep(text):
        raise problems.invalid(field, f"is nested more than {DEPTH_MAX} deep: flatten it, or send it as text")
    return text


def _is_deep(text: bytes) -> bool:
    """Bracket characters alone; each pass takes away the innermost pairs, so what is left after DEPTH_MAX is deeper."""
    if b'"' in text:
        text = b"".join(text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = text.translate(_ONE_KIND, _NOT_BRACKETS)
    for _ in range(DEPTH_MAX):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _attributes(given: dict[str, Any], field: str) -> bytes:
    """The JSON text of the attributes."""
    text = msgspec.json.encode(given)
    if len(given) > ATTRIBUTES_MAX or len(text) > ATTRIBUTES_BYTES_MAX:
        detail = f"Attributes take at most {ATTRIBUTES_MAX} keys and {ATTRIBUTES_BYTES_MAX:,} bytes as JSON."
        raise problems.too_large(f"{field}attributes", detail)
    for key, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise problems.invalid(f"{field}attributes", f"{key[:40]!r} is not a finite number")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise problems.invalid(f"{field}attributes", f"{key[:40]!r} does not fit in 64 bits: send it as text")
    return text


#: What `json_fields` gives of a plain message, with its body to be put in.
PLAIN_FIELDS = b'"body":%b,"attributes":{},"group":null,"dead_letter":null'


def json_fields(data: bytes) -> bytes:
    """`"body":...,"attributes":...,"group":...,"dead_letter":...` of a packed message, and `"encoding"` of a binary
    one."""
    if data.startswith(packing.PLAIN_JSON):
        return PLAIN_FIELDS % data[PLAIN_HEAD:]
    message = packing.unpack_message(data)
    body = b"%b" if message.kind == packing.JSON else b'"%b","encoding":"base64"'
    text = message.body if message.kind == packing.JSON else b64encode(message.body)
    return (b'"body":' + body + b',"attributes":%b,"group":%b,"dead_letter":%b') % (
        text,
        message.attributes or b"{}",
        msgspec.json.encode(message.group) if message.group else b"null",
        msgspec.json.encode(_dead_letter(message.extension)) if message.extension else b"null",
    )


def msgpack_fields(data: bytes) -> dict[str, Any]:
    """The same for a msgpack answer. A JSON body that msgpack cannot hold (a number past 64 bits) stays a JSON text,
    marked `"encoding": "json"`."""
    message = packing.unpack_message(data)
    fields: dict[str, Any] = {
        "attributes": msgspec.json.decode(message.attributes or b"{}"),
        "group": message.group or None,
        "dead_letter": _dead_letter(message.extension),
    }
    if message.kind == packing.BINARY:
        return {"body": message.body} | fields
    try:
        body = msgspec.Raw(msgspec.msgpack.encode(msgspec.json.decode(message.body)))
    except (msgspec.MsgspecError, OverflowError):
        return {"body": message.body.decode(), "encoding": "json"} | fields
    return {"body": body} | fields


def _dead_letter(extension: packing.Extension | None) -> dict[str, Any] | None:
    """Where a dead-lettered message comes from, and why."""
    if extension is None or extension.dead is None:
        return None
    dead = extension.dead
    return {
        "queue": names.queue_name(dead.queue),
        "id": names.message_id(dead.queue_number, dead.priority, dead.number),
        "reason": dead.reason,
        "failures": dead.failures,
        "deliveries": dead.deliveries,
        "enqueued_at_ms": dead.enqueued_at_ms,
        "dead_at_ms": dead.dead_at_ms,
        "redriven": extension.redriven,
    }
