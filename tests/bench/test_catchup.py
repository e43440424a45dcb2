"""A node catches up as the benchmark says that it did, on real processes; and what a load took is told truly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from raftq.bench import catchup, cluster, paced
from raftq.bench.catchup import Catchup, Figure, MemoryUse, Outcome
from raftq.bench.load import LoadFailed

#: So that few messages make a log that is too long to be kept for one who is away.
CHARACTERS = 1_000_000
MESSAGES = 140


@pytest.mark.cluster
def test_every_way_to_catch_up(tmp_path: Path) -> None:
    with cluster.running(tmp_path) as nodes:
        case = Catchup(nodes, CHARACTERS, 1, print)
        within = case.away("within the log", MESSAGES // 10, by_snapshot=False)
        below = case.away("below the log", MESSAGES, by_snapshot=True)
        empty = case.empty("empty")
        outcome = Outcome([within, below, empty], catchup.common_digest(nodes), len(nodes.nodes()))
    assert (within.snapshots, within.snapshot_bytes, within.messages) == (0, 0, MESSAGES // 10)
    assert below.snapshots == empty.snapshots == 1
    assert below.messages >= MESSAGES
    # A snapshot holds every message there is.
    assert below.snapshot_bytes > (within.messages + below.messages) * CHARACTERS
    assert empty.snapshot_bytes > (within.messages + below.messages) * CHARACTERS
    assert empty.messages >= within.messages + below.messages
    assert outcome.nodes == 4
    for figure in outcome.figures:
        assert figure.seconds > 0
        assert min(figure.before.enqueues, figure.during.enqueues, figure.after.enqueues) > 0
        assert figure.leader_peak.pss >= figure.leader_peak.anonymous > 0
        assert figure.node_peak.pss > 0
    assert "| below the log | " in catchup.body(outcome)


class Server(BaseHTTPRequestHandler):
    """Answers 201 at once, but for the requests that a test names."""

    protocol_version = "HTTP/1.1"
    #: Head and body leave together.
    wbufsize = 65536
    #: By the number of the request: a status.
    answers: ClassVar[dict[int, int]] = {}
    #: By the number of the request: to be set before it is answered.
    held: ClassVar[dict[int, threading.Event]] = {}
    count: ClassVar[int] = 0

    def do_POST(self) -> None:
        number, Server.count = Server.count, Server.count + 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if number in Server.held:
            Server.held[number].wait(20)
        self.send_response(Server.answers.get(number, 201))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.answers, Server.held, Server.count = {}, {}, 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/queues/q/messages"
        server.shutdown()
        thread.join()


def served(count: int) -> None:
    reached = threading.Event()
    while Server.count < count:
        reached.wait(0.005)


def test_a_held_answer_counts_for_all_that_were_due_meanwhile(url: str) -> None:
    Server.held[5] = release = threading.Event()
    with paced.running(url, rate=200, connections=1) as seen:
        served(6)
        release.wait(0.3)  # it is not set: this is how long the answer is held
        release.set()
        served(200)
    late = [sample for sample in seen.samples[5:] if sample.seconds > 0.1]
    assert seen.samples[5] in late
    assert seen.samples[5].seconds >= 0.3
    # At 200 a second some 40 more were due in the first 0.2 s that it was held.
    assert len(late) > 20
    assert seen.samples == sorted(seen.samples)


def test_samples_are_told_apart_by_when_they_were_due() -> None:
    seen = paced.Paced([paced.Sample(1.0, 0.003), paced.Sample(2.0, 0.001), paced.Sample(2.5, 0.0005)])
    assert seen.between(0.0, 2.0) == [3.0]
    assert seen.between(2.0, 3.0) == [0.5, 1.0]


def test_a_refused_enqueue_fails_the_load(url: str) -> None:
    Server.answers[3] = 507
    with (
        pytest.raises(LoadFailed, match=r"1 of 2 connections failed: .*507"),
        paced.running(url, rate=200, connections=2),
    ):
        served(10)


@pytest.mark.parametrize(
    ("begun", "size"),
    [
        (b"HTTP/1.1 201 Created\r\nContent-Len", None),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\nX: y\r\n\r\n{}", 49 + 7),
        (b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", 43),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 27),
    ],
)
def test_how_long_an_answer_is(begun: bytes, size: int | None) -> None:
    assert paced.answer_bytes(begun) == size


def test_a_page_without_a_snapshot_or_a_node_before_has_dashes() -> None:
    seen, memory = catchup.latency([1.0, 2.0, 30.0]), MemoryUse(3 << 20, 2 << 20)
    figure = Figure("empty", 7, 1.5, 0, 0, 0, seen, seen, seen, memory, memory, None, memory)
    text = catchup.body(Outcome([figure], "ab12", 4))
    assert "| empty | 7 | 1.50 | - | 0 |" in text
    assert "| empty, meanwhile | 3 | 2.00 | 30.0 | 30.0 |" in text
    assert "| empty | 3.0 (2.0) | 3.0 (2.0) | - | 3.0 (2.0) |" in text
    assert "ab12" in text
