"""Messages go without being leased: the commands purge and delete message.

A purge hides at once, however much there is: the queue goes on under a new number, and what the old one left is removed
by steps of `expiry`, as of a deleted queue. So receipts and message ids of before mean nothing any more. Name,
settings, totals and the count of messages stay, and dedup ids and requests too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftq.storage.machine import keys, queues, retention
from raftq.storage.machine.commands import DeleteMessage, PurgeQueue
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import Effect, MessageDeleted, Purged, Refused

if TYPE_CHECKING:
    from raftq.storage.machine.state import State


def purge(state: State, _meta: Meta, command: PurgeQueue) -> tuple[Purged | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    count = queue.ready + queue.leased + queue.delayed
    if count:
        retention.forget(state, queue)
        state.places.groups.forget(queue)
        state.queues.renumber(queue)
        queue.heads = []
        queue.ready = queue.leased = queue.delayed = queue.bytes = queue.keyed = queue.blocked = 0
        queue.removed += count
    return Purged(count), []


def delete(state: State, _meta: Meta, command: DeleteMessage) -> tuple[MessageDeleted | Refused, list[Effect]]:
    queue = state.queues.find(command.queue)
    if queue is None:
        return queues.unknown(command.queue)
    priority, number = command.priority, command.number
    known = 0 <= priority <= keys.PRIORITY_MAX and 0 < number < queue.next_number
    if command.queue_number != queue.number or not known:
        return _unknown(), []
    ready = queue.leasable
    piece = state.places.pull(queue, priority, number)
    if piece is None:
        if state.batches.live(queue.number, priority, number) is None:
            return _unknown(), []
        return Refused("leased", "the message is leased: ack it, or wait until its lease has passed"), []
    state.places.free(queue, piece)
    state.places.groups.settle()
    queue.removed += 1
    state.queues.changed(queue)
    return MessageDeleted(), queues.became_ready(queue, ready)


def _unknown() -> Refused:
    return Refused("unknown_message", "there is no such message")
