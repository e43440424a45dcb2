"""Goal: connections use what the files of certificates hold now, and never half of it.
Method: real handshakes in memory between contexts made from files of a test authority, which are exchanged."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from raftq.node import secret_file
from raftq.node.authority import Authority
from raftq.node.certificates import Certificates, Files
from raftq.node.secret_file import Unusable


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "ca")
    made.issue("n1", ["n1.example", "10.0.0.1"])
    return made


def files(authority: Authority, side: str = "api") -> Files:
    return Files(side, authority.certificate_of("n1"), authority.key_of("n1"), authority.certificate)  # type: ignore[arg-type]


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None = "localhost") -> tuple[bytes, bytes]:
    """What each side saw of the other's certificate after a handshake. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepted = server.wrap_bio(up, down, server_side=True)
    dialed = client.wrap_bio(down, up, server_hostname=host)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (dialed, accepted):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert len(done) == 2
    return dialed.getpeercert(True) or b"", accepted.getpeercert(True) or b""


def serial(authority: Authority, node: str = "n1") -> bytes:
    return ssl.PEM_cert_to_DER_cert(authority.certificate_of(node).read_text())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "n1.example", "10.0.0.1"])
def test_a_client_that_trusts_the_authority_reaches_each_name_of_the_node(authority: Authority, host: str) -> None:
    side = Certificates(files(authority), mutual=False)
    assert shaken(side.lasting_context(), side.client_context(), host) == (serial(authority), b"")


def test_a_client_refuses_another_name_and_another_authority(authority: Authority, tmp_path: Path) -> None:
    side = Certificates(files(authority), mutual=False)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(side.lasting_context(), side.client_context(), "elsewhere.example")
    other = Authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(side.lasting_context(), ssl.create_default_context(cafile=other.certificate))


def test_a_new_certificate_is_used_for_new_connections(authority: Authority) -> None:
    side = Certificates(files(authority), mutual=False)
    server = side.lasting_context()
    before = serial(authority)
    authority.issue("n1", ["n1.example"])
    assert shaken(server, side.client_context())[0] == before
    side.look()
    assert shaken(server, side.client_context())[0] == serial(authority) != before
    assert shaken(side.server_context(), side.client_context())[0] == serial(authority)


def test_a_client_that_names_no_server_gets_the_new_certificate_too(authority: Authority) -> None:
    side = Certificates(files(authority), mutual=False)
    server = side.lasting_context()
    authority.issue("n1", [])
    side.look()
    client = ssl.create_default_context(cafile=authority.certificate)
    client.check_hostname = False
    assert shaken(server, client, None)[0] == serial(authority)


@pytest.mark.parametrize("broken", ["cert", "key", "both", "half", "gone", "open"])
def test_files_that_cannot_be_used_change_nothing_and_are_told_of(authority: Authority, broken: str) -> None:
    side = Certificates(files(authority), mutual=True)
    before = serial(authority)
    cert, key = authority.certificate_of("n1"), authority.key_of("n1")
    authority.issue("n2", [])
    match broken:
        case "cert":
            shutil.copy(authority.certificate_of("n2"), cert)
        case "key":
            shutil.copy(authority.key_of("n2"), key)
        case "both":
            cert.write_text("no certificate")
            key.write_text("no key")
        case "half":
            cert.write_text(cert.read_text()[:200])
        case "gone":
            cert.unlink()
        case _:
            key.chmod(0o644)
    with capture_logs() as logs:
        side.look()
        side.look()
    assert [(line["log_level"], "still in use" in line["event"]) for line in logs] == [("error", True)]
    assert shaken(side.server_context(), side.client_context())[0] == before
    authority.issue("n1", [])
    with capture_logs() as logs:
        side.look()
    assert [line["event"] for line in logs] == ["certificates changed"]
    assert shaken(side.server_context(), side.client_context())[0] == serial(authority)


def test_between_nodes_both_sides_show_a_certificate(authority: Authority) -> None:
    side = Certificates(files(authority, "peer"), mutual=True)
    assert shaken(side.server_context(), side.client_context()) == (serial(authority), serial(authority))
    stranger = ssl.create_default_context(cafile=authority.certificate)
    with pytest.raises(ssl.SSLError):
        shaken(side.server_context(), stranger)


