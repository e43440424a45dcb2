"""The cluster as this node sees it, its leadership and its digest; whether this node is healthy and ready."""

from __future__ import annotations

import msgspec

from raftq.api import problems, schemas
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.problems import Problem

TEXT = "text/plain; charset=utf-8"

_WELCOME = b"""raftq: a message queue for work you cannot lose.

  put one   curl -d hello http://HOST/q/jobs
  take one  curl http://HOST/q/jobs
  queues    curl http://HOST/v1/queues?stats=true
  cluster   curl http://HOST/v1/cluster

The HTTP API is described in docs/api.md.
"""


async def welcome(_call: Call) -> Answer:
    """GET /"""
    return Answer(_WELCOME, content_type=TEXT)


async def describe(call: Call) -> Answer:
    """GET /v1/cluster: as this node sees it. Any node answers."""
    status = call.node.shard.status()
    nodes = [msgspec.structs.asdict(peer) for peer in status.peers]
    described = {"cluster_id": status.cluster_id, "leader": status.leader, "term": status.term, "nodes": nodes}
    return call.answer(described)


async def transfer(call: Call) -> Answer:
    """POST /v1/cluster/leader"""
    given = await call.decode(schemas.TRANSFER)
    known = [peer.id for peer in call.node.shard.status().peers]
    if given.node is not None and given.node not in known:
        raise problems.invalid("node", f"is one of {', '.join(known)}")
    return call.answer({"leader": await call.node.shard.transfer(given.node)})


async def digest(call: Call) -> Answer:
    """GET /v1/cluster/digest: of each node's tables at one index of the log."""
    index, nodes = await call.node.shard.digest()
    return call.answer({"index": index, "nodes": nodes})


async def health(_call: Call) -> Answer:
    """GET /healthz: the process serves."""
    return Answer(b"ok\n", content_type=TEXT)


async def readiness(call: Call) -> Answer:
    """GET /readyz: this node can serve writes, itself or through a leader that it hears."""
    node = call.node
    if node.stopping:
        raise problems.stopping()
    status = node.shard.status()
    if not status.ready:
        leader = f"the leader {status.leader} is not confirmed" if status.leader else "there is no leader"
        raise Problem("no-leader", f"Not ready: {leader} in term {status.term}. Retry.", retry_after=1)
    return Answer(b"ready\n", content_type=TEXT)
