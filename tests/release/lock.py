"""`make lock`: deploy/requirements.lock from the `server` extra of pyproject.toml, with uv.

What the file names stays as it is unless pyproject.toml asks for another, or `--upgrade` is given.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "deploy" / "requirements.lock"
#: The hashes are of the files there, wherever they are then taken from.
INDEX = "https://pypi.org/simple"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.release.lock", description=__doc__)
    parser.add_argument("--upgrade", action="store_true")
    given = parser.parse_args()
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "server", "--no-config",
        # For every Python from the oldest that raftq takes, and every system: markers say what is for which.
        "--universal", "--python-version", "3.11",
        "--generate-hashes", "--default-index", INDEX, "--no-emit-index-url", "--no-annotate",
        "--custom-compile-command", "make lock", "--output-file", str(LOCK.relative_to(ROOT)), "--quiet",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    subprocess.run([*command, *(["--upgrade"] if given.upgrade else [])], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
