"""Stock pysyncobj 0.3.17 on its own journal, corrected but for one fault, as a node of the simulator.

The faults in `FAULTS` must be found by the simulator itself, or it is too weak: one at a time is left in, all others
are corrected in `SyncObj`, each override naming the fault that it corrects (numbers of docs/faults.md). The stock
methods run in between, and are what runs where a fault is left in. With all corrected no run may show anything: so what
is found is due to the fault.

A node's state machine is raftq's own, over tables in memory, and its entries are encoded as ours, so that clients,
history and checkers are the very same. It applies its log again after a start, from its dump on, as stock does. Reads
go through the log: stock has no other linearizable ones. A crash is a kill: what was written to the journal's file
stays, the page cache being the kernel's. The folder is never lost, the members never change.

Invariant: nothing here depends on time, dice or hashes but those of the simulation. pysyncobj takes its clock, dice and
journal from its module: whoever is stepped puts its own there for as long as it is stepped (`_Inside`).
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import pysyncobj
import pysyncobj.syncobj
from pysyncobj.config import FAIL_REASON
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.syncobj import _RAFT_STATE
from pysyncobj.transport import Transport
from xxhash import xxh3_128

from raftq.chaos.simulation.disk import SimEnvironment
from raftq.chaos.simulation.faults import Weather
from raftq.chaos.simulation.node import SimNode, Surroundings
from raftq.replication import membership
from raftq.replication.engine import REGULAR
from raftq.replication.membership import Configuration
from raftq.replication.shard import Committed, NotLeader, OutcomeUnknown, Overloaded
from raftq.replication.shard_config import ShardConfig
from raftq.replication.wire import PROTOCOL, Hello
from raftq.replication.world import World
from raftq.storage.digest import SIZES
from raftq.storage.machine import commands, entries
from raftq.storage.machine.apply import Machine
from raftq.storage.machine.entries import Clocks
from raftq.storage.machine.memory import MemoryTxn
from raftq.storage.machine.ports import Meta, Txn
from raftq.storage.machine.replies import Leased
from raftq.storage.machine.views import View

Message = dict[str, Any]

#: No fault left in: the control run.
CORRECTED = "none"
#: The faults that can be left in, by the name that the command line takes.
FAULTS = {
    CORRECTED: 0,
    "truncate-on-every-append": 2,
    "commit-without-matching": 3,
    "answers-without-term": 5,
    "votes-per-message": 28,
    "silent-refusals": 29,
}
#: The faults that a run is made of: those that mean something to a node whose members never change, and whose file is
#: all that it has. Most of them are such that messages come late, twice or not at all while leaders change.
WEATHER = Weather(
    weights={
        "crash": 2.0,
        "crash_at": 2.0,
        "crash_many": 1.0,
        "restart": 0.5,
        "pause": 2.0,
        "cut": 3.0,
        "isolate": 4.0,
        "partition": 3.0,
        "reset": 1.0,
        "slow_link": 2.0,
        "lossy": 8.0,
        "drift_clock": 0.5,
    }
)

#: Entries that a leader takes before they are committed.
UNCOMMITTED_MAX = 64

_EXPIRE = commands.encode(commands.Expire())
_NOTHING = commands.encode(commands.TakeDigest())

# It reports as critical what fault 2 does all the time.
logging.getLogger(pysyncobj.syncobj.__name__).disabled = True


class Limits(NamedTuple):
    """Seconds as our engine has them; entries and bytes small, so that a run meets every limit often."""

    election_min: float = 0.3
    election_max: float = 0.4
    append_period: float = 0.04
    compact_entries: int = 120
    append_bytes: int = 2048
    chunk_bytes: int = 4096


class Entry(NamedTuple):
    """In pysyncobj's order."""

    command: bytes
    at: int
    term: int


class Dump(msgspec.Struct, array_like=True):
    """The tables after the entry `last`, and the two entries with which a cut journal begins."""

    last: tuple[bytes, int, int]
    previous: tuple[bytes, int, int]
    tables: dict[bytes, bytes]


