"""Retention: how long a ready message is kept.

It counts from when the message was enqueued, and is judged while it is ready: a leased message when it returns, a
delayed one when its delay has passed. A queue has one moment in WALL, under the key of its record, at which a step
looks for what is past retention. It is brought forward when an older message becomes ready, and only moved back by the
step that looks: a lease does not touch it.

Invariant: while a queue with retention has ready messages, its moment is not after the first of them is past it, or
1 ms after it became ready, whichever is later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftq.storage.machine import keys
from raftq.storage.machine.places import Basket
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import Piece, QueueRecord

if TYPE_CHECKING:
    from raftq.storage.machine.state import State


def take(state: State, meta: Meta, queue: QueueRecord, count_max: int, bytes_max: int) -> list[Piece]:
    """What is past retention, in order of delivery, up to these limits but the first message always. The caller has to
    dead-letter it, and to `look_again`."""
    retention_ms = queue.settings.retention_ms
    assert retention_ms is not None, queue
    state.batches.close(queue.number)
    basket = Basket(count_max, bytes_max)
    state.places.take_old(queue, meta.wall_ms - retention_ms, basket)
    queue.ready -= sum(piece.count for piece in basket.pieces)
    return basket.pieces


def look_again(state: State, queue: QueueRecord) -> None:
    """Set the moment right: after a step has looked, or when the queue's retention was changed."""
    retention_ms = queue.settings.retention_ms
    oldest_ms = None if retention_ms is None else state.places.oldest(queue)
    state.places.look_at(queue, None if oldest_ms is None else keys.after(oldest_ms, retention_ms or 0))


def forget(state: State, queue: QueueRecord) -> None:
    """The queue loses its messages or its number."""
    state.places.look_at(queue, None)
