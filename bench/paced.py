"""A steady load of single enqueues, so many a second whatever the cluster makes of it, in a process of its own.

An enqueue that is due while its connection still waits for the answer before is late: its latency counts from when it
was due, so that a pause of the cluster is seen in every request that it held up. Run as `python -m raftq.bench.paced`,
it goes on until its standard input closes, and then prints when each enqueue was due and how long it took.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from raftq.bench.load import BODY_CHARACTERS, LoadFailed

ANSWER_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = ANSWER_SECONDS_MAX + 10.0


class Sample(NamedTuple):
    #: By the monotonic clock, which all processes of a machine share.
    due: float
    seconds: float


@dataclass
class Paced:
    """What the load saw; known once it has ended."""

    samples: list[Sample] = field(default_factory=list)

    def between(self, begin: float, end: float) -> list[float]:
        """Milliseconds that the enqueues took that were due in this time, sorted."""
        return sorted(sample.seconds * 1e3 for sample in self.samples if begin <= sample.due < end)


@contextmanager
def running(url: str, *, rate: int, connections: int) -> Iterator[Paced]:
    """The load on `url` until the end of the block. Raises LoadFailed when an enqueue was refused or not answered."""
    command = [sys.executable, "-m", "raftq.bench.paced", url, str(rate), str(connections)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    paced = Paced()
    try:
        yield paced
        output, _ = process.communicate(timeout=STOP_SECONDS_MAX)
    finally:
        process.kill()
        process.communicate()
    result = json.loads(output or '{"failures": ["it said nothing"]}')
    if failures := result["failures"]:
        raise LoadFailed(f"{len(failures)} of {connections} connections failed: {failures[0]}")
    paced.samples += [Sample(*sample) for sample in result["samples"]]


class Connection:
    """Sends its share of the enqueues, each when it is due or else as soon as the one before is answered."""

    def __init__(self, url: str) -> None:
        self.samples: list[Sample] = []
        self.failure: str | None = None
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), ANSWER_SECONDS_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = json.dumps({"body": "x" * BODY_CHARACTERS})
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def run(self, first_due: float, interval: float, ended: threading.Event) -> None:
        due = first_due
        try:
            while not ended.is_set():
                began = due
                if (early := due - time.monotonic()) > 0:
                    time.sleep(early)
                    began = time.monotonic()
                self._enqueue()
                self.samples.append(Sample(due, time.monotonic() - began))
                due += interval
        except (OSError, LoadFailed) as error:
            self.failure = str(error) or type(error).__name__
        finally:
            self._socket.close()

    def _enqueue(self) -> None:
        self._socket.sendall(self._request)
        answer = b""
        while not (size := answer_bytes(answer)) or len(answer) < size:
            part = self._socket.recv(65536)
            if not part:
                raise LoadFailed(f"the connection was closed after {answer!r}")
            answer += part
        if not answer.startswith(b"HTTP/1.1 201 "):
            raise LoadFailed(f"an enqueue was answered {answer[:300]!r}")


def answer_bytes(begun: bytes) -> int | None:
    """Of the whole answer that begins so; None while its head is not whole."""
    head, end, _ = begun.partition(b"\r\n\r\n")
    if not end:
        return None
    length = re.search(rb"^content-length: (\d+)\r?$", head, re.IGNORECASE | re.MULTILINE)
    return len(head) + len(end) + (int(length[1]) if length else 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m raftq.bench.paced", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("rate", type=int)
    parser.add_argument("connections", type=int)
    options = parser.parse_args()
    ended, began = threading.Event(), time.monotonic()
    connections = [Connection(options.url) for _ in range(options.connections)]
    threads = [
        threading.Thread(
            target=connection.run, args=(began + place / options.rate, options.connections / options.rate, ended)
        )
        for place, connection in enumerate(connections)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    samples = sorted(sample for connection in connections for sample in connection.samples)
    failures = [connection.failure for connection in connections if connection.failure]
    print(json.dumps({"failures": failures, "samples": samples}))


if __name__ == "__main__":
    main()
