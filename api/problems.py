"""Problems: every answer that is not a success, as RFC 9457 `application/problem+json`.

Owns the catalogue of problem types and the one mapping from what the parts below raise to what a client reads. Each
problem says what to do (`detail`) and whether the request took effect (`applied`): `no`, it certainly did not, or
`unknown`, it may have: retry it with the same `request_id` or `dedup_id`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from raftq.api import token
from raftq.replication import shard

#: Problem types are stable; documents stand at these addresses.
TYPES = "https://raftq.dev/problems/"
CONTENT_TYPE = "application/problem+json"

Applied = Literal["no", "unknown"]

#: Slug -> (status, title).
KINDS = {
    "malformed": (400, "The request could not be read"),
    "unauthorized": (401, "The request has no token that is good"),
    "forbidden": (403, "The token may not do this"),
    "not-leader": (307, "Another node leads"),
    "not-found": (404, "There is nothing at this path"),
    "unknown-queue": (404, "There is no such queue"),
    "unknown-message": (404, "There is no such message"),
    "unknown-topic": (404, "There is no such topic"),
    "unknown-subscription": (404, "There is no such subscription"),
    "unknown-schedule": (404, "There is no such schedule"),
    "unknown-redrive": (404, "There was no redrive of this queue"),
    "unknown-token": (404, "There is no such token"),
    "unknown-node": (404, "There is no such node in the cluster"),
    "method-not-allowed": (405, "This path does not take this method"),
    "timeout": (408, "The request did not arrive in time"),
    "conflict": (409, "The request conflicts with what is there"),
    "transaction-refused": (409, "An operation of the transaction cannot be done"),
    "gone": (410, "The lease has passed, or the message was settled"),
    "too-large": (413, "The request is over a limit"),
    "unsupported-media-type": (415, "This content type is not understood"),
    "expectation-failed": (417, "This expectation cannot be met"),
    "invalid": (422, "A field of the request is invalid"),
    "overloaded": (429, "Too much is waiting"),
    "queue-full": (429, "The queue is full"),
    "internal": (500, "The node failed on this request"),
    "no-leader": (503, "The cluster has no leader now"),
    "outcome-unknown": (503, "It is not known whether the request took effect"),
    "stopping": (503, "The node is stopping"),
    "change-underway": (503, "Another change of the members is on its way"),
    "unreachable-leader": (503, "The leader could not be reached"),
    "disk-reserve": (507, "A node's disk is almost full"),
}


class Problem(Exception):
    """Answered to the client. Raised anywhere below the dispatch."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        applied: Applied = "no",
        retry_after: int | None = None,
        close: bool = False,
        allow: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = KINDS[kind]
        self.detail = detail
        self.applied = applied
        self.retry_after = retry_after
        #: The connection is of no more use.
        self.close = close
        self.allow = allow
        self.fields = fields

    def body(self) -> bytes:
        return msgspec.json.encode(self.document())

    def document(self) -> dict[str, Any]:
        """Text that came from the client may hold what is no Unicode; it is replaced, as is the secret of a token."""
        return {
            "type": TYPES + self.kind,
            "title": self.title,
            "status": self.status,
            "detail": _clean(self.detail),
            "applied": self.applied,
        } | {name: _clean(value) if isinstance(value, str) else value for name, value in self.fields.items()}

    def headers(self) -> list[tuple[str, str]]:
        headers = []
        if self.retry_after is not None:
            headers.append(("Retry-After", str(self.retry_after)))
        if self.allow is not None:
            headers.append(("Allow", self.allow))
        if self.status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        return headers


def _clean(text: str) -> str:
    return token.redacted(text.encode("utf-8", "replace").decode())


def invalid(field: str, detail: str) -> Problem:
    return Problem("invalid", f"{field}: {detail}", field=field)


def too_large(field: str, detail: str, *, close: bool = False) -> Problem:
    return Problem("too-large", detail, close=close, field=field)


_AT = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)


def undecodable(error: Exception) -> Problem:
    """Of what msgspec raises: 422 naming the field when the request is well formed, else 400."""
    if isinstance(error, msgspec.ValidationError):
        return _invalid_field(str(error))
    if isinstance(error, RecursionError):
        return Problem("malformed", "The request is nested too deeply: flatten it.")
    return Problem("malformed", f"{error}. Send one valid document, its text in UTF-8.")


