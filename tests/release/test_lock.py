"""The lock file of the image is that of pyproject.toml, and every line of it can be checked against its hashes."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.release.audit import verdict
from tests.release.lock import LOCK, ROOT

_LINE = re.compile(
    r"^([a-z0-9-]+)==(\S+?)(?: ; (.+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked() -> dict[str, tuple[str, str | None]]:
    """Name -> version and marker."""
    return {name: (version, marker) for name, version, marker, _ in _LINE.findall(LOCK.read_text())}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["server"])]


def test_every_dependency_of_a_server_is_locked_within_its_range() -> None:
    found = locked()
    for requirement in wanted():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in found, f"{name} is not locked: run make lock"
        assert requirement.specifier.contains(found[name][0], prereleases=True), f"{name}: run make lock"


@pytest.mark.parametrize("python", PYTHONS)
def test_they_are_locked_for_every_python_of_the_image(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    for requirement in wanted():
        _, marker = locked()[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert not marker or Marker(marker).evaluate(environment)


def test_each_line_has_hashes_and_none_names_an_index() -> None:
    text = LOCK.read_text()
    rest = _LINE.sub("", text)
    assert all(line.startswith("#") for line in rest.splitlines()), rest
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@ ", text)


def test_an_audit_that_learns_nothing_is_no_all_clear() -> None:
    """pip-audit says "No known vulnerabilities found" of what it could not look up."""
    known = '{"name": "a", "version": "1", "vulns": []}'
    skipped = '{"name": "b", "skip_reason": "not found on PyPI"}'
    bad = '{"name": "c", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}'
    assert verdict(0, f'{{"dependencies": [{known}]}}')[0] == 0
    assert verdict(0, f'{{"dependencies": [{known}, {skipped}]}}')[0] is None
    assert verdict(0, '{"dependencies": []}')[0] is None
    assert verdict(1, "")[0] is None
    assert verdict(1, f'{{"dependencies": [{skipped}, {bad}]}}') == (
        1,
        "known vulnerabilities:\nc 1: CVE-1, mended in 2",
    )
