"""Load from outside: wrk with the scripts in `lua/`. It must never be the bottleneck, so each run states its own CPU.

wrk keeps one request outstanding on each connection, as a closed loop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LUA = Path(__file__).resolve().parent / "lua"

#: Characters of a body. As JSON it is two bytes longer, for its quotes.
BODY_CHARACTERS = 100


class LoadFailed(Exception):
    """Some request of a load failed: its figures would mean nothing."""


@dataclass(frozen=True)
class Latency:
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw. `cores` is the CPU that wrk itself used, in cores."""

    requests: int
    seconds: float
    #: Of a request, or of a whole cycle.
    latency: Latency
    cores: float
    #: Of cycles: messages acked, and the latency of each step.
    acked: int = 0
    steps: dict[str, Latency] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed, and makes the load: apt-get install wrk (macOS: brew install wrk)")


def enqueue(url: str, *, messages: int, connections: int, seconds: int) -> Load:
    """POST `messages` at once to `url`, again and again."""
    return wrk(url, "enqueue.lua", messages, BODY_CHARACTERS, threads=1, connections=connections, seconds=seconds)


def cycle(url: str, *, messages: int, connections: int, seconds: int, lease_max: int | None = None) -> Load:
    """Enqueue `messages`, lease as many (or up to `lease_max`), ack them; `url` is the queue's."""
    arguments = (messages, BODY_CHARACTERS, lease_max or messages)
    return wrk(url, "cycle.lua", *arguments, threads=connections, connections=connections, seconds=seconds)


def wrk(url: str, script: str, *arguments: int, threads: int, connections: int, seconds: int) -> Load:
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout=10s", f"--script={script}", url]
    # The scripts find each other in the folder that wrk runs in.
    process = subprocess.Popen([*command, "--", *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=LUA)
    assert process.stdout
    with process.stdout:
        output = process.stdout.read()
    # wait4 gives the CPU of this child alone.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise LoadFailed(f"wrk ended with {process.returncode}: {output}")
    return parse(output, usage.ru_utime + usage.ru_stime)


def parse(output: str, cpu_seconds: float) -> Load:
    """The line that `lua/summary.lua` printed, and wrk's own CPU. Raises LoadFailed if any request failed."""
    line = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    if line is None:
        raise LoadFailed(f"wrk printed no result: {output}")
    result: dict[str, Any] = json.loads(line[1])
    errors = {name: result.get(name) for name in ("socket_errors", "status_errors", "failed") if result.get(name)}
    if errors or not result["requests"]:
        raise LoadFailed(f"{errors or 'no request was answered'} {result.get('failure', '')}")
    seconds = result["duration_us"] / 1e6
    steps = {name: latency(step) for name, step in result.get("steps", {}).items()}
    whole = steps.pop("cycle", latency(result))
    return Load(result["requests"], seconds, whole, cpu_seconds / seconds, result.get("acked", 0), steps)


def latency(percentiles: dict[str, Any]) -> Latency:
    return Latency(percentiles["p50_us"] / 1e3, percentiles["p99_us"] / 1e3)
