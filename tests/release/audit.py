"""`make audit`: known vulnerabilities of what deploy/requirements.lock names, with pip-audit.

Exit code 1 when one is found. Where the data cannot be had it says so, and ends with 0: that is no finding, and no
all-clear either.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.release.lock import LOCK

_SECONDS = "15"
#: OSV knows more; PyPI's own is the other source.
SERVICES = ("osv", "pypi")


def main() -> int:
    why = []
    for service in SERVICES:
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
        command += [
            "--vulnerability-service",
            service,
            "--timeout",
            _SECONDS,
            "--format",
            "json",
            "--progress-spinner=off",
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        code, said = verdict(ended.returncode, ended.stdout)
        if code is not None:
            print(f"{said} (asked: {service})")
            return code
        why.append(f"{service}: {said or ended.stderr.strip().splitlines()[-1][:200]}")
    print("NOT AUDITED: the data on vulnerabilities cannot be had here.", *why, sep="\n  ")
    return 0


def verdict(returned: int, output: str) -> tuple[int | None, str]:
    """The exit code and what is to be said; None when this says nothing of some dependency."""
    try:
        found: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        return None, ""
    vulnerable = [
        f"{each['name']} {each['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'no version yet'}"
        for each in found
        for one in each.get("vulns", ())
    ]
    if vulnerable:
        return 1, "\n".join(["known vulnerabilities:", *vulnerable])
    skipped = [each["name"] for each in found if "skip_reason" in each]
    if skipped or not found:
        return None, f"nothing is known there of {len(skipped)} of {len(found)}, {', '.join(skipped[:3])} among them"
    return returned, f"no known vulnerability in {len(found)} dependencies"


if __name__ == "__main__":
    sys.exit(main())
