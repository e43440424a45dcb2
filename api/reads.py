"""Reads: a view of the tables, linearizable unless the client asks for a stale one, and what queries of lists share."""

from __future__ import annotations

from raftq.api import names, problems
from raftq.api.call import Call
from raftq.storage.machine.views import QueueInfo, View

PAGE_MAX = 500


async def view_of(call: Call) -> View:
    """Use it before the next await. Raises what `Shard.read` does, and Problem 422."""
    consistency = call.query.get("consistency", "linearizable")
    if consistency == "stale":
        return call.node.shard.stale()
    if consistency != "linearizable":
        raise problems.invalid("query.consistency", "is linearizable or stale")
    return await call.node.shard.read()


def queue_of(view: View, queue: str) -> QueueInfo:
    """Raises Problem 404."""
    info = view.queue(queue)
    if info is None:
        raise problems.unknown_queue(queue)
    return info


def plain_queue_of(view: View, queue: str) -> QueueInfo:
    """As `queue_of`, for what is done to one queue alone. Raises Problem 409 for a name that has partitions."""
    info = queue_of(view, queue)
    if info.partitions is not None:
        name = names.queue_name(queue)
        detail = f"{name} has {info.partitions} partitions: name one of them, as {name}.0."
        raise problems.Problem("conflict", detail, reason="partitioned")
    return info


def name_text(call: Call, parameter: str) -> str | None:
    """A query parameter that is (the beginning of) a queue's name. Raises Problem 422."""
    text = call.query.get(parameter)
    if text:
        # Names may begin with dots, and not be them.
        names.queue_key(f"{text}_" if text in (".", "..") else text, f"query.{parameter}")
    return text or None


def whole_number(call: Call, name: str, default: int, *, least: int, most: int) -> int:
    """A query parameter that is a whole number. Raises Problem 422."""
    text = call.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise problems.invalid(f"query.{name}", f"is a whole number from {least} to {most:,}")
    return int(text)


def seconds(call: Call, name: str, *, least: float, most: float) -> float | None:
    """A query parameter in seconds. Raises Problem 422."""
    text = call.query.get(name)
    if text is None:
        return None
    try:
        value = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise problems.invalid(f"query.{name}", f"is a number of seconds from {least:g} to {most:,.0f}")
    return value
