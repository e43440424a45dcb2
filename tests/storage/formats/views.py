"""All that can be read of the machine's tables, as plain values: what a folder of old data is compared by."""

from __future__ import annotations

from typing import Any

import msgspec

from raftq.storage.machine.views import Peeked, View

STATES = ("ready", "delayed", "leased")
DATA, BACKUP, EXPECTED = "data.mdb", "backup.raftq", "expected.json"


def of_view(view: View) -> dict[str, Any]:
    """By name, of every queue and topic."""
    queues = {info.key: info for namespace in namespaces(view) for info in view.queues(namespace, limit=1000)[0]}
    topics = {topic.key: topic for namespace in namespaces(view) for topic in view.topics(namespace, limit=1000)[0]}
    found: dict[str, Any] = {
        "clocks": (view.lease_ms, view.wall_ms),
        "sums": view.sums(),
        "queues": queues,
        "partitions": {key: view.partitions(key) for key in {name.rpartition(".")[0] for name in queues} - {""}},
        "messages": {key: {state: _page(view, key, state) for state in STATES} for key in queues},
        "redrives": {key: view.redrive(key) for key in queues},
        "topics": topics,
        "tokens": view.tokens(1000)[0],
        "schedules": [each for namespace in namespaces(view) for each in view.schedules(namespace, limit=1000)[0]],
        "subscriptions": {key: dict(view.subscriptions(key)) for key in topics},
    }
    # There and back, as it is when it was read from a file.
    read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(_plain(found)))
    return read


def namespaces(view: View) -> list[str]:
    """Of the queues."""
    return sorted({info.key.partition("/")[0] for info in view.queues(None, limit=1000)[0]})


def _page(view: View, key: str, state: Any) -> list[Peeked]:
    found, cursor = view.peek(key, state, 1000)
    assert cursor is None
    for message in found:
        assert (one := view.message(key, message.priority, message.number)) is not None
        assert one[:7] == message[:7]
    return found


def _plain(value: Any) -> Any:
    """Structs and named tuples as objects, so that fields which come later may be left out of what is compared."""
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def as_known(found: Any, known: Any) -> Any:
    """`found` without the fields of objects that `known` does not have."""
    if isinstance(found, dict) and isinstance(known, dict):
        return {key: as_known(value, known[key]) for key, value in found.items() if key in known}
    if isinstance(found, list) and isinstance(known, list) and len(found) == len(known):
        return [as_known(one, other) for one, other in zip(found, known, strict=True)]
    return found
