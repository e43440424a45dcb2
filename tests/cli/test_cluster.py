"""`raftq cluster ...` and `raftq backup` against a node, as scripts use them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from raftq.cli import members
from raftq.client.models import Cluster, ClusterNode
from raftq.node.exits import Exit, Fatal
from raftq.replication.shard import ChangeRefused, Peer, Status
from tests.cli.conftest import Raftq
from tests.client.nodes import Node, running


def voter(node: str, applied: int | None = 5) -> Peer:
    return Peer(node, "http://y", "h:2", "follower", True, True, applied, applied, "0")


async def test_the_nodes_are_shown_without_a_command(raftq: Raftq) -> None:
    ended = await raftq("cluster")
    assert (ended.code, ended.out.startswith("cluster c1: n1 leads in term 3\n")) == (0, True)
    assert (await raftq("cluster", "--json")).json["leader"] == "n1"


async def test_the_nodes_are_shown_as_the_leader_sees_them(raftq: Raftq, node: Node) -> None:
    """A follower knows what it has itself, and not what the others have."""
    async with running() as leader:
        leader.shard.node_id = leader.shard.leader = "n2"
        leader.shard.members = [voter("n1", applied=7)]
        leader.shard.index = 9
        node.follow(leader.url)
        node.shard.members = [voter("n2", applied=None)]
        told = node.shard.status

        def status() -> Status:
            """Of the follower, that tells where the leader is."""
            found = told()
            found.peers[1].api_url = leader.url
            return found

        node.shard.status = status  # type: ignore[method-assign]
        shown = (await raftq("cluster")).out.splitlines()
        assert [line.split()[3] for line in shown[2:]] == ["9", "7"], shown
        leader.follow(None)
        node.follow(None)
        assert (await raftq("cluster")).out.startswith("cluster c1: no leader in term 3\n")


async def test_a_node_is_added_and_removed(raftq: Raftq, node: Node) -> None:
    ended = await raftq("cluster", "add", "n4", "--peer-address", "h:1", "--no-wait")
    assert (ended.code, ended.out) == (0, "n4 is a learner now (entry 1)\n"), ended
    ended = await raftq("cluster", "remove", "n4")
    assert (ended.code, ended.out) == (0, "n4 is removed; its process ends by itself, with exit code 21\n")
    ended = await raftq("cluster", "add", "n4", "--peer-address", "h:1", "--no-wait", "--json")
    assert (ended.json["index"], ended.json["node"]["role"]) == (3, "learner")
    assert (await raftq("cluster", "remove", "n4", "--json")).json == {"index": 4}
    assert (await raftq("cluster", "transfer", "n1", "--json")).json == {"leader": "n1"}
    assert (await raftq("cluster", "transfer")).out == "n2 leads\n"
    assert [asked[:2] for asked in node.shard.asked] == [("add", "n4"), ("remove", "n4")] * 2


async def test_it_waits_until_the_node_votes_and_the_old_one_is_gone(
    raftq: Raftq, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.shard.members.append(voter("n2"))
    seen = []
    told = node.shard.status

    def status() -> object:
        """With each look it gets further; the first is for the leader."""
        found = told()
        if any(peer.id == "n4" for peer in found.peers):
            seen.append(len(seen))
            *_, learner = node.shard.members
            if len(seen) == 3:
                learner.reachable, learner.match_index = True, 1
            if len(seen) == 4:
                learner.role, learner.voter = "follower", True
            if len(seen) == 5:
                del node.shard.members[0]
        return told()

    monkeypatch.setattr(node.shard, "status", status)
    ended = await raftq("cluster", "replace", "n2", "n4", "--peer-address", "h:1")
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            "n4 is a learner now (entry 1)",
            "waiting for n4 at h:1: start it with raftq node --join",
            "n4 has 1 of 1 entries",
            "n4 votes; n2 is to be removed",
            "n4 votes, and n2 is removed",
        ],
    )
    assert node.shard.asked == [("add", "n4", "h:1", "n2")]


async def test_a_new_folder_under_the_old_name_has_the_old_address_unless_told(raftq: Raftq, node: Node) -> None:
    node.shard.members.append(voter("n2"))
    assert (await raftq("cluster", "replace", "n2", "n2", "--no-wait")).code == 0
    assert (await raftq("cluster", "replace", "n2", "n2", "--peer-address", "h:7", "--no-wait")).code == 0
    assert node.shard.asked == [("add", "n2", "h:2", "n2"), ("add", "n2", "h:7", "n2")]


async def test_a_backup(raftq: Raftq, node: Node) -> None:
    """What is no snapshot does not take the place of the last one."""
    (raftq.folder / "b").write_bytes(b"the last one")
    ended = await raftq("backup", "b")
    assert (ended.code, ended.error.count("\n")) == (Exit.FILE_REFUSED, 1)
    assert "is damaged" in ended.error
    assert {path.name: path.read_bytes() for path in raftq.folder.glob("b*")} == {"b": b"the last one"}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("cluster --json add n4", Exit.USAGE, "give --url and --json after add"),
        ("cluster add n4", Exit.USAGE, "give --peer-address HOST:PORT, or --data"),
        ("cluster add n4/ --peer-address h:1", Exit.CONFIG, "NODE is 'n4/': expected name"),
        ("cluster add n4 --peer-address h", Exit.REFUSED, "peer_address: give host:port"),
        ("cluster add n4 --data data", Exit.USAGE, "no cluster runs on data"),
        ("cluster remove n9", Exit.REFUSED, "There is no node n9: there are n1."),
        ("cluster replace n2 n4", Exit.USAGE, "give --peer-address HOST:PORT, or --data"),
        ("cluster replace n2 n2", Exit.USAGE, "give --peer-address HOST:PORT, or --data"),
        ("cluster transfer n9", Exit.REFUSED, "node: is one of n1"),
        ("backup no/b", Exit.FILE_REFUSED, "cannot write no/b: No such file or directory"),
        ("backup b --url http://127.0.0.1:1", Exit.UNAVAILABLE, "http://127.0.0.1:1 does not answer"),
        ("restore none --data new", Exit.FILE_REFUSED, "cannot read none: No such file or directory"),
        ("restore none --peer-listen h:1", Exit.USAGE, "--peer-listen is a setting of one node"),
        ("restore none --at-ms 1", Exit.USAGE, "--at-ms is of one node"),
        ("restore none --node-id n1 --nodes 3", Exit.USAGE, "--nodes and --port are of a cluster for raftq up"),
        ("restore none --node-id n1", Exit.CONFIG, "cluster_id is not set"),
        ("restore none --node-id n1 --cluster-id c --data d --members n2=h:1 --join", Exit.CONFIG, "leave it out"),
        ("recover", Exit.USAGE, "give --data FOLDER"),
        ("recover --look", Exit.USAGE, "the data folders to be compared"),
        ("recover --data none --yes", Exit.USAGE, "none is not the data folder of a node"),
        ("recover --data none --cluster-id a/b", Exit.CONFIG, "--cluster-id is 'a/b': expected name"),
    ],
)
async def test_errors_are_one_line_and_an_exit_code(raftq: Raftq, arguments: str, code: Exit, line: str) -> None:
    ended = await raftq(*arguments.split())
    assert (ended.code, ended.out, ended.error.count("\n")) == (code, "", 1), ended
    assert line in ended.error


async def test_a_refusal_says_what_to_do(raftq: Raftq, node: Node) -> None:
    node.shard.refuse = ChangeRefused("only 1 answer: bring back n2 first")
    ended = await raftq("cluster", "remove", "n1")
    assert (ended.code, ended.error) == (Exit.REFUSED, "raftq: only 1 answer: bring back n2 first.\n")


async def test_no_backup_is_made_of_a_file_that_is_none(raftq: Raftq, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"x" * 100)
    ended = await raftq("restore", "b", "--data", "new")
    assert (ended.code, (tmp_path / "new" / "cluster.json").exists()) == (Exit.FILE_REFUSED, False)


async def test_a_node_that_makes_no_progress_is_waited_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Cluster(cluster_id="c", leader="n1", nodes=[ClusterNode(id=name, api_url="") for name in ("n1", "n4")])
    seen.nodes[1] = ClusterNode(id="n4", api_url="", peer_address="h:1", role="learner", voter=False)

    class Client:
        async def cluster(self, *, of_leader: bool) -> Cluster:
            assert of_leader
            return seen

    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("raftq.cli.members.time", SimpleNamespace(monotonic=lambda: float(next(now))))
    monkeypatch.setattr(members, "LOOK_SECONDS", 0)
    with pytest.raises(
        Fatal, match=r"no progress \(waiting for n4 at h:1: start it with raftq node --join\)"
    ) as caught:
        await members._Progress("n4", None, as_json=True).follow(Client())  # type: ignore[arg-type]
    assert caught.value.code is Exit.NOT_READY
