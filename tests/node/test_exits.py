"""Which exit codes a supervisor answers by starting the node again."""

from __future__ import annotations

import pytest

from raftq.node.exits import Exit, meaning, needs_a_person


@pytest.mark.parametrize("code", [Exit.UNEXPECTED, Exit.COMMIT_FAILED, -9, 130, 143])
def test_these_are_started_again(code: int) -> None:
    assert not needs_a_person(code)


@pytest.mark.parametrize(
    "code",
    [
        Exit.USAGE,
        Exit.CONFIG,
        Exit.PORT_TAKEN,
        Exit.DISK_FULL,
        Exit.DAMAGED,
        Exit.FOREIGN_DATA,
        Exit.FOLDER_IN_USE,
        Exit.FENCED,
    ],
)
def test_these_need_a_person(code: int) -> None:
    assert needs_a_person(code)


def test_every_code_has_a_meaning_of_its_own() -> None:
    assert len({meaning(code) for code in Exit}) == len(Exit)
    assert meaning(143) == "not one of raftq"
