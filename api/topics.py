"""Topics: define, read, remove, list; their subscriptions; and publish, which stores into every queue subscribed."""

from __future__ import annotations

from typing import Any

import msgspec

from raftq.api import auth, messages, names, problems, schemas
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.parts import parts_of
from raftq.api.proposals import propose, request_of
from raftq.api.reads import PAGE_MAX, name_text, view_of, whole_number
from raftq.api.schemas import MessageGiven
from raftq.storage.machine import commands, filters, replies
from raftq.storage.machine.commands import QueueKey, TopicKey
from raftq.storage.machine.records import TopicRecord
from raftq.storage.machine.views import View


def _topic(call: Call) -> TopicKey:
    """Of the path. Raises Problem 422."""
    return names.queue_key(call.parameters[0], "topic")


def _queue(call: Call) -> QueueKey:
    """Of the path of a subscription. Raises Problem 422."""
    return names.queue_key(call.parameters[1])


async def define(call: Call) -> Answer:
    """PUT /v1/topics/{topic}: Define a topic."""
    topic = _topic(call)
    given = await call.decode(schemas.TOPIC)
    reply, _ = await propose(call, commands.DefineTopic(topic, given.partitions), replies.TopicDefined, topic)
    return call.answer(_described(topic, reply), 201 if reply.created else 200)


def _described(topic: TopicKey, record: replies.TopicDefined | TopicRecord) -> dict[str, Any]:
    return {"name": names.queue_name(topic), "published": record.published, "partitions": record.partitions}


async def read(call: Call) -> Answer:
    """GET /v1/topics/{topic}: Read what a topic counts."""
    topic = _topic(call)
    record = (await view_of(call)).topic(topic)
    if record is None:
        raise problems.unknown_topic(topic)
    return call.answer(_described(topic, record))


async def remove(call: Call) -> Answer:
    """DELETE /v1/topics/{topic}: Remove a topic with its subscriptions. What was published stays in the queues."""
    topic = _topic(call)
    reply, _ = await propose(call, commands.DeleteTopic(topic), replies.TopicDeleted, topic)
    return call.answer({"subscriptions": reply.subscriptions})


async def list_all(call: Call) -> Answer:
    """GET /v1/topics?prefix=&limit=&cursor=: List the topics by name."""
    prefix, cursor = name_text(call, "prefix"), name_text(call, "cursor")
    limit = whole_number(call, "limit", 100, least=1, most=PAGE_MAX)
    view = await view_of(call)
    found, cursor = view.topics(names.namespace(), prefix or "", limit, cursor)
    return call.answer({"topics": [_described(topic.key, topic) for topic in found], "cursor": cursor})


async def subscribe(call: Call) -> Answer:
    """PUT /v1/topics/{topic}/subscriptions/{queue}: Subscribe a queue, or change the filter of its subscription.
    A queue that does not exist is created."""
    topic, queue = _topic(call), _queue(call)
    # Who publishes needs no right on the queue: who subscribes it does.
    auth.require(call, "produce", call.parameters[1])
    given = await call.decode(schemas.SUBSCRIPTION)
    text = filter_text(given.filter)
    reply, _ = await propose(call, commands.Subscribe(topic, queue, text), replies.TopicDefined, topic)
    return call.answer(_subscription(queue, text), 201 if reply.created else 200)


def filter_text(given: schemas.Filter) -> bytes:
    """A filter as it is stored. Raises Problem 422."""
    try:
        return filters.parse(msgspec.json.encode(given)).text
    except ValueError as error:
        raise problems.invalid("filter", str(error)) from None


def _subscription(queue: QueueKey, text: bytes) -> dict[str, Any]:
    return {"queue": names.queue_name(queue), "filter": msgspec.json.decode(text)}


async def read_subscription(call: Call) -> Answer:
    """GET /v1/topics/{topic}/subscriptions/{queue}: Read the filter of a subscription."""
    topic, queue = _topic(call), _queue(call)
    found = _of_known(await view_of(call), topic).subscription(topic, queue)
    if found is None:
        raise problems.unknown_subscription(queue)
    return call.answer(_subscription(queue, found.filter))


def _of_known(view: View, topic: TopicKey) -> View:
    """Raises Problem 404."""
    if view.topic(topic) is None:
        raise problems.unknown_topic(topic)
    return view


async def unsubscribe(call: Call) -> Answer:
    """DELETE /v1/topics/{topic}/subscriptions/{queue}: Remove a subscription. The queue stays, with its messages."""
    topic, queue = _topic(call), _queue(call)
    await propose(call, commands.Unsubscribe(topic, queue), replies.TopicDeleted, topic)
    return Answer(status=204, content_type="")


async def subscriptions(call: Call) -> Answer:
    """GET /v1/topics/{topic}/subscriptions: List the subscriptions of a topic by queue."""
    topic = _topic(call)
    found = _of_known(await view_of(call), topic).subscriptions(topic)
    return call.answer({"subscriptions": [_subscription(queue, one.filter) for queue, one in found]})


async def publish(call: Call) -> Answer:
    """POST /v1/topics/{topic}/messages: Publish one message, or many at once, into every queue that is subscribed and
    whose filter takes it. All of them get it, or none."""
    topic = _topic(call)
    given = await call.decode(schemas.PUBLISH, large=True)
    listed: list[MessageGiven] = [given] if given.messages is None else messages.batch(call, given)
    parts = parts_of(listed, messages.packed(call, listed, given))
    request = request_of(given.request_id, given.request_seconds)
    reply, committed = await propose(call, commands.Publish(topic, parts, request), replies.Published, topic)
    duplicates = reply.duplicates or [0] * len(reply.queues)
    counts = [{"queues": new, "duplicates": known} for new, known in zip(reply.queues, duplicates, strict=True)]
    return call.answer({"messages": counts, "index": committed.index}, 201)
