"""The OpenAPI 3.1 document, made of the table of routes: nothing in it is written a second time.

Of a route come the path, what it takes and gives, and whether it needs the leader; of its handler the summary (the
docstring, after method and path); of the structs the schemas, with the `#:` comments as descriptions of fields; of
`problems.py` the answers that are no success. What is here is what none of those can say: what parameters of paths
and queries are, which problems follow from what a route is, and how one operation follows from another (links).
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from raftq.api import names, problems
from raftq.api.answer_schemas import Media, ProblemShown
from raftq.api.answers import JSON, Answer
from raftq.api.auth import Need
from raftq.api.call import FORWARD, MSGPACK, Call
from raftq.api.ports import Limits
from raftq.api.reads import PAGE_MAX
from raftq.api.routing import Handler, Route
from raftq.api.schemas import LEASE_SECONDS_MAX, Schema

NAME = {"type": "string", "pattern": names.NAME_PATTERN}
#: Parameters of paths that are no names.
PATH: dict[str, Any] = {
    "id": {"type": "string", "description": "As the answer gave it that made it.", "example": "1-0-1"},
    "receipt": {"type": "string", "pattern": names.RECEIPT_PATTERN, "description": "As the lease gave it."},
    "asset": {"type": "string", "description": "A file of the page."},
}
#: Parameters of queries. Texts like `limits.wait_seconds` are replaced by that limit of the node.
QUERY: dict[str, Any] = {
    "consistency": {
        "enum": ["linearizable", "stale"],
        "default": "linearizable",
        "description": "stale: any node answers from what it has applied.",
    },
    "cursor": {"type": "string", "description": "The `cursor` of the page before."},
    "limit": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "description": "Of the page."},
    "queue": NAME | {"description": "Only this queue."},
    "queues": {"type": "boolean", "description": "Adds the messages of each queue; so do prefix, limit and cursor."},
    "prefix": {
        "type": "string",
        "pattern": rf"^[A-Za-z0-9._-]{{0,{names.NAME_CHARACTERS_MAX}}}$",
        "description": "What the names begin with.",
    },
    "state": {"enum": ["ready", "delayed", "leased"], "default": "ready", "description": "Of the messages."},
    "stats": {"type": "boolean", "default": False, "description": "Adds the counts of each queue."},
    "wait": {
        "type": "number",
        "minimum": 0,
        "maximum": "limits.wait_seconds",
        "default": 0,
        "description": "Seconds to wait for a message.",
    },
    "lease": {
        "type": "number",
        "minimum": 0.001,
        "maximum": LEASE_SECONDS_MAX,
        "description": "Seconds to lease it for. Without, it is acked at once: at most once.",
    },
}

#: Of every request: `request_seconds` says how long a request id is kept, and needs one.
_KEPT = {
    "if": {"required": ["request_seconds"], "properties": {"request_seconds": {"type": "number"}}},
    "then": {"required": ["request_id"], "properties": {"request_id": {"type": "string"}}},
}

#: From the answer of one operation to the next: operation -> status -> link -> (operation, parameters, body).
_QUEUE = {"queue": "$request.path.queue"}
_TOPIC = {"topic": "$request.path.topic"}
_SUBSCRIPTION = _TOPIC | _QUEUE
_SCHEDULE = {"schedule": "$request.path.schedule"}
_MADE = {"id": "$response.body#/id"}
_FIRST = "$response.body#/messages/0/"
_RECEIPTS = [f"{_FIRST}receipt"]
LINKS: dict[str, dict[int, dict[str, tuple[str, dict[str, str], Any]]]] = {
    "queues_define": {
        status: {
            "read": ("queues_read", _QUEUE, None),
            "enqueue": ("messages_enqueue", _QUEUE, None),
            "redrive": ("redrives_begin", _QUEUE, None),
            "remove": ("queues_remove", _QUEUE, None),
        }
        for status in (200, 201)
    },
    "messages_enqueue": {
        201: {
            "lease": ("leases_lease", _QUEUE, {"max": 1}),
            "read": ("messages_read_one", _QUEUE | {"id": f"{_FIRST}id"}, None),
            "delete": ("operations_delete_message", _QUEUE | {"id": f"{_FIRST}id"}, None),
        }
    },
    "leases_lease": {
        200: {
            name: (f"settlements_{name}", _QUEUE, {"receipts": _RECEIPTS})
            for name in ("ack", "nack", "release", "extend", "reject")
        }
        | {
            f"{name} in a transaction": (
                "transactions_transact",
                {},
                {"operations": [{name: {"queue": "$request.path.queue", "receipts": _RECEIPTS}}]},
            )
            for name in ("ack", "nack", "release", "reject")
        }
    },
    "redrives_begin": {202: {"read": ("redrives_read", _QUEUE, None), "cancel": ("redrives_cancel", _QUEUE, None)}},
    "topics_define": {
        status: {
            "subscribe": ("topics_subscribe", _TOPIC, None),
            "publish": ("topics_publish", _TOPIC, None),
            "remove": ("topics_remove", _TOPIC, None),
        }
        for status in (200, 201)
    },
    "topics_subscribe": {
        status: {
            "read": ("topics_read_subscription", _SUBSCRIPTION, None),
            "publish": ("topics_publish", _TOPIC, None),
            "lease": ("leases_lease", _QUEUE, {"max": 1}),
            "unsubscribe": ("topics_unsubscribe", _SUBSCRIPTION, None),
        }
        for status in (200, 201)
    },
    "schedules_define": {
        status: {"read": ("schedules_read", _SCHEDULE, None), "remove": ("schedules_remove", _SCHEDULE, None)}
        for status in (200, 201)
    },
    "tokens_create": {201: {"read": ("tokens_read", _MADE, None), "revoke": ("tokens_revoke", _MADE, None)}},
    "curl_take_one": {
        200: {"ack": ("curl_ack", _QUEUE | {"receipt": "$response.header.Raftq-Receipt"}, None)},
    },
}

#: Paths of what is of a namespace.
_NAMESPACED = ("/v1/queues", "/v1/topics", "/v1/transactions", "/v1/schedules", "/v1/stream", "/v1/events", "/q/")
_PARAMETERS = re.compile(r"{(\w+)}")
#: `POST /v1/queues/{queue}/lease: ` at the beginning of a docstring.
_PLACE = re.compile(r"[A-Z]+ /\S*[^\s:,.]?[:,.]?\s*")
_CLASS = re.compile(r"^class (\w+).*\n((?:(?:[ )].*)?\n)*)", re.MULTILINE)
_FIELD = re.compile(r"((?:^ *#: ?.*\n)+)^ *(\w+):", re.MULTILINE)
#: The security scheme.
_TOKEN = "token"  # noqa: S105 - its name
_REF = "#/components/schemas/{name}"


async def read(call: Call) -> Answer:
    """GET /openapi.json: Describe this API."""
    api = call.api
    if api.document is None:
        # Once, and not in the loop: that would hold up a leader's heartbeats.
        node = call.node
        made = await asyncio.to_thread(document, api.routes.all, node.limits, tokens_required=node.tokens_required)
        api.document = msgspec.json.encode(made)
    return Answer(api.document, headers=[("Cache-Control", "no-cache")])


def document(routes: Iterable[Route], limits: Limits, *, tokens_required: bool = False) -> dict[str, Any]:
    """Of `routes`, at a node with these limits, that needs tokens or not. What a route lacks is left out: a test tells
    of it."""
    routes = list(routes)
    schemas = _Schemas(routes)
    ids = operation_ids(routes)
    responses: dict[str, Any] = {}
    paths: dict[str, Any] = defaultdict(dict)
    for route in routes:
        operation = _operation(route, ids, schemas, responses)
        paths[route.pattern][route.method.lower()] = operation | _security(route, tokens_required=tokens_required)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "raftq",
            "version": "1",
            "summary": "A message queue for work you cannot lose.",
            "description": "Any node answers. What needs the leader is redirected to it (307), or proxied with "
            f"`{FORWARD}: proxy`. Fields and parameters that are not here are refused, none is ignored.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(tag(route.handler) for route in routes)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": responses,
            "securitySchemes": {_TOKEN: {"type": "http", "scheme": "bearer", "bearerFormat": "rq_..."}},
        },
    }
    return _with_limits(made, limits)  # type: ignore[no-any-return]


def _security(route: Route, *, tokens_required: bool) -> dict[str, Any]:
    """Where a node needs no tokens, it takes requests with one all the same."""
    if route.needs is Need.NOTHING:
        return {"security": []}
    without = not tokens_required or route.needs is Need.HEALTH
    return {"security": [{_TOKEN: []}, *([{}] if without else [])], "x-raftq-needs": route.needs.value}


def tag(handler: Handler) -> str:
    """The module of a handler."""
    return handler.__module__.rpartition(".")[2]


def operation_ids(routes: Iterable[Route]) -> dict[Route, str]:
    """`{module}_{function}` of the handler, which several routes may share: those after the first end in the method."""
    ids: dict[Route, str] = {}
    for route in routes:
        name = f"{tag(route.handler)}_{route.handler.__name__}"
        ids[route] = f"{name}_{route.method.lower()}" if name in ids.values() else name
    return ids


def _operation(route: Route, ids: dict[Route, str], schemas: _Schemas, responses: dict[str, Any]) -> dict[str, Any]:
    summary, description = words(route.handler)
    operation = {
        "operationId": ids[route],
        "tags": [tag(route.handler)],
        "summary": summary,
        "parameters": _parameters(route),
        "responses": _successes(route, ids, schemas) | _failures(route, responses),
    }
    if description:
        operation["description"] = description
    if route.takes is not None:
        operation["requestBody"] = schemas.request(route.takes)
    return operation


def words(handler: Handler) -> tuple[str, str]:
    """The summary and what follows it: the docstring's first sentence, without method and path, and the rest."""
    text = " ".join((inspect.getdoc(handler) or "").split())
    text = _PLACE.sub("", text, count=1) if _PLACE.match(text) else text
    summary, _, rest = text.partition(". ")
    return summary[:1].upper() + summary[1:].removesuffix("."), rest


