"""Messages come in for a topic: the command publish.

Every subscribed queue whose filter takes a message gets it, as if it had been enqueued there: with the queue's own
delay and dedup window. Atomic: a publish is in all of these queues or in none, and all of it is checked first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from raftq.storage.machine import filters, messages, packing, partitions, queues, topics
from raftq.storage.machine.commands import Part, Publish
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import PartitionedRecord, QueueRecord
from raftq.storage.machine.replies import Effect, Published, Refused

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Of one publish: copies, each counted as what it costs, about 3 us; and messages times subscriptions in bytes.
COPIES_MAX = 10_000
COPIED_BYTES_MAX = 16 * 1024 * 1024
#: A message counts one for each subscription, and more where there is a filter to try.
FILTERED = 1
#: Where it is taken, more for each of these: a dedup id, a replace key, a queue that keeps groups, a partitioned one.
DEDUPED, REPLACING, GROUPED, PARTITIONED = 1, 5, 2, 10
#: And each part after the first, for each subscription: its messages lie in a batch of their own.
PARTED = 2


class _Copy(NamedTuple):
    """What one queue gets."""

    queue: QueueRecord
    parts: list[Part]
    counts: list[int]
    #: Of each message its position in the publish, over all parts.
    taken: list[int]


def publish(state: State, meta: Meta, command: Publish) -> tuple[Published | Refused, list[Effect]]:
    counts = messages.counted(command.parts)
    if 0 in counts:
        return messages.malformed(counts), []
    topic = state.topics.find(command.topic)
    if topic is None:
        return topics.unknown(command.topic), []
    subscriptions = list(state.topics.subscriptions(topic.key))
    size = sum(len(part.blob) for part in command.parts)
    accepting = [topics.filter_of(subscription.filter) for _, subscription in subscriptions]
    tried = sum(not accepts.takes_all for accepts in accepting)
    cost = (sum(counts) + PARTED * (len(counts) - 1)) * len(subscriptions) + FILTERED * sum(counts) * tried
    if cost > COPIES_MAX or size * len(subscriptions) > COPIED_BYTES_MAX:
        return too_large(len(subscriptions)), []
    parts = [msgspec.structs.replace(part, positions=None) for part in command.parts]
    attributes: list[list[dict[str, Any]]] = []
    copies = []
    turned: list[PartitionedRecord] = []
    for (key, _), accepts in zip(subscriptions, accepting, strict=True):
        queue = state.queues.get(state.partitions.first(key))
        if queue is None:
            broken(f"{key} is subscribed to {topic.key}, and there is no such queue")
        if accepts.takes_all:
            copy = _Copy(queue, parts, counts, list(range(sum(counts))))
        else:
            attributes = attributes or [_attributes(part) for part in parts]
            copy = _filtered(queue, parts, counts, attributes, accepts)
        record = state.partitions.get(key)
        cost += _cost(copy, partitioned=record is not None)
        if cost > COPIES_MAX:
            return too_large(len(subscriptions)), []
        if copy.taken and record is None:
            copies.append(copy)
        elif copy.taken and record is not None and _spread(state, record, copy, copies):
            turned.append(record)
    reply, effects = _store(state, meta, command, topic.key, copies, sum(counts))
    for record in turned if isinstance(reply, Published) else []:
        record.turn_in = (record.turn_in + 1) % record.count
        state.partitions.put(record)
    return reply, effects


def _spread(state: State, record: PartitionedRecord, copy: _Copy, copies: list[_Copy]) -> bool:
    """Add what each partition gets of the copy; whether some messages go by the turn."""
    found, by_turn = partitions.shares(record, copy.parts, record.turn_in)
    for partition, parts, taken in found:
        queue = state.queues.get(record.partitions[partition])
        assert queue is not None, record
        copies.append(_Copy(queue, parts, messages.counted(parts), [copy.taken[at] for at in taken]))
    return by_turn


def _cost(copy: _Copy, *, partitioned: bool) -> int:
    """What makes its messages cost more than one copy each."""
    grouped = copy.queue.settings.max_leased_per_group is not None
    cost = (GROUPED * grouped + PARTITIONED * partitioned) * len(copy.taken)
    for part in copy.parts:
        cost += DEDUPED * _given(part.dedup_ids) + REPLACING * _given(part.replace_keys)
    return cost


def _given(ids: list[str | None] | None) -> int:
    return 0 if ids is None else len(ids) - ids.count(None)


def too_large(subscriptions: int) -> Refused:
    detail = (
        f"the topic has {subscriptions} subscriptions: over all of them one publish makes at most {COPIES_MAX:,} "
        f"copies and {COPIED_BYTES_MAX:,} bytes. A message counts 1, or {1 + FILTERED} where there is a filter; "
        f"{DEDUPED} more with a dedup_id, {REPLACING} with a replace_key, {GROUPED} in a queue with "
        f"max_leased_per_group, {PARTITIONED} in one with partitions; each further priority or delay counts {PARTED}. "
        "Publish fewer at once"
    )
    return Refused("too_large", detail)


def _attributes(part: Part) -> list[dict[str, Any]]:
    return [filters.values(packing.unpack_message(message).attributes) for message in packing.unpack(part.blob)]


def _filtered(
    queue: QueueRecord,
    parts: list[Part],
    counts: list[int],
    attributes: list[list[dict[str, Any]]],
    accepts: filters.Filter,
) -> _Copy:
    copy = _Copy(queue, [], [], [])
    before = 0
    for part, count, found in zip(parts, counts, attributes, strict=True):
        kept = [at for at, values in enumerate(found) if accepts.takes(values)]
        if kept:
            copy.parts.append(messages.only(part, kept, count))
            copy.counts.append(len(kept))
            copy.taken.extend(before + at for at in kept)
        before += count
    return copy


def _by_queue(copies: list[_Copy]) -> Iterable[_Copy]:
    """All that each queue gets: a topic may have a partitioned queue and one of its partitions."""
    found: dict[int, _Copy] = {}
    for copy in copies:
        whole = found.setdefault(copy.queue.number, _Copy(copy.queue, [], [], []))
        whole.parts.extend(copy.parts)
        whole.counts.extend(copy.counts)
    return found.values()


def _store(
    state: State, meta: Meta, command: Publish, topic: str, copies: list[_Copy], count: int
) -> tuple[Published | Refused, list[Effect]]:
    for whole in _by_queue(copies):
        refused = messages.full(state, meta, whole.queue, whole.parts, whole.counts)
        if refused is not None:
            return Refused(refused.reason, refused.detail, whole.queue.key), []
    stored, duplicates = [0] * count, [0] * count
    effects: list[Effect] = []
    for copy in copies:
        ready = copy.queue.leasable
        reply = messages.store(state, meta, copy.queue, copy.parts, copy.counts)
        known = [False] * len(copy.taken) if reply.places is None else [duplicate for _, _, duplicate in reply.places]
        for at, duplicate in zip(copy.taken, known, strict=True):
            (duplicates if duplicate else stored)[at] += 1
        effects += queues.became_ready(copy.queue, ready)
    record = state.topics.find(topic)
    assert record is not None, topic
    record.published += count
    state.topics.put(record)
    order = messages.in_order(command.parts, list(range(count)))
    return Published([stored[at] for at in order], [duplicates[at] for at in order] if any(duplicates) else []), effects
