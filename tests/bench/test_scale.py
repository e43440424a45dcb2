"""The run of `scale`, small: what it does, not how fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftq.bench import scale


@pytest.mark.cluster
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "TIMES", 3)
    monkeypatch.setattr(scale, "REWRITE_SECONDS", 0.1)
    outcome, bars = scale.run(tmp_path, messages=3_000, queues=150, say=lambda _: None)
    assert [(figure.messages, figure.queues) for figure in outcome.figures] == [(3_000, 1), (1_500, 150)]
    assert outcome.space.messages == 3_000  # those that were timed are leased and acked
    assert outcome.space.leased > outcome.space.acked
    assert len(bars) == 13
    assert all(cost.empty_ms > 0 for figure in outcome.figures for cost in figure.costs)
    assert "| many queues: list, a page of 100 |" in scale.body(outcome)
