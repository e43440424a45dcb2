"""The run of `crowd`, small: what it does, not how fast."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raftq.bench import crowd


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_small_crowd(tmp_path: Path) -> None:
    outcome, bars = crowd.run(tmp_path, connections=200, polls=100, seconds=1, say=lambda _: None)
    assert [(phase.connections, phase.polls) for phase in outcome.phases] == [(0, 0), (200, 0), (300, 100), (300, 100)]
    assert all(phase.latency.p99_ms > 0 for phase in outcome.phases)
    assert [wave.polls for wave in outcome.waves] == [100, 100]
    assert all(wave.sent_seconds > 0 for wave in outcome.waves)
    assert len(bars) == 6
    assert "| and polls of one queue | 300 |" in crowd.body(outcome)
