"""The OpenAPI document: valid, whole, and what the node does. That each answer is as it says is checked for every
answer of these tests, by `conformance.check`, and by schemathesis in tests/cluster."""

from __future__ import annotations

import re
import threading
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from raftq.api import docs_page, openapi
from raftq.api.app import routes
from raftq.api.ports import Limits
from raftq.api.routing import Route
from raftq.api.schemas import Schema
from tests.api import conformance
from tests.api.conftest import Client, Serve

DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document(routes(), Limits())))
OPERATIONS = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
each_route = pytest.mark.parametrize("route", routes(), ids=lambda route: f"{route.method} {route.pattern}")

#: Clients are generated from these: one is never changed or taken away; new ones need not stand here.
OPERATION_IDS = """
    queues_define queues_read queues_change queues_remove queues_list_all stats_of_queue stats_of_all
    messages_enqueue messages_peek messages_read_one leases_lease
    settlements_ack settlements_nack settlements_release settlements_extend settlements_reject
    operations_delete_message operations_purge operations_pause operations_resume
    redrives_begin redrives_read redrives_cancel transactions_transact
    topics_define topics_read topics_remove topics_list_all topics_publish
    schedules_define schedules_read schedules_remove schedules_list_all
    topics_subscribe topics_subscriptions topics_read_subscription topics_unsubscribe
    cluster_describe cluster_transfer cluster_add cluster_remove cluster_digest cluster_snapshot
    cluster_health cluster_readiness metrics_scrape metrics_scrape_detailed
    curl_put curl_take_one curl_take_one_post curl_ack
"""


def component(name: str) -> dict[str, Any]:
    schema = DOCUMENT["components"]["schemas"][name]
    assert isinstance(schema, dict)
    return schema


@each_route
def test_every_route_is_documented(route: Route) -> None:
    """A route in `app.py` says what it `gives`, and `takes`; its handler's docstring what it does; `openapi.QUERY`
    what its query parameters are."""
    summary, _ = openapi.words(route.handler)
    missing = [name for name in route.query if name not in openapi.QUERY]
    assert route.gives, "it lacks `gives`: {status: a struct of answer_schemas, or a Media}"
    assert summary, f"the docstring of {route.handler.__name__} says nothing after method and path"
    assert not missing, "describe it in openapi.QUERY"
    if {"decode", "schemas"} <= set(route.handler.__code__.co_names):
        assert isinstance(route.takes, Schema), "it lacks `takes`: the schema that the handler decodes"
    assert route.method.lower() in DOCUMENT["paths"][route.pattern]


def test_the_document_is_valid() -> None:
    errors = [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]
    assert not errors


def test_operation_ids_are_stable() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS]
    assert len(ids) == len(set(ids))
    assert set(OPERATION_IDS.split()) <= set(ids)


