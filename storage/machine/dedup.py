"""What was done before: dedup ids of messages, and requests whose first reply is repeated.

Owns the tables DEDUP and REQUEST, both per queue, by its number `ids`, which a purge does not change. Requests of a
topic lie under the topic's number, those of transactions under 0, which no queue has. A record counts until its time
even when it is still in the table after it; `expiry` removes it then. Nothing here depends on whether it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from raftq.storage.machine import keys, records
from raftq.storage.machine.commands import (
    Ack,
    Enqueue,
    Extend,
    Lease,
    Nack,
    Publish,
    PurgeQueue,
    Redrive,
    Reject,
    Release,
    Transact,
)
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import DedupRecord, QueueRecord, RequestRecord
from raftq.storage.machine.replies import Enqueued, Leased, Published, Refused, Reply, Transacted

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

Repeatable = Enqueue | Lease | Ack | Nack | Release | Extend | PurgeQueue | Redrive | Reject | Transact | Publish
AReply = TypeVar("AReply", bound=Reply)

#: A request id belongs to one kind of command of one queue, topic or namespace. The command's tag.
_COMMANDS: dict[type[Repeatable], int] = {
    Enqueue: 1,
    Lease: 2,
    Ack: 3,
    Nack: 4,
    Release: 5,
    Extend: 6,
    Reject: 13,
    PurgeQueue: 14,
    Redrive: 16,
    Transact: 18,
    Publish: 23,
}
#: Transactions belong to no queue.
NO_QUEUE = 0


def first_message(state: State, meta: Meta, queue: QueueRecord, dedup_id: str) -> DedupRecord | None:
    """The message that was enqueued with this id within the window."""
    value = state.txn.get(keys.dedup(queue.ids, dedup_id))
    if value is None:
        return None
    record = records.decode_dedup(value)
    return record if record.expires_ms > meta.wall_ms else None


def claim(
    state: State, meta: Meta, queue: QueueRecord, dedup_id: str, priority: int, number: int
) -> DedupRecord | None:
    """The message that was enqueued with this id within the window; None when the new one is the first, which is
    remembered."""
    key = keys.dedup(queue.ids, dedup_id)
    value = state.txn.get(key)
    if value is not None:
        record = records.decode_dedup(value)
        if record.expires_ms > meta.wall_ms:
            return record
        state.wall.remove(record.expires_ms, key)
    expires_ms = keys.after(meta.wall_ms, queue.settings.dedup_window_ms)
    state.txn.put(key, records.encode(DedupRecord(priority, number, expires_ms, queue.number)))
    state.wall.add(expires_ms, key)
    return None


def first_reply(state: State, meta: Meta, command: Repeatable) -> Reply | None:
    """What this request was answered before, marked as a repetition where the reply can say so."""
    key = _key(state, command)
    value = None if key is None else state.txn.get(key)
    if value is None:
        return None
    record = records.decode_request(value)
    if record.expires_ms <= meta.wall_ms:
        return None
    if isinstance(record.reply, Enqueued | Leased | Transacted | Published):
        record.reply.repeated = True
    return record.reply


def _key(state: State, command: Repeatable) -> bytes | None:
    """Of the request's record; None without the queue or topic that it would be kept under."""
    assert command.request is not None
    tag, request_id = _COMMANDS[type(command)], command.request.id
    if isinstance(command, Transact):
        return keys.request(NO_QUEUE, tag, f"{command.namespace}\0{request_id}")
    if isinstance(command, Publish):
        topic = state.topics.find(command.topic)
        return None if topic is None else keys.request(topic.number, tag, request_id)
    record = state.partitions.get(command.queue)
    if record is not None:
        if not isinstance(command, Enqueue | Lease | PurgeQueue | Redrive):
            # A request to settle may be several commands, one for each partition.
            request_id = f"{command.queue_number}\0{request_id}"
        return keys.request(record.number, tag, request_id)
    queue = state.queues.get(command.queue)
    return None if queue is None else keys.request(queue.ids, tag, request_id)


def remember_reply(state: State, meta: Meta, command: Repeatable, reply: Reply) -> None:
    """Keep the reply for the retries of its request. One that did nothing is not kept: what was refused, or waits for
    a message with one request after the other, is tried again."""
    assert command.request is not None
    if isinstance(reply, Refused) or (isinstance(reply, Leased) and not reply.ranges):
        return
    if isinstance(reply, Transacted) and reply.obstacles:
        return
    key = _key(state, command)
    if key is None:
        return
    passed = state.txn.get(key)
    if passed is not None:
        state.wall.remove(records.decode_request(passed).expires_ms, key)
    expires_ms = keys.after(meta.wall_ms, command.request.keep_ms)
    state.txn.put(key, records.encode(RequestRecord(expires_ms, reply)))
    state.wall.add(expires_ms, key)
