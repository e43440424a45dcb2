"""What clients and nodes were seen to do: the words between the world that runs and the checkers that judge it.

The world tells an `Observer`; it shows it nodes as `NodeView`s and client operations as `Op`s. `History` keeps the one
log that the cluster committed, the canonical log, and judges nothing but that it stays one.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from raftq.replication.engine import REGULAR
from raftq.replication.membership import Configuration
from raftq.storage.machine import commands, entries
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.ports import Txn

Outcome = Literal["ok", "no", "unknown"]

_SHOWN_BYTES: Final = 120


class Violation(Exception):
    """A property does not hold. `details` say who did what, with indexes and terms."""

    def __init__(self, invariant: str, details: str) -> None:
        super().__init__(f"{invariant}: {details}")
        self.invariant, self.details = invariant, details


class Op(msgspec.Struct):
    """One attempt of a client at one node. A retry is an operation of its own, with the same command."""

    id: int
    client: str
    kind: Literal["write", "read"]
    #: Write: as encoded by `storage.machine.commands`. Read: the question, as encoded by `questions`.
    command: bytes
    node: str
    invoked_at: float
    returned_at: float | None = None
    #: no: it certainly was not applied. unknown: it may have been, or may yet be. None: still under way.
    outcome: Outcome | None = None
    #: Of an acknowledged write.
    index: int | None = None
    position: int | None = None
    reply: Any = None
    #: Of a lease: `storage.machine.views.Delivery` by slot.
    messages: Any = None
    #: Of an answered read.
    view: Seen | None = None

    @property
    def place(self) -> tuple[int, int]:
        assert self.index is not None
        assert self.position is not None
        return self.index, self.position


class Seen(NamedTuple):
    """What a read found, and the applied index of the view that it looked at."""

    applied_index: int
    value: Any


class NodeView(Protocol):
    """What checkers may ask of a live node, ours or a stock one."""

    @property
    def id(self) -> str: ...
    @property
    def incarnation(self) -> int:
        """New with every start of its process."""
        ...

    @property
    def disk(self) -> int:
        """New whenever its folder was wiped or exchanged, so that the node remembers nothing, or too little."""
        ...

    @property
    def role(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def vote(self) -> str | None:
        """In its term."""
        ...

    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def durable_index(self) -> int:
        """Up to where its log is on its disk."""
        ...

    @property
    def received_bytes(self) -> int:
        """Of a snapshot that it pulls."""
        ...

    @property
    def first_index(self) -> int:
        """Of its log: an entry of which only the term counts, the rest may stand for a snapshot."""
        ...

    def term_at(self, index: int) -> int | None: ...
    def entry(self, index: int) -> tuple[int, bytes] | None:
        """(term, command with its type byte), None for one that is not in the log."""
        ...

    def match(self, node: str) -> int:
        """Of a leader: up to where `node` has its log, as it knows; 0 if it does not."""
        ...

    def voters(self) -> tuple[str, ...]: ...
    @property
    def configuration(self) -> Configuration:
        """In force."""
        ...

    def digest(self) -> tuple[int, str]:
        """(applied index, hexadecimal digest) of its tables."""
        ...

    def tables(self) -> Txn:
        """Its machine's tables, to be read only."""
        ...


class Observer(Protocol):
    """Whom the world tells. Each may raise Violation, which ends the run."""

    def started(self, node: NodeView) -> None:
        """A process began, after it opened its folder and before it did anything."""
        ...

    def stepped(self, node: NodeView) -> None:
        """After every cycle of a node, and every commit that landed."""
        ...

    def entry_applied(self, node: str, index: int, term: int, command: bytes) -> None:
        """Every entry of every kind, before its replies leave."""
        ...

    def invoked(self, op: Op) -> None: ...
    def returned(self, op: Op) -> None: ...
    def at_rest(self, nodes: list[NodeView]) -> None:
        """Faults are over, clients are done, and all live members have converged."""
        ...


class Entry(msgspec.Struct, gc=False):
    """A committed entry, and who was first seen to know."""

    term: int
    command: bytes
    node: str
    #: The term that node was in: the entry was committed in this term or an earlier one.
    known_in: int


class History:
    """The canonical log: what any node said is committed, or applied. Entries come in any order of their indexes."""

    def __init__(self) -> None:
        self.log: dict[int, Entry] = {}
        #: The highest index that is known to be committed. Every log begins with one no-op.
        self.last = 1
        #: Entries up to here are all known.
        self.known = 1

    def commit(self, index: int, term: int, command: bytes, node: str, known_in: int) -> None:
        """State machine safety: one entry per index, over all nodes and restarts."""
        found = self.log.get(index)
        if found is None:
            self.log[index] = Entry(term, command, node, known_in)
            self.last = max(self.last, index)
            while self.known + 1 in self.log:
                self.known += 1
        elif found.term != term or found.command != command:
            raise Violation(
                "state machine safety",
                f"{node} committed {described(index, term, command)}, "
                f"but {found.node} committed {described(index, found.term, found.command)}",
            )


def decoded(command: bytes) -> tuple[Clocks, list[memoryview]] | None:
    """The clocks and the commands of an entry, None for one without any: a no-op, a configuration."""
    return entries.decode(command, 1) if command[:1] == REGULAR else None


def described(index: int, term: int, command: bytes) -> str:
    """An entry, for a person."""
    inside = decoded(command)
    if inside is None:
        return f"entry {index} of term {term} (kind {command[0]}, {len(command)} bytes)"
    return f"entry {index} of term {term} [{', '.join(shown(bytes(data)) for data in inside[1])}]"


def shown(command: bytes) -> str:
    """A client's command, for a person."""
    try:
        text = repr(commands.decode(command))
    except commands.UnknownCommand:
        text = command.hex()
    return text if len(text) <= _SHOWN_BYTES else f"{text[:_SHOWN_BYTES]}..."