class Tables(Protocol):
    """What the Raft below replicates."""

    def apply(self, entry: Entry) -> Any: ...

    def save(self) -> dict[bytes, bytes]: ...

    def load(self, tables: dict[bytes, bytes]) -> None: ...


class StockId(Node):  # type: ignore[misc]
    """A node's name, whose place in a set is the same in every process."""

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.id == other.id


class _Link(Transport):  # type: ignore[misc]
    """Sends through the simulation. Counts, so that the silence of stock code can be told."""

    def __init__(self, post: Callable[[str, Message], bool]) -> None:
        super().__init__(None, None, [])
        self._post = post
        self.sent = 0

    def send(self, node: Node, message: Message) -> bool:
        self.sent += 1
        return self._post(node.id, message)


class _PatientJournal(FileJournal):  # type: ignore[misc]
    """Fault 2: what is to be cut off is kept until an entry of another term comes in its place."""

    _cut_from: int | None = None

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        self._cut_from = self[0][1] + entryFrom

    def appended(self) -> None:
        """The message that asked for the cut is taken in: what is left of the log stays."""
        self._cut_from = None

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._cut_from is not None and idx <= self[-1][1]:
            position = idx - self[0][1]
            if self[position][2] == term:
                return
            super().deleteEntriesFrom(position)
            self._cut_from = None
        super().add(command, idx, term)


class _NoPoller:
    """There are no sockets."""

    def poll(self, timeout: float) -> None:
        pass


class _Inside:
    """While it lasts, pysyncobj's module has the clock, the dice and the journal of one node."""

    def __init__(self, clock: Callable[[], float], dice: Callable[[], float], journal: type[FileJournal]) -> None:
        self._own = (clock, SimpleNamespace(random=dice), journal)
        self._depth = 0

    def __enter__(self) -> None:
        module = pysyncobj.syncobj
        if not self._depth:
            self._before = (module.monotonicTime, module.random, module.createJournal)
            module.monotonicTime, module.random, module.createJournal = self._own
        self._depth += 1

    def __exit__(self, *_exception: object) -> None:
        module = pysyncobj.syncobj
        self._depth -= 1
        if not self._depth:
            module.monotonicTime, module.random, module.createJournal = self._before


