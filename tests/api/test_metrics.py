"""/metrics and /metrics/detailed as Prometheus reads them, read with the parser of its own client."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from raftq.api import metrics, stats
from raftq.node.measures import MEASURES
from raftq.replication.shard import NotLeader, Peer
from raftq.storage.machine import commands
from raftq.storage.machine.commands import Enqueue, Part
from raftq.storage.machine.packing import pack, pack_message
from tests.api.conftest import Client, Reply

DEPLOY = Path(__file__).parents[2] / "deploy"


def parsed(reply: Reply) -> dict[str, Metric]:
    assert reply.status == 200, reply
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(reply.data.decode()))
    assert len({family.name for family in families}) == len(families), "the lines of a metric are not together"
    return {family.name: family for family in families}


async def scraped(client: Client, path: str = "/metrics") -> dict[str, Metric]:
    return parsed(await client("GET", path))


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [sample for family in families.values() for sample in family.samples if sample.name == name]
    [found] = [sample.value for sample in samples if sample.labels == labels]
    return float(found)


def fill(client: Client, count: int) -> None:
    """Queues q00000, q00001, ... of one message each, without the front."""
    for number in range(count):
        part = Part(0, None, pack([pack_message(b"1")]))
        client.shard.apply(Enqueue(f"default/q{number:05}", [part]))


async def test_every_family_has_help_and_type_and_follows_the_conventions(client: Client) -> None:
    await client.enqueue("a")
    for path in ("/metrics", "/metrics/detailed"):
        text = (await client("GET", path)).data.decode()
        for family in (await scraped(client, path)).values():
            assert family.documentation, family
            assert family.type in ("counter", "gauge", "histogram"), family
            assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
            assert not re.search(r"_(ms|milliseconds|minutes|kib|mib|percent)\b", family.name), "base units"
            if family.type == "counter":
                assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
                assert f"# TYPE {family.name}_total counter" in text


async def test_the_sums_of_all_queues(client: Client) -> None:
    await client.enqueue("a", "b", "c")
    await client.enqueue("d", queue="other")
    await client.lease(max=2)
    client.shard.clock_ms += 1500
    found = await scraped(client)
    assert value(found, "raftq_queues") == 2
    assert value(found, "raftq_queue_messages_ready") == 2
    assert value(found, "raftq_queue_messages_leased") == 2
    assert value(found, "raftq_queue_messages_enqueued_total") == 4
    assert value(found, "raftq_queue_messages_delivered_total") == 2
    # Time goes on though nothing is done.
    assert value(found, "raftq_queue_oldest_ready_age_seconds") == 1.5


async def test_requests_raft_and_what_the_node_adds(client: Client) -> None:
    await client.enqueue("a")
    await client("GET", "/nowhere")
    client.node.stopping = True
    client.shard.members.append(Peer("n2", "", "x:2", "follower", True, False, 0, 0, "0"))
    client.shard.stages.peer_lags["n2"].observe(0.002)
    found = await scraped(client)
    enqueued = {"method": "POST", "route": "/v1/queues/{queue}/messages", "status": "201"}
    assert value(found, "raftq_requests_total", **enqueued) == 1
    assert value(found, "raftq_requests_total", method="", route="", status="404") == 1
    assert value(found, "raftq_requests_in_flight") == 1
    assert value(found, "raftq_role", node="n1", role="leader") == 1
    assert value(found, "raftq_raft_term") == 3
    assert value(found, "raftq_raft_applied_index") == 1
    assert value(found, "raftq_raft_log_bytes") == 100
    assert value(found, "raftq_raft_peer_lag_entries", peer="n2") == 1
    assert value(found, "raftq_raft_peer_lag_seconds_count", peer="n2") == 1
    assert value(found, "raftq_raft_peer_lag_seconds_bucket", peer="n2", le="0.001") == 0
    assert value(found, "raftq_raft_peer_reachable", peer="n2") == 0
    assert value(found, "raftq_clock_offset_seconds") == 0.0005
    assert value(found, "raftq_build_info", version="0") == 1
    assert value(found, "raftq_leaders_met_total") == 7


async def test_histograms(client: Client) -> None:
    await client.enqueue("a")
    await client("GET", "/v1/queues/jobs")
    stages = client.shard.stages
    for seconds in (0.0001, 0.003, 60):
        stages.committed.observe(seconds)
    found = await scraped(client)
    name = "raftq_request_stage_seconds"
    assert {sample.labels["stage"] for sample in found[name].samples} == {
        "parse",
        "wait",
        "replicate",
        "commit",
        "apply",
    }
    # Of what is proposed alone.
    assert value(found, f"{name}_count", stage="parse") == 1
    assert 0 < value(found, f"{name}_sum", stage="parse") < 5
    assert [value(found, f"{name}_bucket", stage="commit", le=le) for le in ("0.0001", "0.0025", "0.005", "+Inf")] == [
        1,
        1,
        2,
        3,
    ]
    assert value(found, "raftq_commit_seconds_count") == 3
    assert value(found, "raftq_commit_seconds_sum") == pytest.approx(60.0031)
    assert value(found, "raftq_raft_commit_latency_seconds_count") == 0
    assert value(found, "raftq_loop_lag_seconds_count") == 0


async def test_a_lease_that_waits_is_not_taken_in_slowly(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    waiting = asyncio.create_task(client.lease(wait_seconds=5))
    await asyncio.sleep(0.05)
    await client.enqueue("a")
    assert len(await waiting) == 1
    # The definition and the enqueue.
    assert value(await scraped(client), "raftq_request_stage_seconds_count", stage="parse") == 2


async def test_while_a_snapshot_is_installed_the_rest_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.enqueue("a")

    def stale() -> Any:
        raise NotLeader(None)

    monkeypatch.setattr(client.shard, "stale", stale)
    found = await scraped(client)
    assert value(found, "raftq_raft_term") == 3
    assert "raftq_queues" not in found


async def test_a_registry_for_each_node(client: Client, serve: Any) -> None:
    other = await serve()
    await client.enqueue("a")
    assert value(await scraped(other), "raftq_queue_messages_ready") == 0


# Detailed


async def test_details_of_each_queue(client: Client) -> None:
    await client.enqueue("a", "b")
    await client.enqueue("c", queue="other.one")
    await client.lease(max=1)
    client.shard.clock_ms += 2000
    found = await scraped(client, "/metrics/detailed")
    assert value(found, "raftq_queue_messages_ready", queue="jobs") == 1
    assert value(found, "raftq_queue_messages_leased", queue="jobs") == 1
    assert value(found, "raftq_queue_messages_enqueued_total", queue="jobs") == 2
    assert value(found, "raftq_queue_messages_ready", queue="other.one") == 1
    assert value(found, "raftq_queue_oldest_ready_age_seconds", queue="other.one") == 2
    assert value(found, "raftq_detailed_cut") == 0
    names = {name.removesuffix("_total") for name, _, _ in metrics.DETAILED}
    assert set(found) == names | {"raftq_detailed_cut"}
    assert names <= set(await scraped(client)), "the same names without a queue are the sums"


@pytest.mark.parametrize(
    ("query", "queues"),
    [
        ("", {"a1", "a2", "b1"}),
        ("?prefix=a", {"a1", "a2"}),
        ("?queue=b1", {"b1"}),
        ("?queue=none", set()),
        ("?queue=b1&prefix=a", set()),
    ],
)
async def test_details_of_some_queues(client: Client, query: str, queues: set[str]) -> None:
    for queue in ("a1", "a2", "b1"):
        await client.enqueue("a", queue=queue)
    found = await scraped(client, f"/metrics/detailed{query}")
    assert {sample.labels["queue"] for sample in found["raftq_queue_messages_ready"].samples} == queues


@pytest.mark.parametrize("query", ["queue=a/b", "queue=", "prefix=%20", "limit=3", "colour=1"])
async def test_bad_queries_for_details(client: Client, query: str) -> None:
    reply = await client("GET", f"/metrics/detailed?{query}")
    assert (reply.status, reply.json["field"]) == (422, f"query.{query.partition('=')[0]}")


async def test_details_are_cut_at_a_stated_number(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client, 60)
    monkeypatch.setattr(metrics, "QUEUES_MAX", 60)
    assert value(await scraped(client, "/metrics/detailed"), "raftq_detailed_cut") == 0
    monkeypatch.setattr(metrics, "QUEUES_MAX", 59)
    found = await scraped(client, "/metrics/detailed")
    assert value(found, "raftq_detailed_cut") == 1
    assert len(found["raftq_queue_messages_ready"].samples) == 59


async def test_the_loop_goes_on_during_a_detailed_scrape(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client, 500)
    most = 0
    tallies = type(client.shard.stale()).tallies

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal most
        page = tallies(*given, **options)
        most = max(most, len(page[0]))
        return page

    monkeypatch.setattr("raftq.storage.machine.views.View.tallies", counted)
    passes = 0

    async def look() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    found = await scraped(client, "/metrics/detailed")
    looking.cancel()
    assert len(found["raftq_queue_messages_ready"].samples) == 500
    assert most == metrics._READ_IN_ONE_GO
    assert passes >= 500 / metrics._READ_IN_ONE_GO


async def test_a_scrape_looks_at_no_queue_when_there_are_many(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest message is looked for in the background, and told once it is known."""
    fill(client, stats._AT_ONCE + 1)
    client.shard.clock_ms += 3000
    monkeypatch.setattr(stats, "_PAUSE_SECONDS", 0.001)
    assert "raftq_queue_oldest_ready_age_seconds" not in await scraped(client)
    for _ in range(100):
        found = await scraped(client)
        if "raftq_queue_oldest_ready_age_seconds" in found:
            break
        await asyncio.sleep(0.01)
    assert value(found, "raftq_queue_oldest_ready_age_seconds") == 3
    assert value(found, "raftq_queue_messages_ready") == stats._AT_ONCE + 1
    for number in range(stats._AT_ONCE + 1):
        client.shard.apply(commands.DeleteQueue(f"default/q{number:05}"))
    assert value(await scraped(client), "raftq_queue_oldest_ready_age_seconds") == 0


