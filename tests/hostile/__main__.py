"""`make hostile`: the hostile pass with more crafted frames, and its table in docs/results.md."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from raftq.bench import report
from tests.hostile import decoding, peers
from tests.hostile.campaign import FAMILIES, GUARDED, Tally, attacked, run
from tests.hostile.target import DESCRIPTORS_MAX, MEMORY_MIB_MAX

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="crafted frames of each kind")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    given = parser.parse_args()
    peers.EXAMPLES, decoding.EACH_OF_MSGPACK = given.examples, 1
    began = time.monotonic()
    tally = Tally()
    more: dict[str, float] = {}
    for secure, families in ((False, FAMILIES), (True, GUARDED)):
        with tempfile.TemporaryDirectory() as folder, attacked(Path(folder), secure=secure) as target:
            for family in families:
                run(target, family, tally)
            held = target.check_at_the_end()
            more |= {f"{node}, secure" if secure else node: mib for node, mib in held.items()}
    text = body(tally, more, time.monotonic() - began)
    given.page.write_text(report.with_section(given.page.read_text(), "hostile", text))
    print(text)


def body(tally: Tally, more_mib: dict[str, float], seconds: float) -> str:
    attacks, requests = tally.attacks.total(), sum(answers.total() for answers in tally.answers.values())
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    held = ", ".join(f"{node} {mib:+.0f}" for node, mib in more_mib.items())
    rows = [
        (row, f"{tally.attacks[row]:,}", f"{answers.total():,}", _came(answers))
        for row, answers in tally.answers.items()
    ]
    first = (
        f"`make hostile`, {datetime.date.today()}, commit {commit.stdout.strip()}: {attacks:,} attacks, {requests:,} "
        f"answers, {seconds:.0f} s. After each attack a fresh enqueue, lease and ack went through one node or another, "
        "every node ran, leader and term were those of the beginning, and no log told of a failure. At the end no "
        "smuggled request had been done, the nodes' digests were equal, and each held at most "
        f"{DESCRIPTORS_MAX} descriptors and {MEMORY_MIB_MAX} MiB more than at the beginning ({held} MiB)."
    )
    return f"{first}\n\n{report.table(('what was tried', 'attacks', 'answers', 'what came back'), rows)}"


def _came(answers: Counter[str]) -> str:
    return ", ".join(f"{answer} ({count:,})" for answer, count in answers.most_common())


if __name__ == "__main__":
    main()
