"""What a real node says in `/metrics`: all of the tables that the documents are made of, and what others read there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from raftq.api.metrics import FAMILIES
from raftq.bench import measure
from raftq.node import probe
from raftq.node.measures import MEASURES
from tests.node.conftest import Node, Settings

ROOT = Path(__file__).parents[2]
#: They speak of peers, and there are none.
OF_PEERS = {"raftq_raft_peer_lag_entries", "raftq_raft_peer_lag_seconds", "raftq_raft_peer_reachable"}


def test_a_node_tells_all_that_is_documented(start: Callable[..., Node], settings: Settings) -> None:
    node = start(settings.flags)
    node.wait_ready(settings.url)
    assert probe.ask("POST", f"{settings.url}/q/jobs").status == 201
    text = probe.ask("GET", f"{settings.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    documented = {name for name, *_ in (*FAMILIES, *MEASURES)}
    assert {name.removesuffix("_total") for name in documented - OF_PEERS} == {
        name for name in families if name.startswith("raftq_")
    }
    assert "process_resident_memory_bytes" in families
    there = {sample.name for family in families.values() for sample in family.samples}
    assert _named_elsewhere() <= there | OF_PEERS
    assert measure.metric(text, measure.COMMITS_METRIC) > 0
    assert measure.metric(text, measure.COMMIT_SECONDS_METRIC) > 0
    assert 'raftq_request_stage_seconds_count{stage="replicate"} 0' not in text
    detailed = probe.ask("GET", f"{settings.url}/metrics/detailed").text
    assert 'raftq_queue_messages_ready{queue="jobs"} 1\n' in detailed


def _named_elsewhere() -> set[str]:
    """By the alerts and the benchmarks."""
    [group] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    found = {name for rule in group["rules"] for name in re.findall(r"raftq_\w+", rule["expr"])}
    for file in (ROOT / "bench").glob("*.py"):
        found.update(re.findall(r'"(raftq_\w+)"', file.read_text()))
    return found
