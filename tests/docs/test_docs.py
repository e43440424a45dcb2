"""The documents speak of what is there: their links resolve, and the paths, make targets and tests they name exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/[A-Z]*.md")])
#: A path in backticks is one of ours when it begins with one of these.
FOLDERS = "api|bench|chaos|cli|client|deploy|docs|examples|node|replication|src|storage|tests"

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(rf"(?:{FOLDERS})/[\w./-]*|\.ci/\w+")
_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")
_TEST = re.compile(r"\btest_\w+")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> str:
    """What stands as code: fenced or in backticks."""
    text = page.read_text(encoding="utf-8")
    return "\n".join([*_FENCED.findall(text), *_SPAN.findall(prose(page))])


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


@cache
def names_of_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    trees = [(file.stem, ast.parse(file.read_text(encoding="utf-8"))) for file in files]
    functions = {
        node.name
        for _, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return functions | {stem for stem, _ in trees}


@pages
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pages
def test_paths_exist(page: Path) -> None:
    found = {path.partition("::")[0] for path in _SPAN.findall(prose(page))}
    assert not [path for path in sorted(found) if _PATH.fullmatch(path) and not (ROOT / path).exists()]


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert not set(_TARGET.findall(commands(page))) - targets


@pages
def test_tests_that_are_named_exist(page: Path) -> None:
    there = names_of_tests()
    named = set(_TEST.findall(commands(page)))
    # `test_fault_NN_...` stands for many.
    assert not {name for name in named if name not in there and "NN" not in name}


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_every_test_of_a_fault_is_in_its_page(kind: str) -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    names = [name for name in names_of_tests() if re.fullmatch(rf"test_fault_\d\d_\w+_{kind}", name)]
    assert len(names) > 20
    assert not [name for name in sorted(names) if name not in page]


def test_a_named_test_is_in_the_file_that_is_named_with_it() -> None:
    for page in PAGES:
        for file, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name}: {file}::{name}"
