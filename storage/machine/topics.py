"""Topics and their subscriptions: the commands that define and delete them. What they do with messages: `publishing`.

Owns the tables TOPIC and SUBSCRIPTION. A subscription is a queue of the topic's namespace, and stands twice: under its
topic, to publish by, and under its queue, so that a deleted queue takes it along. A topic's number comes from the same
count as those of queues: its requests lie under it, and are removed as what a deleted queue leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from raftq.storage.machine import filters, keys, partitions, records
from raftq.storage.machine.commands import DefineQueue, DefineTopic, DeleteTopic, QueueSettings, Subscribe, Unsubscribe
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.records import Cluster, SubscriptionRecord, TopicRecord
from raftq.storage.machine.replies import Effect, Refused, TopicDefined, TopicDeleted

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: More topics are refused.
TOPICS_MAX = 100_000
#: Of one topic, and of one queue.
SUBSCRIPTIONS_MAX = 64

_DEFAULTS = QueueSettings()

#: A filter is parsed anew only when it was not used for long.
filter_of = lru_cache(1024)(filters.parse)


class Topics:
    def __init__(self, txn: Txn, cluster: Cluster) -> None:
        self._txn = txn
        self._cluster = cluster

    def find(self, key: str) -> TopicRecord | None:
        value = self._txn.get(keys.topic(key))
        return None if value is None else records.decode_topic(value)

    def put(self, topic: TopicRecord) -> None:
        self._txn.put(keys.topic(topic.key), records.encode(topic))

    def create(self, key: str, index: int) -> TopicRecord | None:
        """None when there are too many."""
        cluster = self._cluster
        if cluster.topics >= TOPICS_MAX:
            return None
        cluster.topics += 1
        cluster.last_queue += 1
        topic = TopicRecord(key, cluster.last_queue, index)
        self.put(topic)
        return topic

    def delete(self, topic: TopicRecord) -> int:
        """How many subscriptions it had."""
        self._cluster.topics -= 1
        subscribed = [queue for queue, _ in self.subscriptions(topic.key)]
        for queue in subscribed:
            self.unsubscribe(topic.key, queue)
        self._txn.delete(keys.topic(topic.key))
        return len(subscribed)

    def subscription(self, topic: str, queue: str) -> SubscriptionRecord | None:
        value = self._txn.get(keys.subscription(topic, queue)) if _of_one_namespace(topic, queue) else None
        return None if value is None else records.decode_subscription(value)

    def subscriptions(self, topic: str) -> Iterator[tuple[str, SubscriptionRecord]]:
        """(queue key, subscription), by the queues' names."""
        for key, value in self._txn.scan(*keys.subscriptions(topic)):
            yield keys.subscribed_of(key), records.decode_subscription(value)

    def topics_of(self, queue: str) -> list[str]:
        """The topics that the queue is subscribed to."""
        return [keys.subscribed_of(key[1:]) for key, _ in self._txn.scan(*keys.subscriptions_of_queue(queue))]

    def subscribe(self, topic: str, queue: str, subscription: SubscriptionRecord) -> None:
        self._txn.put(keys.subscription(topic, queue), records.encode(subscription))
        self._txn.put(keys.subscription_of_queue(queue, topic), records.NOTHING)

    def unsubscribe(self, topic: str, queue: str) -> None:
        self._txn.delete(keys.subscription(topic, queue))
        self._txn.delete(keys.subscription_of_queue(queue, topic))

    def queue_deleted(self, queue: str) -> None:
        """Its subscriptions go with it."""
        for topic in self.topics_of(queue):
            self.unsubscribe(topic, queue)


def _of_one_namespace(topic: str, queue: str) -> bool:
    return topic.partition("/")[0] == queue.partition("/")[0]


def unknown(key: str) -> Refused:
    return Refused("unknown_topic", f"there is no topic {key}")


def define(state: State, meta: Meta, command: DefineTopic) -> tuple[TopicDefined | Refused, list[Effect]]:
    if command.partitions is not None and not 1 <= command.partitions <= partitions.PARTITIONS_MAX:
        return Refused("invalid", f"partitions: is a number from 1 to {partitions.PARTITIONS_MAX}"), []
    before = state.topics.find(command.topic)
    topic = before or state.topics.create(command.topic, meta.index)
    if topic is None:
        return Refused("too_many_topics", f"there are {TOPICS_MAX} topics already: delete some"), []
    if command.partitions is not None:
        topic.partitions = command.partitions
        state.topics.put(topic)
    return TopicDefined(before is None, topic.published, topic.partitions), []


def delete(state: State, _meta: Meta, command: DeleteTopic) -> tuple[TopicDeleted | Refused, list[Effect]]:
    topic = state.topics.find(command.topic)
    if topic is None:
        return unknown(command.topic), []
    subscriptions = state.topics.delete(topic)
    state.queues.abandon(topic.number, records.NOTHING)
    return TopicDeleted(subscriptions), []


def subscribe(state: State, meta: Meta, command: Subscribe) -> tuple[TopicDefined | Refused, list[Effect]]:
    """Subscribe a queue, or give its subscription another filter. A queue that there is not is created."""
    topic, queue = command.topic, command.queue
    if not _of_one_namespace(topic, queue):
        return Refused("invalid", "topic and queue are of one namespace"), []
    try:
        text = filter_of(command.filter).text
    except ValueError as error:
        return Refused("invalid", f"filter: {error}"), []
    record = state.topics.find(topic)
    if record is None:
        return unknown(topic), []
    before = state.topics.subscription(topic, queue)
    if before is None:
        for count in (len(list(state.topics.subscriptions(topic))), len(state.topics.topics_of(queue))):
            if count >= SUBSCRIPTIONS_MAX:
                detail = f"a topic, and a queue, has at most {SUBSCRIPTIONS_MAX} subscriptions: remove some"
                return Refused("too_many_subscriptions", detail), []
        if state.queues.get(queue) is None and state.partitions.get(queue) is None:
            reply, _ = partitions.define(state, meta, DefineQueue(queue, _DEFAULTS, partitions=record.partitions))
            if isinstance(reply, Refused):
                return reply, []
    index = meta.index if before is None else before.created_index
    state.topics.subscribe(topic, queue, SubscriptionRecord(text, index))
    return TopicDefined(created=before is None), []


def unsubscribe(state: State, _meta: Meta, command: Unsubscribe) -> tuple[TopicDeleted | Refused, list[Effect]]:
    if state.topics.find(command.topic) is None:
        return unknown(command.topic), []
    if state.topics.subscription(command.topic, command.queue) is None:
        return Refused("unknown_subscription", f"{command.queue} is not subscribed to {command.topic}"), []
    state.topics.unsubscribe(command.topic, command.queue)
    return TopicDeleted(1), []
