"""The peers' port: bytes, openings and frames of those who are no peers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from raftq.node import probe
from raftq.replication import wire
from raftq.replication.peers import STRANGERS_MAX
from raftq.replication.wire import Hello
from tests.hostile.attack import CLOSED, Attack, request
from tests.hostile.target import Target, Wire

REFUSED_HELLO = "refused"
#: Of each kind of frame.
EXAMPLES = 15
_PREFIX = 4
_CLOSED = frozenset({CLOSED})


def attacks() -> Iterator[Attack]:
    strangers = _Strangers()
    yield Attack("strangers", f"{STRANGERS_MAX + 150} at once, silent or slow", strangers.come, _CLOSED)
    dice = random.Random(7)
    blobs = {
        f"{size} random bytes, {run}": dice.randbytes(size)
        for size in (1, 3, 4, 5, 100, 20_000, 2_000_000)
        for run in range(4)
    }
    blobs |= {
        "zeros": bytes(1_000_000),
        "ones": b"\xff" * 1_000_000,
        "a request": request("/v1/cluster"),
        "TLS 1.3's hello": bytes.fromhex("1603010200010001fc0303") + bytes(500),
        "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
        "pickle": _framed(b"\x80\x04cos\nsystem\n(S'id'\ntR."),
    }
    for name, data in blobs.items():
        yield _said("random bytes", name, data)
    for length in (wire.HELLO_BYTES_MAX + 1, 1 << 20, wire.FRAME_BYTES_MAX, wire.FRAME_BYTES_MAX + 1, (1 << 32) - 1):
        data = length.to_bytes(_PREFIX, "big") + bytes(1000)
        yield _said("announced lengths", f"{length:,} bytes", data)
    yield _said("announced lengths", "10,000 frames of nothing", bytes(_PREFIX * 10_000))
    bombs = {
        "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
        "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
        "a text of 4 GiB": b"\x81\xa4kind\xdb\xff\xff\xff\xff",
        "deep": b"\x91" * 16_000,
        "deep maps": b"\x81\xa1a" * 5_000,
        "an extension": b"\x81\xa4kind\xd4\x05x",
        "no UTF-8": b"\x81\xa4kind\xa2\xc0\xaf",
        "a kind that is none": b"\x81\xa4kind\xa4evil",
        "a refusal": msgspec.msgpack.encode(wire.Refusal("go", final=True)),
    }
    for name, payload in bombs.items():
        yield _said("openings that are none", name, _framed(payload))
    for name, changes in _HELLOS.items():
        run = partial(_greet, changes=changes)
        yield Attack("hellos of others", name, run, frozenset({REFUSED_HELLO, CLOSED}))
    for kind in wire.MESSAGES:
        run = partial(_crafted, kind=kind)
        yield Attack("crafted frames of every kind", kind, run, _CLOSED)
    yield Attack("crafted frames of every kind", "any other value", partial(_crafted, kind=None), _CLOSED)
    yield Attack("strangers", "are all sent away", strangers.go, _CLOSED)


#: What is changed of a hello that would fit.
_HELLOS: dict[str, dict[str, Any]] = {
    "another cluster": {"cluster_id": "another"},
    "another cluster, of the longest name": {"cluster_id": "\U0001f41b" * 512},
    "no cluster": {"cluster_id": ""},
    "an older protocol": {"protocol": 1},
    "a newer protocol": {"protocol": 1 << 62},
    "meant for another node": {"to": "n9"},
    "the node itself": {"node_id": None},
    "a bulk lane beside nothing": {"lane": "bulk", "node_uuid": "evil"},
    "an empty folder of a member": {"node_uuid": "evil", "boot": 1},
    "a stranger that cannot be dialed": {"node_id": "evil", "peer_address": "evil"},
    "a stranger of port 0": {"node_id": "evil", "peer_address": "127.0.0.1:0"},
    "a member with a text for its boot": {"boot": "1"},
    "a member with a negative boot": {"boot": -1},
    "a member with a boot past 8 bytes": {"boot": 1 << 63},
    "a member with a name too long": {"api_url": "x" * 513},
    "a member with NUL and line breaks in its id": {"node_id": "n1\0\r\nlevel=critical", "peer_address": ""},
}


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(_PREFIX, "big") + payload


def _said(row: str, name: str, data: bytes) -> Attack:
    """Said to a leader and to a follower, which close."""

    def run(target: Target) -> list[str]:
        for node in (target.leader, target.follower):
            with target.open_peer(node) as stranger:
                stranger.send(data)
                stranger.end_sending()
                assert stranger.rest() == b""
        return [CLOSED] * 2

    return Attack(row, name, run, _CLOSED)


def _hello(target: Target, node: str, changes: dict[str, Any]) -> bytes:
    """As another member would say it to `node`, but for the changes."""
    cluster = probe.cluster(target.cluster.url(node))
    assert cluster is not None
    other = next(each for each in target.ports if each != node)
    address = f"127.0.0.1:{target.peer_ports[other]}"
    hello = Hello(wire.PROTOCOL, cluster["cluster_id"], other, "uuid", 1, "http://127.0.0.1:1", address, "0", 0, 0)
    fields: dict[str, Any] = {"kind": "hello", **msgspec.structs.asdict(hello), **changes}
    fields["node_id"] = node if fields["node_id"] is None else fields["node_id"]
    return _framed(msgspec.msgpack.encode(fields))


def _greet(target: Target, changes: dict[str, Any]) -> list[str]:
    """The answer is a refusal, or none; what is said after it is not heard."""
    found = []
    for node in (target.leader, target.follower):
        with target.open_peer(node) as stranger:
            stranger.send(_hello(target, node, changes))
            stranger.send(
                _framed(
                    msgspec.msgpack.encode(
                        {"type": "vote", "term": 1 << 60, "last_index": 1 << 60, "last_term": 1 << 60, "transfer": True}
                    )
                )
            )
            answer = stranger.rest()
        if not answer:
            found.append(CLOSED)
            continue
        opening = wire.opening(memoryview(answer)[_PREFIX:])
        assert isinstance(opening, wire.Refusal), opening
        found.append(REFUSED_HELLO)
    return found


_NUMBERS = st.sampled_from([0, 1, 2, (1 << 63) - 2, 1 << 63, (1 << 64) - 1, -1, -(1 << 63)])
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _crafted(target: Target, kind: str | None) -> list[str]:
    """Said instead of a hello, and after one of another cluster. tests/replication has what a peer says."""
    found: list[str] = []
    if kind is None:
        values: st.SearchStrategy[Any] = _VALUES
    else:
        fields = st.fixed_dictionaries({}, optional=dict.fromkeys(wire.MESSAGES[kind], _NUMBERS | _VALUES))
        values = fields.map(lambda given: {"type": kind, **given})

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(value=values, greeted=st.booleans(), node=st.sampled_from([target.leader, target.follower]))
    def say(value: Any, greeted: bool, node: str) -> None:
        said = _framed(msgspec.msgpack.encode(value))
        with target.open_peer(node) as stranger:
            if greeted:
                stranger.send(_hello(target, node, {"cluster_id": "another"}))
            stranger.send(said)
            stranger.end_sending()
            stranger.rest()
        found.append(CLOSED)

    say()
    return found


class _Strangers:
    """More than are borne, some with the beginning of a hello: all are sent away by the node, while it serves on."""

    def __init__(self) -> None:
        self._wires: list[Wire] = []

    def come(self, target: Target) -> list[str]:
        hello = _hello(target, target.leader, {})
        for number in range(STRANGERS_MAX + 150):
            self._wires.append(target.open_peer(target.leader))
            self._wires[-1].send(hello[: number % 20])
        return []

    def go(self, _target: Target) -> list[str]:
        for stranger in self._wires:
            assert stranger.rest() == b""
            stranger.socket.close()
        return [CLOSED] * len(self._wires)
