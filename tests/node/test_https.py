"""Goal: a node with certificates serves HTTPS alone, takes new certificates while it runs, and nothing of a secret can
be read of its process. Method: a real node, real files that are exchanged, and /proc."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raftq.node import first_token, secret_file
from raftq.node.authority import Authority
from raftq.node.exits import Exit
from raftq.node.probe import Access, ask
from raftq.node.secure_folder import new_secret
from raftq.node.waiting import wait_until
from tests.node.conftest import Node, Settings

Start = Callable[..., Node]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "tls")
    made.issue("n1", [])
    return made


@pytest.fixture
def secured(settings: Settings, authority: Authority, tmp_path: Path) -> tuple[Settings, Access]:
    """A node with all there is, and what its client needs."""
    text, kept = first_token.make()
    secret_file.write(tmp_path / "secret", new_secret())
    secret_file.write(tmp_path / "first.json", kept)
    files = {"cert": authority.certificate_of("n1"), "key": authority.key_of("n1"), "ca": authority.certificate}
    tls = {f"{side}_tls_{kind}": str(file) for side in ("api", "peer") for kind, file in files.items()}
    others = {"peer_secret_file": str(tmp_path / "secret"), "first_token_file": str(tmp_path / "first.json")}
    return settings.but(**tls, **others), Access(text, authority.certificate)


def https(settings: Settings) -> str:
    return settings.url.replace("http:", "https:")


def connected(settings: Settings, authority: Authority) -> ssl.SSLSocket:
    host, port = settings["api-listen"].split(":")
    plain = socket.create_connection((host, int(port)), timeout=5)
    return ssl.create_default_context(cafile=authority.certificate).wrap_socket(plain, server_hostname=host)


def serves(connection: ssl.SSLSocket) -> bool:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: n1\r\n\r\n")
    return b"200 OK" in connection.recv(4096)


def shown(settings: Settings, authority: Authority) -> bytes:
    """The certificate that a new connection sees."""
    with connected(settings, authority) as connection:
        return connection.getpeercert(True) or b""


def test_a_new_certificate_is_for_new_connections_and_old_ones_go_on(
    start: Start, secured: tuple[Settings, Access], authority: Authority
) -> None:
    settings, access = secured
    node = start([*settings.flags, "--tokens"])
    node.wait_ready(https(settings), access)
    old, before = connected(settings, authority), shown(settings, authority)
    assert serves(old)

    key = authority.key_of("n1").read_bytes()
    authority.key_of("n1").write_bytes(key[:100])
    authority.issue("n1", ["n1.example"])
    now = ssl.PEM_cert_to_DER_cert(authority.certificate_of("n1").read_text())
    assert now != before
    wait_until(lambda: shown(settings, authority) == now, 15, "the new certificate")
    assert serves(old)
    assert old.getpeercert(True) == before
    old.close()
    node.process.terminate()
    code, lines = node.end()
    assert code == Exit.STOPPED
    assert any("certificates changed" in line for line in lines)


def test_a_key_that_fits_no_more_changes_nothing_and_is_told_of(
    start: Start, secured: tuple[Settings, Access], authority: Authority
) -> None:
    settings, access = secured
    node = start([*settings.flags, "--tokens"])
    node.wait_ready(https(settings), access)
    before = shown(settings, authority)
    authority.issue("n2", [])
    authority.key_of("n1").write_bytes(authority.key_of("n2").read_bytes())
    assert node.process.stderr is not None
    line = next(line for line in node.process.stderr if "still in use" in line)
    assert "is not the key of" in line
    assert shown(settings, authority) == before


def test_nothing_answers_without_tls_or_below_its_version_1_2(
    start: Start, secured: tuple[Settings, Access], authority: Authority
) -> None:
    settings, access = secured
    node = start([*settings.flags, "--tokens"])
    node.wait_ready(https(settings), access)
    with pytest.raises(OSError, match="gave no whole answer"):
        ask("GET", f"{settings.url}/healthz")
    host, port = settings["api-listen"].split(":")
    old = ssl.create_default_context(cafile=authority.certificate)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port)), timeout=5) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname=host)
    assert ask("GET", f"{https(settings)}/healthz", access=access).status == 200
    node.process.terminate()
    code, lines = node.end()
    assert code == Exit.STOPPED
    assert not any("raceback" in line or '"error"' in line for line in lines), lines


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_secret_is_in_the_command_line_the_environment_the_log_or_an_answer(
    start: Start, secured: tuple[Settings, Access], tmp_path: Path
) -> None:
    settings, access = secured
    assert access.token is not None
    hidden = [access.token.rpartition("_")[2][:20], (tmp_path / "secret").read_text().strip()[:20]]
    node = start([*settings.flags, "--tokens", "--log-level=debug"])
    node.wait_ready(https(settings), access)
    wait_until(lambda: ask("GET", f"{https(settings)}/v1/cluster", access=access).status == 200, 10, "the token")
    texts = [Path(f"/proc/{node.process.pid}/{name}").read_text() for name in ("cmdline", "environ")]
    nearly = access._replace(token=access.token[:-1] + ("A" if access.token[-1] != "A" else "B"))
    for path in ("/metrics", "/v1/cluster", "/v1/tokens", "/v1/nothing", f"/q/{access.token}?wait=x"):
        texts += [ask("GET", https(settings) + path, access=shown_with).text for shown_with in (access, nearly)]
    texts.append(ask("POST", f"{https(settings)}/v1/tokens", f'{{"name": "{access.token}"}}', access=access).text)
    node.process.terminate()
    code, lines = node.end()
    assert code == Exit.STOPPED
    assert [text for text in [*texts, *lines] for secret in hidden if secret in text] == []


def test_a_first_token_that_was_revoked_does_not_come_back(start: Start, secured: tuple[Settings, Access]) -> None:
    settings, access = secured
    url = f"{https(settings)}/v1/tokens"
    for _ in range(2):
        node = start([*settings.flags, "--tokens"])
        node.wait_ready(https(settings), access)
        if _ == 0:
            wait_until(lambda: ask("GET", url, access=access).status == 200, 10, "the token")
            [first] = ask("GET", url, access=access).json()["tokens"]
            assert ask("DELETE", f"{url}/{first['id']}", access=access).status == 204
        assert ask("GET", url, access=access).status == 401
        node.process.terminate()
        assert node.end()[0] == Exit.STOPPED
