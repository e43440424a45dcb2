"""One whole shard whose peers are in the test's hands: under a name comes a folder, and only the one that the
configuration names counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftq.replication.cycle import RaftShard
from raftq.replication.engine import CONFIGURATION, NO_OP
from raftq.replication.journal import Journal
from raftq.replication.membership import Configuration, Member
from raftq.replication.roster import FOR_EVER
from raftq.replication.shard_config import ShardConfig
from raftq.replication.wire import PROTOCOL, Hello, Refusal
from raftq.replication.world import World
from raftq.storage.environment import Environment, WriteBatch
from raftq.storage.writer import Writer
from tests.replication.shards import until

Message = dict[str, Any]

#: Five voters whose folders are known.
FIVE = Configuration({f"n{number}": Member(f"h:{number}", True, f"u{number}") for number in range(1, 6)})
#: The folder of n2 is to be exchanged; the new one is known; it votes.
VOID = FIVE.with_member("n2", Member("h:9", voter=False, void="u2"))
NAMED = FIVE.with_member("n2", Member("h:9", voter=False, uuid="new"))
EXCHANGED = FIVE.with_member("n2", Member("h:9", voter=True, uuid="new"))


class Puppets:
    """The peers of one shard, as `Peers` would report them."""

    def __init__(
        self,
        hello: Callable[[], Hello],
        _listen: str,
        *,
        on_message: Callable[[str, Message], None],
        on_connected: Callable[[str, Hello], None],
        on_disconnected: Callable[[str], None],
        on_bytes: Callable[[str], None],
        on_refused: Callable[[str, Refusal], None],
        admit: Callable[[Hello], Refusal | None],
        security: object = None,
    ) -> None:
        self.hello, self.say, self.refuse, self._admit = hello, on_message, on_refused, admit
        self._on_connected, self._on_disconnected = on_connected, on_disconnected
        self._members: dict[str, str] = {}
        self._hellos: dict[str, Hello] = {}
        self.sent: list[tuple[str, Message]] = []

    def connect(self, hello: Hello) -> Refusal | None:
        """A node says `hello`: as in Peers, an earlier connection under its name is replaced."""
        refusal = self._admit(hello)
        if refusal is None:
            if hello.node_id in self._hellos:
                self._cut(hello.node_id)
            self._hellos[hello.node_id] = hello
            self._on_connected(hello.node_id, hello)
        return refusal

    def _cut(self, node: str) -> None:
        del self._hellos[node]
        self._on_disconnected(node)

    def set_members(self, addresses: dict[str, str]) -> None:
        before, self._members = self._members, dict(addresses)
        for node, hello in list(self._hellos.items()):
            left = node in before and node not in addresses
            guest = node not in before and node not in addresses
            if left or (guest and self._admit(hello) is not None):
                self._cut(node)

    async def start(self) -> None:
        """Nobody listens."""

    async def close(self) -> None:
        """Nothing is open."""

    def send(self, nodes: list[str], message: Message, *, bulk: bool = False) -> list[str]:
        there = [node for node in nodes if node in self._hellos]
        self.sent += [(node, message) for node in there]
        return there

    def reachable(self, node: str) -> bool:
        return node in self._hellos

    def queued_bytes(self, _node: str, *, bulk: bool = False) -> int:
        return 0

    def hello_of(self, node: str) -> Hello | None:
        return self._hellos.get(node)

    def asked(self, kind: str) -> set[str]:
        return {node for node, message in self.sent if message["type"] == kind}


class Rig:
    def __init__(self, shard: RaftShard, peers: Puppets) -> None:
        self.shard, self.peers = shard, peers
        self.now = 100.0

    def hello(self, node: str, uuid: str, config_index: int, *, member: bool = True, term: int = 0) -> Hello:
        return Hello(
            protocol=PROTOCOL, cluster_id="test", node_id=node, node_uuid=uuid, boot=1, api_url="", version="0",
            peer_address=f"h:{node}", last_index=1 << 30, term=term, config_index=config_index, member=member,
        )  # fmt: skip

    async def taken_in(self) -> None:
        await until(lambda: not self.shard._inbox and self.shard._committing is None and not self.shard._scheduled)

    async def append(self, leader: str, prev: int, *entries: tuple[int, bytes], term: int, commit: int) -> None:
        self.peers.say(
            leader,
            {
                "type": "append", "term": term, "round": 1, "prev_index": prev, "commit": commit, "compact": 0,
                "prev_term": self.shard._journal.term_at(prev), "entries": list(entries), "wall": 0, "lease": 0,
            },
        )  # fmt: skip
        await self.taken_in()

    async def canvass(self, *granting: str) -> None:
        """It hears nobody, asks whether it could be elected, and is told so by `granting`."""
        self.now += 1
        await until(lambda: bool(self.peers.asked("prevote")))
        await self.answer("prevote_answer", self.shard._engine.term + 1, *granting)

    async def answer(self, kind: str, asked: int, *granting: str) -> None:
        message = {"type": kind, "term": self.shard._engine.term, "asked": asked, "granted": True}
        for node in granting:
            self.peers.say(node, message)
        await self.taken_in()


def configured(configuration: Configuration) -> bytes:
    return CONFIGURATION + configuration.encode()


def fill(folder: Path, entries: list[tuple[int, bytes]]) -> None:
    """A folder with `entries` (term, command) from index 2 on, none of them applied."""
    environment = Environment(folder, map_bytes=1 << 28)
    writer, journal, batch = Writer(environment), Journal(environment), WriteBatch()
    for index, (term, command) in enumerate(entries, 2):
        journal.add(command, index, term)
    journal.setCurrentTerm(entries[-1][0], None)
    journal.collect(batch)
    writer.write(batch)
    writer.close()
    environment.close()


@asynccontextmanager
async def rig(folder: Path, name: str, *entries: tuple[int, bytes], join: bool = False) -> AsyncIterator[Rig]:
    """The shard of `name`, by the log `entries`, none of it known to be committed; its clock stands still."""
    if entries:
        fill(folder, list(entries))
    found: list[Puppets] = []
    fatal: list[BaseException] = []
    made: list[Rig] = []

    def puppets(*args: Any, **kwargs: Any) -> Any:
        found.append(Puppets(*args, **kwargs))
        return found[-1]

    config = ShardConfig(
        node_id=name, cluster_id="test", node_uuid=f"u{name[1:]}", boot=1, members=FIVE.addresses(), peer_listen="",
        peer_address="", api_url="", version="0", disk_reserve_bytes=0, join=join,
    )  # fmt: skip
    environment = Environment(folder, map_bytes=1 << 28)
    shard = RaftShard(
        config,
        environment,
        on_fatal=fatal.append,
        world=World(monotonic=lambda: made[-1].now if made else 100.0, wall=lambda: 1e9, peers=puppets),
    )
    made.append(Rig(shard, found[-1]))
    await shard.start()
    try:
        yield made[-1]
        assert not fatal, fatal
    finally:
        await shard.close()
        environment.close()


async def test_a_guest_that_bears_the_name_of_a_voter_does_not_vote_for_it(tmp_path: Path) -> None:
    """n2's new folder is with a leader that nobody else hears, in whose log it is a member; n3 has what a later leader
    wrote in that place. To n3 it may be a leader that it does not know yet, and so speak; but it is not the voter n2,
    which may have acknowledged what n3 lacks."""
    async with rig(tmp_path, "n3", (3, configured(FIVE)), (4, NO_OP)) as found:
        assert found.peers.connect(found.hello("n1", "u1", 2)) is None
        assert found.peers.connect(found.hello("n4", "u4", 2)) is None
        found.peers.connect(found.hello("n2", "new", 3))
        await found.canvass("n1", "n4")
        await until(lambda: found.shard.status().role == "candidate")
        asked = found.shard._engine.term
        await found.answer("vote_answer", asked, "n2", "n1")
        assert found.shard.status().role == "candidate"
        await found.answer("vote_answer", asked, "n4")
        await until(lambda: found.shard.status().role == "leader")


async def test_a_new_folder_does_not_vote_when_its_exchange_is_truncated(tmp_path: Path) -> None:
    """n1 was told that n2's folder is exchanged, and the new one is connected. Then another leader's log takes the
    place of that: n2 is its old folder again."""
    async with rig(tmp_path, "n1", (3, configured(FIVE)), (3, configured(VOID))) as found:
        assert found.peers.connect(found.hello("n2", "new", 3)) is None
        for node in ("n4", "n5"):
            assert found.peers.connect(found.hello(node, f"u{node[1]}", 2)) is None
        await found.append("n4", 2, (4, NO_OP), term=4, commit=2)
        assert found.shard._engine.configuration == FIVE
        await found.canvass("n4", "n5")
        await until(lambda: found.shard.status().role == "candidate")
        asked = found.shard._engine.term
        await found.answer("vote_answer", asked, "n2", "n4")
        assert found.shard.status().role == "candidate"
        await found.answer("vote_answer", asked, "n5")
        await until(lambda: found.shard.status().role == "leader")


async def test_an_old_folder_does_not_vote_when_its_exchange_is_heard_of_at_once(tmp_path: Path) -> None:
    """n3 was away while n2's folder was exchanged. It is connected with the old one when it gets all steps in one
    append, by which n2 votes before and after."""
    async with rig(tmp_path, "n3", (3, configured(FIVE))) as found:
        assert found.peers.connect(found.hello("n2", "u2", 2)) is None
        for node in ("n1", "n4"):
            assert found.peers.connect(found.hello(node, f"u{node[1]}", 2)) is None
        steps = [(3, configured(configuration)) for configuration in (VOID, NAMED, EXCHANGED)]
        await found.append("n1", 2, *steps, term=3, commit=5)
        assert found.shard._engine.configuration == EXCHANGED
        await found.canvass("n1", "n4")
        await until(lambda: found.shard.status().role == "candidate")
        asked = found.shard._engine.term
        await found.answer("vote_answer", asked, "n2", "n1")
        assert found.shard.status().role == "candidate"
        await found.answer("vote_answer", asked, "n4")
        await until(lambda: found.shard.status().role == "leader")


async def test_a_node_that_an_uncommitted_change_removes_may_lead(tmp_path: Path) -> None:
    """n1 wrote that n5 is removed, and was heard by nobody. n5 leads the others: it must be let in, else n1 never hears
    that this was undone."""
    async with rig(tmp_path, "n1", (3, configured(FIVE)), (3, configured(FIVE.without("n5")))) as found:
        assert found.peers.connect(found.hello("n5", "u5", 2, term=4)) is None
        await found.append("n5", 2, (4, NO_OP), term=4, commit=3)
        assert found.shard._engine.configuration == FIVE


async def test_a_folder_that_an_uncommitted_change_exchanges_may_lead(tmp_path: Path) -> None:
    async with rig(tmp_path, "n1", (3, configured(FIVE)), (3, configured(VOID))) as found:
        assert found.peers.connect(found.hello("n2", "u2", 2, term=4)) is None
        await found.append("n2", 2, (4, NO_OP), term=4, commit=3)
        assert found.shard._engine.configuration == FIVE


async def test_a_hello_that_was_long_on_its_way_does_not_end_a_node(tmp_path: Path) -> None:
    """It is compared with what the node acknowledged after it was said: the simulator saw a healthy node fenced."""
    with pytest.raises(AssertionError, match="but it had acknowledged 4"):  # noqa: PT012 - what the rig ends with
        async with rig(tmp_path, "n3", (1, configured(FIVE)), (1, NO_OP)) as found:
            last = found.shard.status().last_index
            found.peers.refuse("n2", Refusal("", final=True, config_index=FOR_EVER, acknowledged=last))
            await found.taken_in()
            assert not found.shard._closed
            reason = f"the log of node n3 ends at {last}, but it had acknowledged {last + 1}"
            found.peers.refuse("n2", Refusal(reason, final=True, config_index=FOR_EVER, acknowledged=last + 1))
            await until(lambda: found.shard._closed)


async def test_an_old_copy_of_a_folder_that_waits_to_be_added_ends(tmp_path: Path) -> None:
    """It was added, and grew; then an old copy of it came back. The simulator saw it ask to be let in for ever, and the
    cluster wait for it. What a peer does not know yet turns it away for now alone."""
    reason = "node n6 comes with an old copy of its data folder (start 2, seen 3)"
    with pytest.raises(AssertionError, match="comes with an old copy"):  # noqa: PT012 - what the rig ends with
        async with rig(tmp_path, "n6", join=True) as found:
            found.peers.refuse("n2", Refusal("it was removed", final=True, config_index=7))
            await found.taken_in()
            assert not found.shard._closed
            found.peers.refuse("n2", Refusal(reason, final=True, config_index=FOR_EVER))
            await until(lambda: found.shard._closed)
