from __future__ import annotations

import json

import pytest

from raftq.node.exits import Exit
from tests.cli.conftest import Raftq


async def test_enqueue_lease_ack(raftq: Raftq) -> None:
    assert await raftq("enqueue", "jobs", "hello", "wörld") == (0, "1-0-1\n1-0-2\n", "")
    assert await raftq("lease", "jobs", "--max", "5") == (0, "1.1.0  hello\n1.1.1  wörld\n", "")
    code, out, error = await raftq("ack", "jobs", "1.1.0", "1.1.1", "1.7.0")
    assert (code, out) == (Exit.NOT_ALL, "1.1.0  done\n1.1.1  done\n1.7.0  gone\n")
    assert error == "raftq: 1 of 3 were gone: the lease has passed, or it was settled before\n"


async def test_nothing_to_lease(raftq: Raftq) -> None:
    await raftq("enqueue", "jobs", "one")
    await raftq("lease", "jobs")
    code, out, error = await raftq("lease", "jobs")
    assert (code, out, error) == (Exit.NOT_ALL, "", "raftq: nothing is ready in jobs: try --wait 10\n")


async def test_json_in_and_out(raftq: Raftq) -> None:
    ended = await raftq(
        "enqueue", "jobs", '{"to": "ada"}', "--body-json", "-a", "kind=mail", "--priority", "3", "--json"
    )
    assert ended.json == {"messages": [{"id": "1-3-1", "duplicate": False}], "index": 1}
    [leased] = (await raftq("lease", "jobs", "--json")).json["messages"]
    assert (leased["body"], leased["attributes"], leased["priority"]) == ({"to": "ada"}, {"kind": "mail"}, 3)
    assert (await raftq("nack", "jobs", leased["receipt"], "--json")).json["results"][0]["status"] == "done"
    [leased] = (await raftq("lease", "jobs", "--json")).json["messages"]
    assert leased["failures"] == 1


async def test_ids_make_it_safe_to_repeat(raftq: Raftq) -> None:
    for _ in range(2):
        assert (await raftq("enqueue", "jobs", "one", "--request-id", "r")).out == "1-0-1\n"
    await raftq("enqueue", "jobs", "two", "--dedup-id", "d")
    assert (await raftq("enqueue", "jobs", "two", "--dedup-id", "d")).out == "1-0-2  duplicate\n"


async def test_stats_and_cluster(raftq: Raftq) -> None:
    await raftq("enqueue", "jobs", "one")
    assert (await raftq("stats", "jobs", "--json")).json["ready"] == 1
    assert "ready" in (await raftq("stats")).out
    assert (await raftq("cluster", "--json")).json["leader"] == "n1"
    out = (await raftq("cluster")).out
    assert out.startswith("cluster c1: n1 leads in term 3\n")
    assert raftq.node.url in out


async def test_the_url_is_that_of_the_cluster_that_runs_here(raftq: Raftq) -> None:
    del raftq.environment["RAFTQ_URL"]
    (raftq.folder / "data").mkdir()
    node = {"id": "n1", "api_url": raftq.node.url, "peer_address": "", "pid": 1, "data": "", "log": ""}
    (raftq.folder / "data/cluster.json").write_text(json.dumps({"cluster_id": "c1", "nodes": [node]}))
    assert (await raftq("enqueue", "jobs", "one")).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("stats nope", Exit.REFUSED, "There is no queue nope"),
        ("enqueue .. x", Exit.USAGE, "is no name for a queue"),
        ("ack jobs x", Exit.REFUSED, "is no receipt"),
        ("enqueue jobs {x --body-json", Exit.USAGE, "is not JSON"),
        ("enqueue jobs x -a y", Exit.USAGE, "KEY=VALUE"),
        ("enqueue jobs a b --dedup-id d", Exit.USAGE, "give one BODY"),
        ("stats --url nowhere", Exit.USAGE, "'nowhere' is not the URL of a node"),
        ("lease", Exit.USAGE, "Missing argument 'QUEUE'"),
    ],
)
async def test_errors_are_one_line_and_an_exit_code(raftq: Raftq, arguments: str, code: Exit, line: str) -> None:
    ended = await raftq(*arguments.split())
    assert (ended.code, ended.out, ended.error.count("\n")) == (code, "", 1)
    assert line in ended.error
