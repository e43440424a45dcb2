"""Each row of docs/compared.md against a fresh cluster of three nodes: its command proves what the row says of us.

`make compared`, or `python -m tests.cluster.compared [WORD]` for the rows with the word. Prints row and verdict; the
exit code is 1 when a row says what is not so. What is "not yet" and has a command is to fail.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compared.md"
NOT_YET = "not yet"
#: Of one command.
SECONDS_MAX = 60.0

_CELLS = re.compile(r"(?<!\\)\|")


class Row(NamedTuple):
    system: str
    feature: str
    them: str
    us: str
    #: For bash; empty when there is nothing to show.
    command: str


class Verdict(NamedTuple):
    holds: bool
    #: What the command printed.
    printed: str


def rows(page: str) -> Iterator[Row]:
    """Of every table that has a command in its last column."""
    system = ""
    for line in page.splitlines():
        if line.startswith("## "):
            system = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| feature |"):
            feature, them, us, command = [cell.strip() for cell in _CELLS.split(line)[1:-1]]
            yield Row(system, feature, them, us, command.strip("`").replace("\\|", "|"))


def judge(row: Row, url: str) -> Verdict:
    """Run the row's command against the cluster of the node at `url`."""
    there, printed = run(row.command, url) if row.command else (False, "")
    return Verdict(there != row.us.startswith(NOT_YET), printed)


def run(command: str, url: str) -> tuple[bool, str]:
    """Whether it ended well, all that it started included, and what it printed."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=ROOT,
        env=environment(url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        return False, f"{printed}not done after {SECONDS_MAX:.0f} s"
    return process.returncode == 0, printed


def environment(url: str) -> dict[str, str]:
    """With the commands of this very Python, and a free port for a command that serves something itself."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    added = {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "RAFTQ_URL": url, "PORT": str(free_first(1, 0))}
    return os.environ | added


@contextmanager
def fresh_cluster() -> Iterator[str]:
    """The URL of one of its nodes, a follower."""
    with tempfile.TemporaryDirectory(prefix="compared-") as folder:
        cluster = LocalCluster(Path(folder), size=3, port=free_first(3, PEER_PORTS))
        try:
            cluster.start_all()
            leader = cluster.wait_ready()
            yield next(cluster.url(node) for node in cluster.running if node != leader)
        finally:
            cluster.close()


def main(words: list[str]) -> int:
    wrong = 0
    system = ""
    with fresh_cluster() as url:
        for row in rows(PAGE.read_text(encoding="utf-8")):
            if not all(word.lower() in f"{row.system} {row.feature}".lower() for word in words):
                continue
            if row.system != system:
                system = row.system
                print(f"\n{system}")
            began = time.monotonic()
            verdict = judge(row, url)
            said = row.us if verdict.holds else f"WRONG: the page says {row.us!r}"
            print(f"  {row.feature}: {said} ({time.monotonic() - began:.1f} s)", flush=True)
            if not verdict.holds:
                wrong += 1
                print(f"    $ {row.command}\n{verdict.printed}", flush=True)
    print("\nevery row is as the page says" if not wrong else f"\n{wrong} rows are not as the page says")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
