"""`make fuzz`: every harness for a bounded time, guided by coverage. Exit code 1: one of them failed.

Without atheris, which is not made for every system and Python, it says so, and fails only where it is required
(FUZZ_TESTS=required).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.seeds import CORPUS

ROOT = Path(__file__).parents[2]
MEMORY_MIB_MAX = 1024
INPUT_BYTES_MAX = 20_000
#: Of the clock: what ends an input that never comes to its end. `one` looks at the processor's time.
_HANG_SECONDS = 30
_COUNT = re.compile(r"stat::number_of_executed_units: (\d+)")
_COVERED = re.compile(r"\bcov: (\d+) ft: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="for each harness")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("harness", nargs="*", default=list(HARNESSES))
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        here = f"{sys.platform}, Python {sys.version.split()[0]}"
        print(f"nothing was fuzzed: atheris is not installed, and is not made for every system and Python ({here})")
        return int(os.environ.get("FUZZ_TESTS") == "required")
    print(f"{given.seconds} s for each of {', '.join(given.harness)}", flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        ended = list(pool.map(lambda name: _run(name, given.seconds), given.harness))
    return int(not all(ended))


def _run(name: str, seconds: int) -> bool:
    kept = ROOT / "build" / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={_HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={kept}/",
        "-print_final_stats=1",
    ]
    with tempfile.TemporaryDirectory() as found:
        command = [sys.executable, "-m", "tests.fuzz.one", name, *flags, found, str(CORPUS / name)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    said = ended.stdout + ended.stderr
    if ended.returncode != 0:
        print(f"{name} failed; keep what lies in {kept} in {CORPUS / name}\n{said[-6000:]}", flush=True)
        return False
    count, covered = _COUNT.search(said), _COVERED.findall(said)
    edges, features = covered[-1] if covered else ("?", "?")
    print(
        f"{name}: {int(count[1]) if count else 0:,} inputs, {edges} edges, {features} features, nothing found",
        flush=True,
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
