"""What a client may ask of a view, and what the model answers: plain values, so that they can be compared.

Each question is asked twice: of a node's `View`, and of the model at the index at which the view was.
"""

from __future__ import annotations

from typing import Any

import msgspec

from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.model import Message, Model, Queue
from raftq.storage.machine.records import TokenRecord
from raftq.storage.machine.views import MessageState, QueueInfo, View


class Info(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The counts and settings of a queue, and what the clocks say."""

    queue: str

    def of_view(self, view: View) -> Any:
        return view.lease_ms, view.wall_ms, view.queue(self.queue), view.ready(self.queue)

    def of_model(self, model: Model, clocks: Clocks) -> Any:
        queue = model.queues.get(self.queue)
        info = None if queue is None else _info(queue)
        leasable = 0 if queue is None or queue.settings.paused else len(queue.leasable())
        return *clocks, info, leasable


class Peek(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The first messages of a queue in a state; None for a queue that there is not."""

    queue: str
    state: MessageState
    limit: int

    def of_view(self, view: View) -> Any:
        try:
            return [tuple(message) for message in view.peek(self.queue, self.state, self.limit)[0]]
        except KeyError:
            return None

    def of_model(self, model: Model, clocks: Clocks) -> Any:
        queue = model.queues.get(self.queue)
        if queue is None:
            return None
        if self.state == "leased":
            held = [slot for lease in queue.leases.values() for slot in lease if slot.state == "held"]
            now_ms = clocks.wall_ms - clocks.lease_ms
            return [_shown(slot.message, None, slot.deadline_ms + now_ms) for slot in held[: self.limit]]
        return [_shown(message, message.due_ms) for message in queue.of(self.state)[: self.limit]]


class Find(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """One message, without the moments that a page states more exactly; None when it is not there."""

    queue: str
    priority: int
    number: int

    def of_view(self, view: View) -> Any:
        found = view.message(self.queue, self.priority, self.number)
        return None if found is None else tuple(found)[:7]

    def of_model(self, model: Model, _clocks: Clocks) -> Any:
        queue = model.queues.get(self.queue)
        for message in queue.messages if queue is not None else ():
            if (message.priority, message.number) == (self.priority, self.number):
                return _shown(message, None)[:7]
        return None


class Names(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The queues of a namespace."""

    namespace: str

    def of_view(self, view: View) -> Any:
        return [info.key for info in view.queues(self.namespace)[0]]

    def of_model(self, model: Model, _clocks: Clocks) -> Any:
        return sorted(key for key in model.queues if key.partition("/")[0] == self.namespace)


class LastRedrive(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """How the last redrive of a queue stands; None without one."""

    queue: str

    def of_view(self, view: View) -> Any:
        return view.redrive(self.queue) if view.queue(self.queue) is not None else None

    def of_model(self, model: Model, _clocks: Clocks) -> Any:
        queue = model.queues.get(self.queue)
        return None if queue is None or queue.redrive is None else queue.redrive.shown()


class Subscriptions(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The number of messages published to a topic, and its subscriptions; None for a topic that there is not."""

    topic: str

    def of_view(self, view: View) -> Any:
        topic = view.topic(self.topic)
        found = [(queue, one.filter, one.created_index) for queue, one in view.subscriptions(self.topic)]
        return None if topic is None else (topic.published, found)

    def of_model(self, model: Model, _clocks: Clocks) -> Any:
        topic = model.topics.get(self.topic)
        if topic is None:
            return None
        return topic.published, [
            (queue, one.text, index) for queue, (one, index) in sorted(topic.subscriptions.items())
        ]


class Ticks(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """What a schedule was defined with and how it stands; None for one that there is not."""

    schedule: str

    def of_view(self, view: View) -> Any:
        found = view.schedule(self.schedule)
        return None if found is None else (found.given, found.state)

    def of_model(self, model: Model, _clocks: Clocks) -> Any:
        found = model.schedules.get(self.schedule)
        return None if found is None else (found[0], msgspec.structs.replace(found[1]))


class Tokens(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """All of them, and the version that they wait for."""

    def of_view(self, view: View) -> Any:
        return view.version, view.tokens()[0]

    def of_model(self, model: Model, _clocks: Clocks) -> Any:
        return model.version, [
            TokenRecord(one.id, one.digest, one.name, one.namespace, one.grants, ms, index, one.expires_ms)
            for _, (one, ms, index) in sorted(model.tokens.items())
        ]


Question = Info | Peek | Find | Names | LastRedrive | Subscriptions | Ticks | Tokens

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Question).decode


def _shown(message: Message, due_ms: int | None, deadline_ms: int | None = None) -> tuple[Any, ...]:
    """As `storage.machine.views.Peeked`."""
    m = message
    due_ms = due_ms if m.state == "delayed" else None
    return (m.priority, m.number, m.deliveries, m.failures, m.enqueued_at_ms, m.data, m.state, due_ms, deadline_ms)


def _info(queue: Queue) -> QueueInfo:
    ready = queue.of("ready")
    return QueueInfo(
        key=queue.key,
        number=queue.number,
        settings=queue.settings,
        created_index=queue.created_index,
        ready=len(ready),
        leased=len(queue.of("leased")),
        delayed=len(queue.of("delayed")),
        bytes=sum(len(message.data) for message in queue.messages),
        enqueued=queue.enqueued,
        delivered=queue.delivered,
        acked=queue.acked,
        nacked=queue.nacked,
        released=queue.released,
        expired=queue.expired,
        duplicates=queue.duplicates,
        dead_lettered=queue.dead_lettered,
        discarded=queue.discarded,
        rejected=queue.rejected,
        removed=queue.removed,
        redriven=queue.redriven,
        oldest_ready_ms=min((message.enqueued_at_ms for message in ready), default=None),
    )
