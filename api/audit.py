"""The audit log: who did what to queues, topics, schedules, members and tokens, and who was refused.

One line an operation, by the logger `raftq.audit`, on the node that did it or refused it: what was only sent on is in
the log of the node that it came to. Nothing of a request but its method, its route and its names comes in, never a
token's secret, even where a client wrote one into a path.
Invariant: no client without a token can fill the log. Of refusals, each status for itself, so many a second have a line
of their own; the others are counted, and told in one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import hdrs

from raftq.api import names, token
from raftq.api.leader import FORWARDED

if TYPE_CHECKING:
    from raftq.api.call import Call

REFUSALS = (401, 403)
#: Of one status, that have a line of their own in a second.
LINES_A_SECOND = 10
#: Named in the line of the others.
ADDRESSES_MAX = 5
_TEXT_MAX = 128

_log = structlog.get_logger("raftq.audit")


class Audit:
    def __init__(self) -> None:
        self._refused = {status: _Second(status) for status in REFUSALS}

    def tell(self, call: Call, status: int, operation: str | None = None, name: str = "") -> None:
        """Of what was answered with `status`: a request, or an operation of a stream on the queue `name`."""
        if status not in REFUSALS:
            _log.info("operation", **_line(call, status, operation, name))
        elif self._refused[status].has_room(_remote(call)):
            _log.info("refused", **_line(call, status, operation, name))

    def close(self) -> None:
        for second in self._refused.values():
            second.end()


class _Second:
    """Refusals with one status, from the first on, for a second."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._lines = 0
        self._joined = 0
        self._addresses: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self, remote: str) -> bool:
        """For a line of its own; else it is counted."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1.0, self.end)
        if self._lines < LINES_A_SECOND:
            self._lines += 1
            return True
        self._joined += 1
        if len(self._addresses) < ADDRESSES_MAX:
            self._addresses[remote] = None
        return False

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._joined:
            _log.info("more refused", status=self._status, requests=self._joined, addresses=list(self._addresses))
        self._lines = self._joined = 0
        self._addresses = {}


def _line(call: Call, status: int, operation: str | None, name: str) -> dict[str, Any]:
    request, route = call.request, call.route
    known = call.token
    line = {
        "token": "-" if known is None else known.id,
        "token_name": "-" if known is None else known.name,
        "remote": _remote(call),
        "method": operation or request.method,
        "route": "" if route is None else route.pattern,
        "namespace": names.namespace(),
        "resource": _clean(name or "/".join(call.parameters)),
        "status": status,
    }
    if known is None and (claimed := token.parse(request.headers.get(hdrs.AUTHORIZATION, "").rpartition(" ")[2])):
        line["claims"] = claimed.id  # not proven
    if FORWARDED in request.headers:
        line["forwarded_by"] = _clean(request.headers[FORWARDED])  # as the sender says
    return line


def _remote(call: Call) -> str:
    return call.request.remote or "-"


def _clean(text: str) -> str:
    """On one line, in ASCII, without a secret."""
    return token.redacted(text[:_TEXT_MAX]).encode("unicode_escape").decode("ascii")
