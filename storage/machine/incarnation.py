"""A new incarnation of the cluster: the command incarnate, after a restore or a forced recovery.

The log that is left may miss leases that were given. Their workers still hold receipts, and their fences stand in the
workers' stores. Invariant: a lease id given from here on is above every one given before, by this cluster or by one
that came from the same log or backup, so such a receipt never settles anything here, and fences still grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftq.storage.machine import keys, leases, queues, records
from raftq.storage.machine.commands import Incarnate
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.records import QueueRecord
from raftq.storage.machine.replies import Effect, Incarnated

if TYPE_CHECKING:
    from raftq.storage.machine.state import State

#: Lease ids left out at least: so those of incarnation n begin above n << 32.
IDS_SKIPPED = 1 << 32
#: Lease ids are exact in JSON below 1 << 53. By the clock they reach a half of that at most, in the year 2109, which
#: leaves a million incarnations.
_WALL_MS_MAX = 1 << 42


def incarnate(state: State, meta: Meta, _command: Incarnate) -> tuple[Incarnated, list[Effect]]:
    """All at once, however many leases there are: nobody is served before it."""
    ready: dict[int, tuple[QueueRecord, int]] = {}
    released = 0
    for key, value in state.txn.scan(keys.LEASE, keys.LEASE + b"\xff"):
        lease = records.decode_lease(value)
        queue = state.queues.numbered(keys.queue_of(key))
        held = (1 << lease.count) - 1 & ~records.bits_of(lease.settled)
        if queue is not None and held:
            ready.setdefault(queue.number, (queue, queue.leasable))
            for piece in leases.returned_pieces(state, queue, lease, held):
                state.places.give_back(queue, piece)
            count = leases.let_go(queue, lease, held)
            queue.released += count
            released += count
            state.queues.changed(queue)
        state.deadlines.remove(lease.deadlines[0][0], key)
        state.txn.delete(key)
    cluster = state.cluster
    cluster.incarnation += 1
    cluster.last_lease = first_free(cluster.last_lease, meta.wall_ms)
    state.places.groups.settle()
    effects = [effect for queue, before in ready.values() for effect in queues.became_ready(queue, before)]
    return Incarnated(cluster.incarnation, released), effects


def first_free(last_lease: int, wall_ms: int) -> int:
    """What lease ids go on from. Whatever was given after a backup, or by a cluster that was restored from the same
    one before, is below: no cluster gives 1,024 leases a millisecond. Should clocks be wrong, it is as long as fewer
    than `IDS_SKIPPED` were given since the backup."""
    return max(last_lease + IDS_SKIPPED, min(wall_ms, _WALL_MS_MAX) << 10)
