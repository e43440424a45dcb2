"""Real `raftq node` processes, each alone in its cluster unless told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raftq.node import probe
from raftq.node.local_cluster import PEER_PORTS
from raftq.node.local_ports import free_first
from raftq.node.probe import NO_ACCESS, Access
from raftq.node.waiting import wait_until

COMMAND = [sys.executable, "-P", "-m", "raftq.cli", "node"]


class Settings(dict[str, str]):
    """The flags of a node by name."""

    def but(self, **others: str) -> Settings:
        """The same but for `others`, which are named as settings are."""
        return Settings(self | {name.replace("_", "-"): value for name, value in others.items()})

    @property
    def flags(self) -> list[str]:
        return [f"--{name}={value}" for name, value in self.items()]

    @property
    def url(self) -> str:
        return f"http://{self['api-listen']}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    port = free_first(1, PEER_PORTS)
    return Settings(
        {
            "node-id": "n1",
            "cluster-id": "c1",
            "data": str(tmp_path / "n1"),
            "api-listen": f"127.0.0.1:{port}",
            "peer-listen": f"127.0.0.1:{port + PEER_PORTS}",
        }
    )


class Node:
    """A process that was started, and what it says on stderr."""

    def __init__(self, flags: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *flags], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def end(self) -> tuple[int, list[str]]:
        """The exit code and the lines of stderr, once it has ended by itself."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.splitlines()

    def wait_ready(self, url: str, access: Access = NO_ACCESS) -> None:
        wait_until(lambda: self.process.poll() is not None or _is_ready(url, access), 60, f"{url} to be ready")
        assert self.process.poll() is None, self.end()


def _is_ready(url: str, access: Access) -> bool:
    with suppress(OSError):
        return probe.ask("GET", f"{url}/readyz", access=access).status == 200
    return False


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    """Starts a process; whatever still runs at the end is killed."""
    started: list[Node] = []

    def start_one(flags: list[str], **options: Any) -> Node:
        started.append(Node(flags, **options))
        return started[-1]

    yield start_one
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
        node.process.communicate()


@pytest.fixture
def environ() -> dict[str, str]:
    """This process's environment, without settings of a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAFTQ_")}
