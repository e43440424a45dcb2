"""What a peer must prove before it is heard: the cluster's secret, a certificate of the cluster's CA, or both.

Owns the keys that are made of the secret, the proofs with which a connection opens, and the seal of every frame after
them. Never touches a socket (`channel` does), and holds the secret in nothing that is logged or shown.

    dialer to acceptor   a nonce d, and HMAC(proof key, "dialer" d)
    acceptor to dialer   a nonce a, and HMAC(proof key, "acceptor" d a)
    dialer to acceptor   its hello, sealed with a key of (d, a)
    acceptor to dialer   its hello or a refusal, sealed with another key of (d, a)
    dialer to acceptor   messages, sealed

It is the three-pass protocol with a shared key of Bellare and Rogaway ("Entity Authentication and Key Distribution",
1993, AKEP2), with a MAC in the first pass as well, and with the names (the hellos) under the keys of the connection.
Invariant: who does not know the secret is sent no byte; who repeats what was once said gets a nonce and a proof, and
from there on nothing, since every key depends on both nonces. A frame is accepted once, in its place, in its direction,
on its connection, and as it was sent.
"""

from __future__ import annotations

import hmac
import secrets
import ssl
import struct
from collections.abc import Iterable
from hashlib import blake2b, sha256
from typing import Any, Final, NamedTuple, Protocol

from raftq.replication.wire import Buffer, Malformed, Refusal

#: Of the secret; what is shorter could be guessed.
SECRET_BYTES_MIN: Final = 32
#: Of one frame, after it.
SEAL_BYTES: Final = 16
_NONCE_BYTES: Final = 32
#: Its first byte begins no value of msgpack, so that no hello looks like a proof. The number goes up with the protocol.
_MAGIC: Final = b"\xc1raftq 1"
_PROOF_BYTES: Final = len(_MAGIC) + _NONCE_BYTES + 32
#: Of a longer frame the digest is sealed, which is made once for all links.
_LONG_BYTES: Final = 1024
_PLACE: Final = struct.Struct(">QI")

#: How a certificate names a node, as a host and as an URI.
_HOST_SUFFIX: Final = ".raftq"
_URI_PREFIX: Final = "raftq://node/"


class Unproved(Malformed):
    """The other end did not prove that it belongs to the cluster."""


class PeerTls(Protocol):
    """Asked anew for each connection, so that certificates can change while the node runs. Both contexts must require a
    certificate of the cluster's CA, and check no host name: peers are dialed by address, and named by their hello."""

    def server_context(self) -> ssl.SSLContext: ...
    def client_context(self) -> ssl.SSLContext: ...


class PeerSecurity:
    """What this node asks of its peers, and shows them. Raises ValueError for what would protect nothing."""

    def __init__(self, secret: bytes | None = None, tls: PeerTls | None = None) -> None:
        self.secret = None if secret is None else Secret(secret)
        self._tls = tls
        self.context(accepted=True)
        self.context(accepted=False)

    def context(self, *, accepted: bool) -> ssl.SSLContext | None:
        """For one more connection; None: without TLS."""
        if self._tls is None:
            return None
        context = self._tls.server_context() if accepted else self._tls.client_context()
        if context.verify_mode is not ssl.CERT_REQUIRED or context.check_hostname:
            raise ValueError("TLS between peers must require a certificate of both sides, and check no host name")
        return context

    def shown(self) -> str:
        """For the log."""
        shown = ["a cluster secret"] * (self.secret is not None) + ["TLS"] * (self._tls is not None)
        return " and ".join(shown) or "neither a cluster secret nor TLS"


class Seals(NamedTuple):
    """Of one connection: what it says, and what it hears."""

    said: Seal
    heard: Seal


