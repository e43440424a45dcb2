"""The certificate of one side of a node, its key and the authority that it trusts, as their files hold them now.

`look` finds files that have changed. Connections that are made from then on use what is new; those that stand go on.
Invariant: what is used is whole and fits together. Files that cannot be used change nothing, and are told of until they
can.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from raftq.node import secret_file
from raftq.node.secret_file import Unusable

LOOK_SECONDS = 2.0
SOON = timedelta(days=30)
VERY_SOON = timedelta(days=7)
_DAY_SECONDS = 86_400.0
_MINUTE_SECONDS = 60.0

_log = structlog.get_logger("raftq.node")


class Files(NamedTuple):
    """PEM files, and the settings that name them begin with `side`: `peer_tls_cert`, ..."""

    side: Literal["api", "peer"]
    cert: Path | None
    key: Path | None
    ca: Path | None


class Warned(NamedTuple):
    """What a person should look at, told again every `seconds`."""

    #: Of the standard library's logging.
    level: int
    line: str
    seconds: float


class _Used(NamedTuple):
    server: ssl.SSLContext | None
    client: ssl.SSLContext
    #: The certificate, or the authority, that ends first.
    first: tuple[Path, x509.Certificate] | None


class Certificates:
    """mutual: both sides of a connection show a certificate of the authority, as between nodes; else the server alone
    does, as at the API."""

    def __init__(self, files: Files, *, mutual: bool, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises Unusable."""
        self._files, self._mutual, self._now = files, mutual, now
        self._seen = self._stamp()
        self._used = _load(files, mutual)
        self._front: ssl.SSLContext | None = None
        self._broken: Warned | None = None
        self._told: dict[str, float] = {}

    def server_context(self) -> ssl.SSLContext:
        """For a connection that is accepted now."""
        assert self._used.server is not None, "there is no certificate to serve with"
        return self._used.server

    def client_context(self) -> ssl.SSLContext:
        """For a connection that is made now."""
        return self._used.client

    def lasting_context(self) -> ssl.SSLContext:
        """For a server that takes one for its life: it gives each new connection what the files hold then."""
        if self._front is None:
            self._front = _server(self._files, self._mutual)
            # Called for every handshake, also of clients that name no server.
            self._front.sni_callback = self._take_newest
        return self._front

    def look(self) -> None:
        """Take what is new in the files, and say what is wrong with them."""
        found = self._stamp()
        if found != self._seen:
            self._seen = found
            self._reload()
        told, now = {}, time.monotonic()
        for warned in self.warnings():
            last = self._told.get(warned.line)
            if last is None or now - last > warned.seconds:
                last = now
                _log.log(warned.level, warned.line)
            told[warned.line] = last
        self._told = told

    def warnings(self) -> list[Warned]:
        found = [] if self._broken is None else [self._broken]
        if self._used.first is not None:
            found += _of_time(*self._used.first, self._now())
        return found

    def _reload(self) -> None:
        try:
            self._used = _load(self._files, self._mutual)
        except Unusable as error:
            line = f"the certificates of before are still in use: {error}"
            self._broken = Warned(logging.ERROR, line, _MINUTE_SECONDS)
            return
        self._broken = None
        ends = {"ends": str(self._used.first[1].not_valid_after_utc)} if self._used.first else {}
        _log.info("certificates changed", side=self._files.side, **ends)

    def _take_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self.server_context()

    def _stamp(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self._files[1:] if path is not None]


async def watch(sides: Sequence[Certificates]) -> None:
    """Looks at them until it is cancelled."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for side in sides:
            side.look()


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Follows symbolic links, which Kubernetes exchanges to renew what it mounts."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _load(files: Files, mutual: bool) -> _Used:
    """Raises Unusable."""
    ends: list[tuple[Path, x509.Certificate]] = []
    if files.cert is not None and files.key is not None:
        leaf = _certificates(files.cert, f"{files.side}_tls_cert")[0]
        _check_key(files.key, f"{files.side}_tls_key", files.cert, leaf)
        ends.append((files.cert, leaf))
    if files.ca is not None:
        # While an authority is exchanged, the file holds the old one and the new one.
        newest = max(_certificates(files.ca, f"{files.side}_tls_ca"), key=lambda each: each.not_valid_after_utc)
        ends.append((files.ca, newest))
    try:
        server = None if files.cert is None else _server(files, mutual)
        client = _client(files, mutual)
    except OSError as error:  # ssl.SSLError is one
        raise Unusable(f"{files.side}_tls_cert, _key and _ca cannot be used together: {error}") from error
    return _Used(server, client, min(ends, key=lambda each: each[1].not_valid_after_utc, default=None))


def _certificates(path: Path, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise Unusable(f"{setting}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable(f"{setting}: {path} holds no certificate in PEM, or half of one") from error


def _check_key(path: Path, setting: str, cert: Path, leaf: x509.Certificate) -> None:
    data = secret_file.read(path, setting)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise Unusable(f"{setting}: {path} is locked with a passphrase: give one without") from error
    except ValueError as error:
        raise Unusable(f"{setting}: {path} holds no private key in PEM, or half of one") from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise Unusable(f"{setting}: {path} is not the key of {cert}")


def _server(files: Files, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if mutual else ssl.TLSVersion.TLSv1_2
    _show(context, files)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.ca)
        # A session that is taken up again would spare its client the look at its certificate.
        context.num_tickets = 0
    return context


def _client(files: Files, mutual: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if mutual else ssl.TLSVersion.TLSv1_2
    if mutual:
        # Nodes are dialed by address, and a certificate names the node (`replication.security`).
        context.check_hostname = False
        _show(context, files)
    return context


def _show(context: ssl.SSLContext, files: Files) -> None:
    assert files.cert is not None
    # Never asks at the terminal for a passphrase.
    context.load_cert_chain(files.cert, files.key, password="")


def _of_time(path: Path, certificate: x509.Certificate, now: datetime) -> list[Warned]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return [Warned(logging.ERROR, f"{path} is not valid before {begin}: look at the clock", _MINUTE_SECONDS)]
    if now >= end:
        return [Warned(logging.ERROR, f"{path} has expired, at {end}: put a new one in its place", _MINUTE_SECONDS)]
    if end - now < SOON:
        level = logging.ERROR if end - now < VERY_SOON else logging.WARNING
        line = f"{path} expires in {(end - now).days} days, at {end}: put a new one in its place"
        return [Warned(level, line, _DAY_SECONDS)]
    return []
