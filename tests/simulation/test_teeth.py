"""The mutations fit the source that they break, and a few that are found soon are found; `make teeth` runs them all."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from raftq.chaos.simulation import mutations, stock, teeth
from raftq.chaos.simulation.faults import WEATHERS
from raftq.chaos.simulation.mutations import MUTATIONS, Edit, Mutation, transformers
from raftq.chaos.simulation.teeth import Found, Row
from raftq.chaos.simulation.verdict import Failure, Options, Result

#: Each is found within a few simulated seconds.
SOON = (
    "stock 3: commit-without-matching",
    "skip-the-commit",
    "commit-without-a-majority",
    "vote-twice-in-a-term",
    "applied-index-without-its-tables",
)


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_piece_of_a_mutation_is_in_the_source_once(name: str) -> None:
    """Else it would break nothing, and nobody would notice that nothing was broken."""
    for module, change in transformers(name).items():
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        changed = change(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("source", ["gone = 1\n", "old = 1\nold = 1\n"])
def test_a_piece_that_is_not_there_once_is_refused(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    made = Mutation("made", "Nothing.", (Edit("engine", "old = 1\n", "new = 1\n"),))
    monkeypatch.setattr(mutations, "MUTATIONS", {"made": made})
    change = transformers("made")["raftq.replication.engine"]
    assert change("old = 1\n") == "new = 1\n"
    with pytest.raises(ValueError, match="not once"):
        change(source)


def test_every_starred_fault_of_stock_has_a_row() -> None:
    assert set(teeth.STOCK) == set(stock.FAULTS) - {stock.CORRECTED}
    assert {number for number, _, _, _ in teeth.STOCK.values()} == set(stock.FAULTS.values()) - {0}
    names = [row.name for row in teeth.rows()]
    assert len(names) == len(set(names)) >= 5 + 25


@pytest.mark.timeout(300)
def test_what_is_wrong_is_found_and_the_controls_find_nothing() -> None:
    wanted = [row for row in teeth.rows() if row.name in SOON]
    assert len(wanted) == len(SOON)
    found = teeth.bite(wanted, 2, lambda _each: None)
    assert [each.row.name for each in found] == [row.name for row in wanted]
    for each in found:
        assert each.well, each.line
        assert each.tried <= 5, f"{each.line}: after {each.tried} seeds"
    controls = teeth.controls(found[:2])
    assert {row.options.stock for row in controls} == {"none", None}
    for each in teeth.bite(controls, 2, lambda _each: None):
        assert each.well, each.line


def result(row: Row, seed: int, failure: Failure | None) -> Result:
    return Result(
        seed=seed, options=row.options, trace_hash="", seconds=60.0, steps=9, operations=9, schedule=[], faults={},
        failure=failure,
    )  # fmt: skip


def test_the_table_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{teeth.BEGIN}\nold\n{teeth.END}\nafter\n")
    row = Row("forget-the-vote", "It forgets.", Options(mutation="forget-the-vote", nodes=5), 17)
    found = Found(row, result(row, 17, Failure("one vote a term", "n1 voted twice", 3.25, 1234)), 1)
    (control,) = teeth.controls([found])
    nothing = Found(control, result(control, 17, None), 1)
    assert found.well
    assert nothing.well
    teeth.write(page, [found, nothing])
    teeth.write(page, [found, nothing])
    lines = page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "old" not in lines
    command = "`raftq simulate --seed 17 --nodes 5 --mutation forget-the-vote`"
    assert lines.count(f"| forget-the-vote | It forgets. | 17 | 3.2 | 1234 | one vote a term | {command} |") == 1
    assert [line for line in lines if "control" in line] == [
        "| control: ours, unchanged, 5 nodes | Nothing. | 17 | never | | nothing | |"
    ]


def test_what_goes_unseen_and_a_control_that_finds_something_are_not_well() -> None:
    row = Row("made", "Nothing.", Options())
    assert not Found(row, result(row, 59, None), 60).well
    control = Row("control", "Nothing.", Options(), control=(1, 2))
    assert not Found(control, result(control, 2, Failure("liveness", "no write", 3.0, 5)), 2).well
    assert "no write" in Found(control, result(control, 2, Failure("liveness", "no write", 3.0, 5)), 2).line


def test_a_seed_that_is_known_is_tried_first() -> None:
    seeds = list(Row("made", "Nothing.", Options(), 7).seeds)
    assert seeds[:3] == [7, 0, 1]
    assert sorted(seeds) == list(range(teeth.SEEDS_MAX))


def test_each_kind_of_conditions_has_a_control_of_its_own() -> None:
    failure = Failure("x", "", 1.0, 1)
    taken = [
        (Options(mutation="a"), 3),
        (Options(mutation="b"), 1),
        (Options(mutation="c", nodes=5, weather="stalls"), 1),
        (Options(stock="silent-refusals", nodes=3, weather="elections", seconds=15.0), 2),
    ]
    rows = [Row(f"row {at}", "Wrong.", options, seed) for at, (options, seed) in enumerate(taken)]
    controls = teeth.controls([Found(row, result(row, row.seed, failure), 1) for row in rows])
    assert [(row.name, row.control) for row in controls] == [
        ("control: ours, unchanged", (1, 3)),
        ("control: ours, unchanged, 5 nodes, stalls weather", (1,)),
        ("control: stock, all faults corrected, 3 nodes, elections weather, 15 s", (2,)),
    ]
    assert controls[2].options == Options(stock="none", nodes=3, weather="elections", seconds=15.0)


def test_a_weather_that_a_row_takes_is_one() -> None:
    assert {row.options.weather for row in teeth.rows()} <= {None, *WEATHERS}
