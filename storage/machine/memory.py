"""The reference implementation of `ports.Txn`: a sorted list of keys and a dict. For tests; it keeps nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class MemoryTxn:
    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            self._keys.insert(bisect_left(self._keys, key), key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        while True:
            at = bisect_left(self._keys, high if reverse else low) - (1 if reverse else 0)
            if not (0 <= at < len(self._keys) and low <= self._keys[at] < high):
                return
            key = self._keys[at]
            yield key, self.values[key]
            if reverse:
                high = key
            else:
                low = key + b"\0"
