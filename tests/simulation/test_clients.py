"""The workload: that it is one, that it does what clients do, and that it says truthfully what it was told.

Method: clients run on simulated time against one machine that plays a cluster: it loses requests and answers, turns
clients away, has leaders that change and times without one. The checkers judge the whole.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any

import pytest

from raftq.chaos.simulation.checkers import Checkers, Liveness
from raftq.chaos.simulation.clients import DEAD, QUEUES, Clients
from raftq.chaos.simulation.history import Op, Seen, Violation
from raftq.chaos.simulation.loop import Clock, NodeLoop, Scheduler
from raftq.replication.engine import REGULAR
from raftq.replication.shard import Committed, DiskReserve, NotLeader, OutcomeUnknown, Overloaded
from raftq.storage.machine import commands, entries
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.commands import Ack, Enqueue, Expire
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.ports import Meta
from raftq.storage.machine.replies import (
    Enqueued,
    Leased,
    MessageDeleted,
    Published,
    Purged,
    Range,
    Refused,
    Settled,
    Transacted,
)
from raftq.storage.machine.views import View
from tests.simulation.seen import WALL_MS, FakeNode

NODES = ("n1", "n2", "n3")


class World:
    """A cluster in which one machine stands for all nodes. `trouble` is the chance that an operation meets some."""

    def __init__(self, seed: int, *, trouble: float = 0.1, rate: float = 40.0) -> None:
        self.scheduler = Scheduler(seed)
        self.trouble = trouble
        self.dice = self.scheduler.dice_for("world")
        self.loop = NodeLoop(self.scheduler, Clock(self.scheduler, monotonic=0.0, wall=0.0), self.dice, self._error)  # type: ignore[abstract]
        self.checkers = Checkers()
        self.node = FakeNode("n1")
        self.node.role, self.node.term, self.node.members = "leader", 1, ("n1",)
        self.machine = Machine(self.node.txn)
        self.leader: str | None = "n1"
        self.ops: list[Op] = []
        self.violation: Violation | None = None
        self.clients = Clients(self, self, rate=rate)
        self.checkers.started(self.node)
        self.loop.call_soon(self.clients.start)

    def run(self, seconds: float) -> None:
        """Leaders come and go."""
        until = self.scheduler.now + seconds
        while self.scheduler.now < until:
            self.leader = self.dice.choice((*NODES, *NODES, None)) if self.trouble else "n1"
            self.scheduler.run(min(self.scheduler.now + 2.0, until))
            if self.violation is not None:
                raise self.violation

    def judge(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Violation as violation:
            self.violation = self.violation or violation

    def _error(self, error: BaseException) -> None:
        raise error

    # What clients need

    def dice_for(self, name: str) -> Random:
        return self.scheduler.dice_for(name)

    def nodes(self) -> Sequence[str]:
        return NODES

    def now(self) -> float:
        return self.scheduler.now

    def submit(self, node: str, command: bytes) -> asyncio.Future[Committed]:
        return self._later(node, partial(self._commit, command))

    def read(self, node: str, look: Callable[[View], Any]) -> asyncio.Future[Seen]:
        return self._later(node, lambda: Seen(self.node.applied_index, look(self.machine.view())))

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.create_task(coroutine)

    def _later(self, node: str, act: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.loop.create_future()
        self.scheduler.after(0.005 * self.dice.random(), self._serve, node, future, act)
        return future

    def _serve(self, node: str, future: asyncio.Future[Any], act: Callable[[], Any]) -> None:
        luck = self.dice.random() / self.trouble if self.trouble else 1.0
        if luck < 0.2:
            return  # the request is lost
        result: Any
        if node != self.leader:
            result = NotLeader(self.leader)
        elif luck < 0.5:
            result = self.dice.choice((Overloaded("much"), DiskReserve("full"), OutcomeUnknown("lost")))
        else:
            result = act()
            if luck < 0.8:
                result = OutcomeUnknown("applied after all")
        if luck > 0.9:  # else the answer is lost
            self.scheduler.after(0.005 * self.dice.random(), self._answer, future, result)

    def _answer(self, future: asyncio.Future[Any], result: Any) -> None:
        if not future.done() and isinstance(result, Exception):
            future.set_exception(result)
        elif not future.done():
            future.set_result(result)

    def _commit(self, command: bytes) -> Committed:
        node, now_ms = self.node, int(self.now() * 1000)
        clocks = Clocks(now_ms, WALL_MS + now_ms)
        lease_ms, wall_ms = self.machine.next_due()
        batch = [command]
        if (lease_ms is not None and lease_ms <= now_ms) or (wall_ms is not None and wall_ms <= clocks.wall_ms):
            batch.insert(0, commands.encode(Expire()))
        index = node.last_index + 1
        meta = Meta(index, 0, 1, *clocks)
        for position, data in enumerate(batch):
            meta.position = position
            reply, _ = self.machine.apply(meta, commands.decode(data))
        messages = self.machine.deliveries(reply) if isinstance(reply, Leased) else None
        self.machine.end_entry(meta)
        node.log.append((1, entries.encode(clocks, batch, REGULAR)))
        node.commit_index = index
        self.judge(self.checkers.entry_applied, "n1", index, *node.log[-1])
        node.applied_index, node.digested = index, (index, str(index))
        self.judge(self.checkers.stepped, node)
        return Committed(index, len(batch) - 1, reply, messages, clocks.wall_ms)

    # What clients tell

    def invoked(self, op: Op) -> None:
        self.ops.append(op)
        self.judge(self.checkers.invoked, op)

    def returned(self, op: Op) -> None:
        assert op.returned_at == self.now()
        self.judge(self.checkers.returned, op)


def replies(world: World) -> list[Any]:
    return [op.reply for op in world.ops if op.outcome == "ok" and op.kind == "write"]


def test_a_run_of_sixty_seconds_is_a_workload_that_passes() -> None:
    world = World(1)
    world.run(60.0)
    assert world.clients.operations.total() >= 2_000
    assert world.clients.operations.keys() >= {
        "Enqueue", "Lease", "Ack", "Nack", "Release", "Reject", "Extend", "DefineQueue", "DeleteQueue", "PurgeQueue",
        "DeleteMessage", "Redrive", "CancelRedrive", "Publish", "Subscribe", "Unsubscribe", "Transact", "read",
    }  # fmt: skip
    outcomes = world.clients.outcomes
    assert min(outcomes["ok"], outcomes["no"], outcomes["unknown"]) > 50
    assert {op.node for op in world.ops} == set(NODES)
    given = replies(world)
    assert any(isinstance(reply, Enqueued | Leased) and reply.repeated for reply in given)
    assert any(place[2] for reply in given if isinstance(reply, Enqueued) for place in reply.places or ())
    assert any(b"\1" in result for reply in given if isinstance(reply, Settled) for result in reply.results)
    taken = [taken for reply in given if isinstance(reply, Leased) for taken in reply.ranges]
    assert any(each.failures > 1 for each in taken)
    assert {each.priority for each in taken} == {0, 4, 9}
    assert any(op.view is not None and op.view.value for op in world.ops)
    named = {getattr(commands.decode(op.command), "queue", "") for op in world.ops if op.kind == "write"}
    assert named == {*QUEUES, DEAD, ""}
    assert {reply.reason for reply in given if isinstance(reply, Refused)} >= {"full", "redrive_runs"}
    assert all(any(isinstance(reply, kind) for reply in given) for kind in (MessageDeleted, Purged))
    assert any(isinstance(reply, Published) and sum(reply.queues) for reply in given)
    transacted = [reply for reply in given if isinstance(reply, Transacted)]
    assert {bool(reply.obstacles) for reply in transacted} == {True, False}
    sums = world.machine.view().sums()
    assert min(sums[name] for name in ("rejected", "dead_lettered", "discarded", "removed", "redriven")) > 5


def test_queues_are_emptied_about_as_fast_as_they_are_filled() -> None:
    """Else runs would become slower the longer they are."""
    world = World(2)
    world.run(120.0)
    view = world.machine.view()
    queues = [view.queue(queue) for queue in dict.fromkeys(QUEUES)]
    assert sum(queue.ready + queue.delayed + queue.leased for queue in queues if queue is not None) < 500


def test_two_runs_of_a_seed_are_the_same() -> None:
    def told(seed: int) -> list[Op]:
        world = World(seed)
        world.run(5.0)
        return world.ops

    assert told(3) == told(3)
    assert told(3) != told(4)


def test_clients_end_and_a_probe_succeeds() -> None:
    world = World(5)
    world.run(10.0)
    world.trouble = 0.0
    liveness = world.checkers.liveness = Liveness(world.now(), 0.6)
    world.clients.stop()
    world.loop.call_soon(world.clients.probe)
    world.run(2.0)
    assert world.clients.idle
    assert all(op.outcome is not None for op in world.ops)
    assert liveness.reached(world.now(), [world.node], idle=True)
    before = len(world.ops)
    world.run(5.0)
    assert len(world.ops) == before


def test_a_probe_goes_on_until_it_succeeds() -> None:
    world = World(6, trouble=0.0)
    world.clients.stop()
    world.leader = None
    world.loop.call_soon(world.clients.probe)
    world.scheduler.run(3.0)
    assert not world.clients.idle
    world.run(1.0)
    assert world.clients.idle
    assert world.ops[-1].outcome == "ok"


def test_without_a_leader_clients_try_everywhere_and_give_up() -> None:
    world = World(7)
    world.leader = None
    world.scheduler.run(20.0)
    tried = Counter(op.command for op in world.ops if op.kind == "write")
    assert max(tried.values()) > 3
    assert {op.node for op in world.ops} == set(NODES)
    assert {op.outcome for op in world.ops if op.returned_at is not None} == {"no", "unknown"}


def test_a_hint_to_the_leader_is_followed() -> None:
    world = World(8, trouble=0.0)
    world.run(20.0)
    nodes = [op.node for op in world.ops if op.invoked_at > 5.0]
    assert nodes.count("n1") > 0.8 * len(nodes)
    assert set(nodes) == set(NODES)  # some miss every change


def test_what_may_have_happened_is_only_repeated_when_that_does_no_harm() -> None:
    world = World(9)
    world.run(60.0)
    unknown = {op.command for op in world.ops if op.outcome == "unknown" and op.kind == "write"}
    attempts = Counter(op.command for op in world.ops)
    repeated = [commands.decode(command) for command in unknown if attempts[command] > 1]
    assert any(isinstance(command, Enqueue) for command in repeated)
    assert any(isinstance(command, Ack) and command.request is None for command in repeated)
    for index, op in enumerate(world.ops):
        command = commands.decode(op.command) if op.kind == "write" else None
        if op.outcome == "unknown" and isinstance(command, Enqueue) and command.request is None:
            assert all(later.command != op.command for later in world.ops[index + 1 :])


# A world that is wrong in one way is found out by the checkers, with these clients


def lose(world: World) -> None:
    """An acknowledged write never reached the log."""
    commit = world._commit
    world._commit = lambda command: commit(command) if world.now() < 5 else Committed(world.node.last_index, 0, None)  # type: ignore[method-assign]


def double(world: World) -> None:
    """An enqueue is committed twice."""
    commit = world._commit

    def twice(command: bytes) -> Committed:
        if commands.grows(command):
            commit(command)
        return commit(command)

    world._commit = twice  # type: ignore[method-assign]


def stale(world: World) -> None:
    """Reads are answered from the state of a while ago."""
    seen: list[Seen] = []

    def read(node: str, look: Callable[[View], Any]) -> asyncio.Future[Seen]:
        seen.append(Seen(world.node.applied_index, look(world.machine.view())))
        return world._later(node, lambda: seen[max(len(seen) - 10, 0)])

    world.read = read  # type: ignore[method-assign]


def reversed_lease(world: World) -> None:
    """A lease gives the messages in another order than it says."""
    commit = world._commit

    def turned(command: bytes) -> Committed:
        found = commit(command)
        if found.messages is not None:
            found.messages.reverse()
        return found

    world._commit = turned  # type: ignore[method-assign]


def refused_and_done(world: World) -> None:
    """A node says no, and does it."""
    answer = world._answer
    world._answer = lambda future, result: answer(  # type: ignore[method-assign]
        future, Overloaded("much") if isinstance(result, Committed) and result.index % 50 == 0 else result
    )


def forgetful(world: World) -> None:
    """The machine does not know requests again."""
    world.machine._state.txn.get = partial(_without_requests, world.machine._state.txn.get)  # type: ignore[method-assign]


def _without_requests(get: Callable[[bytes], bytes | None], key: bytes) -> bytes | None:
    return None if key[:1] == b"x" else get(key)


@pytest.mark.parametrize(
    ("mistake", "invariant"),
    [
        (lose, "no acknowledged operation lost"),
        (double, "applied at most once"),
        (stale, "linearizable reads"),
        (reversed_lease, "linearizability"),
        (refused_and_done, "refused is not applied"),
        (forgetful, "linearizability"),
    ],
)
def test_a_wrong_world_is_found_out(mistake: Callable[[World], None], invariant: str) -> None:
    world = World(10)
    mistake(world)
    with pytest.raises(Violation) as caught:
        world.run(60.0)
    assert caught.value.invariant == invariant


def test_a_range_names_each_message_of_a_lease() -> None:
    world = World(11, trouble=0.0)
    world.run(20.0)
    leased = [op for op in world.ops if isinstance(op.reply, Leased) and op.reply.ranges]
    assert leased
    for op in leased:
        spans: list[Range] = op.reply.ranges
        numbers = [number for taken in spans for number in range(taken.first, taken.first + taken.count)]
        assert [message.number for message in op.messages] == numbers
