"""Who a data folder belongs to: one node of one cluster, and how often that node has started.

The uuid is made with the folder. Peers know it and the count of starts, so that an emptied or an old copy of the folder
cannot take part under the same name (`raftq.replication.roster`).
"""

from __future__ import annotations

import uuid

import msgspec

from raftq.node.exits import Exit, Fatal
from raftq.storage.environment import Environment, EnvironmentDamaged, WriteBatch
from raftq.storage.writer import Writer

META = "identity"


class Identity(msgspec.Struct, frozen=True):
    cluster_id: str
    node_id: str
    node_uuid: str
    #: Starts of this node on this folder, this one included.
    boot: int


def begin(environment: Environment, cluster_id: str, node_id: str) -> Identity:
    """The identity of this start, durable: a new one in an empty folder. Raises Fatal(FOREIGN_DATA) when the folder
    belongs to another, and StorageError."""
    before = stored(environment) or new(cluster_id, node_id)
    _check(before, environment, cluster_id, node_id)
    now = msgspec.structs.replace(before, boot=before.boot + 1)
    commit(environment, WriteBatch(meta={META: encode(now)}))
    return now


def new(cluster_id: str, node_id: str) -> Identity:
    """Of a folder that was never started on."""
    return Identity(cluster_id, node_id, str(uuid.uuid4()), 0)


def encode(identity: Identity) -> bytes:
    return msgspec.msgpack.encode(identity)


def stored(environment: Environment) -> Identity | None:
    """None in an empty folder. Raises EnvironmentDamaged."""
    found = environment.meta(META)
    try:
        return None if found is None else msgspec.msgpack.decode(found, type=Identity)
    except msgspec.DecodeError as error:
        raise EnvironmentDamaged(f"{environment.folder}: the identity is not of raftq: {error}") from error


def _check(found: Identity, environment: Environment, cluster_id: str, node_id: str) -> None:
    folder = environment.folder
    if found.cluster_id != cluster_id:
        line = f"{folder} holds data of cluster {found.cluster_id}, not {cluster_id}: give this node its own folder"
        raise Fatal(Exit.FOREIGN_DATA, line)
    if found.node_id != node_id:
        line = f"{folder} holds data of node {found.node_id}, not {node_id}: give this node its own folder"
        raise Fatal(Exit.FOREIGN_DATA, line)


def commit(environment: Environment, batch: WriteBatch) -> None:
    """Where no node runs. Raises StorageError."""
    writer = Writer(environment)
    try:
        writer.write(batch)
    finally:
        writer.close()
