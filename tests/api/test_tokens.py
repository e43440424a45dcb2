"""Tokens over HTTP: made, listed, read and revoked; nothing gives a secret away."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from raftq.api import token
from raftq.replication.shard import OutcomeUnknown
from raftq.storage.machine import commands
from tests.api.conftest import Client, Reply, Serve
from tests.api.tokens import ALL, bearer, guarded

GIVEN = {
    "name": "billing",
    "namespace": "team",
    "grants": [{"scope": "produce", "names": "orders.*"}, {"scope": "consume", "names": "invoices"}],
}


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await guarded(serve)


@pytest.fixture
def cluster(client: Client) -> dict[str, str]:
    """The headers of a request with a cluster token."""
    return bearer(client, "admin:*", namespace="*")


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in (GIVEN | fields).items() if value is not ...}


async def test_a_token_is_told_once_and_good_at_once(client: Client, cluster: dict[str, str]) -> None:
    reply = await client("POST", "/v1/tokens", GIVEN, headers=cluster)
    assert (reply.status, reply.headers["Cache-Control"]) == (201, "no-store")
    found = reply.json
    parsed = token.parse(found.pop("token"))
    assert parsed is not None
    assert found == GIVEN | {"id": parsed.id, "created_at_ms": client.shard.clock_ms, "expires_at_ms": None}
    headers = {"Authorization": f"Bearer {token.text(parsed)}"}
    for queue, status in (("orders.new", 201), ("orders", 403)):
        reply = await client("POST", f"/v1/queues/{queue}/messages", {"body": 1}, headers=headers)
        assert reply.status == status
    assert (await client("GET", f"/v1/tokens/{parsed.id}", headers=cluster)).json == found
    assert client.shard.stale().token(parsed.id).digest == token.digest(parsed.secret)  # type: ignore[union-attr]


async def test_a_revoked_token_is_good_for_nothing(client: Client, cluster: dict[str, str]) -> None:
    made = (await client("POST", "/v1/tokens", GIVEN, headers=cluster)).json
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await client("GET", "/v1/cluster", headers=headers)).status == 200
    assert (await client("DELETE", f"/v1/tokens/{made['id']}", headers=cluster)).status == 204
    assert (await client("GET", "/v1/cluster", headers=headers)).status == 401
    for method in ("GET", "DELETE"):
        reply = await client(method, f"/v1/tokens/{made['id']}", headers=cluster)
        assert (reply.status, reply.json["type"]) == (404, "https://raftq.dev/problems/unknown-token")


async def test_tokens_are_listed_by_id_in_pages(client: Client, cluster: dict[str, str]) -> None:
    for number in range(5):
        await client("POST", "/v1/tokens", given(name=f"t{number}"), headers=cluster)
    found: list[Any] = []
    query = ""
    while True:
        page = (await client("GET", f"/v1/tokens?limit=4{query}", headers=cluster)).json
        found += page["tokens"]
        if page["cursor"] is None:
            break
        query = f"&cursor={page['cursor']}"
    assert len(found) == 6
    assert [one["id"] for one in found] == sorted(one["id"] for one in found)
    assert {one["name"] for one in found} == {"tests", *(f"t{number}" for number in range(5))}
    assert all(one.keys() == GIVEN.keys() | {"id", "created_at_ms", "expires_at_ms"} for one in found)
    assert (await client("GET", "/v1/tokens?cursor=zz", headers=cluster)).json["field"] == "query.cursor"


async def test_a_token_expires_when_it_was_told_to(client: Client, cluster: dict[str, str]) -> None:
    made = (await client("POST", "/v1/tokens", given(expires_seconds=10), headers=cluster)).json
    assert made["expires_at_ms"] == client.shard.clock_ms + 10_000
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await client("GET", "/v1/cluster", headers=headers)).status == 200
    client.shard.later(10)
    assert (await client("GET", "/v1/cluster", headers=headers)).status == 401


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ...}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"namespace": ""}, "namespace"),
        ({"namespace": "a*"}, "namespace"),
        ({"namespace": ".."}, "namespace"),
        ({"grants": ...}, "grants"),
        ({"grants": []}, "grants"),
        ({"grants": [{"scope": "admin", "names": "a"}] * 33}, "grants"),
        ({"grants": [{"scope": "root", "names": "a"}]}, "grants"),
        ({"grants": [{"scope": "admin"}]}, "grants"),
        ({"grants": [{"scope": "admin", "names": ""}]}, "grants[0].names"),
        ({"grants": [{"scope": "admin", "names": "."}]}, "grants[0].names"),
        ({"grants": [{"scope": "admin", "names": "a*b"}]}, "grants[0].names"),
        ({"grants": [{"scope": "admin", "names": "**"}]}, "grants[0].names"),
        ({"grants": [{"scope": "admin", "names": "*"}, {"scope": "admin", "names": "é*"}]}, "grants[1].names"),
        ({"grants": [{"scope": "admin", "names": "x" * 128 + "*"}]}, "grants[0].names"),
        ({"expires_seconds": 0}, "expires_seconds"),
        ({"expires_seconds": 1e12}, "expires_seconds"),
        ({"id": "0" * 12}, "id"),
        ({"secret": "x"}, "secret"),
    ],
)
async def test_what_is_wrong_is_named(
    client: Client, cluster: dict[str, str], fields: dict[str, Any], field: str
) -> None:
    reply = await client("POST", "/v1/tokens", given(**fields), headers=cluster)
    assert reply.status == 422
    assert field in reply.json["field"] or field in reply.json["detail"]
    assert not [one for one in client.shard.stale().tokens(9)[0] if one.name != "tests"]


@pytest.mark.parametrize("names", ["*", "a", ".*", "..a", "x" * 127 + "*", "x" * 128, "A-z_0.9"])
async def test_names_of_grants(client: Client, cluster: dict[str, str], names: str) -> None:
    grants = [{"scope": "admin", "names": names}]
    reply = await client("POST", "/v1/tokens", {"name": "t", "grants": grants}, headers=cluster)
    assert (reply.status, reply.json["grants"], reply.json["namespace"]) == (201, grants, "default")


async def test_all_nodes_are_upgraded_first(serve: Serve) -> None:
    client = await serve()
    reply = await client("POST", "/v1/tokens", GIVEN)
    assert (reply.status, reply.json["reason"]) == (409, "version")
    assert "Upgrade all nodes first" in reply.json["detail"]
    assert client.shard.index == 0


async def test_a_running_cluster_makes_its_tokens_before_it_needs_them(serve: Serve) -> None:
    client = await guarded(serve)
    client.node.tokens_required = False
    made = (await client("POST", "/v1/tokens", given(namespace="default"))).json
    client.node.tokens_required = True
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await client("GET", "/v1/cluster")).status == 401
    assert (await client("GET", "/v1/cluster", headers=headers)).status == 200


async def test_an_unknown_outcome_names_what_to_revoke(client: Client, cluster: dict[str, str]) -> None:
    client.shard.unsure = OutcomeUnknown()
    reply = await client("POST", "/v1/tokens", GIVEN, headers=cluster)
    assert (reply.status, reply.json["applied"]) == (503, "unknown")
    [made] = [one for one in client.shard.stale().tokens(9)[0] if one.name == "billing"]
    assert made.id in reply.json["detail"]


async def test_a_follower_passes_the_making_on(serve: Serve) -> None:
    follower, leader = await guarded(serve), await guarded(serve)
    follower.node.follow(leader.node.url)
    reply = await follower("POST", "/v1/tokens", GIVEN, headers=bearer(leader, "admin:*", namespace="*"))
    assert (reply.status, reply.headers["Cache-Control"]) == (201, "no-store")
    assert leader.shard.stale().token(reply.json["id"]) is not None


async def test_no_secret_is_in_a_log_an_error_or_a_metric(client: Client, cluster: dict[str, str]) -> None:
    """Wherever a client puts one, and whatever comes of it."""
    with capture_logs() as logs:
        made = (await client("POST", "/v1/tokens", GIVEN, headers=cluster)).json
        text, headers = made["token"], {"Authorization": f"Bearer {made['token']}"}
        secret = text[-43:]
        replies: list[Reply] = []
        for method, path, given_headers in (
            ("GET", f"/v1/tokens/{text}", cluster),
            ("DELETE", f"/v1/tokens/{text}", cluster),
            ("DELETE", f"/v1/tokens/{made['id']}", headers),
            ("GET", "/v1/cluster", {"Authorization": f"Basic {text}"}),
            ("GET", "/v1/cluster", {"Authorization": f"Bearer {text}x"}),
            ("POST", "/v1/queues/orders/messages", headers),
            ("GET", "/v1/tokens", cluster),
            ("GET", f"/v1/tokens/{made['id']}", cluster),
            ("GET", f"/v1/tokens?cursor={text}", cluster),
            ("GET", f"/v1/queues?token={text}", cluster),
            ("GET", f"/v2/{text}", {}),
            ("GET", f"/v1/queues/{text}%20", cluster),
            ("POST", f"/q/{text}/ack/1.1.0", cluster),
            ("GET", "/openapi.json", headers),
            ("GET", "/metrics", headers),
        ):
            replies.append(await client(method, path, headers=given_headers))
        client.shard.refuse = RuntimeError("the state is broken")
        replies.append(await client("PUT", f"/v1/queues/{text}", {}, headers=bearer(client, *ALL)))
        assert replies[-1].status == 500
        client.shard.refuse = None
        assert (await client("DELETE", f"/v1/tokens/{made['id']}", headers=cluster)).status == 204
        replies.append(await client("GET", "/v1/cluster", headers=headers))
    assert len(logs) >= 7
    assert secret not in str(logs)
    for reply in replies:
        told = f"{reply.headers} {reply.data.decode()}"
        assert secret not in told, told
    logged = [line for line in client.shard.applied if secret in str(commands.encode(line))]
    assert not logged, "what is replicated is a digest"
