"""The run of `deadletters`, small and seeded."""

from __future__ import annotations

import pytest

from raftq.node.local_cluster import LocalCluster
from tests.cluster.deadletters import Plan, Story

pytestmark = pytest.mark.cluster


def test_each_message_ends_in_one_place_while_leaders_are_killed(cluster: LocalCluster) -> None:
    story = Story(Plan(messages=1000, kill_leader_seconds=1.5, seed=4), cluster)
    story.run()
    assert all(kills.count >= 2 for kills in story.kills.values())
    places = {"acked", "back", "dead", "max_failures", "rejected: poison"}
    assert all(story.ended[place] for place in places), story.ended
