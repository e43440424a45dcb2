"""What the client raises.

RaftqError
├── NotApplied              it certainly did not happen
│   ├── Refused             a node said no, and why: status, type, title, detail, fields
│   │   ├── NotFound        there is no such queue or message
│   │   ├── Unauthorized    no token was given, or one that is unknown, revoked or expired
│   │   ├── Forbidden       the token does not allow it
│   │   └── Busy            the queue was full, or too much was waiting, until the deadline
│   └── Unavailable         no node could take it before the deadline; Busy is one, too
├── OutcomeUnknown          it may have happened, or not: ask again with the same request id
└── FileRefused             moving a file needs a person to decide something first; no line was lost by stopping
    └── FileInUse           another process moves the same file

An outcome is told as it is: what may have happened is never raised as NotApplied.
"""

from __future__ import annotations

from typing import Any


class RaftqError(Exception):
    """Base of all that the client raises."""


class NotApplied(RaftqError):
    """It certainly did not happen."""


class Refused(NotApplied):
    """A node refused the request, and says why: the fields of its problem document (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        #: Stable name of the kind of problem.
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", f"HTTP {status}"))
        #: What to do.
        self.detail = str(problem.get("detail", ""))
        #: The whole document, extensions included.
        self.fields = problem
        super().__init__(self.detail or self.title)


class NotFound(Refused):
    """There is no such queue or message."""


class Unauthorized(Refused):
    """A token is needed, and none was given, or one that is unknown, revoked or expired."""


class Forbidden(Refused):
    """The token does not allow it: its grants or its namespace are others."""


class Unavailable(NotApplied):
    """No node could take the request before the deadline. It did not happen; try again later."""


class Busy(Refused, Unavailable):
    """The queue was full (`type` ends with `queue-full`), or more was waiting than the leader takes, at every attempt
    until the deadline. It did not happen; try again later."""


def refused(status: int, problem: dict[str, Any]) -> Refused:
    """The exception of a refusal. Of a WebSocket the status is all that is known."""
    kind = {401: Unauthorized, 403: Forbidden, 404: NotFound}.get(status, Refused)
    return kind(status, problem or ({} if kind is Refused else {"title": kind.__doc__}))


class OutcomeUnknown(RaftqError):
    """The answer was lost: it may have happened, or not. Repeating it with the same request id is safe."""


class FileRefused(RaftqError):
    """Moving the file cannot go on until a person decides. Nothing was lost by stopping."""


class FileInUse(FileRefused):
    """Another process moves the same file."""