class SyncObj(pysyncobj.SyncObj):  # type: ignore[misc]
    """Bears the name of the stock class, to share its private names. `fault`: the one that is left in, 0 for none."""

    def __init__(
        self,
        name: str,
        names: list[str],
        folder: Path,
        *,
        fault: int,
        tables: Tables,
        post: Callable[[str, Message], bool],
        clock: Callable[[], float],
        dice: Callable[[], float],
        limits: Limits | None = None,
    ) -> None:
        self.__raftCommitIndex: int
        self.__raftLeader: Node | None
        self.__raftElectionDeadline: float
        self.id, self._fault, self._tables, self._clock = name, fault, tables, clock
        self._limits = limits or Limits()
        self._post = post
        self._link = _Link(self._mark)
        self._inside = _Inside(clock, dice, FileJournal if fault == 2 else _PatientJournal)
        self._contact = float("-inf")
        self._prevotes: set[str] | None = None
        self._voters: set[str] = set()
        #: Of the dump that is being received: (sender, index, term), and the number of its next chunk.
        self._receiving: tuple[tuple[str, int, int], int] | None = None
        #: The number of the last chunk that was sent to each node.
        self._sending: dict[str, int] = {}
        # Faults 14, 12: a dump file beside the journal, written without a fork. Faults 17, 21: as fast as ours. Fault
        # 18, 24: the node refuses what does not fit into one message. Fault 25: nothing waits for a leader.
        conf = pysyncobj.SyncObjConf(
            autoTick=False,
            raftMinTimeout=self._limits.election_min,
            raftMaxTimeout=self._limits.election_max,
            appendEntriesPeriod=self._limits.append_period,
            leaderFallbackTimeout=2 * self._limits.election_min,
            appendEntriesBatchSizeBytes=self._limits.append_bytes,
            logCompactionMinEntries=self._limits.compact_entries,
            logCompactionMinTime=10**9,
            logCompactionBatchSize=self._limits.chunk_bytes,
            journalFile=str(folder / "journal"),
            fullDumpFile=str(folder / "dump"),
            serializer=self._write_dump,
            deserializer=self._read_dump,
            useFork=False,
            commandsWaitLeader=False,
            onStateChanged=self._on_state_changed,
        )
        others = [StockId(other) for other in names if other != name]
        with self._inside:
            super().__init__(StockId(name), others, conf, transport=self._link)
        self._poller = _NoPoller()
        # Fault 4: the commit index is never beyond the log.
        self.__raftCommitIndex = min(self.__raftCommitIndex, self.__getCurrentLogIndex())
        self.__needLoadDumpFile = False
        if Path(conf.fullDumpFile).exists():
            self.__loadDumpFile(clearJournal=False)

    # What a node may ask

    @property
    def role(self) -> Literal["leader", "follower", "candidate"]:
        if self.__raftState == _RAFT_STATE.LEADER:
            return "leader"
        return "candidate" if self.__raftState == _RAFT_STATE.CANDIDATE else "follower"

    @property
    def leader(self) -> str | None:
        return self.__raftLeader.id if self.__raftLeader is not None else None

    @property
    def term(self) -> int:
        return int(self.__raftCurrentTerm)

    @property
    def vote(self) -> str | None:
        vote: str | None = self.__votedForNodeId
        return vote

    @property
    def first_index(self) -> int:
        return int(self.__raftLog[0][1])

    @property
    def last_index(self) -> int:
        return int(self.__getCurrentLogIndex())

    def entry(self, index: int) -> Entry | None:
        if not self.first_index <= index <= self.last_index:
            return None
        return Entry(*self.__raftLog[index - self.first_index])

    def match(self, node: str) -> int:
        return int(self.__raftMatchIndex.get(StockId(node), 0)) if self._isLeader() else 0

    def fits(self, command: bytes) -> bool:
        """Faults 18, 24: it will not be sent in pieces."""
        return len(command) < self._limits.append_bytes

    def propose(self, command: bytes, told: Callable[[Any, int], None]) -> int:
        """Fault 25: given to the leader alone, and put into its log at once; its index."""
        assert self._isLeader()
        index = self.last_index + 1
        self.__raftLog.add(command, index, self.__raftCurrentTerm)
        self.__commandsWaitingCommit[index].append((self.__raftCurrentTerm, told))
        return index

    def close(self) -> None:
        """The process is gone. What was written is in the file."""
        self.destroy()
        if (incoming := self.__serializer._Serializer__incomingTransmissionFile) is not None:
            incoming.close()

    def tick(self) -> None:
        with self._inside:
            self._onTick()

    def connected(self, other: str) -> None:
        self._link._onNodeConnected(StockId(other))

    def disconnected(self, other: str) -> None:
        self._link._onNodeDisconnected(StockId(other))

    def receive(self, source: str, message: Message) -> None:
        with self._inside:
            self._link._onMessageReceived(StockId(source), message)

    # Elections

    def _onTick(self, timeToWait: float = 0.0) -> None:
        """Fault 17: pre-vote. Whoever could not win does not disturb the others with a higher term."""
        now = self._clock()
        if self.__raftState != _RAFT_STATE.LEADER and self.__raftElectionDeadline < now:
            self.__raftElectionDeadline = now + self.__generateRaftTimeout()
            self.__raftLeader = None
            self.__setState(_RAFT_STATE.FOLLOWER)
            self._prevotes = {self.id}
            self._tell_all({"type": "prevote", "term": self.__raftCurrentTerm + 1, **self._end_of_log()})
            self._campaign_if_wanted()
        super()._onTick(timeToWait)

    def _campaign_if_wanted(self) -> None:
        if self._prevotes is not None and len(self._prevotes) > (len(self.__otherNodes) + 1) / 2:
            self._prevotes = None
            self._voters = {self.id}
            self.__raftElectionDeadline = float("-inf")
            super()._onTick()

    def _end_of_log(self) -> Message:
        return {"last_log_index": self.__getCurrentLogIndex(), "last_log_term": self.__getCurrentLogTerm()}

    def _hears_leader(self) -> bool:
        if self.__raftState == _RAFT_STATE.LEADER:
            return True
        return self.__raftLeader is not None and self._clock() - self._contact < self._limits.election_min

    def _on_prevote(self, node: Node, message: Message) -> None:
        asks = (message["last_log_term"], message["last_log_index"])
        up_to_date = asks >= (self.__getCurrentLogTerm(), self.__getCurrentLogIndex())
        if message["term"] > self.__raftCurrentTerm and up_to_date and not self._hears_leader():
            self._link.send(node, {"type": "prevote_granted", "term": message["term"]})
        else:
            self._refuse(node)

    def _on_prevote_granted(self, node: Node, message: Message) -> None:
        if self._prevotes is not None and message["term"] == self.__raftCurrentTerm + 1:
            self._prevotes.add(node.id)
            self._campaign_if_wanted()

    def _on_request_vote(self, node: Node, message: Message) -> None:
        """Faults 17, 27, 29: not against a leader that is heard; a vote that was given is given again; a refusal is
        answered."""
        if message["term"] > self.__raftCurrentTerm and self._hears_leader():
            self._refuse(node)
            return
        sent = self._link.sent
        super().__onMessageReceived(node, message)
        if self._link.sent > sent:
            return
        if message["term"] == self.__raftCurrentTerm and self.__votedForNodeId == node.id:
            self._link.send(node, {"type": "response_vote", "term": message["term"]})
        else:
            self._refuse(node)

    def _refuse(self, node: Node) -> None:
        if self._fault != 29:
            self._link.send(node, {"type": "higher_term", "term": self.__raftCurrentTerm})

    def _on_response_vote(self, node: Node, message: Message) -> None:
        """Fault 28: one vote of each voter."""
        if message["term"] != self.__raftCurrentTerm or (node.id in self._voters and self._fault != 28):
            return
        self._voters.add(node.id)
        super().__onMessageReceived(node, message)

    def _on_higher_term(self, _node: Node, message: Message) -> None:
        if message["term"] > self.__raftCurrentTerm:
            self.__setCurrentTerm(message["term"], None)
            self.__setState(_RAFT_STATE.FOLLOWER)
            self.__raftLeader = None

    def _on_state_changed(self, old: int, _new: int) -> None:
        """Fault 26: whoever waits is told at once that the outcome is unknown."""
        if old == _RAFT_STATE.LEADER:
            waiting = list(self.__commandsWaitingCommit.values())
            self.__commandsWaitingCommit.clear()
            for subscribers in waiting:
                for _, told in subscribers:
                    told(None, FAIL_REASON.UNKNOWN_OUTCOME)

    # Replication

    def __onMessageReceived(self, node: Node, message: Message) -> None:
        handler = _HANDLERS.get(message["type"])
        if handler is not None:
            handler(self, node, dict(message))

    def _on_append_entries(self, node: Node, message: Message) -> None:
        """Fault 17: an old leader is told of the higher term. Faults 2, 3: no commit beyond what was verified."""
        if message["term"] < self.__raftCurrentTerm:
            self._link.send(node, {"type": "higher_term", "term": self.__raftCurrentTerm})
            return
        self._contact = self._clock()
        self._prevotes = None
        held = None
        if "prevLogIdx" in message:
            verified = message["prevLogIdx"] + len(message["entries"])
            message["commit_index"] = min(message["commit_index"], verified)
        else:
            held = self._check_chunk(node, message)
            if self._fault != 3:
                message["commit_index"] = min(message["commit_index"], self.__raftCommitIndex)
        super().__onMessageReceived(node, message)
        if isinstance(self.__raftLog, _PatientJournal):
            self.__raftLog.appended()
        if held is not None:
            self.__sendNextNodeIdx(node, nextNodeIdx=held + 1, success=True)

    def _check_chunk(self, node: Node, message: Message) -> int | None:
        """Faults 6, 18: a chunk is taken if it follows the last one of the same dump, and if this log lacks what the
        dump holds; the dump's index if it lacks nothing, and the dump is over."""
        number, index, term = message["chunk"]
        dump = (node.id, index, term)
        entry = self.entry(index)
        if index <= self.__raftCommitIndex or (entry is not None and entry.term == term):
            chunk, message["serialized"] = message["serialized"], None
            return index if chunk is not None and chunk[2] else None
        if number > 0 and self._receiving != (dump, number):
            message["serialized"] = None
            return None
        self._receiving = (dump, number + 1)
        return None

    def __loadDumpFile(self, clearJournal: bool) -> None:
        """Fault 11: a journal that does not begin with the end of the dump is never wiped. What the dump holds is
        committed."""
        dump = self._dump()
        if not clearJournal and [tuple(entry) for entry in self.__raftLog[:2]] != [dump.previous, dump.last]:
            raise RuntimeError(f"{self.id}: the journal begins at {self.first_index}, the dump ends at {dump.last[1]}")
        super().__loadDumpFile(clearJournal)
        self._tables.load(dump.tables)
        self.__raftCommitIndex = max(self.__raftCommitIndex, dump.last[1])

    def _on_next_node_idx(self, node: Node, message: Message) -> None:
        """Fault 5: an answer of another term says nothing. Fault 1 stays, since it is waste alone, and the way into 2;
        but the next index is never beyond the log, from where it would not come back. Nor does a refusal take it
        forward: of several messages under way the later ones are refused for want of the first, and the log that
        conflicts would never be brought into line."""
        if self._fault != 5 and message["term"] != self.__raftCurrentTerm:
            self._on_higher_term(node, message)
            return
        before = self.__raftNextIndex.get(node)
        super().__onMessageReceived(node, message)
        if self.__raftState == _RAFT_STATE.LEADER:
            after = min(self.__raftNextIndex[node], self.__getCurrentLogIndex() + 1)
            if message["reset"] and before is not None:
                after = max(min(after, before), self.__raftMatchIndex[node] + 1)
            self.__raftNextIndex[node] = after

    def __sendNextNodeIdx(
        self, node: Node, reset: bool = False, nextNodeIdx: int | None = None, success: bool = False
    ) -> None:  # fmt: skip
        """Fault 5: the term goes along."""
        self._link.send(
            node,
            {
                "type": "next_node_idx",
                "term": self.__raftCurrentTerm,
                "next_node_idx": self.__getCurrentLogIndex() + 1 if nextNodeIdx is None else nextNodeIdx,
                "reset": reset,
                "success": success,
            },
        )

    # The log and its dump

    def __doApplyCommand(self, command: bytes) -> Any:
        """Fault 8: nothing but plain commands; what raises ends the node (7)."""
        index = self.__raftLastApplied + 1
        entry = self.entry(index)
        assert entry is not None
        assert entry.command == command
        return self._tables.apply(entry)

    def __tryLogCompaction(self) -> None:
        """Fault 23: the dump is ready before anything else happens."""
        super().__tryLogCompaction()
        super().__tryLogCompaction()

    def _write_dump(self, path: str, data: tuple[Any, ...]) -> None:
        last, previous, _ = data
        dump = Dump(last, previous, self._tables.save())
        Path(path).write_bytes(msgspec.msgpack.encode(dump))

    def _dump(self) -> Dump:
        return msgspec.msgpack.decode(Path(self.conf.fullDumpFile).read_bytes(), type=Dump)

    def _read_dump(self, _path: str) -> tuple[Any, ...]:
        dump = self._dump()
        return dump.last, dump.previous, self.otherNodes

    # Sending

    def _mark(self, target: str, message: Message) -> bool:
        """Fault 18: a chunk says of which dump it is, and its place."""
        if "serialized" in message:
            chunk = message["serialized"]
            number = 0 if chunk is None or chunk[1] else self._sending[target] + 1
            self._sending[target] = number
            _, index, term = self.__raftLog[1]
            message["chunk"] = (number, index, term)
        return self._post(target, message)

    def _tell_all(self, message: Message) -> None:
        for node in sorted(self.__otherNodes, key=lambda node: str(node.id)):
            self._link.send(node, message)


