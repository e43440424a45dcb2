"""One run: a cluster, its clients, its faults and its judge, from one seed to one verdict.

Phases: the nodes start; clients work while the schedule's faults strike; then all is mended, and within ten election
timeouts a write must succeed and all nodes agree; then everything is judged once more at rest. Safety is judged after
every step of every node. The first violation ends the run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from raftq.chaos.simulation import stock
from raftq.chaos.simulation.checkers import Checkers, Liveness
from raftq.chaos.simulation.clients import Clients
from raftq.chaos.simulation.disk import folder_in_memory
from raftq.chaos.simulation.faults import MIXED, WEATHERS, Fault, Weather, schedule, storm, weather_of
from raftq.chaos.simulation.history import NodeView, Op, Seen, Violation
from raftq.chaos.simulation.loop import Clock, NodeLoop, Scheduler
from raftq.chaos.simulation.nemesis import Nemesis
from raftq.chaos.simulation.network import Network
from raftq.chaos.simulation.node import SimNode
from raftq.chaos.simulation.stock import StockNode
from raftq.chaos.simulation.trace import Trace
from raftq.chaos.simulation.verdict import Failure, Options, Result
from raftq.replication import membership
from raftq.replication.membership import Configuration
from raftq.replication.progress import Flow, Timing
from raftq.replication.shard import Committed, Fenced
from raftq.storage.failures import StorageFailed
from raftq.storage.machine.apply import VERSION_MAX
from raftq.storage.machine.views import View

ELECTION_SECONDS: Final = 0.6
#: How often it is looked whether all agree.
_LOOK_SECONDS: Final = 0.05
#: Machines that are no members at first.
_SPARES: Final = 2


def run(seed: int, options: Options | None = None, write: Callable[[str], None] | None = None) -> Result:
    """Of one seed and one commit always the same. `write` is given the trace, line by line."""
    with folder_in_memory() as folder, _log_lines_in() as logged:
        simulation = Simulation(seed, options or Options(), Path(folder), write)
        logged(simulation.log)
        gc.disable()  # cycles are few, and what a finalizer does must not come at a moment of its own
        try:
            simulation.run()
        except Exception:
            simulation.fail("the simulator itself works", traceback.format_exc())
        finally:
            simulation.close()
            gc.enable()
        return simulation.result()


class Simulation:
    """Implements `node.Surroundings` and `nemesis.Arena`."""

    def __init__(self, seed: int, options: Options, folder: Path, write: Callable[[str], None] | None) -> None:
        self.options, self.folder = options, folder
        self.scheduler = scheduler = Scheduler(seed)
        self.trace = Trace(scheduler, write)
        self.trace.state = self._state
        dice = scheduler.dice_for("cluster")
        self.network = Network(scheduler, self.trace)
        self.network.bytes_per_second = dice.choice([50e6, 1e6, 200e3])
        size = options.nodes or dice.choice([3, 3, 3, 5, 5, 7])
        self._names = [f"n{number}" for number in range(1, size + 1)]
        self._weather = _weather(scheduler, options)
        self._limits = _limits(scheduler, self._weather)
        right = Clock(scheduler, monotonic=0.0, wall=0.0)
        self.clients = NodeLoop(scheduler, right, dice, self._unexpected)  # type: ignore[abstract]
        spares = [f"n{number}" for number in range(size + 1, size + 1 + _SPARES)]
        make: Callable[..., SimNode] = SimNode
        if options.stock is not None:
            make = partial(StockNode, fault=stock.FAULTS[options.stock])
        self.nodes = {name: make(self, name, folder / name) for name in (*self._names, *spares)}
        # Every other seed begins with the newest version, the others with any one before it.
        version = min(1 + int(2 * (VERSION_MAX - 1) * dice.random()), VERSION_MAX)
        for name in self._names:
            self.nodes[name].version = version
        for name in spares:
            self.nodes[name].name_in_use = False
        self._configuration = membership.bootstrap({name: self.nodes[name].address for name in self._names})
        self.checkers = Checkers()
        self._work = Clients(_Front(self), _Judge(self), rate=1.1 * options.operations / options.seconds)
        self.nemesis = Nemesis(self)
        dice = scheduler.dice_for("faults")
        if self._weather is None:
            self.faults = schedule(dice, self._names, options.seconds)
        else:
            self.faults = storm(dice, self._names, options.seconds, self._weather)
        self.failure: Failure | None = None

    def run(self) -> None:
        for name in self._names:
            self.scheduler.after(self.nodes[name].dice.random() * 0.3, self.nodes[name].start)
        self.nemesis.plan(self._chosen())
        self.clients.call_soon(self._work.start)
        self.scheduler.run(self.options.seconds)
        while self._work.operations.total() < self.options.operations and not self.scheduler.stopped:
            self.scheduler.run(self.scheduler.now + 1.0)
        self._settle()

    def _chosen(self) -> list[Fault]:
        options = self.options
        return self.faults if options.keep is None else [self.faults[at] for at in options.keep]

    def _settle(self) -> None:
        """All faults end; the cluster must recover in time, and agree: in half of the runs without a minority that
        stays down, and then with it."""
        if self.scheduler.stopped:
            return
        self.trace.line("----", "faults end")
        self._work.stop()
        dying = self._weather is not None and self._weather.dying
        dead = self._minority(dying) if dying or self.scheduler.dice_for("dead").random() < 0.5 else []
        if dead:
            self._recover(dead)
        if not self.scheduler.stopped:
            self._recover([])
        if not self.scheduler.stopped:
            self.judge(self.checkers.at_rest, self._live())

    def _minority(self, largest: bool) -> list[SimNode]:
        """Of the voters, with those whose data is lost and who are not replaced yet."""
        configuration = self._known_configuration()
        voters = [self.nodes[name] for name in configuration.voters]
        named = {name: member.uuid for name, member in configuration.members.items()}
        whole = [
            node for node in voters if node.name_in_use and node.out is None and named[node.id] in (None, node.uuid)
        ]
        dice = self.scheduler.dice_for("minority")
        most = max((len(voters) - 1) // 2 - (len(voters) - len(whole)), 0)
        return dice.sample(whole, most if largest else dice.randint(0, most))

    def _recover(self, dead: list[SimNode]) -> None:
        """Without the `dead` ones. Raises nothing: the judge is told."""
        self.trace.line("----", f"all is mended but {', '.join(node.id for node in dead) or 'nothing'}")
        self.nemesis.heal(dead)
        liveness = self.checkers.liveness = Liveness(self.scheduler.now, ELECTION_SECONDS)
        self.clients.call_soon(self._work.probe)
        reached = False
        while not reached and not self.scheduler.stopped:
            self.scheduler.run(self.scheduler.now + _LOOK_SECONDS)
            reached = bool(self.judge(self._agree, liveness, len(dead)))

    def _agree(self, liveness: Liveness, dead: int) -> bool:
        live, members = self._live(), self.members()
        whole = bool(dead) or (self.nemesis.doing is None and len(live) == len(members))
        try:
            return liveness.reached(self.scheduler.now, live, idle=self._work.idle and whole)
        except Violation as late:
            waiting = (
                f"members {', '.join(members)}, operator at {self.nemesis.doing!r}, clients idle {self._work.idle}"
            )
            raise Violation(late.invariant, f"{late.details}; {waiting}") from None

    def _live(self) -> list[NodeView]:
        return [self.nodes[name] for name in self.members() if self.nodes[name].shard is not None]

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
        self.clients.close()

    def result(self) -> Result:
        scheduler, network = self.scheduler, self.network
        counted = Counter(self.nemesis.met)
        counted.update({"messages lost": network.lost, "repeated": network.repeated, "overtaken": network.overtaken})
        return Result(
            seed=scheduler.seed,
            options=self.options,
            trace_hash=scheduler.trace.hexdigest(),
            seconds=scheduler.now,
            steps=scheduler.steps,
            operations=self._work.operations.total(),
            schedule=self.faults,
            faults=dict(sorted(counted.items())),
            failure=self.failure,
        )

    # What the nemesis sees

    def leader(self) -> SimNode | None:
        found = [node for node in self.nodes.values() if node.shard is not None and node.role == "leader"]
        return max(found, key=lambda node: node.term, default=None)

    def members(self) -> list[str]:
        return list(self._known_configuration().members)

    def voters(self) -> list[str]:
        return list(self._known_configuration().voters)

    def is_member(self, name: str, uuid: str) -> bool:
        member = self._known_configuration().members.get(name)
        return member is not None and member.uuid == uuid

    def read_for(self, seconds: float) -> None:
        self.clients.call_soon(self._work.read_for, seconds)

    def _known_configuration(self) -> Configuration:
        """As the leader has it."""
        leader = self.leader()
        if leader is not None:
            self._configuration = leader.configuration
        return self._configuration

    # What a node tells

    def settings(self, node: SimNode) -> dict[str, Any]:
        members = {name: f"{name}:1" for name in self._names}
        return {"members": members, "peer_address": node.address, **self._limits}

    def started(self, node: SimNode) -> None:
        self.judge(self.checkers.started, node)

    def stepped(self, node: SimNode) -> None:
        if node.up:
            self.judge(self.checkers.stepped, node)

    def sent(self, node: SimNode, target: str, message: dict[str, Any]) -> None:
        self.judge(self.checkers.sent, node.id, target, message)

    def entry_applied(self, node: SimNode, index: int, term: int, command: bytes) -> None:
        self.judge(self.checkers.entry_applied, node.id, index, term, command)

    def ended(self, node: SimNode, error: BaseException) -> None:
        if isinstance(error, Fenced):
            node.out = error
        elif not isinstance(error, StorageFailed):
            self.fail("no node ends by itself", f"{node.id}: {error!r}")

    def _unexpected(self, error: BaseException) -> None:
        raise error

    # Verdict

    def judge(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if self.failure is not None:
            return None
        try:
            return call(*arguments)
        except Violation as violation:
            self.fail(violation.invariant, violation.details)
        return None

    def fail(self, invariant: str, details: str) -> None:
        if self.failure is None:
            self.failure = Failure(invariant, details, self.scheduler.now, self.scheduler.steps)
            self.trace.line("----", f"VIOLATION of {invariant}: {details}")
            self.scheduler.stopped = True

    # Trace

    def _state(self, name: str) -> tuple[str, int | str]:
        node = self.nodes.get(name)
        if node is None:
            return "", ""
        if node.shard is None:
            return "down", ""
        return ("paused" if node.paused else node.role), node.term

    def log(self, line: str) -> None:
        self.trace.line("log", line.replace(str(self.folder), ""))


class _Judge:
    """The checkers, as clients see them."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def invoked(self, op: Op) -> None:
        simulation = self._simulation
        simulation.trace.line(op.client, f"asks {op.node}: {op.kind} {op.command!r}")
        simulation.judge(simulation.checkers.invoked, op)

    def returned(self, op: Op) -> None:
        simulation = self._simulation
        simulation.scheduler.note(repr((op.id, op.outcome, op.index, op.position)).encode())
        simulation.trace.line(op.client, f"is told {op.outcome} by {op.node}: {op.reply or op.view!r} at {op.index}")
        simulation.judge(simulation.checkers.returned, op)


