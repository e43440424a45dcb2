"""Goal: a node that strangers could reach starts only when it knows its peers and its clients, or is told to.
Method: the rule by itself, then real processes on every interface of this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftq.node import exposure, first_token, probe, secret_file
from raftq.node.config import Config
from raftq.node.exits import Exit
from raftq.node.secure_folder import new_secret
from raftq.node.waiting import wait_until
from tests.node.conftest import Node, Settings

Start = Callable[..., Node]
OPEN = {"api_listen": "0.0.0.0:7701", "peer_listen": "127.0.0.1:8701"}
KNOWN = {"peer_secret_file": "secret", "tokens": True}


def config(**settings: Any) -> Config:
    return Config(node_id="n1", cluster_id="c1", data=Path("/data"), **settings)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_on_loopback_nothing_is_needed(address: str) -> None:
    settings = config(api_listen=address, peer_listen=address)
    assert (exposure.refusal(settings), exposure.warnings(settings)) == (None, [])


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"])
@pytest.mark.parametrize("setting", ["api_listen", "peer_listen"])
def test_elsewhere_it_needs_to_know_peers_and_clients(setting: str, address: str) -> None:
    refusal = exposure.refusal(config(**{setting: address})) or ""
    assert refusal.startswith(f"{setting} {address} can be reached from other machines")
    for words in ("no cluster secret and no tokens", "--peer-secret-file", "--tokens", "--insecure", "127.0.0.1"):
        assert words in refusal
    assert exposure.refusal(config(**{setting: address}, **KNOWN)) is None
    tls = {"peer_tls_cert": "c", "peer_tls_key": "k", "peer_tls_ca": "a", "tokens": True}
    assert exposure.refusal(config(**{setting: address}, **tls)) is None
    assert exposure.refusal(config(**{setting: address}, insecure=True)) is None


def test_it_says_what_of_it_is_missing() -> None:
    no_tokens = exposure.refusal(config(**OPEN, peer_secret_file="secret")) or ""
    assert ("no tokens" in no_tokens, "no cluster secret" in no_tokens) == (True, False)
    no_secret = exposure.refusal(config(**OPEN, tokens=True)) or ""
    assert ("no tokens" in no_secret, "no cluster secret" in no_secret) == (False, True)


def test_a_name_that_stands_for_another_address_is_no_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 1)) for host in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: found)
    assert "api_listen n1:1" in (exposure.refusal(config(api_listen="n1:1")) or "")


def test_what_can_be_read_on_the_way_is_warned_of() -> None:
    plain = exposure.warnings(config(**OPEN, **KNOWN))
    for words, line in zip(("plain HTTP", "nodes speak without TLS"), plain, strict=True):
        assert words in line
    tls = {f"{side}_tls_{kind}": "file" for side in ("api", "peer") for kind in ("cert", "key", "ca")}
    assert exposure.warnings(config(**OPEN, **KNOWN, **tls)) == []
    assert "insecure" in exposure.warnings(config(**OPEN, insecure=True))[0]


def opened(settings: Settings) -> Settings:
    port = settings["api-listen"].rpartition(":")[2]
    return settings.but(api_listen=f"0.0.0.0:{port}", api_url=settings.url)


def test_a_process_on_every_interface_refuses_with_one_line(start: Start, settings: Settings, tmp_path: Path) -> None:
    code, lines = start(opened(settings).flags).end()
    assert (code, len(lines)) == (Exit.CONFIG, 1)
    assert "no cluster secret and no tokens" in lines[0]
    assert not Path(settings["data"]).exists()
    secret_file.write(tmp_path / "secret", new_secret())
    code, lines = start(opened(settings).but(peer_secret_file=str(tmp_path / "secret")).flags).end()
    assert (code, len(lines), "no tokens" in lines[0]) == (Exit.CONFIG, 1, True)


def test_told_to_be_insecure_it_starts_and_says_so(start: Start, settings: Settings) -> None:
    node = start([*opened(settings).flags, "--insecure"])
    node.wait_ready(settings.url)
    assert probe.ask("POST", f"{settings.url}/q/jobs", '"hello"').status == 201
    node.process.terminate()
    code, lines = node.end()
    assert code == Exit.STOPPED
    assert any("insecure: api_listen" in line for line in lines)


def test_with_a_secret_and_tokens_it_starts_and_knows_its_clients(
    start: Start, settings: Settings, tmp_path: Path
) -> None:
    text, kept = first_token.make()
    secret_file.write(tmp_path / "secret", new_secret())
    secret_file.write(tmp_path / "first", kept)
    given = opened(settings).but(peer_secret_file=str(tmp_path / "secret"), first_token_file=str(tmp_path / "first"))
    node = start([*given.flags, "--tokens"])
    node.wait_ready(settings.url)
    assert probe.ask("POST", f"{settings.url}/q/jobs", '"hello"').status == 401
    enqueue = lambda: probe.ask("POST", f"{settings.url}/q/jobs", '"hello"', access=probe.Access(text)).status == 201  # noqa: E731
    wait_until(enqueue, 10, "the first token to be taken")
    node.process.terminate()
    assert node.end()[0] == Exit.STOPPED


@pytest.mark.parametrize(
    ("setting", "content", "mode", "words"),
    [
        ("peer-secret-file", None, 0o600, "cannot read"),
        ("peer-secret-file", b"x" * 31, 0o600, "holds 31 bytes"),
        ("peer-secret-file", b"x" * 32 + b"\n", 0o604, "anybody on this machine can read"),
        ("first-token-file", None, 0o600, "cannot read"),
        ("first-token-file", b"rq_something", 0o600, "is not what `raftq tokens first"),
        ("api-tls-ca", b"something else", 0o600, "holds no certificate in PEM"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    start: Start, settings: Settings, tmp_path: Path, setting: str, content: bytes | None, mode: int, words: str
) -> None:
    file = tmp_path / "file"
    if content is not None:
        secret_file.write(file, content)
        file.chmod(mode)
    code, lines = start([*settings.flags, f"--{setting}={file}"]).end()
    assert (code, len(lines)) == (Exit.CONFIG, 1), lines
    assert setting.replace("-", "_") in lines[0]
    assert words in lines[0]
    assert content is None or content.decode() not in lines[0]
