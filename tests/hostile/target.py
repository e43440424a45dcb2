"""A cluster of three processes under attack: how bytes reach it, and what must be so after each attack."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from raftq.node import probe
from raftq.node.local_cluster import LocalCluster
from raftq.node.local_ports import of as port_of
from raftq.node.waiting import wait_until

#: No answer in this time is a hang.
SECONDS = 10.0
#: What a node may hold at the end beyond what it held at the beginning: allocators keep what the largest requests took.
MEMORY_MIB_MAX = 64
#: Connections that a follower keeps to the leader, and files of a few more readers.
DESCRIPTORS_MAX = 8
#: How a line of a log begins, whatever is sent: anything else was forged, or is a traceback.
_HARMLESS = re.compile(r"time=\S+ level=(debug|info|warning) node=\S+ event=")

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Silent(AssertionError):
    """No answer came in time, and the connection stays open."""


class Wire:
    """One connection of an attacker."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        """Raises OSError, of a handshake too."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self._received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether all of it could be sent: a node may have closed before."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def end_sending(self) -> None:
        with suppress(OSError):  # closed by the node
            self.socket.shutdown(socket.SHUT_WR)

    def answer(self, method: str = "GET") -> tuple[int, bytes] | None:
        """Status and body of the next answer, those of 1xx left out; None: the node closed instead. Raises Silent."""
        while True:
            while b"\r\n\r\n" not in self._received:
                if not self._receive():
                    return None
            head, _, rest = self._received.partition(b"\r\n\r\n")
            status = int(head[9:12])
            if status == 100:
                self._received = rest
                continue
            length = _LENGTH.search(head)
            if status == 101 or method == "HEAD":
                wanted = 0
            elif length is None:
                wanted = 0 if status == 204 else None
            else:
                wanted = int(length[1])
            while wanted is None or len(rest) < wanted:
                if not self._receive():
                    break
                rest = self._received.partition(b"\r\n\r\n")[2]
            wanted = len(rest) if wanted is None else wanted
            body, self._received = rest[:wanted], rest[wanted:]
            return status, body

    def answers(self) -> list[int]:
        """Of all answers until the node closes. Raises Silent."""
        found = []
        while (answer := self.answer()) is not None:
            found.append(answer[0])
        return found

    def exactly(self, size: int) -> bytes | None:
        """Raw bytes; None: the node closed before there were so many. Raises Silent."""
        while len(self._received) < size:
            if not self._receive():
                return None
        data, self._received = self._received[:size], self._received[size:]
        return data

    def head(self) -> bytes:
        """Of the next answer; what follows is lost. Raises Silent."""
        while b"\r\n\r\n" not in self._received and self._receive():
            pass
        return self._received.partition(b"\r\n\r\n")[0]

    def rest(self) -> bytes:
        """All until the node closes. Raises Silent."""
        while self._receive():
            pass
        data, self._received = self._received, b""
        return data

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise Silent(f"nothing in {self.socket.gettimeout()} s after {self._received[-200:]!r}") from None
        except OSError:
            return False
        self._received += data
        return bool(data)


