"""Replace keys: of the messages of a queue with the same key, the newest alone stays.

A newer one takes the place of an older one that waits; an older one that is leased is superseded: its worker may ack
it, and when it returns in any other way it is dropped. Owns the tables KEYED and NEWEST. Invariant: every live message
with a replace key has a record in KEYED, and NEWEST names the one of each key that is not superseded. Each lies in a
batch of its own, aside, so that no other message has to be asked whether it has a key.
"""

from __future__ import annotations

from raftq.storage.machine import keys
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Piece, QueueRecord

#: In KEYED instead of the key: a newer message has it.
_SUPERSEDED = b""


class ReplaceKeys:
    def __init__(self, txn: Txn) -> None:
        self._txn = txn

    def newest(self, queue: QueueRecord, replace_key: str) -> tuple[int, int] | None:
        """(priority, number) of the live message with that key, which a newer one would replace."""
        place = self._txn.get(keys.newest(queue.number, replace_key)) if queue.keyed else None
        return None if place is None else keys.place_of(place)

    def add(self, queue: QueueRecord, replace_key: str, priority: int, number: int) -> None:
        """A new message has the key, and what had it before was freed or superseded."""
        place = keys.place(keys.KEYED, queue.number, priority, number)
        self._txn.put(place, replace_key.encode())
        self._txn.put(keys.newest(queue.number, replace_key), place)
        queue.keyed += 1

    def supersede(self, queue: QueueRecord, priority: int, number: int) -> None:
        self._txn.put(keys.place(keys.KEYED, queue.number, priority, number), _SUPERSEDED)

    def superseded(self, queue: QueueRecord, piece: Piece) -> bool:
        """Whether the piece is to be dropped instead of being returned."""
        return self._key(queue, piece) == _SUPERSEDED

    def free(self, queue: QueueRecord, piece: Piece) -> None:
        """The messages of the piece are gone for good."""
        replace_key = self._key(queue, piece)
        if replace_key is None:
            return
        self._txn.delete(keys.place(keys.KEYED, queue.number, piece.priority, piece.first))
        queue.keyed -= 1
        if replace_key != _SUPERSEDED:
            self._txn.delete(keys.newest(queue.number, replace_key.decode()))

    def _key(self, queue: QueueRecord, piece: Piece) -> bytes | None:
        if not queue.keyed or not piece.aside or piece.batch_count != 1:
            return None
        return self._txn.get(keys.place(keys.KEYED, queue.number, piece.priority, piece.first))
