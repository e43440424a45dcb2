"""The mutations fit the source that they break."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from raftq.chaos.simulation.mutations import MUTATIONS, transformers


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
