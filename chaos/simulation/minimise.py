"""The fewest faults that still break the same invariant: faults are left out of the schedule, many at once, then fewer.

After Zeller's delta debugging. Each try is a run of the same seed; what a fault left out would have changed for clients
and network stays as it was where it can, since each draws from dice of its own.
"""

from __future__ import annotations

import msgspec

from raftq.chaos.simulation.verdict import Result
from raftq.chaos.simulation.workers import Run


def minimise(result: Result, run: Run, tries: int = 60) -> Result:
    """The failed `result` with as few faults as `tries` more runs could find."""
    assert result.failure is not None
    found, pieces = _first(result, run), 2
    while (kept := found.kept) and tries > 0:
        size = max(len(kept) // pieces, 1)
        for start in range(0, len(kept), size):
            tries -= 1
            again = _without(found, kept[start : start + size], run)
            if again is not None:
                found, pieces = again, max(pieces - 1, 2)
                break
            if tries == 0:
                return found
        else:
            if size == 1:
                return found
            pieces = min(2 * pieces, len(kept))
    return found


def _first(result: Result, run: Run) -> Result:
    """Without what would have struck after the failure, if that can be."""
    assert result.failure is not None
    late = [at for at in result.kept if result.schedule[at].at > result.failure.at]
    return (late and _without(result, late, run)) or result


def _without(result: Result, dropped: list[int], run: Run) -> Result | None:
    assert result.failure is not None
    kept = [at for at in result.kept if at not in dropped]
    again = run(result.seed, msgspec.structs.replace(result.options, keep=kept, coverage=False))
    same = again.failure is not None and again.failure.invariant == result.failure.invariant
    return again if same else None