def test_a_changed_authority_is_trusted_and_the_old_one_no_more(authority: Authority, tmp_path: Path) -> None:
    mine = Certificates(files(authority, "peer"), mutual=True)
    other = Authority(tmp_path / "other")
    other.issue("n1", [])
    theirs = Certificates(files(other, "peer"), mutual=True)
    with pytest.raises(ssl.SSLError):
        shaken(mine.server_context(), theirs.client_context())
    with pytest.raises(ssl.SSLError):
        shaken(mine.lasting_context(), theirs.client_context())
    lasting = mine.lasting_context()
    for name in ("ca.crt", "n1.crt", "n1.key"):
        shutil.copy(other.folder / name, authority.folder / name)
    old = Certificates(files(Authority(tmp_path / "old"), "peer")._replace(cert=None, key=None), mutual=False)
    mine.look()
    for server in (mine.server_context(), lasting):
        assert shaken(server, theirs.client_context()) == (serial(other), serial(other))
        with pytest.raises(ssl.SSLError):
            shaken(server, old.client_context())


def test_nodes_take_up_no_session_again(authority: Authority) -> None:
    side = Certificates(files(authority, "peer"), mutual=True)
    assert side.server_context().num_tickets == 0
    assert side.server_context().minimum_version is ssl.TLSVersion.TLSv1_3
    assert Certificates(files(authority), mutual=False).server_context().minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (40, None, ""),
        (29, logging.WARNING, "expires in 29 days"),
        (6, logging.ERROR, "expires in 6 days"),
        (-1, logging.ERROR, "has expired"),
        (366, logging.ERROR, "not valid before"),
    ],
)
def test_an_end_that_is_near_is_told(authority: Authority, days: int, level: int | None, words: str) -> None:
    left = timedelta(days=365 - days, hours=-1)
    side = Certificates(files(authority), mutual=False, now=lambda: datetime.now(UTC) + left)
    assert [(each.level, words in each.line) for each in side.warnings()] == ([(level, True)] if level else [])
    if level:
        assert str(authority.certificate_of("n1")) in side.warnings()[0].line


@pytest.mark.parametrize("file", ["cert", "key", "ca"])
def test_what_cannot_be_used_is_refused_at_the_start_by_name(authority: Authority, tmp_path: Path, file: str) -> None:
    for path, words in ((tmp_path / "none", "cannot read"), (tmp_path / "bad", "in PEM")):
        (tmp_path / "bad").write_text("-----BEGIN NOTHING-----")
        (tmp_path / "bad").chmod(0o600)
        with pytest.raises(Unusable) as caught:
            Certificates(files(authority)._replace(**{file: path}), mutual=False)
        assert words in str(caught.value)
        assert f"api_tls_{file}" in str(caught.value)
        assert str(path) in str(caught.value)


def test_files_of_an_authority_are_for_their_owner_alone(authority: Authority) -> None:
    assert {path.stat().st_mode & 0o777 for path in authority.folder.iterdir()} == {0o600}
    assert authority.folder.stat().st_mode & 0o777 == 0o700


def test_an_authority_is_found_again_and_renews_what_ends_soon(authority: Authority) -> None:
    ca, cert = authority.certificate.read_bytes(), serial(authority)
    again = Authority(authority.folder)
    again.ensure("n1", [])
    assert (authority.certificate.read_bytes(), serial(authority)) == (ca, cert)
    again.issue("n1", [], days=20)
    soon = serial(authority)
    again.ensure("n1", [])
    assert serial(authority) != soon
    again.ensure("n9", [])
    assert authority.key_of("n9").exists()


def test_a_renewal_that_was_interrupted_is_done_again(authority: Authority) -> None:
    authority.issue("n2", [])
    authority.key_of("n1").write_bytes(authority.key_of("n2").read_bytes())
    authority.ensure("n1", ["n1.example"])
    assert Certificates(files(authority), mutual=False).server_context() is not None


def test_a_secret_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    there: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _descriptor: there.append(path.exists()))
    secret_file.write(path, b"x" * 40)
    assert there == [False]  # nothing is under its name before all of it is on disk
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"x" * 40, 0o600)
    with pytest.raises(FileExistsError):
        secret_file.write(path, b"y" * 40)
    assert path.read_bytes() == b"x" * 40
    assert list(tmp_path.iterdir()) == [path]
