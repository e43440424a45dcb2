"""`raftq tokens`, `tls` and `secret`: what is made, what is printed, and what is never."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from raftq.api import token
from raftq.cli.main import run
from raftq.node import first_token, secret_file
from raftq.node.authority import Authority
from raftq.node.certificates import Certificates, Files
from raftq.node.exits import Exit, Fatal
from raftq.storage.machine.commands import SetVersion
from raftq.storage.machine.tokens import TOKENS_VERSION
from tests.cli.conftest import Raftq
from tests.client.nodes import Node

TEXT = re.compile(r"rq_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n")


@pytest.fixture
def admin(node: Node, tmp_path: Path) -> str:
    """The node needs tokens, and this is one that may do everything."""
    text, kept = first_token.make()
    secret_file.write(tmp_path / "first", kept)
    node.shard.apply(SetVersion(TOKENS_VERSION))
    node.shard.apply(first_token.read(tmp_path / "first"))
    node.tokens_required = True
    return text


async def test_a_token_is_made_used_listed_and_revoked(raftq: Raftq, admin: str, tmp_path: Path) -> None:
    raftq.environment["RAFTQ_TOKEN"] = admin
    grants = ("--grant", "produce:orders.*", "--grant", "consume:jobs")
    made = await raftq("tokens", "create", "app", *grants, "--expires", "2h")
    assert (made.code, bool(TEXT.fullmatch(made.out)), made.error) == (0, True, "")
    (tmp_path / "app").write_text(made.out)
    assert (await raftq("enqueue", "orders.a", "hello", "--token-file", "app")).code == 0
    refused = await raftq("enqueue", "other", "hello", "--token-file", "app")
    assert (refused.code, "lacks produce on other" in refused.error) == (Exit.REFUSED, True)
    token_id, secret = made.out.strip().removeprefix("rq_").split("_", 1)
    [first, app] = sorted(
        (await raftq("tokens", "list", "--json")).json["tokens"], key=lambda one: one["name"] != "first"
    )
    assert (first["namespace"], app["id"], app["name"]) == ("*", token_id, "app")
    shown = await raftq("tokens", "show", token_id)
    assert "produce:orders.* consume:jobs" in shown.out
    assert secret not in shown.out
    assert (await raftq("tokens", "revoke", token_id)).out == f"{token_id} is revoked\n"
    gone = await raftq("enqueue", "orders.a", "hello", "--token-file", "app")
    assert (gone.code, "RAFTQ_TOKEN, or --token-file FILE" in gone.error) == (Exit.REFUSED, True)
    assert secret not in gone.error


async def test_without_a_token_a_command_says_how_to_give_one(raftq: Raftq, admin: str) -> None:
    ended = await raftq("stats", "jobs")
    assert (ended.code, ended.error.count("\n")) == (Exit.REFUSED, 1)
    assert "RAFTQ_TOKEN, or --token-file FILE" in ended.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "app", "--grant", "write:jobs"], "'write:jobs' is no grant"),
        (["create", "app", "--grant", "produce"], "'produce' is no grant"),
        (["create", "app"], "--grant"),
        (["create", "app", "--grant", "produce:a", "--expires", "soon"], "'soon' is no time"),
        (["list", "--token-file", "nothing-here"], "cannot read the token in nothing-here"),
        (["list", "--token-file", __file__], "the token is none of raftq"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(Fatal, match=re.escape(words)) as caught:
        run(["tokens", *arguments])
    assert caught.value.code is Exit.USAGE
    assert "\n" not in str(caught.value)


def test_a_whole_token_in_the_place_of_its_id_is_not_repeated() -> None:
    text = token.text(token.new())
    for command in ("show", "revoke"):
        with pytest.raises(Fatal, match="give the id of a token") as caught:
            run(["tokens", command, text])
        assert text not in str(caught.value)


def test_no_command_takes_a_token_as_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("enqueue", "lease", "stats", "cluster", "backup", "tokens list", "tokens create", "write"):
        run([*command.split(), "--help"])
        said = capsys.readouterr().out
        assert re.findall(r"--[a-z-]*token[a-z-]*", said) == ["--token-file"], command
        assert "--ca " in said


def test_a_first_token_is_printed_once_and_its_file_has_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "first-token.json"
    run(["tokens", "first", str(file)])
    made = token.parse(capsys.readouterr().out.strip())
    assert made is not None
    kept = first_token.read(file)
    assert (kept.id, kept.digest, kept.namespace, kept.first) == (made.id, token.digest(made.secret), "*", True)
    assert {grant.scope for grant in kept.grants} == {"produce", "consume", "admin"}
    assert made.secret not in file.read_text()
    with pytest.raises(Fatal, match="is there already"):
        run(["tokens", "first", str(file)])
    assert first_token.read(file) == kept


def test_a_secret_is_new_long_and_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for name in ("a", "b"):
        run(["secret", "new", str(tmp_path / name)])
        found.add(secret_file.secret(tmp_path / name, "peer_secret_file"))
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    said = capsys.readouterr().out
    assert len(found) == 2
    assert not any(secret.decode() in said for secret in found)
    with pytest.raises(Fatal, match="is there already"):
        run(["secret", "new", str(tmp_path / "a")])


def test_certificates_for_tests_are_made_and_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["tls", "dev", str(tmp_path), "--node", "n1=10.0.0.1,n1.example", "--node", "n2=[::1]"])
    assert "For testing" in capsys.readouterr().out
    authority = Authority(tmp_path)
    before = authority.certificate.read_bytes()
    run(["tls", "dev", str(tmp_path), "--node", "n3=host"])
    assert authority.certificate.read_bytes() == before
    for node in ("n1", "n2", "n3"):
        files = Files("peer", authority.certificate_of(node), authority.key_of(node), authority.certificate)
        assert Certificates(files, mutual=True).warnings() == []
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("node", ["n1", "n1=", "=host", "n1=host:7701", "n1=a b", "n/1=host"])
def test_a_node_without_a_host_gets_no_certificate(tmp_path: Path, node: str) -> None:
    with pytest.raises(Fatal, match="--node"):
        run(["tls", "dev", str(tmp_path / "tls"), "--node", node])
    assert not (tmp_path / "tls").exists()


async def test_a_token_in_json_is_there_once(raftq: Raftq, admin: str) -> None:
    raftq.environment["RAFTQ_TOKEN"] = admin
    made = (await raftq("tokens", "create", "app", "--grant", "admin:*", "--namespace", "*", "--json")).json
    assert token.parse(made["token"]) is not None
    listed = await raftq("tokens", "list", "--json")
    assert msgspec.json.decode(listed.out)["tokens"][0].keys() == made.keys() - {"token"}