class Secret:
    def __init__(self, material: bytes) -> None:
        if len(material) < SECRET_BYTES_MIN:
            raise ValueError(f"a cluster secret of less than {SECRET_BYTES_MIN} bytes")
        self._proof_key = hmac.digest(material, b"raftq peers 1 proof", "sha256")
        self._seal_key = hmac.digest(material, b"raftq peers 1 seal", "sha256")

    def open(self) -> tuple[bytes, bytes]:
        """The dialer's nonce, and the payload that opens a connection with it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce, _MAGIC + nonce + self._proof(b"dialer", nonce)

    def accept(self, payload: Buffer) -> tuple[bytes, Seals]:
        """What to answer to the payload that opens a connection, and the seals from then on."""
        dialers = self._nonce(payload, b"dialer")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        to_acceptor, to_dialer = self._directions(dialers, nonce)
        return _MAGIC + nonce + self._proof(b"acceptor", dialers, nonce), Seals(said=to_dialer, heard=to_acceptor)

    def answered(self, nonce: bytes, payload: Buffer) -> Seals:
        """The seals of the connection that was opened with `nonce` and answered with `payload`."""
        to_acceptor, to_dialer = self._directions(nonce, self._nonce(payload, b"acceptor", nonce))
        return Seals(said=to_acceptor, heard=to_dialer)

    def _proof(self, role: bytes, *nonces: bytes) -> bytes:
        return hmac.digest(self._proof_key, role + b"".join(nonces), "sha256")

    def _nonce(self, payload: Buffer, role: bytes, *before: bytes) -> bytes:
        """The nonce in `payload`, proved by who has that role."""
        said = bytes(payload)
        if not is_proof(said):
            raise Unproved("it opens without a cluster secret, and this node asks for one")
        nonce, proof = said[len(_MAGIC) : -32], said[-32:]
        if not hmac.compare_digest(proof, self._proof(role, *before, nonce)):
            raise Unproved("it has another cluster secret")
        return nonce

    def _directions(self, dialers: bytes, acceptors: bytes) -> tuple[Seal, Seal]:
        return (
            Seal(hmac.digest(self._seal_key, b"to acceptor" + dialers + acceptors, "sha256")),
            Seal(hmac.digest(self._seal_key, b"to dialer" + dialers + acceptors, "sha256")),
        )


class Seal:
    """The frames of one direction of one connection, each with its place among them."""

    __slots__ = ("_count", "_keyed")

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(key=key, digest_size=SEAL_BYTES)
        self._count = 0

    def next(self, payload_bytes: int, sealed: Buffer) -> bytes:
        """The seal of the next frame, of so many bytes; `sealed`: what `sealed_of` says of them."""
        mac = self._keyed.copy()
        mac.update(_PLACE.pack(self._count, payload_bytes))
        mac.update(sealed)
        self._count += 1
        return mac.digest()

    def opened(self, payload: memoryview) -> memoryview:
        """The next frame without its seal. Raises Unproved when that is not the one due."""
        content, seal = payload[:-SEAL_BYTES], payload[-SEAL_BYTES:]
        if not hmac.compare_digest(seal, self.next(len(content), sealed_of(content))):
            raise Unproved("a frame without the seal that is due: it was changed, repeated, or left out on the way")
        return content


def sealed_of(payload: memoryview) -> Buffer:
    """What is sealed of a frame: itself, or its digest. The length beside it tells the two apart."""
    return payload if len(payload) <= _LONG_BYTES else sha256(payload).digest()


def is_proof(payload: Buffer) -> bool:
    return len(payload) == _PROOF_BYTES and payload[: len(_MAGIC)] == _MAGIC


def misnamed(certificate: dict[str, Any], node: str) -> Refusal | None:
    """Why who showed `certificate` is not `node`, or None. One names nodes as hosts, `<node id>.raftq`, in which case
    counts for nothing, or as URIs, `raftq://node/<node id>`; if it names none, it is for any."""
    names: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ())
    hosts = [name.removesuffix(_HOST_SUFFIX) for kind, name in names if kind == "DNS" and name.endswith(_HOST_SUFFIX)]
    nodes = [name.removeprefix(_URI_PREFIX) for kind, name in names if kind == "URI" and name.startswith(_URI_PREFIX)]
    if not hosts + nodes or node in nodes or node.lower() in [host.lower() for host in hosts]:
        return None
    return Refusal(f"its certificate is for {', '.join(hosts + nodes)[:200]}, not for {node!r}")
