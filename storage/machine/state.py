"""All that the handlers of commands work on: the tables, and what memory keeps of them."""

from __future__ import annotations

from raftq.storage.machine import keys, records
from raftq.storage.machine.batches import Batches
from raftq.storage.machine.invariants import broken
from raftq.storage.machine.partitions import Partitions
from raftq.storage.machine.places import Places
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.queues import Queues
from raftq.storage.machine.records import Batch, Cluster, Piece
from raftq.storage.machine.schedules import Schedules
from raftq.storage.machine.timetable import Timetable
from raftq.storage.machine.tokens import Tokens
from raftq.storage.machine.topics import Topics


class State:
    """Memory is a cache: a new State over the same tables goes on as the old one would have."""

    __slots__ = (
        "batches",
        "cluster",
        "deadlines",
        "leased",
        "partitions",
        "places",
        "queues",
        "schedules",
        "sparse",
        "tokens",
        "topics",
        "txn",
        "version_max",
        "wall",
    )

    def __init__(self, txn: Txn, version_max: int) -> None:
        self.txn = txn
        self.version_max = version_max
        stored = txn.get(keys.CLUSTER)
        self.cluster = Cluster() if stored is None else records.decode_cluster(stored)
        self.sparse = Timetable(txn, keys.SPARSE)
        self.batches = Batches(txn, self.cluster, self.sparse)
        self.queues = Queues(txn, self.cluster, self.batches)
        self.partitions = Partitions(txn)
        self.topics = Topics(txn, self.cluster)
        self.schedules = Schedules(txn, self.cluster)
        self.deadlines = Timetable(txn, keys.DEADLINE)
        self.wall = Timetable(txn, keys.WALL)
        self.tokens = Tokens(txn, self.wall)
        self.places = Places(txn, self.cluster, self.batches, self.wall)
        #: Of the last lease: its id, its pieces, and their batches when it deleted them in the same step.
        self.leased: tuple[int, list[Piece], list[Batch] | None] = (0, [], None)

    def flush(self) -> None:
        if self.places.groups.unsettled:
            broken(f"a command left groups unsettled: {list(self.places.groups.unsettled)}")
        self.batches.flush()
        self.queues.flush()
        self.txn.put(keys.CLUSTER, records.encode_cluster(self.cluster))
