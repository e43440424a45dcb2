"""The checksum that every value on disk carries: its last 8 bytes, xxh3_64 over key and value.

A value is sealed where it is written and opened where it is read from LMDB, nowhere else. A value that does not match
is never given out: it raises EnvironmentDamaged with the table and the key.
"""

from __future__ import annotations

from xxhash import xxh3_64_digest

from raftq.storage.failures import EnvironmentDamaged

CHECKSUM_BYTES = 8


def seal(key: bytes, value: bytes) -> bytes:
    return value + xxh3_64_digest(key + value)


def unseal(table: str, key: bytes, stored: bytes) -> bytes:
    value = stored[:-8]
    if xxh3_64_digest(key + value) != stored[-8:]:
        raise damaged(table, key)
    return value


def damaged(table: str, key: bytes) -> EnvironmentDamaged:
    return EnvironmentDamaged(f"table {table!r} is damaged: the value of key {key.hex()} does not match its checksum")
