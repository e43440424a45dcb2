from __future__ import annotations

from tests.api.conftest import Client

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def test_put_one_and_take_one(client: Client) -> None:
    for body, headers in ((b"hello", FORM), (bytes(range(256)), {}), (b'{"a": 1}', JSON), (b"", {})):
        put = await client("POST", "/q/jobs", data=body, headers=headers)
        assert put.status == 201, put
        taken = await client("GET", "/q/jobs")
        assert (taken.status, taken.data, taken.headers["Raftq-Id"] + "\n") == (200, body, put.data.decode())
        expected = "application/json" if headers is JSON else "application/octet-stream"
        assert taken.headers["Content-Type"] == expected
        assert "Raftq-Receipt" not in taken.headers
    empty = await client("GET", "/q/jobs")
    assert (empty.status, empty.data, "Content-Length" in empty.headers) == (204, b"", False)
    stats = (await client("GET", "/v1/queues/jobs/stats")).json
    assert (stats["totals"]["acked"], stats["leased"]) == (4, 0)


async def test_a_leased_one_is_acked_by_its_receipt(client: Client) -> None:
    await client("POST", "/q/jobs", data=b"hello")
    taken = await client("GET", "/q/jobs?lease=10&wait=1")
    receipt = taken.headers["Raftq-Receipt"]
    assert (taken.data, taken.headers["Raftq-Fence"], taken.headers["Raftq-Deliveries"]) == (b"hello", "1", "1")
    done = await client("POST", f"/q/jobs/ack/{receipt}")
    assert (done.status, done.data) == (200, b"done\n")
    client.shard.later(20)
    gone = await client("POST", f"/q/jobs/ack/{receipt}")
    assert (gone.status, gone.json["type"]) == (410, "https://raftq.dev/problems/gone")
    assert (await client("POST", "/q/jobs/ack/x")).status == 422


async def test_what_cannot_be_put_or_taken(client: Client) -> None:
    assert (await client("POST", "/q/jobs", data=b"{", headers=JSON)).status == 400
    assert (await client("POST", "/q/jobs", data=b"[" * 100 + b"]" * 100, headers=JSON)).status == 422
    assert (await client("POST", "/q/jobs", data=b"x" * (1024 * 1024 + 1))).status == 413
    assert (await client("GET", "/q/jobs")).status == 404
    await client("POST", "/q/jobs", data=b"x")
    for query in ("wait=-1", "wait=61", "wait=nan", "wait=x", "lease=0", "lease=1e9", "max=3", "wait=1_0"):
        reply = await client("GET", f"/q/jobs?{query}")
        assert (reply.status, reply.json["field"]) == (422, f"query.{query.split('=')[0]}"), query
    assert (await client("HEAD", "/q/jobs")).status == 405
    assert len(await client.lease()) == 1, "nothing was taken"
