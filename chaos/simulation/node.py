"""A machine and the process on it: the real shard, which can be killed, stopped, held, started, emptied and set back.

`SimNode` owns what outlives a process (clocks, disk, the data folder, its identity) and the process while there is one.
It is also what a client speaks to, and what the checkers look at. It decides nothing: faults do.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeVar, cast

import msgspec

from raftq.chaos.simulation.disk import Disk, Point, Process, SimEnvironment, SimWriter
from raftq.chaos.simulation.history import NodeView, Seen
from raftq.chaos.simulation.loop import Clock, Crashed, NodeLoop, Scheduler
from raftq.chaos.simulation.network import Network, SimPeers
from raftq.chaos.simulation.trace import Trace
from raftq.replication.cycle import RaftShard
from raftq.replication.membership import Configuration
from raftq.replication.peers import Peers
from raftq.replication.shard import Committed, NotLeader, OutcomeUnknown, ShardError
from raftq.replication.shard_config import ShardConfig
from raftq.replication.world import World
from raftq.storage import digest
from raftq.storage.environment import Environment, WriteBatch
from raftq.storage.failures import StorageError
from raftq.storage.machine.apply import VERSION_MAX
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.views import View
from raftq.storage.snapshot import SnapshotError
from raftq.storage.writer import Writer, fill

_IDENTITY = "identity"
T = TypeVar("T")


class Unreachable(NotLeader):
    """Nobody listens there: the request certainly was not heard."""

    def __init__(self) -> None:
        super().__init__(None)


class ConnectionLost(OutcomeUnknown):
    """The connection broke before an answer came."""


class Identity(msgspec.Struct):
    uuid: str
    boot: int


class Trap(msgspec.Struct):
    """The process is to crash when it reaches `point` for the `count`th time, and starts again after `down` seconds."""

    point: Point
    count: int
    down: float


class Surroundings(Protocol):
    """What a node needs of the simulation that it is in."""

    scheduler: Scheduler
    network: Network
    trace: Trace
    #: The clients' process.
    clients: NodeLoop

    def settings(self, node: SimNode) -> dict[str, Any]:
        """Fields of `ShardConfig` beside those that say who the node is."""
        ...

    def started(self, node: SimNode) -> None: ...
    def stepped(self, node: SimNode) -> None: ...
    def sent(self, node: SimNode, target: str, message: dict[str, Any]) -> None: ...
    def entry_applied(self, node: SimNode, index: int, term: int, command: bytes) -> None: ...
    def ended(self, node: SimNode, error: BaseException) -> None:
        """The process ended by itself."""
        ...


class _Shard(RaftShard):
    """The real one; `watcher` is told of each cycle and each applied entry."""

    watcher: SimNode

    def _run(self) -> None:
        super()._run()
        self.watcher.around.stepped(self.watcher)

    def _apply_entry(self, command: bytes, index: int, term: int, effects: list[Any]) -> None:
        super()._apply_entry(command, index, term, effects)
        self.watcher.around.entry_applied(self.watcher, index, term, command)


class SimNode(Process, NodeView):
    def __init__(self, around: Surroundings, name: str, folder: Path) -> None:
        self.around, self._name, self.folder = around, name, folder
        self.address = f"{name}:1"
        self.dice: Random = around.scheduler.dice_for(name)
        #: The machine has been up for a while, and its clocks are not those of the others.
        self.clock = Clock(around.scheduler, monotonic=1e6 * self.dice.random(), wall=self.right_wall())
        self.device = Disk(seconds_min=0.0003, seconds_max=0.012)
        #: Machine version that its software runs; and it is to wait until it is added.
        self.version = VERSION_MAX
        self.join = False
        self.uuid = ""
        self.loop: NodeLoop
        self.shard: _Shard | None = None
        #: Times started, and folders it has had.
        self.starts = self.folders = 0
        self.paused = False
        #: There is a process, which may be about to begin.
        self.up = False
        #: It is not to be started again: fenced, removed, or its machine gone.
        self.out: BaseException | None = None
        #: A member's, or one that is to become one.
        self.name_in_use = True
        self.trap: Trap | None = None
        self._told = True
        self._waiting: list[Callable[[], None]] = []
        self._answers: list[asyncio.Future[Any]] = []
        self._environment: SimEnvironment | None = None
        self._peers: SimPeers | None = None
        self._writer: SimWriter | None = None

    def right_wall(self) -> float:
        return 1_700_000_000.0 + self.around.scheduler.now

    # Life

    def start(self) -> None:
        if self.up or self.out is not None:
            return
        self.up = True
        self.starts += 1
        self._told = True
        self.around.trace.line(self.id, f"starts (start {self.starts}, folder {self.folders})")
        self.loop = NodeLoop(self.around.scheduler, self.clock, self.dice, partial(self.around.ended, self))  # type: ignore[abstract]
        self.loop.on_closed = self._release
        self.loop.call_soon(self._begin)

    def _begin(self) -> None:
        try:
            environment = self._environment = SimEnvironment(self.folder, self.device, self)
            shard = self._build(environment, self._identify(environment))
        except (StorageError, ShardError) as error:
            self._fatal(error)
            return
        self.shard = shard
        shard.watcher = self
        self.loop.create_task(shard.start())
        self.around.started(self)

    def _identify(self, environment: Environment) -> Identity:
        """As `raftq.node.identity`: durable before anything else."""
        stored = environment.meta(_IDENTITY)
        if stored is None:
            self.folders += 1
            identity = Identity(f"{self.id}-{self.folders}", 0)
        else:
            identity = msgspec.msgpack.decode(stored, type=Identity)
        identity.boot += 1
        self.uuid = identity.uuid
        fill(environment, WriteBatch(meta={_IDENTITY: msgspec.msgpack.encode(identity)})).commit()
        return identity

    def _build(self, environment: SimEnvironment, identity: Identity) -> _Shard:
        around = self.around
        config = ShardConfig(
            node_id=self.id,
            cluster_id="simulated",
            node_uuid=identity.uuid,
            boot=identity.boot,
            peer_listen=self.address,
            api_url=f"http://{self.id}",
            version=str(self.version),
            machine_version=self.version,
            join=self.join,
            **around.settings(self),
        )

        def writer(_environment: Environment) -> SimWriter:
            self._writer = SimWriter(environment, around.scheduler, self.dice)
            return self._writer

        def peers(*arguments: Any, **callbacks: Any) -> SimPeers:
            self._peers = SimPeers(*arguments, **callbacks, network=around.network, loop=self.loop, process=self)
            return self._peers

        world = World(
            monotonic=self.clock.monotonic,
            wall=self.clock.wall,
            dice=self.dice.random,
            writer=cast("Callable[[Environment], Writer]", writer),
            peers=cast("Callable[..., Peers]", peers),
        )
        return self._make(config, environment, world)

    def _make(self, config: ShardConfig, environment: SimEnvironment, world: World) -> _Shard:
        return _Shard(config, environment, world=world, on_role=self._on_role, on_fatal=self._fatal)

    def _on_role(self, role: str, leader: str | None, term: int) -> None:
        self.around.trace.line(self.id, f"is {role} of term {term}, leader {leader}")

    def _fatal(self, error: BaseException) -> None:
        """The process ends itself, as `raftq node` does."""
        self.around.trace.line(self.id, f"ends: {str(error).replace(str(self.folder.parent), '')}")
        self.kill()
        self.around.ended(self, error)

    def kill(self, *, power: bool = False) -> None:
        """The process is gone between two steps; of a power cut nobody is told."""
        if self.up:
            self.around.trace.line(self.id, "loses power" if power else "is killed")
            self._told = not power
            self.loop.close()

    def _release(self) -> None:
        """What the kernel does when a process is gone."""
        self.up = self.paused = False
        self.shard = None
        self._waiting = []
        if self._peers is not None:
            self._peers.vanish(told=self._told)
        if self._writer is not None:
            self._writer.abandon()
        if self._environment is not None:
            self._environment.close()
        self._environment = self._peers = self._writer = None
        answers, self._answers = self._answers, []
        for answer in answers:
            self._answer(answer, ConnectionLost("the connection broke"))

    def stop(self) -> None:
        """Cleanly, as on SIGTERM."""
        if self.up and self.shard is not None and not self.paused:
            self.around.trace.line(self.id, "is told to stop")
            self.loop.create_task(self._stop(self.shard))

    async def _stop(self, shard: RaftShard) -> None:
        await shard.stop()
        self.loop.call_soon(self.kill)

    def pause(self) -> None:
        """SIGSTOP."""
        if self.up and not self.paused:
            self.around.trace.line(self.id, "is paused")
            self.paused = True
            self.loop.hold()

    def resume(self) -> None:
        if self.up and self.paused:
            self.around.trace.line(self.id, "goes on")
            self.paused = False
            self.loop.resume()
            waiting, self._waiting = self._waiting, []
            for again in waiting:
                again()

    def reach(self, point: Point) -> None:
        trap = self.trap
        if trap is None or trap.point != point or not self.up:
            return
        trap.count -= 1
        if trap.count <= 0:
            self.trap = None
            self.around.trace.line(self.id, f"crashes at {point!r}")
            self.around.scheduler.after(trap.down, self.start)
            self.kill()
            raise Crashed

    def sent(self, target: str, message: dict[str, Any]) -> None:
        self.around.sent(self, target, message)

    def holds(self, again: Callable[[], None]) -> bool:
        if self.paused:
            self._waiting.append(again)
        return self.paused

    # The folder, while there is no process

    def wipe(self) -> None:
        assert not self.up
        self.uuid = ""
        shutil.rmtree(self.folder, ignore_errors=True)

    def copy_folder(self, to: Path) -> None:
        """What a backup of the running node's files would hold: whole, since no commit runs at this moment."""
        to.mkdir()
        shutil.copy(self.folder / "data.mdb", to)

    def put_back(self, copy: Path) -> None:
        self.wipe()
        shutil.copytree(copy, self.folder)
        self.folders += 1

    # What clients call, from their own process

    def propose(self, command: bytes) -> asyncio.Future[Committed]:
        return self._request(lambda shard: shard.propose(command), lambda committed: committed)

    def read(self, look: Callable[[View], Any]) -> asyncio.Future[Seen]:
        """`look` is called with the view at once, on the node."""
        return self._request(lambda shard: shard.read(), lambda view: Seen(self.applied_index, look(view)))

    def _request(self, call: Callable[[RaftShard], asyncio.Future[Any]], see: Callable[[Any], T]) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = self.around.clients.create_future()
        dice = self.around.network.client_dice
        if dice.random() >= self.around.network.client_lost:
            self.around.scheduler.after(self._trip(dice), self._asked, answer, call, see)
        return answer

    def _asked(self, answer: asyncio.Future[T], call: Callable[[RaftShard], Any], see: Callable[[Any], T]) -> None:
        if not self.up or self.shard is None:
            self._answer(answer, Unreachable())
            return
        self._answers.append(answer)
        if len(self._answers) > 256:
            self._answers = [each for each in self._answers if not each.done()]
        self.loop.deliver(self.around.scheduler.now, self._serve, answer, call, see)

    def _serve(self, answer: asyncio.Future[T], call: Callable[[RaftShard], Any], see: Callable[[Any], T]) -> None:
        assert self.shard is not None
        try:
            future: asyncio.Future[Any] = call(self.shard)
        except ShardError as error:
            self._answer(answer, error)
            return
        future.add_done_callback(partial(self._served, answer, see))

    def _served(self, answer: asyncio.Future[T], see: Callable[[Any], T], future: asyncio.Future[Any]) -> None:
        error = future.exception()
        self._answer(answer, error if error is not None else see(future.result()))

    def _answer(self, answer: asyncio.Future[T], value: T | BaseException) -> None:
        dice = self.around.network.client_dice
        if dice.random() >= self.around.network.client_lost:
            at = self.around.scheduler.now + self._trip(dice)
            self.around.clients.deliver(at, _settle, answer, value)

    @staticmethod
    def _trip(dice: Random) -> float:
        return 0.0002 + 0.004 * dice.random() ** 4

    def ask(self, call: Callable[[RaftShard], Coroutine[Any, Any, Any]], told: Callable[[Any], None]) -> None:
        """An operator's request to this node: `told` is called with its result or its ShardError, if it ends."""
        if self.up and self.shard is not None:
            self.loop.deliver(self.around.scheduler.now, self._obey, call, told)

    def _obey(self, call: Callable[[RaftShard], Coroutine[Any, Any, Any]], told: Callable[[Any], None]) -> None:
        assert self.shard is not None
        self.loop.create_task(self._obeying(call(self.shard), told))

    async def _obeying(self, asked: Coroutine[Any, Any, Any], told: Callable[[Any], None]) -> None:
        try:
            result = await asked
        except (ShardError, SnapshotError, StorageError, OSError) as error:
            result = error
        told(result)

    # What checkers see

    @property
    def id(self) -> str:
        return self._name

    @property
    def incarnation(self) -> int:
        return self.starts

    @property
    def disk(self) -> int:
        return self.folders

    @property
    def role(self) -> str:
        return self._live._engine.role

    @property
    def term(self) -> int:
        return self._live._engine.term

    @property
    def vote(self) -> str | None:
        vote: str | None = self._live._engine._SyncObj__votedForNodeId
        return vote  # that it acts on

    @property
    def commit_index(self) -> int:
        return self._live._engine.commit_index

    @property
    def applied_index(self) -> int:
        return self._live._engine.applied_index

    @property
    def last_index(self) -> int:
        return self._live._journal.last_index

    @property
    def durable_index(self) -> int:
        return self._live._journal.durable_index

    @property
    def received_bytes(self) -> int:
        return (self._live._receiver.progress() or (0, 0))[0]

    @property
    def first_index(self) -> int:
        return self._live._journal.first_index

    @property
    def leader(self) -> str | None:
        return self._live._engine.leader

    @property
    def configuration(self) -> Configuration:
        return self._live._engine.configuration

    def term_at(self, index: int) -> int | None:
        return self._live._journal.term_at(index)

    def entry(self, index: int) -> tuple[int, bytes] | None:
        found = self._live._journal.entries(index, 0, 1)
        return (found[0][2], found[0][0]) if found else None

    def match(self, node: str) -> int:
        return self._live._engine.match_index(node) or 0

    def voters(self) -> tuple[str, ...]:
        return self._live._engine.voters

    def digest(self) -> tuple[int, str]:
        """Of what is on disk."""
        return digest.digest(self._live.environment)

    def tables(self) -> Txn:
        return self._live._overlay

    @property
    def _live(self) -> _Shard:
        assert self.shard is not None, f"{self.id} is down"
        return self.shard


def _settle(answer: asyncio.Future[T], value: T | BaseException) -> None:
    if answer.done():
        return
    if isinstance(value, BaseException):
        answer.set_exception(value)
        answer.exception()  # whoever gave up waiting leaves it unread
    else:
        answer.set_result(value)