def test_links_name_operations_that_are_there() -> None:
    ids = {operation["operationId"] for operation in OPERATIONS}
    links = [
        (link["operationId"], link["parameters"])
        for operation in OPERATIONS
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert {"settlements_ack", "leases_lease", "queues_remove", "messages_read_one", "curl_ack"} <= dict(links).keys()
    assert {name for name, _ in links} == {
        link[0] for statuses in openapi.LINKS.values() for given in statuses.values() for link in given.values()
    }
    assert {*dict(links), *openapi.LINKS} <= ids


def test_every_struct_and_field_is_once_what_the_requests_are_decoded_with() -> None:
    given = component("LeaseGiven")["properties"]
    assert given["max"] == {"type": "integer", "default": 1, "minimum": 1, "maximum": 1000}
    assert component("MessageGiven")["required"] == ["body"]
    assert component("MessageGiven")["additionalProperties"] is False
    assert component("MessageGiven")["properties"]["encoding"]["description"].startswith("base64: the body is a text")
    assert "additionalProperties" not in component("MessageLeased"), "an answer may gain fields"
    assert "limits." not in msgspec.json.encode(DOCUMENT).decode()


def test_an_enqueue_is_one_message_or_many() -> None:
    from openapi_schema_validator import OAS31Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    registry = Registry().with_resource("urn:raftq", DRAFT202012.create_resource(DOCUMENT))
    check = OAS31Validator({"$ref": "urn:raftq#/components/schemas/EnqueueGiven"}, registry=registry).is_valid
    for good in (
        {"body": None},
        {"body": 1, "priority": 3},
        {"messages": [{"body": 1}]},
        {"body": 1, "messages": None},
    ):
        assert check(good), good
    for bad in ({}, {"messages": []}, {"messages": [{}]}, {"body": 1, "messages": [{"body": 1}]}, {"body": 1, "zz": 1}):
        assert not check(bad), bad
    assert not check({"messages": [{"body": 1}], "priority": 3})


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
async def test_answers_written_by_hand_are_what_the_document_says(client: Client, accept: str) -> None:
    """Enqueue, lease and settle write bytes; `client` holds each of these to its struct."""
    headers = {"Accept": accept}
    queue = "/v1/queues/jobs"
    messages = [
        {"body": 1},
        {"body": "eA==", "encoding": "base64"},
        {"body": {}, "attributes": {"k": 1.5}, "priority": 3},
    ]
    once = {"body": "x", "dedup_id": "d"}
    await client("POST", f"{queue}/messages", {"messages": messages}, headers=headers)
    for _ in range(2):
        await client("POST", f"{queue}/messages", once, headers=headers)
    for state in ("ready", "leased"):
        await client("GET", f"{queue}/messages?state={state}", headers=headers)
    receipts = [message["receipt"] for message in await client.lease(max=10)]
    assert len(receipts) == 4
    for way in ("extend", "nack", "release", "ack"):
        await client("POST", f"{queue}/{way}", {"receipts": receipts[:2]}, headers=headers)
    await client("POST", f"{queue}/lease", {"max": 10}, headers=headers)
    await client("POST", f"{queue}/lease", {}, headers=headers)


def test_another_answer_than_documented_fails_the_tests() -> None:
    lease = ("POST", "/v1/queues/jobs/lease")
    conformance.check(*lease, 200, "application/json", b'{"messages":[]}')
    for status, content_type, body in (
        (201, "application/json", b'{"messages":[]}'),
        (200, "application/json", b'{"messages":[],"more":1}'),
        (200, "application/json", b"{}"),
        (200, "application/msgpack", b"\x80"),
        (404, "application/problem+json", b'{"type":"https://raftq.dev/problems/unknown-node"}'),
    ):
        with pytest.raises(AssertionError, match=r"POST /v1/queues/\{queue\}/lease"):
            conformance.check(*lease, status, content_type, body)


async def test_the_node_serves_it_with_its_own_limits(serve: Serve) -> None:
    client = await serve(Limits(lease_messages=7))
    reply = await client("GET", "/openapi.json")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.json["components"]["schemas"]["LeaseGiven"]["properties"]["max"]["maximum"] == 7
    assert (await client("GET", "/openapi.json")).data == reply.data


async def test_it_is_made_once_and_not_in_the_loop(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loop it cost a leader its leadership."""
    made = openapi.document
    threads = []

    def watched(*given: Any, **options: Any) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return made(*given, **options)

    monkeypatch.setattr(openapi, "document", watched)
    for _ in range(3):
        assert (await client("GET", "/openapi.json")).status == 200
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_the_page_loads_nothing_from_elsewhere(client: Client) -> None:
    page = await client("GET", "/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.data.decode())
    assert len(loaded) >= 4
    assert not re.findall(rb"<script>|https?:|\bon\w+=", page.data), "no inline script, nothing of the internet"
    for path in loaded:
        reply = await client("GET", f"/{path}")
        assert reply.status == 200, path
        assert len(reply.data) > 100
        assert path == "openapi.json" or reply.headers["X-Content-Type-Options"] == "nosniff"
    assert set(docs_page.ASSETS) <= {path.removeprefix("docs/") for path in loaded}


@pytest.mark.parametrize("asset", ["index.html", "..%2f__init__.py", "../app.py", "", "start.js%00"])
async def test_the_page_has_no_other_files(client: Client, asset: str) -> None:
    assert (await client("GET", f"/docs/{asset}")).status == 404
