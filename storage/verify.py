"""A walk over everything in an environment, to find damage that ordinary reading can pass by.

Checksums find a value that changed; a changed key or branch can also make a record unreachable, which a lookup cannot
tell from one that never was. This walk compares the order of the keys, every checksum, and that each key is found. It
changes nothing and may run in a thread, beside the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftq.storage.checksums import unseal
from raftq.storage.environment import Environment, EnvironmentDamaged
from raftq.storage.failures import reading

if TYPE_CHECKING:
    from raftq.storage.reader import Cursor


def verify(environment: Environment) -> int:
    """The number of values, all of them right. Raises EnvironmentDamaged."""
    count = 0
    with environment.begin_read() as txn:
        for name, table in (("log", environment.log), ("meta", environment.named), ("tables", environment.tables)):
            with reading(f"table {name!r}"):
                found = _walk(name, txn.cursor(table), txn.cursor(table))
                stated = txn.stat(table)["entries"]
            if found != stated:
                raise EnvironmentDamaged(f"table {name!r} is damaged: it has {found} values of {stated}")
            count += found
    environment.log_bounds()
    return count


def _walk(name: str, along: Cursor, across: Cursor) -> int:
    count = 0
    previous = b""
    for key, stored in along:
        unseal(name, key, stored)
        if key <= previous or not across.set_key(key):
            raise EnvironmentDamaged(f"table {name!r} is damaged: key {key.hex()} is not in its place")
        previous = key
        count += 1
    return count
