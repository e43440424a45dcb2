"""Goal: a token goes to the nodes of its cluster and to nobody else, and is seen nowhere; what a node says of it is
raised at once. Method: scripted nodes, of which some lie; and a real one behind TLS."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import Forbidden, NotApplied, RaftqError, Unauthorized, Unavailable
from raftq.client.models import Grant, MadeToken, NewMessage
from raftq.client.transport import AiohttpTransport, Answer, Distrusted, Exchange, Lost
from raftq.node.authority import Authority
from raftq.storage.machine.commands import SetVersion
from raftq.storage.machine.tokens import TOKENS_VERSION
from tests.client.nodes import IMPATIENT, Node, ScriptedTransport, answer, problem, running

SECRET = "s" * 43
TOKEN = f"rq_0123456789ab_{SECRET}"
A, B, STRANGER = "https://a:1", "https://b:1", "https://stranger:1"
ENQUEUED = answer({"messages": [{"id": "1-0-1"}], "index": 7}, 201)
HELLO = [NewMessage(body="hello")]


def cluster(leader: str, *urls: str) -> Answer:
    nodes = [{"id": url, "api_url": url} for url in urls]
    return answer({"cluster_id": "c", "leader": leader, "term": 1, "nodes": nodes})


def client_with(script: Callable[[Exchange], Answer], *seeds: str) -> tuple[AsyncClient, ScriptedTransport]:
    transport = ScriptedTransport(script)
    return AsyncClient(seeds, patience=IMPATIENT, transport=transport, token=TOKEN), transport


def redirected(location: str) -> Answer:
    return Answer(307, {"Location": f"{location}/v1/queues/jobs/messages"}, b"")


def origins(transport: ScriptedTransport) -> set[str]:
    return {exchange.url.split("/v1")[0] for exchange in transport.seen}


async def test_every_request_bears_the_token_and_no_namespace_but_one_that_is_given() -> None:
    def script(exchange: Exchange) -> Answer:
        assert exchange.headers["Authorization"] == f"Bearer {TOKEN}"
        return cluster(A, A) if exchange.url.endswith("/v1/cluster") else ENQUEUED

    client, transport = client_with(script, A)
    await client.enqueue("jobs", HELLO)
    await client.cluster(of_leader=True)
    assert len(transport.seen) == 3
    assert not any("Raftq-Namespace" in exchange.headers for exchange in transport.seen)


async def test_a_redirect_to_a_node_that_the_cluster_names_is_followed() -> None:
    def script(exchange: Exchange) -> Answer:
        if exchange.url.endswith("/v1/cluster"):
            return cluster(B, A, B)
        return ENQUEUED if exchange.url.startswith(B) else redirected(B)

    client, transport = client_with(script, A)
    await client.enqueue("jobs", HELLO)
    assert origins(transport) == {A, B}


@pytest.mark.parametrize("leader", [STRANGER, "http://a:1", "http://b:1"])
async def test_a_redirect_to_any_other_is_not(leader: str) -> None:
    def script(exchange: Exchange) -> Answer:
        return cluster(B, A, B) if exchange.url.endswith("/v1/cluster") else redirected(leader)

    client, transport = client_with(script, A)
    with pytest.raises(Unavailable):
        await client.enqueue("jobs", HELLO)
    assert origins(transport) <= {A, B}


async def test_from_a_seed_at_https_no_node_is_asked_without() -> None:
    plain = "http://b:1"

    def script(exchange: Exchange) -> Answer:
        return cluster(plain, A, plain) if exchange.url.endswith("/v1/cluster") else problem(503, "no")

    client, transport = client_with(script, A)
    with pytest.raises(Unavailable):
        await client.enqueue("jobs", HELLO)
    assert origins(transport) == {A}


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (403, Forbidden)])
async def test_a_refused_token_is_raised_at_once_with_the_words_of_the_node(
    status: int, kind: type[NotApplied]
) -> None:
    client, transport = client_with(lambda _: problem(status, "no"), A)
    with pytest.raises(kind, match=r"Wait\."):
        await client.enqueue("jobs", HELLO)
    with pytest.raises(kind):
        await client.backup(Path("nowhere"))
    assert len(transport.seen) == 2


async def test_the_token_is_in_no_exception_and_no_repr() -> None:
    def script(exchange: Exchange) -> Answer:
        assert SECRET not in repr(exchange)
        raise Lost("connection reset")

    client, _ = client_with(script, A)
    try:
        await client.enqueue("jobs", HELLO)
    except RaftqError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(client) + repr(client._caller)
        assert SECRET not in shown
    made = MadeToken(id="0123456789ab", name="n", namespace="*", grants=[Grant(scope="admin", names="*")], token=TOKEN)
    assert SECRET not in repr(made)


@pytest.mark.parametrize("text", ["", "rq_", f"{TOKEN}x", f"Bearer {TOKEN}", f"{TOKEN}\r\nX: 1", f"rq_0_{SECRET}"])
def test_what_is_no_token_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="the token is none of raftq") as caught:
        AsyncClient(A, token=text)
    assert SECRET not in str(caught.value)


def test_blanks_around_a_token_do_not_count() -> None:
    client = AsyncClient(A, token=f" {TOKEN}\n")
    assert client._caller._headers["Authorization"] == f"Bearer {TOKEN}"


# TLS


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


async def test_a_client_that_trusts_the_authority_works_by_https(served: ssl.SSLContext, authority: Authority) -> None:
    async with running(served) as node, AsyncClient(node.url, ca_file=authority.certificate) as client:
        assert node.url.startswith("https:")
        await client.enqueue("jobs", HELLO)
        async with client.stream() as stream:
            assert [message.body for message in await stream.lease("jobs")] == ["hello"]


async def test_another_authority_is_told_at_once_and_nothing_is_sent(served: ssl.SSLContext, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").certificate
    async with running(served) as node, AsyncClient(node.url, ca_file=other, patience=IMPATIENT) as client:
        with pytest.raises(Unavailable, match="is not trusted"):
            await client.enqueue("jobs", HELLO)
        transport = AiohttpTransport(ca_file=other)
        with pytest.raises(Distrusted):
            await transport.connect(f"{node.url}/v1/stream", {}, "raftq.v1.msgpack")
        await transport.close()
        assert node.shard.index == 0


@pytest.mark.parametrize(("content", "words"), [(None, "cannot read"), ("nothing", "holds no certificate")])
def test_a_file_without_authorities_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "ca").write_text(content)
    with pytest.raises(ValueError, match=words):
        AsyncClient(A, ca_file=tmp_path / "ca")


# The operations


async def test_tokens_are_made_listed_read_and_revoked(node: Node, client: AsyncClient) -> None:
    node.shard.apply(SetVersion(TOKENS_VERSION))
    grants = [Grant(scope="produce", names="orders.*"), Grant(scope="consume", names="jobs")]
    made = await client.create_token("app", grants, namespace="billing", expires_seconds=60)
    assert made.token.startswith(f"rq_{made.id}_")
    [found] = await client.tokens()
    assert (found.id, found.name, found.namespace, found.grants) == (made.id, "app", "billing", grants)
    assert found.expires_at_ms == made.expires_at_ms == node.shard.clock_ms + 60_000
    assert await client.token(made.id) == found
    await client.revoke_token(made.id)
    assert await client.tokens() == []


async def test_all_tokens_are_listed_over_pages() -> None:
    pages = {"limit=500": (["a"], "a"), "limit=500&cursor=a": (["b"], None)}

    def script(exchange: Exchange) -> Answer:
        ids, cursor = pages[exchange.url.partition("?")[2]]
        tokens = [{"id": each, "name": "app", "namespace": "*", "grants": []} for each in ids]
        return answer({"tokens": tokens, "cursor": cursor})

    client, _ = client_with(script, A)
    assert [token.id for token in await client.tokens()] == ["a", "b"]
