"""The limits of the API on a real node: its settings count, and it serves on while clients take all that they may."""

from __future__ import annotations

import functools
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from raftq.bench import measure
from raftq.node import doctor, probe
from raftq.node.settings import load
from raftq.node.waiting import wait_until
from tests.node.conftest import Node, Settings

Start = Callable[..., Node]
NEEDED = {"node_id": "n1", "cluster_id": "c1", "data": "/data"}
FILES = 600


def connect(settings: Settings) -> socket.socket:
    host, port = settings["api-listen"].split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@contextmanager
def crowd(settings: Settings, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(settings)) for _ in range(count)]


def metric(settings: Settings, name: str) -> float:
    return measure.metric(probe.ask("GET", f"{settings.url}/metrics").text, name)


def test_a_node_with_few_files_serves_on_when_it_is_full(start: Start, settings: Settings) -> None:
    few = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (256, FILES))
    node = start(settings.flags, preexec_fn=few)
    node.wait_ready(settings.url)
    room = doctor.room(load(NEEDED, {}), FILES)
    assert metric(settings, "raftq_connections_limit") == room.connections
    with connect(settings) as first:
        request = b"POST /q/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
        first.sendall(request)
        assert first.recv(65536).startswith(b"HTTP/1.1 201 ")
        # More than it has files: the last are refused before they say anything.
        with crowd(settings, room.connections - 1):
            assert probe.ask("GET", f"{settings.url}/readyz").status == 200
            assert probe.ask("GET", f"{settings.url}/v1/queues").status == 503
            with crowd(settings, FILES) as others:
                assert others[-1].recv(65536).startswith(b"HTTP/1.1 503 ")
                first.sendall(request)
                assert first.recv(65536).startswith(b"HTTP/1.1 201 ")
        wait_until(lambda: probe.ask("GET", f"{settings.url}/v1/queues").status == 200, 20, "there is room again")
        wait_until(lambda: metric(settings, "raftq_connections") == 2, 20, "the crowd has gone")
        assert metric(settings, "raftq_limits_met_total") > FILES / 2
    node.process.terminate()
    code, said = node.end()
    assert code == 0
    assert not [line for line in said if "Too many open files" in line]


def test_the_settings_of_the_limits_count(start: Start, settings: Settings) -> None:
    given = settings.but(head_seconds_max="0.2", fields_max="20", target_bytes_max="600", idle_seconds_max="0.2")
    node = start(given.flags)
    node.wait_ready(settings.url)
    with connect(settings) as silent:
        assert silent.recv(1) == b""
    for request, status in (
        (b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20 + b"\r\n", b"431"),
    ):
        with connect(settings) as one:
            one.sendall(request)
            assert one.recv(65536)[9:12] == status
    with connect(settings) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert idle.recv(1) == b""


@pytest.mark.parametrize(
    ("files_max", "connections", "forwards"),
    [(65_536, 20_000, 4_000), (24_336, 20_000, 4_000), (20_000, 15_732, 3_932), (1_024, 551, 137), (64, 8, 2)],
)
def test_connections_leave_files_for_the_rest(files_max: int, connections: int, forwards: int) -> None:
    room = doctor.room(load(NEEDED, {}), files_max)
    assert room == (connections, forwards)
