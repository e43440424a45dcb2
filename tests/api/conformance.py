"""Holds every answer that the tests of the front see to the OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec

from raftq.api import openapi, problems
from raftq.api.answer_schemas import Media
from raftq.api.app import routes
from raftq.api.call import MSGPACK
from raftq.api.problems import Problem
from raftq.api.routing import Route, Routes

_ROUTES = Routes(routes())


def check(method: str, target: str, status: int, content_type: str, body: bytes) -> None:
    """Fails when the route's row in `app.py`, which the document is made of, does not allow this answer."""
    try:
        route, _ = _ROUTES.find(method, target.partition("?")[0])
    except Problem:
        return
    where = f"{route.method} {route.pattern}"
    if content_type == problems.CONTENT_TYPE:
        kind = msgspec.json.decode(body)["type"].removeprefix(problems.TYPES) if body else None
        assert kind is None or kind in openapi.kinds(route), (
            f"{where} answered {kind}: add it to the route's `problems`"
        )
        return
    # Routes without `gives` are for test_openapi to tell of.
    if route.gives:
        assert status in route.gives, f"{where} answered {status}: add it to the route's `gives`"
        _check_success(where, route, route.gives[status], content_type, body)


def _check_success(where: str, route: Route, answered: Any, content_type: str, body: bytes) -> None:
    if answered is None:
        assert not body, where
    elif isinstance(answered, Media):
        assert content_type.partition(";")[0] in answered.types, f"{where} answered {content_type}"
    elif route.method != "HEAD":
        format_ = msgspec.msgpack if content_type == MSGPACK else msgspec.json
        try:
            format_.decode(body, type=answered)
        except msgspec.ValidationError as error:
            raise AssertionError(
                f"{where}: the answer is not the {answered.__name__} of answer_schemas: {error}"
            ) from None
