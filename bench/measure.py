"""What a run costs, seen from outside the processes: CPU, memory, disk, commits, and what the machine is.

Reads Linux's /proc and the nodes' /metrics. It never asks a node to report on itself more than it does to any operator.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

#: A write transaction of LMDB that became durable: one fdatasync of the data pages, then one synchronous (O_DSYNC)
#: write of the meta page. Only transactions that changed something count: LMDB syncs nothing for an empty one.
COMMITS_METRIC = "raftq_commit_seconds_count"
#: Seconds that these took.
COMMIT_SECONDS_METRIC = "raftq_commit_seconds_sum"

SYNCS_STATEMENT = (
    "fsyncs are LMDB commits of all three nodes, as each node counts them in `/metrics`: a commit is one `fdatasync` "
    "of the data and one synchronous (`O_DSYNC`) write of the 4 KiB meta page, so synced writes are twice the fsyncs."
)

MIB = 1 << 20

_TICKS = os.sysconf("SC_CLK_TCK")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least `share` (0 to 1) of them do not exceed (nearest rank)."""
    if not ordered:
        raise ValueError("no values")
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


def median(values: Iterable[float]) -> float:
    return percentile(sorted(values), 0.5)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True)
class Memory:
    """Bytes. `pss` counts a page shared by n processes as 1/n of it, so it adds up over processes; it includes the
    pages of the data file that the process has mapped, which the kernel takes back when it needs them (`pss_file`)."""

    rss: int
    pss: int
    pss_file: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.pss_file + other.pss_file)


def parse_smaps(text: str) -> Memory:
    kib = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    return Memory(kib["Rss"] * 1024, kib["Pss"] * 1024, kib["Pss_File"] * 1024)


def memory(pids: Iterable[int]) -> Memory:
    """The sum over the processes."""
    total = Memory(0, 0, 0)
    for pid in pids:
        total += parse_smaps(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return total


def allocated_bytes(folder: Path) -> int:
    """What the folder takes on disk: allocated blocks, since the data file is sparse."""
    return sum(path.lstat().st_blocks for path in (folder, *folder.rglob("*"))) * 512


def metric(text: str, name: str) -> float:
    """The sum over all label sets of a metric in the Prometheus text format. Raises KeyError."""
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)", text, re.MULTILINE)
    if not values:
        raise KeyError(f"/metrics has no {name}")
    return sum(map(float, values))


def settle(value: Callable[[], int], *, still_seconds: float = 2.0, most_seconds: float = 30.0) -> int:
    """`value()` once it has not changed for `still_seconds`, or as it is after `most_seconds`."""
    last, since, end = value(), time.monotonic(), time.monotonic() + most_seconds
    while time.monotonic() < min(since + still_seconds, end):
        time.sleep(0.1)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last


@dataclass(frozen=True)
class Sync:
    """Latency of appending 4 KiB to a file and fdatasync, one after another."""

    p50_ms: float
    p99_ms: float
    per_second: float


def sync_latency(folder: Path, seconds: float = 1.0) -> Sync:
    took: list[float] = []
    path = folder / "sync-latency"
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            took.append(_append(file))
    finally:
        os.close(file)
        path.unlink()
    ordered = sorted(took)
    return Sync(percentile(ordered, 0.5) * 1e3, percentile(ordered, 0.99) * 1e3, len(took) / sum(took))


def _append(file: int) -> float:
    began = time.perf_counter()
    os.write(file, b"x" * 4096)
    os.fdatasync(file)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Machine:
    """The facts that a figure depends on. Never the host's name."""

    cores: int
    #: That other programs used just before the run: figures of a busy machine say little.
    busy_cores: float
    processor: str
    memory_bytes: int
    system: str
    file_system: str
    sync: Sync
    python: str
    versions: dict[str, str]
    commit: str


def machine(folder: Path) -> Machine:
    """Facts about this machine and the disk under `folder`. Takes two seconds, in which it should do nothing else."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        busy_cores=busy_cores(),
        processor=_processor(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system="Linux " + ".".join(platform.release().split(".")[:2]),
        file_system=file_system(folder, Path("/proc/mounts").read_text()),
        sync=sync_latency(folder),
        python=platform.python_version(),
        versions={name: version(name) for name in ("raftq", "aiohttp", "uvloop", "lmdb", "msgspec", "pysyncobj")},
        commit=_commit(),
    )


def busy_cores(seconds: float = 1.0) -> float:
    """Cores in use on the whole machine, over the next `seconds`."""
    before = busy_ticks(Path("/proc/stat").read_text())
    time.sleep(seconds)
    return (busy_ticks(Path("/proc/stat").read_text()) - before) / _TICKS / seconds


def busy_ticks(stat: str) -> int:
    """All but idle and waiting for the disk, of /proc/stat. (Guests' time is within that of users.)"""
    user, nice, system, _idle, _waiting, *others = map(int, stat.splitlines()[0].split()[1:9])
    return user + nice + system + sum(others)


def _processor() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that holds `folder`: of the longest mount point above it."""
    found = ("", "unknown")
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        if folder.resolve().is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]


def _commit() -> str:
    """The commit that was measured, with a + when files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def require_linux() -> None:
    if sys.platform != "linux":
        raise SystemExit("bench measures through /proc and runs on Linux only (on a Mac: in a Linux container).")
