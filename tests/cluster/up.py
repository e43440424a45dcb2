"""`raftq up` and other commands as a person runs them: real processes, what they print, their exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from raftq.node.cluster_file import ClusterFile, LocalNode
from raftq.node.waiting import wait_until

RAFTQ = [sys.executable, "-P", "-m", "raftq.cli"]
READY = "Ctrl-C stops the cluster"


class Up:
    """A `raftq up` that runs, and what it has printed."""

    def __init__(self, data: Path, *flags: str, environ: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*RAFTQ, "up", "--data", data, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environ or {}),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, *words: str, seconds: float = 30) -> None:
        """Until some line holds all of `words`."""
        found = lambda: any(all(word in line for word in words) for line in list(self.lines))  # noqa: E731
        wait_until(lambda: found() or self.process.poll() is not None, seconds, f"{words} in:\n{self.text}")
        self._reader.join(0 if found() else 10)
        assert found(), self.text

    def end(self) -> int:
        code = self.process.wait(30)
        self._reader.join()
        return code

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def nodes(self) -> list[LocalNode]:
        state = ClusterFile(self.data).read()
        assert state is not None
        return state.nodes

    def node(self, node_id: str) -> LocalNode:
        return next(node for node in self.nodes() if node.id == node_id)


def run(*arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    given = os.environ | (environ or {})
    ended = subprocess.run([*RAFTQ, *arguments], capture_output=True, text=True, timeout=30, check=False, env=given)
    return ended.returncode, (ended.stdout + ended.stderr).strip()
