"""Forced recovery: a cluster of one node, made from the folder of one that is left when a majority is lost for ever.

It commits what that folder holds, also what was never committed, and what it lacks is gone: so it is done by hand, on
one folder, to which the others are compared first (`look`). Invariant: the cluster gets a new id, the folder a new
uuid, and its members become this node alone, so that none of the lost nodes can come back and disagree; and what they
had leased settles nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from raftq.node import folders, identity
from raftq.node.exits import Exit, Fatal
from raftq.node.identity import Identity
from raftq.node.restoring import incarnation
from raftq.replication import membership
from raftq.replication.cycle import CLOCKS, FENCED, MEMBERSHIP
from raftq.replication.engine import CONFIGURATION, REGULAR
from raftq.replication.membership import Configuration, Member
from raftq.replication.roster import META as ROSTER
from raftq.storage.environment import Environment, WriteBatch, from_u64, u64
from raftq.storage.machine import entries
from raftq.storage.machine.entries import Clocks

#: Bytes and number of entries that are looked at in one go.
_BYTES, _COUNT = 1 << 22, 1 << 12


class Found(NamedTuple):
    """What a data folder holds."""

    folder: Path
    identity: Identity
    term: int
    last_index: int
    last_term: int
    #: What is known to be committed. Entries above it may be or not.
    applied_index: int
    #: In force at the end of the log, None for the one that the settings began with.
    configuration: Configuration | None
    #: Of the last entry that has any.
    clocks: Clocks
    #: Why it may not take part any more; empty when it may.
    fenced: str

    @property
    def place(self) -> tuple[int, int]:
        """The folder with the highest has all that is committed in any of them."""
        return self.last_term, self.last_index


def look(folder: Path) -> Found:
    """At the folder of a node that does not run. Raises Fatal."""
    with folders.opened(folder) as environment:
        return _look(environment)


def recover(folder: Path, cluster_id: str, peer_address: str | None, wall_ms: int) -> Found:
    """What was found before. Raises Fatal; then nothing is changed."""
    with folders.opened(folder) as environment:
        found = _look(environment)
        if cluster_id == found.identity.cluster_id:
            raise Fatal(Exit.USAGE, f"the cluster needs another id than {cluster_id}, which the lost nodes have")
        owner = identity.new(cluster_id, found.identity.node_id)
        address = peer_address or _peer_address(found)
        alone = Configuration({owner.node_id: Member(address, uuid=owner.node_uuid)})
        term, index = max(found.term, found.last_term) + 1, found.last_index + 1
        batch = WriteBatch(
            entries=[
                (index, term, CONFIGURATION + alone.encode()),
                (index + 1, term, incarnation(found.clocks, wall_ms)),
            ],
            meta={
                identity.META: identity.encode(owner),
                "term": u64(term),
                "vote": b"",
                ROSTER: b"",
                FENCED: b"",
            },
        )
        identity.commit(environment, batch)
    return found


def _peer_address(found: Found) -> str:
    own = found.configuration.members.get(found.identity.node_id) if found.configuration else None
    if own is None:
        raise Fatal(Exit.USAGE, f"{found.folder} does not say where the other nodes reach it: give --peer-address")
    return own.peer_address


def _look(environment: Environment) -> Found:
    owner, bounds = identity.stored(environment), environment.log_bounds()
    if owner is None or bounds is None:
        raise Fatal(Exit.USAGE, f"{environment.folder} holds nothing: its node has never been in a cluster")
    stored = environment.meta(MEMBERSHIP)
    configuration = membership.base_of(stored)[1] if stored else None
    clocks = Clocks(*CLOCKS.unpack(environment.meta("clocks") or bytes(CLOCKS.size)))
    applied, last_index = environment.applied(), bounds[1]
    last_term = environment.log_entries(last_index, 0, 1)[0][2]
    for command in _commands(environment, applied + 1, last_index):
        if command[:1] == CONFIGURATION:
            configuration = membership.decode(memoryview(command)[1:])
        elif command[:1] == REGULAR:
            clocks = entries.clocks(command, 1)
    return Found(
        folder=environment.folder,
        identity=owner,
        term=max(from_u64(environment.meta("term") or u64(0)), last_term),
        last_index=last_index,
        last_term=last_term,
        applied_index=applied,
        configuration=configuration,
        clocks=clocks,
        fenced=(environment.meta(FENCED) or b"").decode(),
    )


def _commands(environment: Environment, index: int, last_index: int) -> Iterator[bytes]:
    while index <= last_index:
        found = environment.log_entries(index, _BYTES, _COUNT)
        yield from (command for command, _, _ in found)
        index += len(found)
