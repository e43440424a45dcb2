"""What bandit's rules find is mended, or it is said why not: ruff has them as S."""

from __future__ import annotations

import re

import pytest

from tests.release.lock import ROOT

FOLDERS = ("api", "bench", "chaos", "cli", "client", "examples", "node", "replication", "storage", "tests")
_EXCEPTION = re.compile(r"# noqa: *[A-Z0-9, ]*\bS\d{3}(?P<why>.*)")


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_exception_from_the_rules_on_security_has_its_reason(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        for found in _EXCEPTION.finditer(file.read_text(encoding="utf-8")):
            assert re.fullmatch(r" - \w.{5,}", found["why"]), f"{file}: {found[0]}"
