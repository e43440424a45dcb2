"""A result replaces its own section of the page and nothing else."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from raftq.bench import failover, measure, page, scenarios
from raftq.bench.report import Report, save, with_section

MACHINE = measure.Machine(
    cores=2,
    busy_cores=0.01,
    processor="a processor",
    memory_bytes=8 << 30,
    system="Linux 6.1",
    file_system="ext4",
    sync=measure.Sync(0.05, 0.1, 18_000.0),
    python="3.12.1",
    versions={"raftq": "0.1.0"},
    commit="abc1234",
)


def figure(name: str, rate: float, **more: float) -> scenarios.Figure:
    costs = {"cpu_us_per_message": 60.0, "fsyncs_per_message": 0.2, "commit_ms": 0.3, "load_cores": 0.3, "seconds": 5.0}
    return scenarios.Figure(name=name, rate=rate, **{"p50_ms": 0.5, "p99_ms": 1.0} | costs | more)  # type: ignore[arg-type]


def footprint() -> scenarios.Footprint:
    idle, waiting = (measure.Memory(rss, rss - (10 << 20), 5 << 20) for rss in (160 << 20, 250 << 20))
    return scenarios.Footprint(idle, waiting, 200_000, 1 << 20, (1 << 20) + 100_000_000)


def figures() -> list[scenarios.Figure]:
    return [
        figure("echo c=32", 24_000.0),
        figure("single POSTs c=1", 1_500.0, p50_ms=0.62),
        figure("single POSTs c=32", 12_000.0),
        figure("single POSTs c=256", 16_000.0, echo_ratio=0.61),
        figure("batches of 100 c=32", 410_000.0),
        figure("enqueue, lease, ack in batches of 100 c=32", 99_000.0),
    ]


def outcome() -> scenarios.Outcome:
    return scenarios.Outcome(figures(), footprint(), scenarios.bars(figures(), footprint()))


def report(name: str = "load") -> Report:
    result = outcome()
    return Report(name, "make bench", datetime.date(2026, 1, 2), MACHINE, result, result.bars, page.body(result))


def test_each_bar_of_the_load_is_judged() -> None:
    verdicts = [bar.passed for bar in outcome().bars]
    # c=1 is too slow, and so are the cycles; 410,000 in batches is enough where the echo does 24,000 of 30,000.
    assert verdicts == [True, False, True, False, True, True, True, True]


def test_the_batch_bar_states_the_echo_it_is_scaled_by() -> None:
    batches = outcome().bars[2]
    assert batches.limit == 400_000
    assert "500,000 where the echo does 30,000, here 24,000" in batches.unit


def test_disk_is_the_difference_against_empty() -> None:
    assert footprint().disk_bytes_per_message == 500


def test_saved_json_holds_figures_bars_and_command(tmp_path: Path) -> None:
    file = save(report(), tmp_path / "results", tmp_path / "docs" / "results.md")
    content = json.loads(file.read_text())
    assert file.name == "2026-01-02-load.json"
    assert content["command"] == "make bench"
    assert content["outcome"]["figures"][0]["rate"] == 24_000.0
    assert content["outcome"]["bars"][1]["verdict"] == "FALL SHORT"


def test_saving_again_replaces_the_section_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    save(report(), tmp_path, path)
    save(report("failover"), tmp_path, path)
    path.write_text("Limits, by hand.\n\n" + path.read_text() + "\nMore by hand.\n")
    before = path.read_text()
    save(report(), tmp_path, path)
    assert path.read_text() == before


def test_a_section_may_hold_backslashes() -> None:
    page_text = with_section("# Results\n", "load", "a")
    assert r"\1 \g<0>" in with_section(page_text, "load", r"\1 \g<0>")


def test_page_shows_ratio_before_rate_and_the_facts() -> None:
    text = report().as_markdown()
    assert "| single POSTs c=256 | 0.610 | 16,000 | 0.500 | 1.00 | 0.200 | 0.300 | 60.0 | 0.300 |" in text
    assert "2 cores (a processor)" in text


def test_failover_bars_take_median_and_worst() -> None:
    assert [bar.passed for bar in failover.bars(failover.Outcome([100.0, 200.0, 1600.0], 3, 3))] == [True, False]
