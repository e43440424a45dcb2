"""Makes the faults of a schedule happen, and ends them.

It owns what is broken at the moment, and so how all is made whole again. It draws no faults of its own: its dice only
say who is meant by `follower`, or by `leader` when there is none. What an operator would do is done here too: add and
remove nodes, and after data was lost put the machine back as a new one, or another in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from raftq.chaos.simulation.disk import FREE_BYTES
from raftq.chaos.simulation.faults import SETTLE_SECONDS, Fault
from raftq.chaos.simulation.loop import Scheduler
from raftq.chaos.simulation.network import Chances, Network
from raftq.chaos.simulation.node import SimNode, Trap
from raftq.chaos.simulation.trace import Trace
from raftq.replication.cycle import RaftShard
from raftq.replication.shard import Status
from raftq.storage.machine.apply import VERSION_MAX

#: What an operator asks of the node that leads.
Request = Callable[[RaftShard], Coroutine[Any, Any, Any]]

#: An operator asks again after this long.
_OPERATOR_SECONDS: Final = 0.4
#: A node that forgot has been turned away by now.
_FENCED_WITHIN_SECONDS: Final = 2.0
_VOTERS_MIN: Final = 3


class Arena(Protocol):
    """What the nemesis may touch."""

    scheduler: Scheduler
    network: Network
    trace: Trace
    folder: Path
    nodes: dict[str, SimNode]

    def leader(self) -> SimNode | None:
        """The node that leads in the highest term."""
        ...

    def members(self) -> list[str]:
        """Who belongs to the cluster, as far as is known."""
        ...

    def voters(self) -> list[str]:
        """Of them."""
        ...

    def is_member(self, name: str, uuid: str) -> bool:
        """With this folder."""
        ...

    def read_for(self, seconds: float) -> None:
        """Clients ask one question after the other."""
        ...


class Nemesis:
    def __init__(self, arena: Arena) -> None:
        self._arena, self._scheduler, self._network = arena, arena.scheduler, arena.network
        self._dice = arena.scheduler.dice_for("nemesis")
        self.met: Counter[str] = Counter()
        self._over = False
        self._lossy_now: list[Chances] = []
        #: What is broken now, and how it is mended.
        self._mends: dict[int, Callable[[], None]] = {}
        self._number = 0
        #: What operators are about, and try until it is done.
        self._doing: dict[str, None] = {}

    @property
    def doing(self) -> str | None:
        return ", ".join(self._doing) or None

    def plan(self, faults: list[Fault]) -> None:
        for fault in faults:
            self._scheduler.at(fault.at, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        if self._over:
            return
        self._arena.trace.line("----", str(fault).strip())
        self.met[fault.kind] += 1
        getattr(self, f"_{fault.kind}")(**fault.arguments)

    def heal(self, dead: Sequence[SimNode] = ()) -> None:
        """Everything that is broken is mended now, and every node is started but the `dead`. No more faults."""
        self._over = True
        self._make_whole(dead)

    def _make_whole(self, dead: Sequence[SimNode] = ()) -> None:
        mends, self._mends = self._mends, {}
        for mend in mends.values():
            mend()
        for node in self._arena.nodes.values():
            node.trap = None
            node.device.failure, node.device.hang = None, 0.0
            node.resume()
            if node.name_in_use and node not in dead:
                node.start()
        for node in dead:
            node.kill(power=True)

    def _later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> None:
        """Of a fault that takes a while, unless faults are over by then."""
        self._scheduler.after(seconds, lambda: self._over or call(*arguments))

    def _until(self, lasts: float, mend: Callable[[], None]) -> None:
        self._number += 1
        number = self._number
        self._mends[number] = mend
        self._scheduler.after(lasts, self._mend, number)

    def _mend(self, number: int) -> None:
        mend = self._mends.pop(number, None)
        if mend is not None:
            mend()

    def _node(self, which: str) -> SimNode:
        nodes = self._arena.nodes
        leader = self._arena.leader()
        if which == "leader" and leader is not None:
            return leader
        if which in nodes and nodes[which].name_in_use:
            return nodes[which]
        others = [node for name in self._arena.members() if (node := nodes[name]) is not leader]
        return self._dice.choice(others or list(nodes.values()))

    # Processes

    def _crash(self, node: str, down: float, power: bool) -> None:
        found = self._node(node)
        found.kill(power=power)
        self._until(down, found.start)

    def _crash_at(self, node: str, point: Any, count: int, down: float) -> None:
        self._node(node).trap = Trap(point, count, down)

    def _crash_many(self, nodes: list[str], down: float, apart: float) -> None:
        for name in nodes:
            found = self._node(name)
            found.kill(power=True)
            self._until(down + apart * self._dice.random(), found.start)

    def _restart(self, node: str, down: float) -> None:
        found = self._node(node)
        found.stop()
        self._until(down + 1.0, lambda: self._again(found))

    def _pause(self, node: str, lasts: float) -> None:
        found = self._node(node)
        found.pause()
        self._until(lasts, found.resume)

    # Network

    def _cut(self, source: str, target: str, lasts: float, keep: bool) -> None:
        self._part([(self._node(source).address, self._node(target).address)], lasts, keep)

    def _isolate(self, node: str, lasts: float, keep: bool, way: str) -> None:
        own = self._node(node).address
        others = [other.address for other in self._arena.nodes.values() if other.address != own]
        into = [(other, own) for other in others] if way in ("in", "both") else []
        out = [(own, other) for other in others] if way in ("out", "both") else []
        self._part(into + out, lasts, keep)

    def _partition(self, side: list[str], lasts: float, keep: bool) -> None:
        ours = [node.address for name, node in self._arena.nodes.items() if name in side]
        theirs = [node.address for name, node in self._arena.nodes.items() if name not in side]
        ways = [way for one in ours for other in theirs for way in ((one, other), (other, one))]
        self._part(ways, lasts, keep)

    def _part(self, ways: list[tuple[str, str]], lasts: float, keep: bool) -> None:
        for source, target in ways:
            if source != target:
                self._network.cut(source, target, keep=keep)
                self._until(lasts, lambda source=source, target=target: self._network.mend(source, target))  # type: ignore[misc]

    def _reset(self, node: str, other: str) -> None:
        self._network.reset(self._node(node).address, self._node(other).address)

    def _slow_link(self, source: str, target: str, lasts: float, factor: float) -> None:
        link = self._network.link(self._node(source).address, self._node(target).address)
        link.slow = factor
        self._until(lasts, lambda: setattr(link, "slow", 1.0))

    def _slow_network(self, lasts: float, factor: float) -> None:
        self._network.slow = factor
        self._until(lasts, lambda: setattr(self._network, "slow", 1.0))

    def _late_answers(self, node: str, late: float, lasts: float) -> None:
        """What others say to a node, mostly the leader, takes long to arrive; then they do not hear it any more, so
        that it hears of its leadership while another leads."""
        found = self._node(node)
        links = [
            self._network.link(other.address, found.address)
            for other in self._arena.nodes.values()
            if other is not found
        ]
        for link in links:
            link.late = late
            self._until(lasts, lambda link=link: setattr(link, "late", 0.0))  # type: ignore[misc]
        self._later(2 * late, self._isolate, found.id, lasts - 2 * late, True, "out")
        self._later(2 * late, self._arena.read_for, lasts - 2 * late)

    def _lossy(self, lasts: float, **chances: float) -> None:
        now = Chances(**chances)
        self._lossy_now.append(now)
        self._until(lasts, lambda: self._lossy_over(now))
        self._lossy_over(None)

    def _lossy_over(self, ended: Chances | None) -> None:
        """The worst of what lasts holds."""
        self._lossy_now = [each for each in self._lossy_now if each is not ended]
        last = [Chances(), *self._lossy_now]
        self._network.chances = Chances(
            lost=max(each.lost for each in last),
            repeated=max(each.repeated for each in last),
            overtaken=max(each.overtaken for each in last),
        )

    # Disks and clocks

    def _slow_disk(self, node: str, lasts: float, factor: float) -> None:
        device = self._node(node).device
        device.slow = factor
        self._until(lasts, lambda: setattr(device, "slow", 1.0))

    def _hang_disk(self, node: str, seconds: float) -> None:
        self._node(node).device.hang = seconds

    def _fail_disk(self, node: str, failure: Any, down: float) -> None:
        """The next commit fails; the node ends, and is started again when the disk is well."""
        found = self._node(node)
        found.device.failure = failure
        self._until(down, lambda: self._well(found))

    @staticmethod
    def _well(node: SimNode) -> None:
        node.device.failure = None
        node.start()

    def _full_disk(self, node: str, lasts: float) -> None:
        device = self._node(node).device
        device.free_bytes = 0
        self._until(lasts, lambda: setattr(device, "free_bytes", FREE_BYTES))

    def _step_clock(self, node: str, seconds: float, lasts: float) -> None:
        found = self._node(node)
        found.clock.step(seconds)
        self._until(lasts, lambda: found.clock.set_wall(found.right_wall()))

    def _drift_clock(self, node: str, rate: float, lasts: float) -> None:
        found = self._node(node)
        found.clock.drift(rate)
        self._until(lasts, lambda: found.clock.drift(1.0))

    # What an operator asks for

    def _transfer(self, targets: list[str | None], apart: float) -> None:
        """In quick succession, so that a node may lead again before what it sent the last time has arrived."""
        for place, target in enumerate(targets):
            self._later(apart * place, self._transfer_now, target)

    def _transfer_now(self, target: str | None) -> None:
        leader = self._arena.leader()
        if leader is not None:
            leader.ask(lambda shard: shard.transfer(target), self._told(f"transfer to {target}"))

    def _digest(self, count: int, apart: float, silent: float) -> None:
        """Clients read meanwhile. For a while nobody answers the leader: then it commits all of these at once, and
        stops at each of them for a commit, which takes long."""
        if silent and (leader := self._arena.leader()) is not None:
            self._isolate(leader.id, silent, keep=True, way="in")
            self._slow_disk(leader.id, count * apart + silent + 0.3, 10.0)
        for place in range(count):
            self._later(apart * place, self._digest_now)
        self._arena.read_for(count * apart + silent + 0.3)

    def _digest_now(self) -> None:
        leader = self._arena.leader()
        if leader is not None:
            leader.ask(lambda shard: shard.digest(), self._told("digest"))

    def _backup(self, node: str) -> None:
        found = self._node(node)
        self._number += 1
        path = self._arena.folder / f"backup-{self._number}"
        found.ask(lambda shard: shard.backup(path), self._told(f"backup of {found.id}"))

    def _inspect(self, node: str) -> None:
        """What a person would look at."""
        self._node(node).ask(_looked_at, self._told("status"))

    def _told(self, what: str) -> Callable[[Any], None]:
        def told(result: Any) -> None:
            self._arena.trace.line("----", f"{what}: {result!r}")

        return told

    def _upgrade(self, apart: float) -> None:
        """One node after the other is stopped and started in a newer version: the next one, or one after that."""
        oldest = min(node.version for node in self._arena.nodes.values() if node.name_in_use)
        version = self._dice.randint(min(oldest + 1, VERSION_MAX), VERSION_MAX)
        for place, node in enumerate(self._arena.nodes.values()):
            self._later(apart * place, self._upgrade_one, node, version)

    def _upgrade_one(self, node: SimNode, version: int) -> None:
        node.stop()
        node.version = max(node.version, version)
        if node.name_in_use:
            self._until(1.5, lambda: self._again(node))

    @staticmethod
    def _again(node: SimNode) -> None:
        """Whether it has stopped by now or not."""
        node.kill()
        node.start()

    def _crowd(self, changes: list[str], node: str, after: float, lasts: float) -> None:
        """Operators who do not know of each other ask at one moment; and the leader is cut off with what it began."""
        for change in changes:
            if change == "grow":
                self._grow(alone=False)
            elif change == "shrink":
                self._shrink(node, alone=False)
            elif change == "swap":
                self._swap(node, alone=False)
            else:
                self._transfer_now(None)
        if lasts:
            self._later(after, self._isolate, "leader", lasts, False, "both")

    def _grow(self, *, alone: bool = True) -> None:
        spare = next((node for node in self._arena.nodes.values() if not node.name_in_use), None)
        if spare is not None and not (alone and self.doing):
            self._join(spare, replaces=None)

    def _shrink(self, node: str, *, alone: bool = True) -> None:
        found = self._node(node)
        voters = self._arena.voters()  # a learner may be there to take the place of one
        leaving = sum(what.startswith("remove") for what in self._doing)
        if len(voters) - leaving > _VOTERS_MIN and found.id in voters and not (alone and self.doing):
            self._operate(
                f"remove {found.id}",
                lambda shard: shard.remove(found.id),
                lambda: found.id not in self._arena.members(),
                lambda: self._scheduler.after(3 * self._dice.random(), self._retire, found, found.uuid),
            )

    def _swap(self, node: str, *, alone: bool = True) -> None:
        """A node that works, often the leader, is replaced by another."""
        found = self._node(node)
        spare = next((other for other in self._arena.nodes.values() if not other.name_in_use), None)
        if spare is not None and not (alone and self.doing) and found.id in self._arena.members():
            self._join(spare, replaces=found.id)
            self._scheduler.after(4.0, self._retire, found, found.uuid)

    def _retire(self, node: SimNode, uuid: str) -> None:
        """It is no member any more, and whether it knows or not, it is switched off; unless another folder has come
        under its name meanwhile."""
        if node.id not in self._arena.members() and node.uuid == uuid:
            node.kill()
            node.name_in_use = False

    def _join(self, node: SimNode, replaces: str | None) -> None:
        """An empty machine becomes a member under the node's name."""
        node.kill()
        node.wipe()
        node.out, node.join, node.name_in_use, node.version = None, True, True, VERSION_MAX
        node.start()
        self._operate(
            f"add {node.id} replacing {replaces}",
            lambda shard: shard.add(node.id, node.address, replaces=self._member(replaces)),
            lambda: self._arena.is_member(node.id, node.uuid),
            lambda: None,
        )

    def _member(self, name: str | None) -> str | None:
        """If it still is one."""
        return name if name in self._arena.members() else None

    def _operate(self, what: str, call: Request, done: Callable[[], bool], then: Callable[[], object]) -> None:
        """Ask whoever leads, until it is done."""
        self._doing[what] = None
        self._attempt(what, call, done, then)

    def _attempt(self, what: str, call: Request, done: Callable[[], bool], then: Callable[[], object]) -> None:
        if what not in self._doing:
            return
        if done():
            del self._doing[what]
            then()
            return
        if (leader := self._arena.leader()) is not None:
            leader.ask(call, partial(self._answered, what, then))
        self._scheduler.after(_OPERATOR_SECONDS, self._attempt, what, call, done, then)

    def _answered(self, what: str, then: Callable[[], object], result: Any) -> None:
        self._told(what)(result)
        if isinstance(result, int) and what in self._doing:
            del self._doing[what]
            then()

    # Lost data, and what is done about it

    def _wipe(self, node: str) -> None:
        """The folder is emptied under the node's name: it must be turned away, and is then replaced by its own name."""
        self._make_whole()
        self._scheduler.after(SETTLE_SECONDS, self._ruin, node, SimNode.wipe)

    def _old_copy(self, node: str, age: float) -> None:
        """A copy of the folder takes its place that was made a while before."""
        self._make_whole()
        found = self._node(node)
        self._number += 1
        copy = self._arena.folder / f"copy-{self._number}"
        self._scheduler.after(SETTLE_SECONDS - age, self._copy, found, copy, age > SETTLE_SECONDS / 2)
        self._scheduler.after(
            SETTLE_SECONDS, self._ruin, found.id, lambda ruined: copy.exists() and ruined.put_back(copy)
        )

    def _copy(self, node: SimNode, copy: Path, starts: bool) -> None:
        if node.up and (node.folder / "data.mdb").exists():
            node.copy_folder(copy)
            for place in range(2 if starts else 0):  # so that the copy's next start is one that was seen already
                self._scheduler.after(0.1 + 0.3 * place, self._again, node)

    def _ruin(self, name: str, ruin: Callable[[SimNode], object]) -> None:
        node = self._node(name)
        if self._whole() and node.up:
            self.met["data lost"] += 1
            node.kill(power=True)
            ruin(node)
            self._scheduler.after(0.2, node.start)
            self._scheduler.after(_FENCED_WITHIN_SECONDS, self._replace, node)

    def _replace(self, node: SimNode) -> None:
        """Of what was emptied or turned away. An old copy that lacks nothing goes on."""
        if node.out is not None or not self._arena.is_member(node.id, node.uuid):
            self._join(node, replaces=node.id)

    def _exchange(self, node: str) -> None:
        """The machine is gone for good, and another takes its place."""
        self._make_whole()
        self._scheduler.after(SETTLE_SECONDS, self._exchange_now, node)

    def _exchange_now(self, name: str) -> None:
        node = self._node(name)
        spare = next((other for other in self._arena.nodes.values() if not other.name_in_use), None)
        if self._whole() and spare is not None:
            self.met["data lost"] += 1
            node.kill(power=True)
            node.name_in_use = False
            self._scheduler.after(1.0, self._join, spare, node.id)

    def _whole(self) -> bool:
        """All members are there, one leads, and of two voters none may be lost: a third may still be learning."""
        members = [self._arena.nodes[name] for name in self._arena.members()]
        settled = self._arena.leader() is not None and self.doing is None
        return settled and len(self._arena.voters()) > 2 and all(node.up for node in members)


async def _looked_at(shard: RaftShard) -> tuple[Status, int]:
    return shard.status(), len(shard.stale().queues("default")[0])