def _invalid_field(text: str) -> Problem:
    at = _AT.search(text)
    field = at.group(1) if at else ""
    what = text[: at.start()] if at else text
    unknown = _UNKNOWN_FIELD.match(what)
    if unknown is None:
        return invalid(field or "request", what)
    name = unknown.group(1)
    field = f"{field}.{name}" if field else name
    return invalid(field, "there is no such field")


def refused(reason: str, detail: str, queue: str) -> Problem:
    """Of a `Refused` reply of the state machine."""
    if reason == "unknown_queue":
        return unknown_queue(queue)
    if reason == "unknown_topic":
        return unknown_topic(queue)
    if reason == "unknown_schedule":
        return unknown_schedule(queue)
    if reason == "unknown_subscription":
        return unknown_subscription(detail.partition(" ")[0])
    if reason == "unknown_message":
        return unknown_message()
    if reason == "unknown_token":
        return unknown_token()
    if reason == "unknown_redrive":
        return unknown_redrive()
    if reason == "invalid":
        field, colon, what = detail.partition(": ")
        return invalid(field, what) if colon and field.isidentifier() else invalid("request", detail)
    if reason == "too_large":
        return Problem("too-large", f"{detail}.")
    if reason == "full":
        return queue_full(detail, queue)
    return Problem("conflict", f"{detail or reason}. Nothing was changed.", reason=reason)


def unknown_message() -> Problem:
    detail = "It was settled or removed, or never was. A purge makes older ids mean nothing, as does a new queue."
    return Problem("unknown-message", detail)


def unknown_token() -> Problem:
    """Whatever was given may be a whole token: it is not repeated."""
    detail = "There is no token of this id: it was revoked, or never was. An id is the 12 characters after rq_."
    return Problem("unknown-token", detail)


def unknown_redrive() -> Problem:
    return Problem("unknown-redrive", "There was no redrive of this queue, or a purge made it be forgotten.")


def queue_full(detail: str, queue: str) -> Problem:
    """A limit of the queue, which `detail` names. Consumers make room."""
    name = queue.partition("/")[2]
    what = f"The queue {name} is full: {detail}. Retry, lease and ack more, or raise the limit."
    return Problem("queue-full", what, retry_after=1, queue=name)


def unknown_topic(topic: str) -> Problem:
    name = topic.partition("/")[2]
    return Problem("unknown-topic", f"There is no topic {name}: create it with PUT /v1/topics/{name}.", topic=name)


def unknown_schedule(schedule: str) -> Problem:
    name = schedule.partition("/")[2]
    detail = f"There is no schedule {name}: create it with PUT /v1/schedules/{name}."
    return Problem("unknown-schedule", detail, schedule=name)


def unknown_subscription(queue: str) -> Problem:
    name = queue.partition("/")[2]
    return Problem("unknown-subscription", f"The queue {name} is not subscribed to this topic.", queue=name)


def unknown_queue(queue: str) -> Problem:
    name = queue.partition("/")[2]
    return Problem("unknown-queue", f"There is no queue {name}: create it with PUT /v1/queues/{name}.", queue=name)


def no_leader() -> Problem:
    return Problem(
        "no-leader",
        "No leader is known now: an election runs, or a majority of the nodes is away. Retry.",
        retry_after=1,
    )


def of_shard(error: shard.ShardError) -> Problem:
    """Of what the shard raises, but for NotLeader of a known leader, which is sent on (`leader.py`)."""
    match error:
        case shard.NotLeader():
            return no_leader()
        case shard.Overloaded():
            return Problem("overloaded", "Too many operations are waiting. Slow down and retry.", retry_after=1)
        case shard.DiskReserve():
            detail = "The free disk of a node is below its reserve: make room. Leases, acks and deletes go on."
            return Problem("disk-reserve", detail, retry_after=10)
        case shard.Stopping():
            return stopping()
        case shard.ChangeUnderway():
            return Problem("change-underway", _sentence(error), retry_after=1)
        case shard.ChangeRefused():
            return Problem("conflict", _sentence(error))
        case shard.OutcomeUnknown():
            # 503 and not 504: no gateway timed out, the service lost its leader, and a retry is what helps.
            detail = "Leadership was lost before a majority confirmed: retry with the same request_id or dedup_id."
            return Problem("outcome-unknown", detail, applied="unknown", retry_after=1)
        case _:
            return Problem("internal", str(error), applied="unknown")


def _sentence(error: Exception) -> str:
    """What the parts below say begins with a name or in small letters, and has no full stop."""
    return f"{error}."


def stopping() -> Problem:
    return Problem("stopping", "This node is stopping: send the request to another.", retry_after=1, close=True)
