"""What an operator does with the cluster through the client: members, leadership, backups."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound, OutcomeUnknown, Refused, Unavailable
from raftq.client.transport import Answer, Exchange
from raftq.replication.shard import ChangeRefused
from tests.client.nodes import IMPATIENT, FaultyTransport, Node, ScriptedTransport, answer, client_of, running


def once(kind: str, method: str) -> FaultyTransport:
    faults: Iterator[str | None] = chain([kind], repeat(None))
    return FaultyTransport(lambda exchange: next(faults) if exchange.method == method else None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_node_is_added_and_removed(node: Node, client: AsyncClient) -> None:
    assert await client.add_node("n4", "h:1", replaces="n2") == 1
    [_, added] = (await client.cluster()).nodes
    assert (added.id, added.role, added.voter, added.peer_address) == ("n4", "learner", False, "h:1")
    assert await client.remove_node("n4") == 2
    with pytest.raises(NotFound):
        await client.remove_node("n4")
    node.shard.refuse = ChangeRefused("bring back n2 first")
    with pytest.raises(Refused, match="bring back n2 first"):
        await client.add_node("n4", "h:1")


async def test_an_addition_whose_answer_is_lost_is_not_repeated(node: Node) -> None:
    transport = once("lost", "POST")
    async with AsyncClient(node.url, patience=IMPATIENT, transport=transport) as client:
        with pytest.raises(OutcomeUnknown):
            await client.add_node("n4", "h:1")
    assert [asked[0] for asked in node.shard.asked] == ["add"]


async def test_a_removal_whose_answer_is_lost_is_repeated_and_done(node: Node) -> None:
    await node.shard.add("n4", "h:1")
    async with AsyncClient(node.url, patience=IMPATIENT, transport=once("lost", "DELETE")) as client:
        assert await client.remove_node("n4") is None
    assert [asked[0] for asked in node.shard.asked] == ["add", "remove"]


async def test_a_transfer(client: AsyncClient) -> None:
    assert await client.transfer() == "n2"
    assert await client.transfer("n1") == "n1"


async def test_the_cluster_as_its_leader_sees_it() -> None:
    nodes = [{"id": url, "api_url": url} for url in ("http://a:1", "http://b:1")]
    told = answer({"cluster_id": "c", "leader": "http://b:1", "term": 1, "nodes": nodes})
    transport = ScriptedTransport(lambda _exchange: told)
    client = AsyncClient("http://a:1", patience=IMPATIENT, transport=transport)
    for _ in range(3):
        await client.cluster(of_leader=True)
    looked, *asked = [exchange.url for exchange in transport.seen]
    assert (looked, set(asked)) == ("http://a:1/v1/cluster", {"http://b:1/v1/cluster"})


async def test_a_backup_into_a_file(node: Node, client: AsyncClient, tmp_path: Path) -> None:
    node.backup_body = os.urandom(1_234_567)
    await client.add_node("n4", "h:1")
    saved = await client.backup(tmp_path / "b")
    assert (saved.index, saved.bytes, saved.url) == (1, 1_234_567, node.url)
    assert contents(tmp_path) == {"b": node.backup_body}
    file = io.BytesIO()
    await client.backup(file)
    assert file.getvalue() == node.backup_body


async def test_the_next_node_is_asked_when_one_is_away_or_refuses(node: Node, tmp_path: Path) -> None:
    async with running() as busy:
        transport = FaultyTransport(
            lambda exchange: "busy" if exchange.url == f"{busy.url}/v1/cluster/snapshot" else None
        )
        urls = ["http://127.0.0.1:1", busy.url, node.url]
        async with AsyncClient(urls, patience=IMPATIENT, transport=transport) as client:
            assert (await client.backup(tmp_path / "b")).url == node.url
        async with AsyncClient(busy.url, patience=IMPATIENT, transport=transport) as client:
            with pytest.raises(Refused):
                await client.backup(tmp_path / "b")
    async with AsyncClient("http://127.0.0.1:1", patience=IMPATIENT) as client:
        with pytest.raises(Unavailable):
            await client.backup(tmp_path / "b")


@pytest.mark.parametrize("fault", ["cut", "short", "foreign"])
async def test_half_a_backup_is_none_and_the_old_one_stays(node: Node, tmp_path: Path, fault: str) -> None:
    node.backup_body = bytes(1_000_000)
    (tmp_path / "b").write_bytes(b"the last one")

    def script(exchange: Exchange) -> Answer:
        if exchange.url.endswith("/v1/cluster"):
            return answer({"cluster_id": "c", "nodes": []})
        headers = {"Content-Length": "9"} | ({"Raftq-Index": "7"} if fault == "short" else {})
        return Answer(200, headers, b"12345678" if fault == "short" else b"123456789")

    cutting = FaultyTransport(lambda exchange: "cut" if exchange.url.endswith("snapshot") else None)
    transport = cutting if fault == "cut" else ScriptedTransport(script)
    async with AsyncClient(node.url, patience=IMPATIENT, transport=transport) as client:
        with pytest.raises(Unavailable):
            await client.backup(tmp_path / "b")
    assert contents(tmp_path) == {"b": b"the last one"}


async def test_a_file_that_cannot_be_written_is_told_as_that(node: Node, tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(28, "No space left on device")

    async with client_of(node) as client:
        with pytest.raises(OSError, match="No space left"):
            await client.backup(Full())
        with pytest.raises(FileNotFoundError):
            await client.backup(tmp_path / "no" / "folder")