def _parameters(route: Route) -> list[dict[str, Any]]:
    places = _PARAMETERS.findall(route.pattern)
    made = [_parameter("path", name, PATH.get(name, NAME)) | {"required": True} for name in places]
    made += [_parameter("query", name, QUERY.get(name, {"type": "string"})) for name in sorted(route.query)]
    if route.pattern.startswith(_NAMESPACED):
        about = {"default": names.NAMESPACE, "description": "A request sees nothing of what is of another."}
        made.append(_parameter("header", names.NAMESPACE_HEADER, NAME | about))
    if sent_on(route) and not route.proxied:
        text = "proxy: a node that does not lead passes the request on, and does not redirect."
        made.append(_parameter("header", FORWARD, {"enum": ["proxy"], "description": text}))
    return made


def _parameter(where: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    told = {name: schema[name] for name in ("description", "example") if name in schema}
    return {"name": name, "in": where, "schema": {k: v for k, v in schema.items() if k not in told}} | told


def sent_on(route: Route) -> bool:
    """It may need the leader."""
    return route.leader or "consistency" in route.query


def kinds(route: Route) -> list[str]:
    """The problems that may be answered: those that follow from what the route is, and its own."""
    found = ["malformed", "invalid", "internal", *route.problems]
    if route.needs is not Need.NOTHING:
        found += ["unauthorized", "forbidden"]
    if not route.always:
        found.append("stopping")
    if route.takes is not None or sent_on(route):
        # A body is read to be passed on, too.
        found += ["timeout", "too-large", "expectation-failed", "unsupported-media-type"]
    if "{queue}" in route.pattern and route.method != "PUT":
        found.append("unknown-queue")
    if sent_on(route):
        found += ["no-leader", "unreachable-leader"] + ([] if route.proxied else ["not-leader"])
    if route.leader:
        found += ["overloaded", "outcome-unknown", "conflict"]
    if route.large:
        found.append("disk-reserve")
    return sorted(set(found), key=list(problems.KINDS).index)


def _failures(route: Route, responses: dict[str, Any]) -> dict[str, Any]:
    """By status; what several operations answer alike is written once, into `responses`."""
    statuses: dict[int, list[str]] = defaultdict(list)
    for kind in kinds(route):
        statuses[problems.KINDS[kind][0]].append(kind)
    made = {}
    for status, alike in sorted(statuses.items()):
        name = ".".join(alike)
        responses[name] = _failure(status, alike)
        made[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return made


def _failure(status: int, alike: list[str]) -> dict[str, Any]:
    types = {"properties": {"type": {"enum": [problems.TYPES + kind for kind in alike]}, "status": {"const": status}}}
    told = "; ".join(f"`{kind}`: {problems.KINDS[kind][1]}" for kind in alike)
    schema = {"allOf": [{"$ref": _REF.format(name=ProblemShown.__name__)}, types]}
    headers = {
        307: "Location",
        401: "WWW-Authenticate",
        405: "Allow",
        429: "Retry-After",
        503: "Retry-After",
        507: "Retry-After",
    }
    made = {"description": told, "content": {problems.CONTENT_TYPE: {"schema": schema}}}
    if status in headers:
        made["headers"] = {headers[status]: {"schema": {"type": "string"}}}
    return made


def _successes(route: Route, ids: dict[Route, str], schemas: _Schemas) -> dict[str, Any]:
    made = {}
    for status, answered in route.gives.items():
        made[str(status)] = schemas.response(answered, head=route.method == "HEAD")
        links = LINKS.get(ids[route], {}).get(status, {})
        known = {name: link for name, link in links.items() if link[0] in ids.values()}
        if known:
            made[str(status)]["links"] = {name: _link(*link) for name, link in known.items()}
    return made


def _link(operation: str, parameters: dict[str, str], body: Any) -> dict[str, Any]:
    made = {"operationId": operation, "parameters": parameters}
    return made if body is None else made | {"requestBody": body}


class _Schemas:
    """The components of all structs that requests and answers have."""

    def __init__(self, routes: Iterable[Route]) -> None:
        structs: dict[Any, None] = {ProblemShown: None}
        for route in routes:
            for one in (route.takes, *route.gives.values()):
                if one is not None and not isinstance(one, Media):
                    structs[one.struct if isinstance(one, Schema) else one] = None
        refs, self.components = msgspec.json.schema_components(structs, ref_template=_REF)
        self._refs = dict(zip(structs, refs, strict=True))
        requests = {route.takes.struct for route in routes if isinstance(route.takes, Schema)}
        for struct in _all_structs(structs):
            component = self.components[struct.__name__]
            _describe(struct, component)
            component |= getattr(struct, "BEYOND_TYPES", {})
            if "request_seconds" in component["properties"]:
                component |= _KEPT
        for struct in set(_all_structs(structs)) - set(_all_structs(requests)):
            # An answer may gain fields.
            self.components[struct.__name__].pop("additionalProperties", None)

    def request(self, takes: Schema[Any] | Media) -> dict[str, Any]:
        if isinstance(takes, Media):
            return {"description": takes.about, "content": {media: {"schema": {}} for media in takes.types}}
        ref = self._refs[takes.struct]
        component = self.components[takes.struct.__name__]
        needed = bool(component.get("required")) or "anyOf" in component
        return {"required": needed, "content": {media: {"schema": ref} for media in (JSON, MSGPACK)}}

    def response(self, answered: Any, *, head: bool) -> dict[str, Any]:
        if answered is None:
            return {"description": "Nothing."}
        if isinstance(answered, Media):
            made: dict[str, Any] = {"description": answered.about}
            if not head:
                made["content"] = {media: {} for media in answered.types}
            if answered.headers:
                made["headers"] = {
                    name: {"description": about, "schema": {"type": "string"}}
                    for name, about in answered.headers.items()
                }
            return made
        ref = self._refs[answered]
        about = " ".join((inspect.getdoc(answered) or "").split())
        return {"description": about, "content": {media: {"schema": ref} for media in (JSON, MSGPACK)}}


def _all_structs(types: Iterable[Any]) -> list[Any]:
    """Those that the fields of `types` hold, too."""
    found: dict[Any, None] = {}

    def walk(info: Any) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                return
            found[info.cls] = None
        for name in getattr(info, "__struct_fields__", ()):
            for inner in _several(getattr(info, name)):
                if isinstance(inner, msgspec.inspect.Field):
                    inner = inner.type
                if isinstance(inner, msgspec.inspect.Type):
                    walk(inner)

    for info in msgspec.inspect.multi_type_info(list(types)):
        walk(info)
    return list(found)


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _describe(struct: type, component: dict[str, Any]) -> None:
    """Give the properties their `#:` comments."""
    for base in reversed(struct.__mro__):
        for name, text in _comments(base.__module__).get(base.__name__, {}).items():
            if name in component["properties"]:
                component["properties"][name] = {**component["properties"][name], "description": text}


@cache
def _comments(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> its comment. `inspect.getsource` of each class would take half a second."""
    if not module.startswith("raftq."):
        return {}
    found: dict[str, dict[str, str]] = {}
    for name, body in _CLASS.findall(inspect.getsource(sys.modules[module])):
        found[name] = {
            field: " ".join(line.strip().removeprefix("#:").strip() for line in comment.splitlines())
            for comment, field in _FIELD.findall(body)
        }
    return found


def _with_limits(value: Any, limits: Limits) -> Any:
    """`value` with `limits.NAME` replaced by what it is."""
    if isinstance(value, dict):
        return {key: _with_limits(inner, limits) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_limits(inner, limits) for inner in value]
    if isinstance(value, str) and value.startswith("limits."):
        return getattr(limits, value.removeprefix("limits."))
    return value
