"""The queue state machine: commands in the order of the log, replies, and tables that are equal on every node.

The table of handlers below is the contents of this folder. Deterministic: it reads no clock, no random source and
nothing of the process, and writes through the Txn alone. A bad command is a reply (`Refused`); a broken invariant
raises InvariantBroken, and the process must end.

Invariant: at the end of every entry the tables are a function of the entries up to it, however they were grouped into
commits, and whether or not the process was restarted between any two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from raftq.storage.machine import (
    dedup,
    expiry,
    incarnation,
    leases,
    messages,
    partitions,
    publishing,
    purges,
    queues,
    redrives,
    schedules,
    tokens,
    topics,
    transactions,
    views,
)
from raftq.storage.machine.batches import SPARSE_VERSION
from raftq.storage.machine.commands import (
    Ack,
    CancelRedrive,
    Command,
    CreateToken,
    DefineQueue,
    DefineSchedule,
    DefineTopic,
    DeleteMessage,
    DeleteQueue,
    DeleteSchedule,
    DeleteTopic,
    Enqueue,
    Expire,
    Extend,
    Incarnate,
    Lease,
    Nack,
    Publish,
    PurgeQueue,
    Redrive,
    Reject,
    Release,
    RevokeToken,
    SetVersion,
    Subscribe,
    TakeDigest,
    Tick,
    Transact,
    Unsubscribe,
    unknown_version,
)
from raftq.storage.machine.invariants import InvariantBroken, broken
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.records import ScheduleRecord
from raftq.storage.machine.replies import DigestTaken, Effect, Leased, Reply, VersionSet
from raftq.storage.machine.state import State
from raftq.storage.machine.views import Delivery, View

__all__ = ["InvariantBroken", "Machine"]

#: Of the rules: the highest that this code knows. 1: as released first. 2: sparse batches are rewritten. 3: tokens
#: are created.
VERSION_MAX = 3

Handler = Callable[[State, Meta, Any], tuple[Reply, list[Effect]]]


def _take_digest(_state: State, meta: Meta, _command: TakeDigest) -> tuple[Reply, list[Effect]]:
    """Changes nothing: whoever applies the entry stops there, commits, and hashes."""
    return DigestTaken(meta.index), []


def _set_version(state: State, _meta: Meta, command: SetVersion) -> tuple[Reply, list[Effect]]:
    cluster = state.cluster
    before = cluster.version
    if command.version <= before:
        return VersionSet(before, changed=False), []
    if command.version > state.version_max:
        raise unknown_version(command.version, state.version_max)
    cluster.version = command.version
    if before < SPARSE_VERSION <= command.version:
        state.batches.sweep()
    return VersionSet(command.version, changed=True), []


HANDLERS: dict[type[Command], Handler] = {
    Enqueue: messages.enqueue,
    Lease: leases.lease,
    Ack: leases.ack,
    Nack: leases.nack,
    Release: leases.release,
    Reject: leases.reject,
    Extend: leases.extend,
    Expire: expiry.expire,
    DefineQueue: partitions.define,
    DeleteQueue: queues.delete,
    TakeDigest: _take_digest,
    SetVersion: _set_version,
    Incarnate: incarnation.incarnate,
    PurgeQueue: purges.purge,
    Redrive: redrives.redrive,
    CancelRedrive: redrives.cancel,
    DeleteMessage: purges.delete,
    Transact: transactions.transact,
    DefineTopic: topics.define,
    DeleteTopic: topics.delete,
    Subscribe: topics.subscribe,
    Unsubscribe: topics.unsubscribe,
    Publish: publishing.publish,
    DefineSchedule: schedules.define,
    DeleteSchedule: schedules.delete,
    Tick: schedules.tick,
    CreateToken: tokens.create,
    RevokeToken: tokens.revoke,
}


class Machine:
    def __init__(self, txn: Txn, version_max: int = VERSION_MAX) -> None:
        """Raises UnknownCommand when the tables follow the rules of a higher version than `version_max`."""
        self._state = State(txn, version_max)
        if self.version > version_max:
            raise unknown_version(self.version, version_max)
        #: Index of the entry being applied.
        self._entry: int | None = None

    @property
    def version(self) -> int:
        """Of the rules that apply now."""
        return self._state.cluster.version

    def apply(self, meta: Meta, command: Command) -> tuple[Reply, list[Effect]]:
        """Raises InvariantBroken, and UnknownCommand when the log switches to a version above `version_max`. The
        machine is of no use after either."""
        state = self._state
        if meta.index != self._entry:
            self._begin(meta)
        handler = (partitions.handler(state, command) if state.partitions else None) or HANDLERS[type(command)]
        if getattr(command, "request", None) is None:
            return handler(state, meta, command)
        repeatable = cast("dedup.Repeatable", command)
        reply = dedup.first_reply(state, meta, repeatable)
        if reply is not None:
            return reply, []
        reply, effects = handler(state, meta, command)
        dedup.remember_reply(state, meta, repeatable, reply)
        return reply, effects

    def _begin(self, meta: Meta) -> None:
        cluster = self._state.cluster
        if self._entry is not None or meta.index <= cluster.index:
            broken(f"entry {meta.index} after {cluster.index}, which is {'ended' if self._entry is None else 'open'}")
        self._entry = cluster.index = meta.index
        cluster.lease_ms = meta.lease_ms
        cluster.wall_ms = meta.wall_ms

    def end_entry(self, meta: Meta) -> None:
        """After the last command of an entry: put into the tables what waits in memory."""
        if self._entry is None:
            return
        if self._entry != meta.index:
            broken(f"entry {meta.index} ends while {self._entry} is open")
        self._entry = None
        self._state.flush()

    def next_due(self) -> tuple[int | None, int | None]:
        """When `Expire` has something to do: the earliest deadline in lease time, and the earliest moment in wall time
        (0: at once)."""
        return expiry.next_due(self._state)

    def schedules_due(self, wall_ms: int, limit: int) -> list[ScheduleRecord]:
        """Schedules whose next tick is due at that wall time, the earliest first."""
        return self._state.schedules.due(wall_ms, limit)

    def deliveries(self, leased: Leased) -> list[Delivery | None]:
        """The messages of a lease, by slot. To be called right after it was applied. None for a slot that the lease
        does not hold any more, which only a repeated reply can have."""
        return views.deliveries(self._state, leased)

    def view(self) -> View:
        """What was applied, to be read between entries and before the next one."""
        return View(self._state)
