"""From a method and a path to a handler: a tree of path segments, walked by dict lookups.

A pattern's `{name}` takes one segment, percent-decoded. A known path with another method is 405, an unknown one 404.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from raftq.api.answer_schemas import Media
from raftq.api.answers import Answer
from raftq.api.auth import Need
from raftq.api.call import Call
from raftq.api.problems import Problem
from raftq.api.schemas import Schema

Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(slots=True, eq=False)
class Route:
    method: str
    pattern: str
    handler: Handler
    #: Of the token of its requests. It has no default: a new route says it.
    needs: Need
    #: The query parameters that it takes; any other is answered 422.
    query: frozenset[str] = frozenset()
    #: Only the leader can do it: elsewhere it is redirected or proxied before it is read.
    leader: bool = False
    #: A client that cannot follow a redirect uses it (curl): always proxied.
    proxied: bool = False
    #: A WebSocket whose handler passes it on to the leader by itself.
    relayed: bool = False
    #: The request may hold as much as a batch of messages.
    large: bool = False
    #: Answered by a node that is stopping, too.
    always: bool = False
    #: What the body holds, for the OpenAPI document: the schema that the handler decodes it with.
    takes: Schema[Any] | Media | None = None
    #: Status of success -> what the body of the answer holds, for the OpenAPI document: a struct of `answer_schemas`.
    gives: Mapping[int, Any] = field(default_factory=dict)
    #: Kinds of problems that do not follow from the rest: see `openapi.kinds`.
    problems: tuple[str, ...] = ()
    #: Answers by status, for `/metrics`.
    answered: Counter[int] = field(default_factory=Counter)
    #: Its requests go into the audit log, whatever comes of them.
    audited: bool = field(init=False)

    def __post_init__(self) -> None:
        self.audited = self.needs in (Need.ADMIN, Need.CLUSTER)

    def is_sent_on(self, call: Call) -> bool:
        """By a node that does not lead, to the leader."""
        return self.leader or ("consistency" in self.query and call.query.get("consistency") != "stale")


class _Branch:
    __slots__ = ("methods", "parameter", "segments")

    def __init__(self) -> None:
        self.segments: dict[str, _Branch] = {}
        self.parameter: _Branch | None = None
        self.methods: dict[str, Route] = {}


class Routes:
    def __init__(self, routes: Iterable[Route]) -> None:
        self.all = tuple(routes)
        self._root = _Branch()
        for route in self.all:
            self._add(route)

    def _add(self, route: Route) -> None:
        branch = self._root
        for segment in route.pattern.split("/")[1:]:
            if segment.startswith("{"):
                branch.parameter = branch.parameter or _Branch()
                branch = branch.parameter
            else:
                branch = branch.segments.setdefault(segment, _Branch())
        assert route.method not in branch.methods, route
        branch.methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, list[str]]:
        """The route, and its path parameters in order. Raises Problem 404 or 405."""
        branch: _Branch | None = self._root
        parameters = []
        for segment in path.split("/")[1:]:
            below = branch.segments.get(segment)  # type: ignore[union-attr]
            if below is None:
                below = branch.parameter  # type: ignore[union-attr]
                if below is None:
                    raise _not_found(path)
                parameters.append(_decoded(segment) if "%" in segment else segment)
            branch = below
        assert branch is not None
        route = branch.methods.get(method)
        if route is None:
            raise _not_found(path) if not branch.methods else _not_allowed(method, path, sorted(branch.methods))
        return route, parameters


def _decoded(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError as error:
        raise Problem("malformed", "The path holds percent-escapes that are not UTF-8.") from error


def _not_found(path: str) -> Problem:
    detail = f"There is nothing at {path[:200]} in this version. The paths begin with /v1/queues, /v1/cluster and /q/."
    return Problem("not-found", detail)


def _not_allowed(method: str, path: str, allowed: list[str]) -> Problem:
    allow = ", ".join(allowed)
    return Problem("method-not-allowed", f"{path[:200]} takes {allow}, not {method[:20]}.", allow=allow)