_HANDLERS: dict[str, Callable[[SyncObj, Node, Message], None]] = {
    "prevote": SyncObj._on_prevote,
    "prevote_granted": SyncObj._on_prevote_granted,
    "request_vote": SyncObj._on_request_vote,
    "response_vote": SyncObj._on_response_vote,
    "higher_term": SyncObj._on_higher_term,
    "append_entries": SyncObj._on_append_entries,
    "next_node_idx": SyncObj._on_next_node_idx,
}


class StockShard:
    """In the place of `replication.cycle.RaftShard` in a node of the simulator, with as much of its surface as that
    takes. Its files lie in the folder of the node's environment, which holds nothing else of it."""

    def __init__(
        self,
        config: ShardConfig,
        folder: Path,
        *,
        fault: int,
        world: World,
        on_role: Callable[[str, str | None, int], None],
        on_fatal: Callable[[BaseException], None],
        on_applied: Callable[[int, int, bytes], None],
        on_step: Callable[[], None],
        limits: Limits | None = None,
    ) -> None:
        self.config, self._world = config, world
        self._on_role, self._on_fatal, self._on_applied, self._on_step = on_role, on_fatal, on_applied, on_step
        self._closed = self._scheduled = self._expiring = False
        self._seen: tuple[str, str | None, int] = ("follower", None, 0)
        #: Clocks of the last entry at the moment it began to lead, and that moment.
        self._led_from = (Clocks(0, 0), 0.0)
        self.load({})
        self._raft = SyncObj(
            config.node_id,
            sorted(config.members),
            folder,
            fault=fault,
            tables=self,
            post=self._send,
            clock=world.monotonic,
            dice=world.dice,
            limits=limits,
        )
        self._peers = world.peers(
            self._hello,
            config.peer_listen,
            on_message=self._on_message,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            on_bytes=lambda _node: None,
            on_refused=lambda _node, _refusal: None,
            admit=lambda _hello: None,
        )
        self._peers.set_members({node: address for node, address in config.members.items() if node != config.node_id})

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._peers.start()
        self._tick()

    async def stop(self) -> None:
        """Stock has no better way than to go."""
        self._closed = True
        await self._peers.close()

    def abandon(self) -> None:
        """The process is gone."""
        self._closed = True
        self._raft.close()

    # What a client may ask

    def propose(self, command: bytes) -> asyncio.Future[Committed]:
        raft = self._raft
        if self._closed or raft.role != "leader":
            raise NotLeader(raft.leader if raft.leader != raft.id else None)
        clocks = self._clocks()
        entry = entries.encode(clocks, [command], REGULAR)
        if not raft.fits(entry):
            raise Overloaded(f"{len(entry)} bytes do not fit into a message")
        if raft.last_index - raft.raftCommitIndex > UNCOMMITTED_MAX:  # fault 19
            raise Overloaded(f"{raft.last_index - raft.raftCommitIndex} entries are not committed")
        future: asyncio.Future[Committed] = self._loop.create_future()
        raft.propose(entry, lambda committed, reason: self._told(future, committed, reason))
        self._soon()
        return future

    def read(self) -> asyncio.Future[View]:
        """Through the log: a command that changes nothing."""
        future: asyncio.Future[View] = self._loop.create_future()
        self.propose(_NOTHING).add_done_callback(lambda written: self._read_at(future, written))
        return future

    def _read_at(self, future: asyncio.Future[View], written: asyncio.Future[Committed]) -> None:
        if future.done():
            return
        if written.exception() is None:
            future.set_result(self.machine.view())
        else:
            future.set_exception(NotLeader(None))

    def stale(self) -> View:
        return self.machine.view()

    def _told(self, future: asyncio.Future[Committed], committed: Committed | None, reason: int) -> None:
        if future.done():
            return
        if reason == FAIL_REASON.SUCCESS and committed is not None:
            future.set_result(committed)
        elif reason == FAIL_REASON.DISCARDED:
            future.set_exception(NotLeader(None))
        else:
            future.set_exception(OutcomeUnknown("leadership was lost before a majority confirmed"))

    # What checkers may ask

    @property
    def raft(self) -> SyncObj:
        return self._raft

    def digest(self) -> str:
        """As `storage.digest`."""
        hashed = xxh3_128()
        for key, value in sorted(self.txn.values.items()):
            hashed.update(SIZES.pack(len(key), len(value)) + key + value)
        return hashed.hexdigest()

    # Tables

    def apply(self, entry: Entry) -> Committed | None:
        committed = self._apply(entry) if entry.command[:1] == REGULAR else None
        self._on_applied(entry.at, entry.term, entry.command)
        return committed

    def _apply(self, entry: Entry) -> Committed | None:
        clocks, encoded = entries.decode(entry.command, 1)
        meta = Meta(entry.at, 0, entry.term, *clocks)
        committed = None
        for position, data in enumerate(encoded):
            meta.position = position
            reply, _ = self.machine.apply(meta, commands.decode(data))
            messages = self.machine.deliveries(reply) if isinstance(reply, Leased) else None
            committed = Committed(entry.at, position, reply, messages, clocks.wall_ms)
        self.machine.end_entry(meta)
        return committed

    def save(self) -> dict[bytes, bytes]:
        return self.txn.values

    def load(self, tables: dict[bytes, bytes]) -> None:
        self.txn = MemoryTxn()
        for key, value in sorted(tables.items()):
            self.txn.put(key, value)
        self.machine = Machine(self.txn)

    # Peers. A message goes as the bytes of a snapshot, of which the frames ask nothing

    def _hello(self) -> Hello:
        config = self.config
        return Hello(
            protocol=PROTOCOL,
            cluster_id=config.cluster_id,
            node_id=config.node_id,
            node_uuid=config.node_uuid,
            boot=config.boot,
            api_url=config.api_url,
            peer_address=config.peer_address,
            version=config.version,
            last_index=0,
            term=0,
        )

    def _send(self, target: str, message: Message) -> bool:
        data = msgspec.msgpack.encode(message)
        chunk = {"type": "snapshot_chunk", "term": 0, "id": message["type"], "offset": 0, "data": data, "checksum": 0}
        return bool(self._peers.send([target], chunk))

    def _on_message(self, node: str, message: Message) -> None:
        self._do(self._raft.receive, node, msgspec.msgpack.decode(message["data"]))
        self._soon()

    def _on_connected(self, node: str, _hello: Hello) -> None:
        self._raft.connected(node)
        self._soon()

    def _on_disconnected(self, node: str) -> None:
        self._raft.disconnected(node)
        self._soon()

    # The tick

    def _do(self, step: Callable[..., None], *arguments: Any) -> None:
        """Step pysyncobj, which ticks soon after whatever its sockets bring."""
        if self._closed:
            return
        try:
            step(*arguments)
        except Exception as error:
            self._closed = True
            self._on_fatal(error)
            return
        self._on_step()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        self._do(self._ticked)

    def _ticked(self) -> None:
        raft = self._raft
        raft.tick()
        seen = (raft.role, raft.leader, raft.term)
        if seen != self._seen:
            if raft.role == "leader" and self._seen[0] != "leader":
                self._led_from = (self._last_clocks(), self._world.monotonic())
            self._seen = seen
            self._on_role(*seen)

    def _tick(self) -> None:
        if not self._closed:
            self._loop.call_later(self.config.tick, self._tick)
            self._do(self._ticked)
            self._expire()

    # Time

    def _clocks(self) -> Clocks:
        """Lease time goes on from the log's, wall time never goes back."""
        last, since = self._led_from
        last_wall = self._last_clocks().wall_ms
        lease_ms = last.lease_ms + int((self._world.monotonic() - since) * 1000)
        return Clocks(lease_ms, max(last_wall, int(self._world.wall() * 1000)))

    def _last_clocks(self) -> Clocks:
        raft = self._raft
        for index in range(raft.last_index, raft.first_index - 1, -1):
            entry = raft.entry(index)
            if entry is not None and entry.command[:1] == REGULAR:
                return entries.clocks(entry.command, 1)
        return Clocks(0, 0)

    def _expire(self) -> None:
        if self._raft.role != "leader" or self._expiring:
            return
        clocks = self._clocks()
        due = zip(self.machine.next_due(), clocks, strict=True)
        if any(at is not None and at <= now for at, now in due):
            with suppress(Overloaded):
                self.propose(_EXPIRE).add_done_callback(self._expired)
                self._expiring = True

    def _expired(self, written: asyncio.Future[Committed]) -> None:
        written.exception()
        self._expiring = False


