"""What must always hold, and how the process ends when it does not.

A replica whose tables contradict themselves must not go on answering: it would spread the damage to clients. So a
broken invariant is not a reply. It is raised, and the node ends with this line.
"""

from __future__ import annotations

from typing import NoReturn


class InvariantBroken(Exception):
    """The tables of the state machine contradict themselves. The node must end; its data is kept for inspection."""


def broken(what: str) -> NoReturn:
    raise InvariantBroken(f"state machine: {what}")
