"""The tables in docs/ are those that follow from the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftq.node.tables import TABLES, with_table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("name", "mark"), TABLES)
def test_a_table_is_up_to_date(name: str, mark: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert text == with_table(text, mark, TABLES[name, mark]()), f"docs/{name} is behind the code: make docs"