class _Front:
    """The cluster, as clients know it (`clients.Cluster`)."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.dice_for = simulation.scheduler.dice_for

    def nodes(self) -> Sequence[str]:
        return list(self._simulation.nodes)

    def now(self) -> float:
        return self._simulation.scheduler.now

    def submit(self, node: str, command: bytes) -> asyncio.Future[Committed]:
        return self._simulation.nodes[node].propose(command)

    def read(self, node: str, look: Callable[[View], Any]) -> asyncio.Future[Seen]:
        return self._simulation.nodes[node].read(look)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._simulation.clients.create_task(coroutine)


def _weather(scheduler: Scheduler, options: Options) -> Weather | None:
    """None: the ordinary schedule. Of what strikes stock, only what means something to it."""
    if options.stock is not None and options.weather is None:
        return stock.WEATHER
    name = options.weather or weather_of(scheduler.dice_for("weather"))
    if name == MIXED:
        return None
    weather = WEATHERS[name]
    if options.stock is None:
        return weather
    weights = {kind: weight for kind, weight in weather.weights.items() if kind in stock.WEATHER.weights}
    return msgspec.structs.replace(weather, weights=weights)


def _limits(scheduler: Scheduler, weather: Weather | None) -> dict[str, Any]:
    """Fields of `ShardConfig`, small and different from seed to seed, so that every limit is met often."""
    dice = scheduler.dice_for("limits")

    def between(low: float, high: float) -> int:
        return int(low * (high / low) ** dice.random())

    limits: dict[str, Any] = {
        "timing": Timing(election_min=0.3, election_max=ELECTION_SECONDS, heartbeat=0.1),
        "tick": 0.05,
        "ride": dice.choice([0.0, 0.05, 0.2]),
        "flow": Flow(
            entries=between(2, 64),
            bytes=between(300, 100_000),
            append_bytes=between(100, 20_000),
            lag_bytes=between(5_000, 500_000),
        ),
        "disk_reserve_bytes": 1,
        "entry_bytes": between(100, 20_000),
        "entry_weight": between(2, 1_000),
        "waiting_commands": between(2, 200),
        "uncommitted_bytes": between(300, 100_000),
        "tail_bytes": between(500, 100_000),
        "compact_bytes": between(4_096, 200_000),
        "chunk_bytes": between(100, 20_000),
        "apply_bytes": between(200, 100_000),
        "slow_commit": 1.0,
    }
    if weather is not None:
        limits |= weather.limits | {"flow": msgspec.structs.replace(limits["flow"], **weather.flow)}
    return limits


@contextmanager
def _log_lines_in() -> Iterator[Callable[[Callable[[str], None]], None]]:
    """What the nodes log goes to the trace alone."""
    told: list[Callable[[str], None]] = []

    def keep(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        if told:
            told[0](" ".join(f"{name}={value}" for name, value in event.items()))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        yield told.append
    finally:
        structlog.configure(**before)
