"""Goal: `raftq up --secure` is a cluster like any other for who has its token, and none for anybody else.
Method: real processes, a real token, a leader that is killed; what is on disk and in /proc is searched for secrets."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.errors import RaftqError, Unauthorized, Unavailable
from raftq.client.models import Grant, NewMessage
from raftq.node.exits import Exit
from raftq.node.probe import Access, ask
from raftq.node.secure_folder import authority
from raftq.node.waiting import wait_until
from tests.cluster.up import READY, Up, run

pytestmark = pytest.mark.cluster

MESSAGES = 60


class Secured:
    """A cluster that was just born."""

    def __init__(self, up: Up) -> None:
        self.up = up
        up.wait_for(READY)
        [self.token] = re.findall(r"RAFTQ_TOKEN=(rq_\S+)", up.text)
        self.ca = authority(up.data)
        self.access = Access(self.token, self.ca)

    @property
    def urls(self) -> list[str]:
        return [node.api_url for node in self.up.nodes()]

    def client(self, token: str | None) -> AsyncClient:
        patience = Patience(timeout_seconds=20, attempt_seconds=3)
        return AsyncClient(self.urls, token=token, ca_file=self.ca, patience=patience)

    def run(self, *arguments: str, token: str | None = None) -> str:
        """What a command that ends well prints."""
        given = {"RAFTQ_TOKEN": token or self.token, "RAFTQ_CA": str(self.ca), "RAFTQ_URL": ",".join(self.urls)}
        code, said = run(*arguments, environ=given)
        assert code == 0, said
        return said

    def leader(self) -> str:
        answers = (ask("GET", f"{url}/v1/cluster", access=self.access) for url in self.urls)
        return next(str(answer.json()["leader"]) for answer in answers if answer.status == 200)


@pytest.fixture
def secured(up: Callable[..., Up]) -> Secured:
    return Secured(up("--secure"))


async def work_off(client: AsyncClient, seen: list[int]) -> None:
    while len(set(seen)) < MESSAGES:
        try:
            for message in await client.lease("jobs", max=10, lease_seconds=5, wait_seconds=1):
                [settled] = await client.ack("jobs", [message.receipt])
                seen += [message.body] if settled.status == "done" else []
        except RaftqError:
            continue


async def test_who_has_the_token_works_on_while_a_leader_is_killed(secured: Secured, tmp_path: Path) -> None:
    async with secured.client(secured.token) as client:
        seen: list[int] = []
        working = asyncio.create_task(work_off(client, seen))
        for number in range(MESSAGES):
            await client.enqueue("jobs", [NewMessage(body=number)])
            if number == MESSAGES // 2:
                pid = secured.up.node(await asyncio.to_thread(secured.leader)).pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
        await working
        assert sorted(seen) == list(range(MESSAGES))
        async with client.stream() as stream:
            await asyncio.gather(*[stream.enqueue("numbers", NewMessage(body=number)) for number in range(20)])
        assert (await client.stats("numbers"))["ready"] == 20
        assert (await client.backup(tmp_path / "backup")).bytes > 0
        made = await client.create_token("app", [Grant(scope="produce", names="jobs")])
        async with secured.client(made.token) as app:
            await app.enqueue("jobs", [NewMessage(body="mine")])
            await client.revoke_token(made.id)
            with pytest.raises(Unauthorized):
                await app.enqueue("jobs", [NewMessage(body="late")])
    async with secured.client(None) as stranger:
        with pytest.raises(Unauthorized):
            await stranger.enqueue("jobs", [NewMessage(body="hello")])
    distrusting = AsyncClient(secured.urls, token=secured.token, patience=Patience(timeout_seconds=5))
    async with distrusting:
        with pytest.raises(Unavailable, match="is not trusted"):
            await distrusting.stats()


def test_commands_work_with_it_and_nodes_are_added(secured: Secured, tmp_path: Path) -> None:
    app = secured.run("tokens", "create", "app", "--grant", "produce:orders.*", "--grant", "consume:orders.a")
    assert re.fullmatch(r"rq_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", app)
    secured.run("enqueue", "orders.a", "hello", token=app)
    assert secured.run("lease", "orders.a", token=app).endswith("hello")
    listed = secured.run("tokens", "list")
    assert "produce:orders.* consume:orders.a" in listed
    assert app.rpartition("_")[2] not in listed
    code, said = run(
        "enqueue", "other", "hello", "--ca", str(secured.ca), environ={"RAFTQ_TOKEN": app, "RAFTQ_URL": secured.urls[0]}
    )
    assert (code, "lacks produce on other" in said) == (Exit.REFUSED, True), said
    secured.run("tokens", "revoke", app.split("_")[1])
    (tmp_path / "token").write_text(app)
    code, said = run(
        "enqueue",
        "orders.a",
        "x",
        f"--token-file={tmp_path / 'token'}",
        f"--ca={secured.ca}",
        f"--url={secured.urls[0]}",
    )
    assert (code, "RAFTQ_TOKEN, or --token-file" in said) == (Exit.REFUSED, True), said
    assert "n4 votes" in secured.run("cluster", "add", "n4", f"--data={secured.up.data}")
    assert "n4" in secured.run("cluster")


def test_it_comes_back_without_the_token_and_no_secret_lies_about(secured: Secured, up: Callable[..., Up]) -> None:
    data, token = secured.up.data, secured.token
    assert ask("POST", f"{secured.urls[0]}/q/jobs", '"kept"', access=secured.access, seconds=5).status == 201
    hidden = [token, *[(data / "secure" / name).read_text().strip() for name in ("cluster.secret", "supervisor.token")]]
    if sys.platform == "linux":
        shown = [f"/proc/{node.pid}/{name}" for node in secured.up.nodes() for name in ("cmdline", "environ")]
        assert [path for path in shown for secret in hidden if secret in Path(path).read_text()] == []
    assert secured.up.interrupt() == Exit.STOPPED

    again = up(new=False, environ={"RAFTQ_TOKEN": token})
    again.wait_for(READY)
    assert "RAFTQ_TOKEN=" not in again.text
    if sys.platform == "linux":
        environs = [Path(f"/proc/{node.pid}/environ").read_text() for node in again.nodes()]
        assert not any(token in text for text in environs)
    kept = wait_until(
        lambda: ask("GET", f"{secured.urls[1]}/q/jobs", access=secured.access, seconds=5), 20, "an answer"
    )
    assert (kept.status, kept.text) == (200, '"kept"')
    assert again.interrupt() == Exit.STOPPED
    files = [path for path in data.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    secret = token.rpartition("_")[2].encode()
    assert [path for path in files if secret in path.read_bytes()] == []
    logs = [path for path in files if path.suffix == ".log"]
    assert [path for path in logs for each in hidden if each in path.read_text()] == []


def test_a_tour_of_it_shows_no_token(up: Callable[..., Up]) -> None:
    running = up("--secure", "--tour")
    running.wait_for(READY)
    assert "The tour is complete" in running.text
    [token] = re.findall(r"RAFTQ_TOKEN=(rq_\S+)", running.text)
    assert running.text.count(token) == 1
    assert '-H @<(echo "Authorization: Bearer $RAFTQ_TOKEN")' in running.text
    assert running.interrupt() == Exit.STOPPED


def test_a_cluster_that_is_not_secure_does_not_become_so(up: Callable[..., Up]) -> None:
    first = up("--nodes=1")
    first.wait_for(READY)
    assert first.interrupt() == Exit.STOPPED
    second = up("--secure", new=False)
    assert (second.end(), len(second.lines)) == (Exit.CONFIG, 1)
    assert "is not secure" in second.text
