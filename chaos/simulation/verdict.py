"""What a run is asked for, and what it found: plain values, that go between processes.

Imports nothing of the cluster, so that a process can still decide which source it runs on (`rewriting`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from raftq.chaos.simulation.faults import Fault

SECONDS_MIN: Final = 60.0
OPERATIONS_MIN: Final = 2000


class Options(msgspec.Struct, kw_only=True, omit_defaults=True):
    """None: from the seed."""

    nodes: int | None = None
    seconds: float = SECONDS_MIN
    operations: int = OPERATIONS_MIN
    #: A storm of `faults.WEATHERS`, or `mixed`.
    weather: str | None = None
    #: The places in the seed's schedule of the faults that are to strike. None: all of them.
    keep: list[int] | None = None
    #: Nodes of stock pysyncobj with this fault of `stock.FAULTS` left in. None: ours.
    stock: str | None = None
    #: The source of the engine is changed by this mutation of `mutations`.
    mutation: str | None = None
    #: Count how often each branch of the engine is met.
    coverage: bool = False

    def command(self, seed: int) -> str:
        """What replays the run."""
        parts = [f"raftq simulate --seed {seed}"]
        if self.nodes is not None:
            parts.append(f"--nodes {self.nodes}")
        if self.seconds != SECONDS_MIN:
            parts.append(f"--seconds {self.seconds:g}")
        if self.operations != OPERATIONS_MIN:
            parts.append(f"--operations {self.operations}")
        if self.weather is not None:
            parts.append(f"--weather {self.weather}")
        if self.keep is not None:
            parts.append(f"--keep {','.join(map(str, self.keep)) or 'none'}")
        if self.mutation is not None:
            parts.append(f"--mutation {self.mutation}")
        if self.stock is not None:
            parts.append(f"--stock {self.stock}")
        return " ".join(parts)


class Failure(msgspec.Struct):
    invariant: str
    details: str
    #: Simulated seconds, and steps, into the run.
    at: float
    steps: int


class Result(msgspec.Struct, kw_only=True):
    seed: int
    options: Options
    trace_hash: str
    seconds: float
    steps: int
    operations: int
    #: The whole schedule of the seed.
    schedule: list[Fault]
    #: How often each kind of fault struck, and what else is worth counting.
    faults: dict[str, int]
    #: Branch (see `coverage`) -> how often it was met.
    branches: dict[str, int] = {}
    failure: Failure | None

    @property
    def kept(self) -> list[int]:
        """The places in the schedule of what struck."""
        return self.options.keep if self.options.keep is not None else list(range(len(self.schedule)))