# What stands in deploy/


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def scrape_jobs() -> dict[str, str]:
    """The path of each job."""
    page = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    [given] = re.findall(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    return {job["job_name"]: job.get("metrics_path", "/metrics") for job in yaml.safe_load(given)["scrape_configs"]}


@pytest.mark.parametrize("queue", ["jobs", "dead", "dead-letters"])
async def test_the_alert_for_what_waits_tells_the_queue_and_leaves_dead_letters_out(client: Client, queue: str) -> None:
    """One dead letter that lies would raise it for ever."""
    [expr] = [rule["expr"] for rule in rules() if rule["alert"] == "RaftqMessagesWait"]
    [(name, left_out)] = re.findall(r'max by \(job, queue\) \((\w+){.*queue!~"(.*)"}\)', expr)
    await client.enqueue("a", queue=queue)
    client.shard.later(700)
    assert value(await scraped(client, "/metrics/detailed"), name, queue=queue) == 700
    assert bool(re.fullmatch(left_out, queue)) == (queue != "jobs")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
async def test_alerts_name_metrics_that_there_are(client: Client, rule: dict[str, Any]) -> None:
    """Each in what the job is scraped at, which the operations page states."""
    await client.enqueue("a")
    named = re.findall(r'(raftq_\w+){job="([\w-]+)"', rule["expr"])
    assert len(named) == len(re.findall(r"raftq_\w+", rule["expr"]))
    for name, job in named:
        path = scrape_jobs()[job]
        there = {sample.name for family in (await scraped(client, path)).values() for sample in family.samples}
        there |= {measured.name for measured in MEASURES if path == "/metrics"}
        assert name in there, (job, path)
    assert {"severity"} <= set(rule["labels"])
    assert {"summary", "description"} <= set(rule["annotations"])


def triggers() -> list[dict[str, str]]:
    scaled = yaml.safe_load((DEPLOY / "keda" / "scaledobject.yaml").read_text())
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert {trigger["type"] for trigger in scaled["spec"]["triggers"]} == {"metrics-api"}
    return [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]


@pytest.mark.parametrize("metadata", triggers(), ids=lambda metadata: metadata["valueLocation"])
async def test_keda_finds_the_number_that_its_manifest_names(client: Client, metadata: dict[str, str]) -> None:
    await client.enqueue("a", "b", "c")
    await client.lease(max=1)
    # KEDA asks any node, and gets no redirect.
    client.node.follow("http://x")
    path = re.sub(r"^http://[^/]+", "", metadata["url"])
    reply = await client("GET", path)
    assert reply.status == 200, reply
    found = reply.json
    for name in metadata["valueLocation"].split("."):
        found = found[name]
    assert found == {"ready": 2, "leased": 1}[metadata["valueLocation"]]
    assert float(metadata["targetValue"]) > 0
