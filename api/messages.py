"""Enqueue, and looking at messages without leasing them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any, cast

import msgspec

from raftq.api import bodies, names, problems, schemas
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.parts import parts_of
from raftq.api.proposals import propose, request_of
from raftq.api.reads import PAGE_MAX, plain_queue_of, queue_of, view_of, whole_number
from raftq.api.schemas import MessageGiven, PublishGiven
from raftq.storage.machine import commands, replies
from raftq.storage.machine.views import MessageState, Peeked, View

STATES = ("ready", "delayed", "leased")
#: Bytes of messages after which a page ends, looked at every few messages.
PAGE_BYTES_MAX = 8 * 1024 * 1024
_LOOK = 20


async def enqueue(call: Call) -> Answer:
    """POST /v1/queues/{queue}/messages: Enqueue one message, or many at once. The queue is made when there is none."""
    queue = call.queue
    given = await call.decode(schemas.ENQUEUE, large=True)
    messages: list[MessageGiven] = [given] if given.messages is None else batch(call, given)
    parts = parts_of(messages, packed(call, messages, given))
    request = request_of(given.request_id, given.request_seconds)
    command = commands.Enqueue(queue, parts, request, given.auto_create)
    reply, committed = await propose(call, command, replies.Enqueued, queue)
    return enqueued(call, reply, committed.index)


def batch(call: Call, given: PublishGiven) -> list[MessageGiven]:
    """Its messages, checked as a whole. Raises Problem 413 or 422."""
    messages = given.messages or []
    most = call.node.limits.batch_messages
    if len(messages) > most:
        raise problems.too_large("messages", f"A batch takes at most {most:,} messages, this has {len(messages):,}.")
    if not messages:
        raise problems.invalid("messages", "give at least one message")
    for field, nothing in schemas.MESSAGE_DEFAULTS.items():
        if getattr(given, field) != nothing:
            raise problems.invalid(field, "goes into each of the messages, not beside them")
    if len(given.body):
        raise problems.invalid("body", "goes into each of the messages, not beside them")
    return messages


def packed(call: Call, messages: list[MessageGiven], request: PublishGiven) -> list[bytes]:
    """The messages as they are stored; `call.body` holds the text of all of them. Raises Problem 413 or 422."""
    limits = call.node.limits
    packed = bodies.plain(messages, call.body, limits) if call.content_type is JSON else None
    if packed is not None:
        return packed
    batch = request.messages is not None
    return [
        bodies.packed(message, call.content_type, f"messages[{place}]." if batch else "", limits)
        for place, message in enumerate(messages)
    ]


def enqueued(call: Call, reply: replies.Enqueued, index: int) -> Answer:
    if call.answer_type is JSON:
        return Answer(b'{"messages":[%b],"index":%d}' % (_places_json(reply), index), 201)
    messages = [
        {"id": names.message_id(queue_number, priority, number), "duplicate": duplicate}
        for queue_number, (priority, number, duplicate) in zip(numbers(reply), places(reply), strict=False)
    ]
    return call.answer({"messages": messages, "index": index}, 201)


def places(reply: replies.Enqueued) -> list[tuple[int, int, bool]]:
    """(priority, number, duplicate) of each message, in the order of the request."""
    if reply.places is not None:
        return reply.places
    return [
        (priority, number, False)
        for priority, first, count in reply.spans or ()
        for number in range(first, first + count)
    ]


def numbers(reply: replies.Enqueued) -> Iterable[int]:
    """The queue number of each of the places: one and the same without end, or those of partitions."""
    return reply.numbers if reply.numbers is not None else repeat(reply.queue_number)


def _places_json(reply: replies.Enqueued) -> bytes:
    if reply.places is None and len(reply.spans or ()) == 1:
        priority, first, count = reply.spans[0]  # type: ignore[index]
        before = b'{"id":"%d-%d-' % (reply.queue_number, priority)
        between = b'","duplicate":false},' + before
        return (
            before + between.join([b"%d" % number for number in range(first, first + count)]) + b'","duplicate":false}'
        )
    return b",".join(
        [
            b'{"id":"%d-%d-%d","duplicate":%b}' % (queue_number, priority, number, b"true" if duplicate else b"false")
            for queue_number, (priority, number, duplicate) in zip(numbers(reply), places(reply), strict=False)
        ]
    )


async def peek(call: Call) -> Answer:
    """GET /v1/queues/{queue}/messages?state=&limit=&cursor=&consistency=: Look at messages without leasing them."""
    queue = call.queue
    state = call.query.get("state", "ready")
    if state not in STATES:
        raise problems.invalid("query.state", f"is one of {', '.join(STATES)}")
    limit = whole_number(call, "limit", 10, least=1, most=PAGE_MAX)
    view = await view_of(call)
    number = plain_queue_of(view, queue).number
    messages, cursor = _look(call, view, cast("MessageState", state), limit)
    return _page(call, number, messages, cursor)


def _look(call: Call, view: View, state: MessageState, limit: int) -> tuple[list[Peeked], str | None]:
    """A page of at most `limit` messages, and about PAGE_BYTES_MAX."""
    found: list[Peeked] = []
    size, cursor = 0, call.query.get("cursor")
    try:
        while True:
            messages, cursor = view.peek(call.queue, state, min(_LOOK, limit - len(found)), cursor)
            found += messages
            size += sum(len(message.data) for message in messages)
            if cursor is None or len(messages) < _LOOK or len(found) >= limit or size >= PAGE_BYTES_MAX:
                return found, cursor
    except ValueError:
        raise problems.invalid("query.cursor", "is not one that an earlier page gave") from None


async def read_one(call: Call) -> Answer:
    """GET /v1/queues/{queue}/messages/{id}: Look at one message."""
    queue = call.queue
    parsed = names.parse_message_id(call.parameters[1])
    view = await view_of(call)
    queue_of(view, queue)
    queue = view.partition(queue, parsed[0]) if parsed else queue
    number = queue_of(view, queue).number
    found = view.message(queue, parsed[1], parsed[2]) if parsed and parsed[0] == number else None
    if found is None:
        raise problems.unknown_message()
    if call.answer_type is JSON:
        return Answer(_peeked_json(number, found))
    return call.answer(_peeked(number, found))


def _page(call: Call, number: int, messages: list[Peeked], cursor: str | None) -> Answer:
    if call.answer_type is not JSON:
        return call.answer({"messages": [_peeked(number, one) for one in messages], "cursor": cursor})
    items = b",".join([_peeked_json(number, one) for one in messages])
    return Answer(b'{"messages":[%b],"cursor":%b}' % (items, msgspec.json.encode(cursor)))


def _peeked(number: int, one: Peeked) -> dict[str, Any]:
    return _before_body(number, one) | bodies.msgpack_fields(one.data) | _after_body(one)


def _before_body(number: int, one: Peeked) -> dict[str, Any]:
    return {"id": names.message_id(number, one.priority, one.number), "state": one.state}


def _after_body(one: Peeked) -> dict[str, Any]:
    return {
        "priority": one.priority,
        "deliveries": one.deliveries,
        "failures": one.failures,
        "enqueued_at_ms": one.enqueued_at_ms,
        "due_ms": one.due_ms,
        "deadline_ms": one.deadline_ms,
    }


def _peeked_json(number: int, one: Peeked) -> bytes:
    before, after = msgspec.json.encode(_before_body(number, one)), msgspec.json.encode(_after_body(one))
    return b"%b,%b,%b" % (before[:-1], bodies.json_fields(one.data), after[1:])
