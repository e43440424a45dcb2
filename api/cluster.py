"""The cluster as this node sees it, its members, leadership, digest and backup; this node's health and readiness."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import TypeVar

import msgspec
import structlog

from raftq.api import names, problems, schemas, stats
from raftq.api.answers import Answer, Streamed
from raftq.api.call import Call
from raftq.api.ports import BackupRefused
from raftq.api.problems import Problem
from raftq.replication.shard import OutcomeUnknown

T = TypeVar("T")

TEXT = "text/plain; charset=utf-8"

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/,=]+):(\d{1,5})")
#: Of every interface: one can listen there, and nobody can dial it.
_WILDCARDS = frozenset(("0.0.0.0", "[::]"))  # noqa: S104 - refused

_log = structlog.get_logger("raftq.api")

_WELCOME = b"""raftq: a message queue for work you cannot lose.

  put one   curl -d hello http://HOST/q/jobs
  take one  curl http://HOST/q/jobs
  queues    curl -L 'http://HOST/v1/queues?stats=true'
  cluster   curl http://HOST/v1/cluster

The HTTP API is at http://HOST/docs, and as OpenAPI at http://HOST/openapi.json.
"""


async def welcome(_call: Call) -> Answer:
    """GET /: Say what this is."""
    return Answer(_WELCOME, content_type=TEXT)


async def describe(call: Call) -> Answer:
    """GET /v1/cluster: Describe the cluster as this node sees it. Any node answers."""
    status = call.node.shard.status()
    nodes = [msgspec.structs.asdict(peer) for peer in status.peers]
    described = {"cluster_id": status.cluster_id, "leader": status.leader, "term": status.term, "nodes": nodes}
    return call.answer(described)


async def transfer(call: Call) -> Answer:
    """POST /v1/cluster/leader: Hand leadership over."""
    given = await call.decode(schemas.TRANSFER)
    known = [peer.id for peer in call.node.shard.status().peers]
    if given.node is not None and given.node not in known:
        raise problems.invalid("node", f"is one of {', '.join(known)}")
    return call.answer({"leader": await _changed(call.node.shard.transfer(given.node))})


async def add(call: Call) -> Answer:
    """POST /v1/cluster/nodes: Add a node. It is a learner now, and becomes a voter by itself once it has caught up."""
    given = await call.decode(schemas.NODE)
    node, address = names.checked_name("id", given.id), _address(given.peer_address)
    replaces = None if given.replaces is None else names.checked_name("replaces", given.replaces)
    index = await _changed(call.node.shard.add(node, address, replaces=replaces))
    added = {"id": node, "peer_address": address, "role": "learner", "voter": False, "replaces": replaces}
    return call.answer({"index": index, "node": added}, 202)


async def remove(call: Call) -> Answer:
    """DELETE /v1/cluster/nodes/{node}: Remove a node. A leader that is to be removed hands over, and sends the
    client on."""
    shard, node = call.node.shard, names.checked_name("node", call.parameters[0])
    known = [peer.id for peer in shard.status().peers]
    if node not in known:
        raise Problem("unknown-node", f"There is no node {node}: there are {', '.join(known)}.")
    return call.answer({"index": await _changed(shard.remove(node))})


def _address(text: str) -> str:
    """Raises Problem 422."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise problems.invalid("peer_address", f"give host:port, where the other nodes reach it, not {text[:100]!r}")
    if found[1] in _WILDCARDS:
        raise problems.invalid("peer_address", f"the other nodes cannot dial {found[1]}: name the host")
    return text


async def _changed(change: Awaitable[T]) -> T:
    """Raises ShardError, or Problem: there is no request id to repeat it by."""
    try:
        return await change
    except OutcomeUnknown as error:
        detail = f"It may have happened or not ({error}): look at GET /v1/cluster before you repeat it."
        raise Problem("outcome-unknown", detail, applied="unknown", retry_after=1) from error


async def snapshot(call: Call) -> Answer:
    """GET /v1/cluster/snapshot: Make a backup of what this node has applied. Any node makes one."""
    try:
        async with call.node.backup() as backup:
            name = f"{backup.cluster_id}-{backup.index}.snapshot"
            headers = [
                ("Raftq-Index", str(backup.index)),
                ("Content-Disposition", f'attachment; filename="{name}"'),
            ]
            answer = Streamed(content_type="application/octet-stream", headers=headers)
            await answer.begin(call.request, backup.size_bytes)
            try:
                while piece := await backup.read():
                    async with asyncio.timeout(call.node.limits.read_seconds):
                        await answer.send(piece)
            except Exception as error:  # half a body must not be followed by a problem
                _log.warning("a backup was not sent whole", reason=str(error) or type(error).__name__)
            return answer
    except BackupRefused as error:
        raise Problem("conflict", f"{error}.") from error


async def digest(call: Call) -> Answer:
    """GET /v1/cluster/digest: Take the digest of each node's tables at one index of the log."""
    index, nodes = await call.node.shard.digest()
    return call.answer({"index": index, "nodes": nodes})


async def health(call: Call) -> Answer:
    """GET /healthz?queues=&prefix=&limit=&cursor=: Tell whether the process serves. With queues=true also how many
    messages each queue has, as this node has applied them: a page of at most 500 queues, by name."""
    if stats.wants_queues(call):
        return await stats.of_each(call)
    return Answer(b"ok\n", content_type=TEXT)


async def readiness(call: Call) -> Answer:
    """GET /readyz: Tell whether this node can serve writes, itself or through a leader that it hears."""
    node = call.node
    if node.stopping:
        raise problems.stopping()
    status = node.shard.status()
    if not status.ready:
        leader = f"the leader {status.leader} is not confirmed" if status.leader else "there is no leader"
        raise Problem("no-leader", f"Not ready: {leader} in term {status.term}. Retry.", retry_after=1)
    return Answer(b"ready\n", content_type=TEXT)