class StockNode(SimNode):
    """A node of the simulator with the stock class in the place of our engine."""

    def __init__(self, around: Surroundings, name: str, folder: Path, *, fault: int) -> None:
        super().__init__(around, name, folder)
        self._fault = fault
        self._stock: StockShard | None = None

    def _make(self, config: ShardConfig, environment: SimEnvironment, world: World) -> Any:
        self._stock = StockShard(
            config,
            environment.folder,
            fault=self._fault,
            world=world,
            on_role=self._on_role,
            on_fatal=self._fatal,
            on_applied=lambda index, term, command: self.around.entry_applied(self, index, term, command),
            on_step=lambda: self.around.stepped(self),
        )
        return self._stock

    def _release(self) -> None:
        super()._release()
        if self._stock is not None:
            self._stock.abandon()
            self._stock = None

    def sent(self, target: str, message: Message) -> None:
        """In the words of our engine, for the checkers."""
        said = msgspec.msgpack.decode(message["data"])
        term = said["term"]
        if said["type"] == "request_vote":
            super().sent(target, {"type": "vote", "term": term})
        elif said["type"] == "response_vote":
            super().sent(target, {"type": "vote_answer", "term": term, "asked": term, "granted": True})
        elif said["type"] == "append_entries":
            super().sent(target, {"type": "append", "term": term, "commit": said["commit_index"]})
        elif said["type"] == "next_node_idx" and said["success"]:
            super().sent(
                target, {"type": "append_answer", "term": term, "ok": True, "match": said["next_node_idx"] - 1}
            )

    # What checkers see

    @property
    def _raft(self) -> SyncObj:
        assert self._stock is not None, f"{self.id} is down"
        return self._stock.raft

    @property
    def role(self) -> str:
        return self._raft.role

    @property
    def term(self) -> int:
        return self._raft.term

    @property
    def vote(self) -> str | None:
        return self._raft.vote

    @property
    def leader(self) -> str | None:
        return self._raft.leader

    @property
    def configuration(self) -> Configuration:
        """Never changes."""
        assert self._stock is not None
        return membership.bootstrap(self._stock.config.members)

    @property
    def commit_index(self) -> int:
        return int(self._raft.raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._raft.raftLastApplied)

    @property
    def last_index(self) -> int:
        return self._raft.last_index

    @property
    def durable_index(self) -> int:
        """What is written is not lost by a kill."""
        return self._raft.last_index

    @property
    def received_bytes(self) -> int:
        return 0

    @property
    def first_index(self) -> int:
        return self._raft.first_index

    def term_at(self, index: int) -> int | None:
        entry = self._raft.entry(index)
        return None if entry is None else entry.term

    def entry(self, index: int) -> tuple[int, bytes] | None:
        entry = self._raft.entry(index)
        return None if entry is None else (entry.term, entry.command)

    def match(self, node: str) -> int:
        return self._raft.match(node)

    def voters(self) -> tuple[str, ...]:
        return tuple(sorted({self.id, *(node.id for node in self._raft.otherNodes)}))

    def digest(self) -> tuple[int, str]:
        assert self._stock is not None
        return self.applied_index, self._stock.digest()

    def tables(self) -> Txn:
        assert self._stock is not None
        return self._stock.txn