class Target:
    """The cluster. Of its followers one is attacked."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._access = cluster.access
        #: Of the API; None: it is without TLS.
        self.tls = None if self._access.ca_file is None else ssl.create_default_context(cafile=self._access.ca_file)
        self.leader = cluster.wait_ready()
        self.follower = next(node.id for node in cluster.nodes if node.id != self.leader)
        self.ports = {node.id: port_of(node.api_url) for node in cluster.nodes}
        self.peer_ports = {node.id: port_of(node.peer_address) for node in cluster.nodes}
        token = self._access.token
        self._authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
        self._connections: dict[str, Wire] = {}
        self._asked = 0
        self._term = self._described()["term"]
        self._logs = {node.id: Path(node.log) for node in cluster.nodes}
        self._read = {name: path.stat().st_size for name, path in self._logs.items()}
        self._turns = self._nodes()
        for name in self.ports:
            self.check_serves(name)
        self._descriptors = self.descriptors()
        self._memory = self.memory_mib()

    def open(self, node: str) -> Wire:
        return Wire(self.ports[node], self.tls)

    def open_peer(self, node: str) -> Wire:
        """Without TLS."""
        return Wire(self.peer_ports[node])

    def close(self) -> None:
        for wire in self._connections.values():
            wire.socket.close()

    # What must be so

    def check(self) -> None:
        """After each attack: all nodes run, one after the other serves, the leader and its term are the same, and no
        log tells of a failure."""
        assert self.cluster.ended() == []
        self.check_serves(next(self._turns))
        described = self._described()
        assert (described["leader"], described["term"]) == (self.leader, self._term), described
        assert self.failures() == []

    def check_serves(self, node: str) -> None:
        """An enqueue, its lease and its ack through this node, on a connection that lasts: an answer of another request
        would be seen."""
        self._asked += 1
        queue = f"/v1/queues/probe-{node}"
        assert self._ask(node, f"{queue}/messages", {"body": self._asked})["messages"][0]["duplicate"] is False
        [message] = self._ask(node, f"{queue}/lease", {"wait_seconds": 5})["messages"]
        assert message["body"] == self._asked
        [result] = self._ask(node, f"{queue}/ack", {"receipts": [message["receipt"]]})["results"]
        assert result["status"] == "done"

    def check_at_the_end(self) -> dict[str, float]:
        """Nothing leaked, and the nodes hold the same. Gives what each node holds more than at first, in MiB."""
        assert self.ask("GET", "/v1/queues/smuggled").status == 404, "a smuggled request was done"
        if self._descriptors:
            wait_until(
                lambda: all(
                    now <= self._descriptors[node] + DESCRIPTORS_MAX for node, now in self.descriptors().items()
                ),
                20,
                f"descriptors as at first: {self._descriptors}, now {self.descriptors()}",
            )
        more = {node: now - self._memory[node] for node, now in self.memory_mib().items()}
        assert all(mib <= MEMORY_MIB_MAX for mib in more.values()), more
        digests = self.ask("GET", "/v1/cluster/digest").json()["nodes"]
        assert None not in digests.values()
        assert len(set(digests.values())) == 1, digests
        return more

    def failures(self) -> list[str]:
        """What the nodes logged since this was last asked and should never be."""
        found = []
        for node, path in self._logs.items():
            with path.open("rb") as log:
                log.seek(self._read[node])
                text = log.read()
            self._read[node] += len(text)
            lines = text.decode(errors="replace").splitlines()
            found += [f"{node}: {line}" for line in lines if not _HARMLESS.match(line) or " exception=" in line]
        return found

    def ask(self, method: str, path: str, given: object = None) -> probe.Answer:
        """A fresh request to the leader, by one who may do all."""
        body = None if given is None else msgspec.json.encode(given).decode()
        return probe.ask(method, self.cluster.url(self.leader) + path, body, seconds=SECONDS, access=self._access)

    def read_log(self, node: str) -> bytes:
        return self._logs[node].read_bytes()

    def command_line(self, node: str) -> bytes:
        """And environment, as others of the machine see them; empty where the system does not tell."""
        process = Path(f"/proc/{self.cluster.pid(node)}")
        return (process / "cmdline").read_bytes() + (process / "environ").read_bytes() if process.exists() else b""

    def descriptors(self) -> dict[str, int]:
        """Of each node; empty where the system does not tell."""
        if not Path("/proc/self/fd").exists():
            return {}
        return {node: len(list(Path(f"/proc/{self.cluster.pid(node)}/fd").iterdir())) for node in self.ports}

    def memory_mib(self) -> dict[str, float]:
        """What each node holds that is no file's; empty where the system does not tell."""
        if not Path("/proc/self/status").exists():
            return {}
        texts = {node: Path(f"/proc/{self.cluster.pid(node)}/status").read_text() for node in self.ports}
        return {node: int(text.partition("RssAnon:")[2].split()[0]) / 1024 for node, text in texts.items()}

    def _described(self) -> dict[str, object]:
        described: dict[str, object] = self.ask("GET", "/v1/cluster").json()
        return described

    def _nodes(self) -> Iterator[str]:
        while True:
            yield from self.ports

    def _ask(self, node: str, path: str, given: object) -> dict[str, list[dict[str, object]]]:
        body = msgspec.json.encode(given)
        wire = self._connections.get(node) or self._connections.setdefault(node, self.open(node))
        wire.send(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nRaftq-Forward: proxy\r\n{self._authorization}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = wire.answer()
        assert answer is not None, f"{node} closed the connection of one who did nothing wrong"
        status, content = answer
        assert status in (200, 201), (status, content)
        decoded: dict[str, list[dict[str, object]]] = msgspec.json.decode(content)
        return decoded
