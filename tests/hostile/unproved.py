"""The ports of a cluster with certificates and a secret, to those who have neither, one of them, or another's."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from raftq.node.authority import Authority
from raftq.replication import wire
from raftq.replication.security import Secret
from raftq.replication.wire import Hello
from tests.hostile.attack import CLOSED, Attack, request
from tests.hostile.target import Target, Wire

#: The handshake came to no end.
REFUSED = "no handshake"
_NONE = frozenset({CLOSED, REFUSED})
_VOTE = {"type": "vote", "term": 1 << 60, "last_index": 1 << 60, "last_term": 1 << 60, "transfer": True}


def attacks() -> Iterator[Attack]:
    hello = bytes.fromhex("16030100c8010000c40303")
    plain = {
        "a request without TLS": request("/v1/cluster"),
        "TLS' hello cut off": hello + bytes(20),
        "a record that is none": b"\x16\x03\x03\xff\xff" + bytes(1000),
        "an alert": bytes.fromhex("15030300020250"),
        "SSL 2": bytes.fromhex("802e0100020015000000100100800200800600400400800700c0"),
        "random bytes": bytes((n * n * 31 + 7) % 256 for n in range(5000)),
        "a hello of a peer": _framed(msgspec.msgpack.encode(_hello("n1"))),
    }
    for peer in (False, True):
        port = "the peers' port" if peer else "the API"
        for name, data in plain.items():
            yield Attack("bytes that are no TLS", f"{name}, {port}", partial(_said, data=data, peer=peer), _NONE)
        yield Attack("old TLS", port, partial(_old, peer=peer), frozenset({REFUSED}))
        yield Attack("handshakes that never end", port, partial(_slow, data=hello, peer=peer), _NONE)
    yield Attack("peers without a certificate", "none", partial(_certified, by=None), _NONE)
    yield Attack("peers without a certificate", "of another authority", partial(_certified, by="another"), _NONE)
    secrets = {"none": None, "another": b"another secret of thirty-two bytes and more", "an empty one": b""}
    for name, secret in secrets.items():
        yield Attack("peers without the secret", name, partial(_certified, by="the cluster", secret=secret), _NONE)
    yield Attack("peers without the secret", "a captured proof, repeated", _repeated, _NONE)
    lengths = (wire.HELLO_BYTES_MAX + 1, wire.FRAME_BYTES_MAX, (1 << 32) - 1)
    for length in lengths:
        data = length.to_bytes(4, "big") + bytes(1000)
        run = partial(_certified, by="the cluster", data=data)
        yield Attack("peers without the secret", f"{length:,} bytes announced", run, _NONE)


def _hello(node: str, cluster: str = "local") -> Hello:
    return Hello(
        wire.PROTOCOL, cluster, node, "uuid", 1 << 40, "https://127.0.0.1:1", "127.0.0.1:1", "0", 1 << 40, 1 << 40
    )


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _said(target: Target, data: bytes, peer: bool) -> list[str]:
    """Without TLS, to a leader and to a follower: an alert at most comes back."""
    ports = target.peer_ports if peer else target.ports
    for node in (target.leader, target.follower):
        with Wire(ports[node]) as stranger:
            stranger.send(data)
            stranger.end_sending()
            answer = stranger.rest()
            assert b"HTTP/" not in answer
            assert len(answer) < 20, answer
    return [CLOSED] * 2


def _context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Of a client that trusts anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = context.maximum_version = version
    return context


def _old(target: Target, peer: bool) -> list[str]:
    ports = target.peer_ports if peer else target.ports
    found = []
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        try:
            Wire(ports[target.leader], _context(version)).socket.close()
        except OSError:
            found.append(REFUSED)
        else:
            found.append(version.name)
    return found


def _slow(target: Target, data: bytes, peer: bool) -> list[str]:
    ports = target.peer_ports if peer else target.ports
    wires = [Wire(ports[node]) for node in (target.leader, target.follower) for _ in range(40)]
    for number, stranger in enumerate(wires):
        stranger.send(data[: number % len(data)])
    target.check()
    for stranger in wires:
        stranger.socket.close()
    return [CLOSED] * len(wires)


def _certified(target: Target, by: str | None, secret: bytes | None = None, data: bytes = b"") -> list[str]:
    """A peer over TLS, with a certificate by somebody, that opens with a secret or with its hello alone."""
    found = []
    for node in (target.leader, target.follower):
        stranger = _dialed(target, node, by)
        if stranger is None:
            found.append(REFUSED)
            continue
        with stranger:
            if secret:
                stranger.send(_framed(Secret(secret).open()[1]))
            stranger.send(data or _framed(msgspec.msgpack.encode(_hello("n9"))))
            stranger.send(_framed(msgspec.msgpack.encode(_VOTE)))
            answer = stranger.rest()
            assert answer == b"", answer
        found.append(CLOSED)
    return found


def _dialed(target: Target, node: str, by: str | None) -> Wire | None:
    context = _context()
    if by is not None:
        assert target.cluster.secure is not None
        folder = target.cluster.secure.path if by == "the cluster" else _another(target.cluster.folder)
        context.load_cert_chain(folder / "n1.crt", folder / "n1.key")
    try:
        return Wire(target.peer_ports[node], context)
    except OSError:
        return None


def _another(cluster: Path) -> Path:
    folder = cluster / "another-authority"
    if not folder.exists():
        folder.mkdir()
        Authority(folder).ensure("n1", [])
    return folder


def _repeated(target: Target) -> list[str]:
    """What a node once said to open, said again by who saw it: a nonce comes back, and nothing after it is heard."""
    assert target.cluster.secure is not None
    _, captured = Secret((target.cluster.secure.path / "cluster.secret").read_bytes().strip()).open()
    found = []
    for _ in range(3):
        stranger = _dialed(target, target.leader, "the cluster")
        assert stranger is not None
        with stranger:
            stranger.send(_framed(captured))
            stranger.send(_framed(msgspec.msgpack.encode(_hello("n9"))))
            stranger.send(_framed(msgspec.msgpack.encode(_VOTE)))
            answer = stranger.rest()
            assert len(answer) <= 4 + len(captured), answer
        found.append(CLOSED)
    return found
