"""A file through a cluster under fire: written by `raftq write` while the leader is killed with SIGKILL again and again
and restarted, read by two `raftq read` at once; the three commands are killed and started again as well. The union of
the two files must be the input, line for line, and each of them in its order.

As a script, by hand or by `make filecopy`: `python -m tests.cluster.filecopy --lines 100000 --kill-leader 5`.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from raftq.node.waiting import wait_until
from tests.cluster.leader_kills import LeaderKills

RAFTQ = [sys.executable, "-P", "-m", "raftq.cli"]


@dataclass(kw_only=True)
class Plan:
    lines: int
    long_line_bytes: int = 2_000_000
    #: Of one request. Small ones make the run long enough to be killed in.
    batch: int = 100
    #: The leader is killed at once, and then so often,
    kill_leader_seconds: float
    #: and each command, at random, about so often; 0: never.
    kill_command_seconds: float
    #: Before that, so many of each command are killed as soon as they have made headway, however fast the machine is.
    kills_on_headway: int = 0
    seed: int


@dataclass
class Count:
    leader_kills: int = 0
    command_kills: dict[str, int] = field(default_factory=lambda: {"write": 0, "read": 0})


def make_input(plan: Plan) -> bytes:
    """Uneven lines, each its own but for empty ones: ASCII, other scripts, bytes that are no text, \\r\\n; one long
    line in the middle, and no newline at the end."""
    rng = random.Random(plan.seed)
    lines = []
    for number in range(plan.lines):
        kind = rng.randrange(10)
        if kind == 0:
            lines.append(b"")
            continue
        tail = {
            1: "Zwölf Boxkämpfer, 日本語のテキスト, עברית 🙂".encode(),
            2: rng.randbytes(rng.randrange(200)).replace(b"\n", b"\0"),
            3: b"ends with a carriage return\r",
            4: b"x" * rng.randrange(2000),
        }.get(kind, b"y" * rng.randrange(120))
        lines.append(b"%d %b" % (number, tail))
    lines[plan.lines // 2] = b"%d %b" % (plan.lines // 2, rng.randbytes(plan.long_line_bytes).replace(b"\n", b"\0"))
    lines[-1] = b"%d the last line has no newline" % plan.lines
    return b"\n".join(lines)


def check(source: bytes, outputs: list[bytes]) -> None:
    """The union of the outputs is the source, line for line, and each is in its order."""
    lines = source.split(b"\n")
    found = [line for output in outputs for line in _lines(output)]
    assert len(found) == len(lines), f"{len(lines)} lines went in, {len(found)} came out"
    assert sorted(found) == sorted(lines)
    place = {line: number for number, line in enumerate(lines) if line}
    for output in outputs:
        places = [place[line] for line in _lines(output) if line]
        assert places == sorted(places), "lines are out of order"


def _lines(output: bytes) -> list[bytes]:
    """A file ends with a newline, unless its last line is the input's last."""
    return output.removesuffix(b"\n").split(b"\n") if output else []


class FileCopy:
    def __init__(self, plan: Plan, cluster: LocalCluster, folder: Path) -> None:
        self.plan, self.cluster, self.folder, self.count = plan, cluster, folder, Count()
        self.source, self.outputs = folder / "input", [folder / "one", folder / "two"]
        self.source.write_bytes(make_input(plan))
        self._urls = ",".join(node.api_url for node in cluster.nodes)
        self._written = threading.Event()

    def run(self) -> None:
        kills = LeaderKills(self.cluster, self.plan.kill_leader_seconds)
        with ThreadPoolExecutor(3) as threads, kills.going_on():
            reads = [threads.submit(self._read, output, seed) for seed, output in enumerate(self.outputs)]
            write = threads.submit(self._write)
            try:
                write.result()
            finally:
                self._written.set()
            for read in reads:
                read.result()
        self.count.leader_kills = kills.count
        check(self.source.read_bytes(), [output.read_bytes() for output in self.outputs])

    def _write(self) -> None:
        rng = random.Random(f"{self.plan.seed} write")
        while not self._command("write", self.source, rng):
            self.count.command_kills["write"] += 1
            if self.count.command_kills["write"] == self.plan.kills_on_headway:  # else it may end before they are
                wait_until(lambda: self.count.command_kills["read"] >= self.plan.kills_on_headway, 60, "killed reads")

    def _read(self, output: Path, seed: int) -> None:
        """Killed now and then while the writer runs, then until the queue is empty."""
        rng = random.Random(f"{self.plan.seed} read {seed}")
        while not self._written.is_set():
            if not self._command("read", output, rng, until=self._written):
                self.count.command_kills["read"] += 1
        self._command("read", output, None, "--until-empty", "1")

    def _command(
        self, name: str, file: Path, rng: random.Random | None, *flags: str, until: threading.Event | None = None
    ) -> bool:
        """False when it was killed; else it ended well, by itself or when it was asked to after `until`."""
        arguments = [*RAFTQ, name, "lines", str(file), "--url", self._urls, "--batch", str(self.plan.batch), *flags]
        begun = self._headway(file)
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        at_headway = rng is not None and self.count.command_kills[name] < self.plan.kills_on_headway
        deadline = float("inf")
        if rng is not None and self.plan.kill_command_seconds:
            deadline = time.monotonic() + rng.uniform(0.5, 1.5) * self.plan.kill_command_seconds
        try:
            while process.poll() is None and time.monotonic() < deadline and not (until and until.is_set()):
                time.sleep(0.01)
                if at_headway and self._headway(file) != begun:
                    deadline = 0.0
            if process.poll() is None and time.monotonic() >= deadline:
                process.kill()
                return False
            if process.poll() is None:
                process.terminate()
            _, said = process.communicate(timeout=120)
            # SIGTERM kills a command that has only just begun.
            assert process.returncode in (0, -signal.SIGTERM), f"raftq {name}: {process.returncode}: {said.decode()}"
            return process.returncode == 0
        finally:
            process.kill()
            process.communicate()

    @staticmethod
    def _headway(file: Path) -> list[bytes]:
        """What the command's sidecar says; it changes with every batch, and is replaced meanwhile."""
        said = []
        for sidecar in file.parent.glob(f"{file.name}.raftq-*"):
            with suppress(FileNotFoundError):
                said.append(sidecar.read_bytes())
        return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--kill-leader", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--kill-command", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    plan = Plan(
        lines=given.lines,
        batch=given.batch,
        kill_leader_seconds=given.kill_leader,
        kill_command_seconds=given.kill_command,
        seed=given.seed,
    )
    print(plan)
    with tempfile.TemporaryDirectory(prefix="raftq-filecopy-") as folder:
        cluster = LocalCluster(Path(folder) / "cluster", size=3, port=free_first(3, PEER_PORTS))
        try:
            cluster.start_all()
            cluster.wait_ready()
            copy = FileCopy(plan, cluster, Path(folder))
            begun = time.monotonic()
            copy.run()
            print(f"the same, line for line, after {time.monotonic() - begun:.1f} s: {copy.count}")
        finally:
            cluster.close()


if __name__ == "__main__":
    main()
