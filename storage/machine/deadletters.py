"""Dead letters: messages that failed too often, were rejected, or are past retention.

One that is dead-lettered leaves its queue for good and becomes, in the same step, a new message at the end of the
dead-letter queue, with the same priority, group, attributes and body; why and whence stands in its extension. Limits
and the default delay of that queue do not apply to it. Without a dead-letter queue it is discarded. Both are counted.

Invariant: of each message that dies there is one letter, or one more in the count of discarded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from raftq.storage.machine import messages, packing
from raftq.storage.machine.commands import Backoff, Part, QueueSettings
from raftq.storage.machine.packing import DeadLetter, Extension
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import BLOB_OFFSET, Piece, QueueRecord
from raftq.storage.machine.replies import Refused

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Bytes of messages that one command moves at most, or a step of `expiry`, but for the last lease or piece of a step.
MOVED_BYTES_MAX = 16 * 1024 * 1024
#: A backoff grows no further after as many failures, whatever its maximum.
GROWN_MAX = 1_000

#: Dead pieces are those whose next failure is one too many.
Dies = Callable[[Piece], bool]


def dies(queue: QueueRecord) -> Dies | None:
    """Whether one more failure is the last, for the queue's pieces. None: it never is."""
    most = queue.settings.failures_max()
    return None if most is None else lambda piece: piece.failures + 1 >= most


@lru_cache(1024)
def delay_ms(backoff: Backoff, failures: int) -> int:
    """How long a message with so many failures is kept back."""
    delay = min(backoff.initial_ms, backoff.max_ms)
    for _ in range(min(failures, GROWN_MAX) - 1):
        longer = min(delay * backoff.factor_milli // 1000, backoff.max_ms)
        if longer == delay:
            break
        delay = longer
    return delay


def target(state: State, meta: Meta, queue: QueueRecord) -> QueueRecord | None:
    """The queue's dead-letter queue, created if it is not there: even when there are too many queues."""
    key = queue.settings.dead_letter_queue
    if key is None:
        return None
    key = state.partitions.first(key)
    return state.queues.get(key) or state.queues.create(key, QueueSettings(), meta.index, limited=False)


def too_large(settings: QueueSettings) -> Refused:
    most = MOVED_BYTES_MAX // (1024 * 1024)
    return Refused("too_large", f"more than {most} MiB would go to {settings.dead_letter_queue} at once: settle fewer")


def move(
    state: State, meta: Meta, queue: QueueRecord, pieces: list[Piece], reason: str, target: QueueRecord | None
) -> None:
    """Dead-letter messages that nobody holds any more, in this order."""
    count = sum(piece.count for piece in pieces)
    if target is None:
        queue.discarded += count
    else:
        queue.dead_lettered += count
        write(state, meta, target, _letters(state, meta, queue, pieces, reason))
    for piece in pieces:
        state.places.free(queue, piece)
    state.queues.changed(queue)


def _letters(
    state: State, meta: Meta, queue: QueueRecord, pieces: list[Piece], reason: str
) -> Iterator[tuple[int, bytes]]:
    """(priority, packed message) of each."""
    for piece in pieces:
        batch = state.batches.of(queue.number, piece)
        found = packing.unpack(batch.value, piece.first - piece.batch, piece.count, BLOB_OFFSET)
        for number, data in enumerate(found, piece.first):
            dead = DeadLetter(
                queue.key,
                queue.number,
                piece.priority,
                number,
                reason,
                piece.failures,
                piece.deliveries,
                batch.enqueued_at_ms,
                meta.wall_ms,
            )
            before = packing.extension_of(data)
            redriven = 0 if before is None else before.redriven
            yield piece.priority, packing.extended(data, Extension(dead, redriven))


def write(state: State, meta: Meta, target: QueueRecord, letters: Iterator[tuple[int, bytes]]) -> None:
    """New messages at the end of the queue: as few blobs as may be."""
    waiting: list[bytes] = []
    size = of = 0
    for priority, data in letters:
        if waiting and (priority != of or size + 4 + len(data) > packing.BLOB_BYTES_MAX):
            _put(state, meta, target, of, waiting)
            waiting = []
        if not waiting:
            of, size = priority, 4
        waiting.append(data)
        size += 4 + len(data)
    if waiting:
        _put(state, meta, target, of, waiting)


def _put(state: State, meta: Meta, target: QueueRecord, priority: int, data: list[bytes]) -> None:
    messages.store(state, meta, target, [Part(priority, 0, packing.pack(data))], [len(data)])
