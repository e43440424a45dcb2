"""What a queue promises, judged on the canonical log run through the real machine over tables in memory.

`Replica` is the machine that the `rules` judge, and the third party for the digests that nodes gave. Invariant: in a
run that passes all nodes had equal tables at equal indexes, with each message in one place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from xxhash import xxh3_128

from raftq.chaos.simulation.checkers.rules import Rules
from raftq.chaos.simulation.history import History, NodeView, Violation, decoded
from raftq.storage.digest import SIZES
from raftq.storage.machine import audit, commands, packing
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.invariants import InvariantBroken
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.replies import Leased
from raftq.storage.machine.views import MessageState, View

_AFTER_ALL: Final = b"\xff"


class Replica:
    """The real machine on the canonical log."""

    def __init__(self) -> None:
        self.tables = MemoryTxn()
        self._machine = Machine(self.tables)
        self._rules = Rules()

    def apply(self, index: int, term: int, entry: bytes) -> None:
        inside = decoded(entry)
        if inside is None:
            return
        meta = Meta(index, 0, term, *inside[0])
        for position, data in enumerate(inside[1]):
            meta.position = position
            command = commands.decode(data)
            reply, _ = self._machine.apply(meta, command)
            given = self._machine.deliveries(reply) if isinstance(reply, Leased) else ()
            self._rules.judge(meta, command, reply, given)
        self._machine.end_entry(meta)

    def judge_rest(self) -> None:
        """What is there at the end of the log is what must be. Raises Violation."""
        self._rules.judge_rest(Counter(bodies(self._machine.view())))


def bodies(view: View) -> Iterator[bytes]:
    """Of all messages that there are."""
    for info in view.queues(None, limit=1_000)[0]:
        states: tuple[MessageState, ...] = ("ready", "delayed", "leased")
        for state in states:
            cursor: str | None = None
            while True:
                page, cursor = view.peek(info.key, state, 1_000, cursor)
                yield from (packing.unpack_message(message.data).body for message in page)
                if cursor is None:
                    break


def digest(tables: Txn) -> str:
    """As `storage.digest`, of tables in memory, or of those that are not all on disk yet."""
    hashed = xxh3_128()
    for key, value in tables.scan(b"", _AFTER_ALL):
        hashed.update(SIZES.pack(len(key), len(value)) + key + value)
    return hashed.hexdigest()


class Digests:
    """Equal tables at equal indexes: on every node, at any time, and on the replica."""

    def __init__(self) -> None:
        #: Index -> (digest, node that gave it first).
        self.found: dict[int, tuple[str, str]] = {}

    def told(self, node: str, index: int, digest: str) -> None:
        first = self.found.setdefault(index, (digest, node))
        if first[0] != digest:
            raise Violation(
                "equal digests", f"at index {index} the digest of {node} is {digest}, that of {first[1]} is {first[0]}"
            )


def at_rest(history: History, digests: Digests, nodes: list[NodeView]) -> None:
    """Run the whole canonical log, and read all tables of every node."""
    for node in nodes:
        _audit(node.id, node.tables())
        digests.told(node.id, node.applied_index, digest(node.tables()))
    replica = Replica()
    for index in range(1, history.known + 1):
        entry = history.log.get(index)
        if entry is not None:
            replica.apply(index, entry.term, entry.command)
        if index in digests.found:
            digests.told("the canonical log", index, digest(replica.tables))
    _audit("the canonical log", replica.tables)
    replica.judge_rest()


def _audit(name: str, tables: Txn) -> None:
    try:
        audit.check(tables)
    except InvariantBroken as error:
        raise Violation("one holder a message", f"tables of {name}: {error}") from error
