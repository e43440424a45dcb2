from __future__ import annotations

import pytest

from raftq.client.discovery import Discovery, origin
from raftq.client.models import Cluster, ClusterNode

A, B, C = "http://a:1", "http://b:1", "http://c:1"


def cluster(leader: str | None, *urls: str) -> Cluster:
    return Cluster(cluster_id="c", leader=leader, nodes=[ClusterNode(id=url, api_url=url) for url in urls])


class Views:
    """What each node says of the cluster."""

    def __init__(self, **views: Cluster) -> None:
        self.views = {f"http://{name}:1": view for name, view in views.items()}
        self.asked: list[str] = []

    async def __call__(self, url: str) -> Cluster | None:
        self.asked.append(url)
        return self.views.get(url)


async def test_the_leader_is_found_from_any_seed_and_kept() -> None:
    discovery = Discovery([A], Views(a=cluster(B, A, B, C)))
    await discovery.refresh()
    assert [discovery.choose() for _ in range(3)] == [B, B, B]


async def test_without_a_leader_all_are_tried_in_turn() -> None:
    discovery = Discovery([A], Views(a=cluster(None, A, B, C)))
    await discovery.refresh()
    assert {discovery.choose() for _ in range(3)} == {A, B, C}


async def test_a_leader_that_failed_is_not_believed_until_it_is_named_by_a_redirect() -> None:
    discovery = Discovery([A], Views(a=cluster(B, A, B)))
    await discovery.refresh()
    discovery.failed(B)
    await discovery.refresh()
    assert discovery.leader is None
    await discovery.redirected(f"{B}/v1/queues/jobs/messages?x=1")
    assert discovery.choose() == B


async def test_a_view_that_is_behind_does_not_hide_one_that_is_ahead() -> None:
    discovery = Discovery([A, C], Views(a=cluster(B, A, B, C), c=cluster(C, A, B, C)))
    await discovery.redirected(B)
    discovery.failed(B)
    await discovery.refresh()
    assert discovery.choose() == C


async def test_a_node_whose_url_is_not_known_yet_is_left_out() -> None:
    view = cluster(B, A, B)
    view.nodes.append(ClusterNode(id="n4", api_url=""))
    discovery = Discovery([A], Views(a=view))
    await discovery.refresh()
    assert (discovery.leader, discovery.nodes()) == (B, [A, B])


async def test_the_failure_of_another_node_leaves_the_leader() -> None:
    discovery = Discovery([A], Views())
    await discovery.redirected(B)
    discovery.failed(A)
    assert discovery.choose() == B


async def test_it_survives_the_exchange_of_every_node() -> None:
    views = Views(a=cluster(A, A, B))
    discovery = Discovery([A], views)
    await discovery.refresh()
    discovery.failed(A)
    views.views = {B: cluster(C, B, C)}  # the seed is gone
    await discovery.refresh()
    discovery.failed(C)
    d = "http://d:1"
    views.views = {C: cluster(d, C, d)}
    await discovery.refresh()
    assert discovery.choose() == d
    assert set(discovery.nodes()) == {A, C, d}


@pytest.mark.parametrize("url", ["", "localhost:7701", "ftp://a", "http://", "/v1"])
def test_what_is_no_url_of_a_node_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a node"):
        origin(url)


def test_a_client_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Discovery([], Views())
