"""A follower passes requests on to a leader at https: whom it trusts, and what it does not send."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from raftq.node.authority import Authority
from tests.api.shard import LocalNode

PROXY = {"Raftq-Forward": "proxy"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "tls")
    made.issue("n1", [])
    return made


@pytest.fixture
def served(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate_of("n1"), authority.key_of("n1"))
    return context


@pytest.fixture
async def leader(served: ssl.SSLContext) -> AsyncIterator[LocalNode]:
    node = LocalNode()
    await node.start(served)
    yield node
    await node.api.stop(1.0)


@pytest.fixture
async def follower(leader: LocalNode, served: ssl.SSLContext) -> AsyncIterator[LocalNode]:
    node = LocalNode("n2")
    await node.start(served)
    node.follow(leader.url)
    yield node
    await node.api.stop(1.0)


@pytest.fixture
async def session(authority: Authority) -> AsyncIterator[aiohttp.ClientSession]:
    trusting = ssl.create_default_context(cafile=authority.certificate)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
        yield session


async def test_requests_and_streams_go_on_to_a_leader_that_is_trusted(
    follower: LocalNode, leader: LocalNode, authority: Authority, session: aiohttp.ClientSession
) -> None:
    asked = []

    def trust() -> ssl.SSLContext:
        asked.append(True)
        return ssl.create_default_context(cafile=authority.certificate)

    follower.api.leader.ssl = trust
    async with session.post(f"{follower.url}/q/jobs", data=b"hello") as answer:
        assert answer.status == 201
    async with session.ws_connect(f"{follower.url}/v1/stream", protocols=("raftq.v1.json",)) as stream:
        await stream.send_json({"op": "enqueue", "id": 1, "queue": "jobs", "body": "more"})
        [item] = await stream.receive_json()
        assert item["answer"]["messages"][0]["id"]
    assert leader.shard.index == 2
    assert len(asked) == 2


async def test_a_leader_that_is_not_trusted_is_told_nothing(
    follower: LocalNode, leader: LocalNode, session: aiohttp.ClientSession
) -> None:
    async with session.post(f"{follower.url}/q/jobs", data=b"hello") as answer:
        problem = await answer.json(content_type=None)
    assert (answer.status, problem["applied"]) == (503, "no")
    assert problem["type"].endswith("/unreachable-leader")
    assert leader.shard.index == 0


async def test_a_token_that_came_by_tls_does_not_go_on_without(
    follower: LocalNode, session: aiohttp.ClientSession
) -> None:
    plain = LocalNode()
    await plain.start()
    follower.follow(plain.url)
    secret = {"Authorization": "Bearer rq_secret"}
    async with session.post(f"{follower.url}/q/jobs", data=b"hello", headers=secret) as answer:
        text = await answer.text()
    assert (answer.status, "has no TLS" in text, "secret" in text) == (503, True, False)
    async with session.get(f"{follower.url}/v1/stream", headers=secret) as answer:
        assert answer.status in (400, 503)
    async with session.post(f"{follower.url}/q/jobs", data=b"hello") as answer:
        assert answer.status == 201
    assert plain.shard.index == 1
    await plain.api.stop(1.0)
