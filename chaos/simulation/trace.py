"""What happened, as a person reads it: one line each, with time, node, role and term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftq.chaos.simulation.loop import Scheduler

#: Fields of a message that tell what it is about.
_TELLING = (
    "prev_index", "prev_term", "commit", "round", "ok", "match", "hint", "asked", "granted", "transfer",
    "last_index", "last_term", "index", "snapshot_term", "offset",
)  # fmt: skip


class Trace:
    def __init__(self, scheduler: Scheduler, write: Callable[[str], None] | None) -> None:
        self._scheduler, self._write = scheduler, write
        self.on = write is not None
        #: Role and term of a node, for its lines.
        self.state: Callable[[str], tuple[str, int | str]] = lambda _node: ("", "")

    def line(self, node: str, text: str) -> None:
        if self._write is not None:
            role, term = self.state(node)
            self._write(f"{self._scheduler.now:10.6f}  {node:<4} {role:<9} {term:>4}  {text}")

    def message(self, node: str, source: str, message: dict[str, Any]) -> None:
        self.line(node, f"from {source}: {described(message)}")


def described(message: dict[str, Any]) -> str:
    fields = " ".join(f"{name}={message[name]}" for name in _TELLING if name in message)
    entries = message.get("entries")
    if entries:
        first = message["prev_index"] + 1
        fields += f" entries={first}..{first + len(entries) - 1} of terms {entries[0][0]}..{entries[-1][0]}"
    return f"{message['type']} term={message.get('term', '-')} {fields}"
