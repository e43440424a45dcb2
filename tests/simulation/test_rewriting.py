"""Other source for a module: text and tree are changed before it is imported, and never after."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftq.chaos.simulation import coverage, rewriting

SOURCE = '''"""Something."""

from __future__ import annotations


def sign(number: int) -> str:
    """Of a number."""
    if number < 0:
        return "negative"
    elif number > 0:
        return "positive"
    else:
        return "none"


class Counting:
    def __call__(self, numbers: list[int]) -> list[str]:
        found = []
        for number in numbers:
            found.append(sign(number))
        try:
            found.remove("none")
        except ValueError:
            pass
        return found
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "raftq_rewritten_example"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    hooks = list(sys.meta_path)
    monkeypatch.setattr(coverage, "met", [])
    monkeypatch.setattr(coverage, "branches", [])
    yield name
    sys.meta_path[:] = hooks
    sys.modules.pop(name, None)


def test_the_text_is_changed_for_this_process_alone(module: str) -> None:
    rewriting.install({module: lambda text: text.replace('"negative"', '"below"')})
    assert __import__(module).sign(-1) == "below"
    del sys.modules[module]
    sys.meta_path.pop(0)
    assert __import__(module).sign(-1) == "negative"


def test_every_branch_is_counted(module: str) -> None:
    rewriting.install({}, {module: coverage.count})
    example = __import__(module)
    coverage.begin()
    assert example.Counting()([1, 2, -1]) == ["positive", "positive", "negative"]
    counted = {branch.partition(" ")[2]: count for branch, count in coverage.counted().items()}
    assert counted == {
        "sign": 3,
        "sign if number < 0": 1,
        "sign if number > 0": 2,
        "sign else of if number > 0": 0,
        "__call__": 1,
        "__call__ for number in numbers": 3,
        "__call__ except ValueError": 1,
    }
    coverage.begin()
    assert not any(coverage.counted().values())


def test_a_module_that_was_imported_is_not_changed(module: str) -> None:
    __import__(module)
    with pytest.raises(RuntimeError, match="imported already"):
        rewriting.install({module: str})
