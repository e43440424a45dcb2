"""Peers over real sockets on loopback: who is let in, what arrives, what a loss looks like, what strangers can do."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from raftq.replication import peers as peers_module
from raftq.replication import wire
from raftq.replication.peers import Hello, Refusal
from tests.replication.peer_nodes import Cluster, Node, chunk, free_port, mark, until

NO_MEMBER = Refusal("no member")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for node in made.nodes:
        await node.peers.close()
        assert not node.peers.links
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_messages_arrive_whole_in_order_and_as_sent(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    sent = [chunk(number, number * 50_000) for number in range(20)]
    for message in sent:
        assert a.peers.send(["b", "c", "nobody"], message) == ["b"]
    await b.until(lambda: len(b.messages()) == len(sent))
    assert b.messages() == sent
    hello = b.peers.hello_of("a")
    assert hello is not None
    assert (hello.node_uuid, hello.last_index) == ("uuid-a", 7)


async def test_bytes_of_a_frame_that_is_not_whole_yet_count_as_contact(cluster: Cluster) -> None:
    b = await cluster.start("b")
    reader, writer = await cluster.stranger("b")
    writer.write(wire.frame(Node("a", cluster.addresses).hello()))
    await reader.readexactly(4)
    writer.write(wire.frame(mark(1))[:6])
    await b.saw("bytes", "a")
    assert b.messages() == []
    writer.close()
    await b.saw("disconnected", "a")


async def test_a_peer_that_goes_is_reported_once_and_dialed_again(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    await b.peers.close()
    await a.saw("disconnected", "b")
    assert not a.peers.reachable("b")
    assert a.peers.send(["b"], mark(1)) == []
    again = await cluster.start("b", boot=2)
    await a.saw("connected", "b", times=2)
    await again.saw("connected", "a")
    assert [event[0] for event in a.events if event[0] != "bytes"] == ["connected", "disconnected", "connected"]
    assert a.peers.send(["b"], mark(2)) == ["b"]
    await again.saw("message", "a", mark(2))


@pytest.mark.parametrize("which", ["dialed", "accepted"])
async def test_losing_either_connection_is_a_loss_on_both_sides_and_heals(cluster: Cluster, which: str) -> None:
    a, b = await cluster.pair()
    await a.until(lambda: a.peers.peer("b").accepted is not None)
    getattr(a.peers.peer("b"), which).abort()
    await a.saw("connected", "b", times=2)
    await b.saw("connected", "a", times=2)
    assert a.events.count(("disconnected", "b")) == 1
    assert b.events.count(("disconnected", "a")) == 1
    assert a.peers.send(["b"], mark(1)) == ["b"]
    assert b.peers.send(["a"], mark(2)) == ["a"]
    await b.saw("message", "a", mark(1))
    await a.saw("message", "b", mark(2))


async def test_the_newest_connection_of_a_node_wins_without_a_loss(cluster: Cluster) -> None:
    b = await cluster.start("b")
    hello = wire.frame(Node("a", cluster.addresses).hello())
    old_reader, old = await cluster.stranger("b")
    old.write(hello)
    await old_reader.readexactly(4)
    reader, new = await cluster.stranger("b")
    new.write(hello)
    await reader.readexactly(4)
    with contextlib.suppress(ConnectionError):
        await old_reader.read()  # ends: the old one was closed
    new.write(wire.frame(mark(1)))
    await b.saw("message", "a", mark(1))
    assert ("disconnected", "a") not in b.events
    new.close()
    old.close()
    await b.saw("disconnected", "a")


async def test_a_hello_of_a_new_boot_ends_the_connection_to_the_old_one(cluster: Cluster) -> None:
    a, _b = await cluster.pair()
    reader, writer = await cluster.stranger("a")
    writer.write(wire.frame(Node("b", cluster.addresses, boot=2).hello()))
    await reader.readexactly(4)
    await a.saw("disconnected", "b")
    writer.close()


async def test_another_cluster_is_refused_with_a_reason_on_both_sides(cluster: Cluster) -> None:
    expected = {
        (event, reason)
        for event in ("refused peer", "refused by peer")
        for reason in ("it is of cluster 'other', this node of 'c'", "it is of cluster 'c', this node of 'other'")
    }
    with capture_logs() as logs:
        a = await cluster.start("a")
        b = await cluster.start("b", cluster="other")
        await until(lambda: expected <= {(entry["event"], entry.get("reason")) for entry in logs})
    assert {event[0] for event in a.events + b.events} == {"refused"}


async def test_a_refusal_is_logged_once_and_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "REFUSED_SECONDS", 0.01)
    refusal = Refusal("its folder is older than what was seen", final=True, config_index=9)
    with capture_logs() as logs:
        a = await cluster.start("a")
        a.refuse = refusal
        b = await cluster.start("b")
        await b.saw("refused", "a", refusal, times=5)
        assert [entry["event"] for entry in logs].count("refused by peer") == 1
        a.refuse = None
        await b.saw("connected", "a")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": 1}, "it speaks protocol 1, this node 2"),
        ({"node_id": "b"}, "'b' is this node"),
        ({"to": "c"}, "this is 'b', not 'c'"),
        ({"node_id": "z", "peer_address": "z"}, "it is no member here, and its peer address 'z' cannot be dialed"),
        ({"lane": "bulk"}, "its bulk connection stands beside no main one"),
    ],
)
async def test_a_hello_that_does_not_fit_is_answered_with_the_reason(
    cluster: Cluster, change: dict[str, Any], reason: str
) -> None:
    b = await cluster.start("b")
    hello = msgspec.structs.replace(Node("a", cluster.addresses).hello(), **change)
    reader, writer, answer = await cluster.greet("b", hello)
    assert answer == Refusal(reason)
    assert await reader.read() == b""
    assert b.events == []
    writer.close()


async def test_an_address_that_has_become_another_nodes_is_not_connected(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does dialing it cost the connection to that other node: to be taken for the newest of the same two, it did,
    every two seconds, when two nodes had changed addresses."""
    monkeypatch.setattr(peers_module, "REFUSED_SECONDS", 0.01)
    cluster.addresses["c"] = cluster.addresses["b"]
    a = await cluster.start("a")
    await cluster.start("b", "ab")
    await a.saw("connected", "b")
    await a.saw("refused", "c", Refusal("this is 'b', not 'c'"), times=5)
    assert a.changes() == [("connected", "b")]


async def test_a_node_that_answers_as_another_is_not_connected(cluster: Cluster) -> None:
    """One that does not look at whom the hello is meant for."""
    with capture_logs() as logs:
        async with _deaf(cluster, "c", Node("b", cluster.addresses).hello()):
            a = await cluster.start("a", "ac")
            await until(lambda: any("is 'b', not 'c'" in entry.get("reason", "") for entry in logs))
            assert a.changes() == []


async def test_a_restarted_node_is_dialed_when_it_says_hello(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the pause between two dials has passed, which may have grown to half a second."""
    for pause in ("REDIAL_SECONDS_MIN", "REDIAL_SECONDS_MAX"):
        monkeypatch.setattr(peers_module, pause, 3600.0)
    a = await cluster.start("a", "ab")
    b = await cluster.start("b", "ab")
    await a.saw("connected", "b")
    await b.saw("connected", "a")
    await b.peers.close()
    await a.saw("disconnected", "b")
    again = await cluster.start("b", "ab", boot=2)
    await a.saw("connected", "b", times=2)
    assert again.changes() == [("connected", "a")]


async def test_a_dial_that_hangs_is_given_up_when_the_peer_says_hello(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went to a machine that was off: nothing answers, until the kernel tries again."""
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 3600.0)
    monkeypatch.setattr(peers_module, "SOON_SECONDS", 0.0)
    hanging = _hang_once(monkeypatch)
    a = await cluster.start("a", "ab")
    await until(hanging.is_set)
    b = await cluster.start("b", "ab")
    await a.saw("connected", "b")
    await b.saw("connected", "a")


async def test_both_sides_dial_at_once(cluster: Cluster) -> None:
    nodes = [Node(name, cluster.addresses) for name in "abc"]
    cluster.nodes += nodes
    await asyncio.gather(*(node.peers.start() for node in nodes))
    for node in nodes:
        await node.until(lambda node=node: len(node.changes()) == 2)  # type: ignore[misc]
    for node in nodes:
        assert sorted(node.peers.send("abc", mark(1))) == sorted({"a", "b", "c"} - {node.name})
    for node in nodes:
        await node.until(lambda node=node: len(node.messages()) == 2)  # type: ignore[misc]
        assert {event[0] for event in node.changes()} == {"connected"}
        assert len(node.peers.links) == 4


# Members that come and go


async def test_a_new_member_is_dialed_at_once_and_one_left_out_is_cut(cluster: Cluster) -> None:
    a = await cluster.start("a", "a")
    b = await cluster.start("b", "ab")
    b.peers.set_members(cluster.only("a"))
    await b.saw("connected", "a")
    await a.saw("connected", "b")  # as a guest
    a.peers.set_members(cluster.only("ab"))
    assert a.peers.reachable("b")
    a.refuse = NO_MEMBER
    a.peers.set_members(cluster.only("a"))
    assert a.changes() == [("connected", "b"), ("disconnected", "b")]
    assert a.peers.hello_of("b") is None
    assert a.peers.send(["b"], mark(1)) == []
    await b.saw("disconnected", "a")
    await b.saw("refused", "a", NO_MEMBER)
    assert len(a.changes()) == 2
    a.refuse = None
    a.peers.set_members(cluster.only("ab"))
    await a.saw("connected", "b", times=2)
    await b.saw("connected", "a", times=2)
    assert b.changes() == [("connected", "a"), ("disconnected", "a"), ("connected", "a")]


async def test_the_same_members_again_change_nothing(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    links = dict(a.peers.links)
    a.peers.set_members(cluster.addresses)
    assert a.peers.links == links
    assert a.peers.send(["b"], mark(1)) == ["b"]
    await b.saw("message", "a", mark(1))
    assert a.changes() == [("connected", "b")]


async def test_a_member_is_removed_while_its_connection_is_opening(cluster: Cluster) -> None:
    async with _deaf(cluster, "b", None):
        a = await cluster.start("a", "ab")
        await until(lambda: a.peers.peer("b").opening is not None)
        opening = a.peers.peer("b").opening
        assert opening is not None
        a.peers.set_members({})
        opening.data_received(wire.frame(Node("b", cluster.addresses).hello()))  # it was on its way
        await until(lambda: not a.peers.links)
        assert a.events == []
        assert a.peers.hello_of("b") is None


async def test_a_member_that_is_removed_when_it_comes_back_is_not_dialed(cluster: Cluster) -> None:
    a, _b = await cluster.pair()

    def remove(*event: Any) -> None:
        if event == ("disconnected", "b"):
            a.refuse = NO_MEMBER
            a.peers.set_members({})

    a.then = remove
    _, writer, _ = await cluster.greet("a", Node("b", cluster.addresses, boot=2).hello())
    await until(lambda: not a.peers._tasks)
    assert a.changes() == [("connected", "b"), ("disconnected", "b")]
    writer.close()


async def test_a_member_is_removed_while_it_is_being_dialed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = _hang_once(monkeypatch)
    a = await cluster.start("a", "ab")
    await until(hanging.is_set)
    a.peers.set_members({})
    await until(lambda: not a.peers._tasks)
    a.peers.set_members(cluster.only("ab"))
    await cluster.start("b", "ab")
    await a.saw("connected", "b")
    assert len(a.changes()) == 1


async def test_a_member_that_is_removed_by_its_message_says_nothing_more(cluster: Cluster) -> None:
    a, b = await cluster.pair()

    def remove(*event: Any) -> None:
        if event[:2] == ("message", "a") and event[2]["index"] == 3:
            b.refuse = NO_MEMBER
            b.peers.set_members({})

    b.then = remove
    for number in range(10):
        a.peers.send(["b"], mark(number))
    await a.saw("refused", "b", NO_MEMBER)
    assert [message["index"] for message in b.messages()] == [0, 1, 2, 3]
    assert b.changes() == [("connected", "a"), ("disconnected", "a")]


async def test_members_that_change_when_one_is_connected(cluster: Cluster) -> None:
    a = Node("a", cluster.addresses)
    cluster.nodes.append(a)
    a.then = lambda *event: a.peers.set_members({}) if event == ("connected", "b") else None
    await a.peers.start()
    await cluster.start("b", "ab")
    await a.saw("disconnected", "b")
    assert a.changes()[:2] == [("connected", "b"), ("disconnected", "b")]


async def test_members_that_are_set_while_closing_are_not_dialed(cluster: Cluster) -> None:
    a, _b = await cluster.pair()
    events = list(a.events)
    closing = asyncio.create_task(a.peers.close())
    await asyncio.sleep(0)
    a.peers.set_members(cluster.only("ac"))
    a.peers.set_members({})
    await closing
    a.peers.set_members(cluster.addresses)
    assert a.events == events
    assert not a.peers.links
    assert a.peers.send(["b"], chunk(1, 10), bulk=True) == []


async def test_a_member_whose_address_is_changed_is_dialed_there(cluster: Cluster) -> None:
    """Another folder took over its name: what is connected from the old address is another process."""
    elsewhere = dict(cluster.addresses, b=f"127.0.0.1:{free_port()}")
    new = Node("b", elsewhere, boot=2)
    new.peers.set_members({})
    async with _deaf(cluster, "b", Node("b", cluster.addresses).hello()):
        a = await cluster.start("a", "ab")
        await a.saw("connected", "b")
        await new.peers.start()
        cluster.nodes.append(new)
        a.peers.set_members(elsewhere)
        assert a.changes() == [("connected", "b"), ("disconnected", "b")]
        await a.saw("connected", "b", times=2)
        assert a.peers.send(["b"], mark(1)) == ["b"]
        await new.saw("message", "a", mark(1))


async def test_a_node_that_moved_is_dialed_where_its_hello_says(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    await b.peers.close()
    await a.saw("disconnected", "b")
    moved = Node("b", dict(cluster.addresses, b=f"127.0.0.1:{free_port()}"), boot=2)
    await moved.peers.start()
    cluster.nodes.append(moved)
    await a.saw("connected", "b", times=2)
    a.peers.set_members(cluster.addresses)  # which still have it where it was
    assert a.peers.send(["b"], mark(1)) == ["b"]
    await moved.saw("message", "a", mark(1))
    assert len(a.changes()) == 3


@pytest.mark.parametrize("claimed", ["", "nonsense", "127.0.0.1:99999", "[::1", "x" * 70 + ".y:1", "\0:1"])
async def test_a_hello_with_an_address_of_no_use_leaves_the_members_own(cluster: Cluster, claimed: str) -> None:
    a = await cluster.start("a", "ab")
    b = Node("b", cluster.addresses)
    b.address = claimed
    await b.peers.start()
    cluster.nodes.append(b)
    await a.saw("connected", "b")
    await b.peers.close()
    again = await cluster.start("b", boot=2)
    await a.saw("connected", "b", times=2)
    await again.saw("connected", "a")


# Guests


async def test_a_guest_is_dialed_back_while_it_is_connected(cluster: Cluster) -> None:
    a = await cluster.start("a", "ac")
    b = await cluster.start("b", "ab")
    await a.saw("connected", "b")
    await b.saw("connected", "a")
    assert a.peers.send(["b"], mark(1)) == ["b"]
    assert b.peers.send(["a"], mark(2)) == ["a"]
    assert a.peers.send(["b"], mark(3), bulk=True) == ["b"]
    for node, other, number in ((b, "a", 1), (a, "b", 2), (b, "a", 3)):
        await node.saw("message", other, mark(number))
    await b.peers.close()
    await a.saw("disconnected", "b")
    await until(lambda: not a.peers.links and len(a.peers._tasks) == 1)  # c is dialed, b no more
    assert a.changes() == [("connected", "b"), ("disconnected", "b")]
    assert a.peers.hello_of("b") is None


async def test_a_guest_that_loses_the_connection_to_it_is_dialed_again(cluster: Cluster) -> None:
    a = await cluster.start("a", "ac")
    b = await cluster.start("b", "ab")
    await a.saw("connected", "b")
    await b.saw("connected", "a")
    dialed = a.peers.peer("b").dialed
    assert dialed is not None
    dialed.abort()
    await a.saw("connected", "b", times=2)
    assert a.peers.send(["b"], mark(1)) == ["b"]
    await b.saw("message", "a", mark(1))


async def test_a_guest_that_is_made_a_member_stays_connected(cluster: Cluster) -> None:
    a = await cluster.start("a", "ac")
    b = await cluster.start("b", "ab")
    await a.saw("connected", "b")
    a.peers.set_members(cluster.addresses)
    a.refuse = NO_MEMBER
    a.peers.set_members(cluster.addresses)  # a member is asked only when it comes
    assert a.peers.send(["b"], mark(1)) == ["b"]
    await b.saw("message", "a", mark(1))
    assert a.changes() == [("connected", "b")]


async def test_a_guest_that_is_not_admitted_any_more_is_cut_with_the_next_members(cluster: Cluster) -> None:
    a = await cluster.start("a", "ac")
    b = await cluster.start("b", "ab")
    await a.saw("connected", "b")
    a.refuse = Refusal("it was removed", final=True, config_index=3)
    a.peers.set_members(cluster.only("ac"))
    assert a.changes() == [("connected", "b"), ("disconnected", "b")]
    await b.saw("refused", "a", a.refuse)
    assert len(a.changes()) == 2


async def test_there_are_only_so_many_guests(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "GUESTS_MAX", 2)
    a = await cluster.start("a", "ab")
    writers = []
    for name in ("x", "y", "z", "x", "b"):
        hello = msgspec.structs.replace(a.hello(), node_id=name, peer_address="127.0.0.1:1")
        _, writer, answer = await cluster.greet("a", hello)
        writers.append(writer)
        assert isinstance(answer, Refusal) == (name == "z")
    for writer in writers:
        writer.close()


# Refusals


async def test_a_node_that_is_refused_by_who_dialed_it_learns_it_by_dialing_back(cluster: Cluster) -> None:
    """The folder of b is an old copy, and has an old address of a."""
    a = await cluster.start("a", "ab")
    a.refuse = Refusal("it is an old copy", final=True, config_index=5)
    b = Node("b", dict(cluster.addresses, a="127.0.0.1:1"))
    await b.peers.start()
    cluster.nodes.append(b)
    await b.saw("refused", "a", a.refuse)
    assert a.changes() == []
    assert ("connected", "a") not in b.events


# The bulk lane


async def test_bulk_messages_have_connections_of_their_own(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    assert len(a.peers.links) == 2
    for number in range(3):
        assert a.peers.send(["b", "c", "nobody"], chunk(number, 1 << 18), bulk=True) == ["b"]
    await b.until(lambda: len(b.messages()) == 3)
    assert b.messages() == [chunk(number, 1 << 18) for number in range(3)]
    assert ("bytes", "a") not in b.events  # they say little of whether a lives now
    assert len(a.peers.links) == len(b.peers.links) == 3
    assert b.peers.send(["a"], chunk(4, 1), bulk=True) == ["a"]
    await a.saw("message", "b", chunk(4, 1))
    assert (a.changes(), b.changes()) == ([("connected", "b")], [("connected", "a")])


async def test_an_idle_bulk_connection_is_closed_and_opened_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "BULK_IDLE_SECONDS", 0.02)
    a, b = await cluster.pair()
    for number in range(3):
        assert a.peers.send(["b"], mark(number), bulk=True) == ["b"]
        await b.saw("message", "a", mark(number))
        await until(lambda: len(a.peers.links) == 2 and a.peers.peer("b").bulk is None)
    assert (a.changes(), b.changes()) == ([("connected", "b")], [("connected", "a")])


async def test_the_loss_of_a_bulk_connection_is_no_loss_of_the_peer(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    for number, (node, lane) in enumerate([(a, "bulk"), (b, "bulk_accepted"), (a, "bulk")]):
        assert a.peers.send(["b"], mark(number), bulk=True) == ["b"]
        await b.saw("message", "a", mark(number))
        getattr(node.peers.peer("b" if node is a else "a"), lane).abort()
        await until(lambda: a.peers.peer("b").bulk is None and b.peers.peer("a").bulk_accepted is None)
    assert a.peers.send(["b"], mark(9)) == ["b"]
    await b.saw("message", "a", mark(9))
    assert (a.changes(), b.changes()) == ([("connected", "b")], [("connected", "a")])


async def test_heartbeats_do_not_wait_behind_bulk_messages(cluster: Cluster) -> None:
    """b reads nothing of the bulk lane: what is sent there waits, up to a bound, and all else goes on."""
    a, b = await cluster.pair()
    assert a.peers.send(["b"], chunk(0, 1), bulk=True) == ["b"]
    await b.saw("message", "a", chunk(0, 1))
    accepted: Any = b.peers.peer("a").bulk_accepted
    accepted._transport.pause_reading()
    taken = 1
    while a.peers.send(["b"], chunk(taken, 1 << 18), bulk=True):
        taken += 1
        assert a.peers.queued_bytes("b", bulk=True) <= peers_module.BULK_QUEUED_BYTES_MAX
        assert taken < 1000
        await asyncio.sleep(0)
    assert a.peers.queued_bytes("b") == 0
    heard = b.events.count(("bytes", "a"))
    assert a.peers.send(["b"], mark(1)) == ["b"]
    await b.saw("message", "a", mark(1))
    assert b.events.count(("bytes", "a")) > heard
    accepted._transport.resume_reading()
    await b.until(lambda: len(b.messages()) == taken + 1)
    assert [message["offset"] for message in b.messages() if "offset" in message] == list(range(taken))
    assert (a.changes(), b.changes()) == ([("connected", "b")], [("connected", "a")])


async def test_a_bulk_connection_on_which_nothing_moves_is_closed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await cluster.pair()
    assert a.peers.send(["b"], chunk(0, 1), bulk=True) == ["b"]
    await b.saw("message", "a", chunk(0, 1))
    accepted: Any = b.peers.peer("a").bulk_accepted
    accepted._transport.pause_reading()
    monkeypatch.setattr(peers_module, "BULK_IDLE_SECONDS", 0.02)
    bulk = a.peers.peer("b").bulk
    assert bulk is not None
    bulk._look_after()
    while a.peers.send(["b"], chunk(1, 1 << 18), bulk=True):
        await asyncio.sleep(0)
    await until(lambda: a.peers.queued_bytes("b", bulk=True) == 0)
    assert a.peers.reachable("b")
    await until(lambda: a.peers.send(["b"], chunk(7, 1), bulk=True) == ["b"])
    await b.saw("message", "a", chunk(7, 1))


@pytest.mark.parametrize("which", ["dialed", "accepted"])
async def test_a_bulk_connection_ends_with_the_main_one(cluster: Cluster, which: str) -> None:
    a, b = await cluster.pair()
    assert a.peers.send(["b"], mark(1), bulk=True) == ["b"]
    await b.saw("message", "a", mark(1))
    await a.until(lambda: a.peers.peer("b").accepted is not None)
    bulks = []
    a.then = lambda *event: bulks.append(a.peers.peer("b").bulk) if event == ("disconnected", "b") else None
    getattr(a.peers.peer("b"), which).abort()
    await a.saw("connected", "b", times=2)
    assert bulks == [None]
    assert a.peers.send(["b"], mark(2), bulk=True) == ["b"]
    await b.saw("message", "a", mark(2))


async def test_a_bulk_connection_of_another_process_than_the_main_one_is_refused(cluster: Cluster) -> None:
    b = await cluster.start("b", "b")
    hello = msgspec.structs.replace(Node("a", cluster.addresses).hello(), peer_address="127.0.0.1:1")
    _, main, answer = await cluster.greet("b", hello)
    assert isinstance(answer, Hello)
    for changed, reason in (({"boot": 2}, "stands beside"), ({"node_uuid": "?"}, "stands beside"), ({}, None)):
        _, writer, answer = await cluster.greet("b", msgspec.structs.replace(hello, lane="bulk", **changed))
        assert (reason in answer.reason) if isinstance(answer, Refusal) else reason is None
        writer.write(wire.frame(mark(1)))
        if reason is None:
            await b.saw("message", "a", mark(1))
        writer.close()
    assert b.messages() == [mark(1)]
    await until(lambda: b.peers.peer("a").bulk_accepted is None)
    assert b.changes() == []
    main.close()
    await b.saw("disconnected", "a")


async def test_a_bulk_connection_that_cannot_be_had_is_tried_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken for it is lost, as on any connection, and what comes meanwhile is not taken."""
    monkeypatch.setattr(peers_module, "REDIAL_SECONDS_MAX", 0.01)
    a, b = await cluster.pair()
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "create_connection", _fails)
        assert a.peers.send(["b"], mark(1), bulk=True) == ["b"]
        await until(lambda: a.peers.send(["b"], mark(2), bulk=True) == [])
    assert a.peers.reachable("b")
    await until(lambda: a.peers.peer("b").bulk is None)
    assert a.peers.send(["b"], mark(3), bulk=True) == ["b"]
    await b.saw("message", "a", mark(3))
    assert b.messages() == [mark(3)]


async def test_a_bulk_connection_that_is_refused_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await cluster.pair()
    b.refuse = Refusal("no more", final=True, config_index=2)
    assert a.peers.send(["b"], mark(1), bulk=True) == ["b"]
    await a.saw("refused", "b", b.refuse)
    assert a.peers.send(["b"], mark(1), bulk=True) == []
    assert a.changes() == [("connected", "b")]
    assert b.messages() == []


async def test_what_waits_for_a_bulk_connection_to_open_is_bounded(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "BULK_QUEUED_BYTES_MAX", 1 << 20)
    a, b = await cluster.pair()
    taken = 0
    while a.peers.send(["b"], chunk(taken, 1 << 18), bulk=True):
        taken += 1
    assert taken == 3  # and the next would be over the bound
    assert a.peers.queued_bytes("b", bulk=True) <= 1 << 20
    await b.until(lambda: len(b.messages()) == taken)


# What is malformed


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_malformed_message_of_a_peer_costs_its_connection_alone(cluster: Cluster, bulk: bool) -> None:
    a, b = await cluster.pair()
    a.peers.send(["b"], {"type": "append", "term": "high"}, bulk=bulk)
    a.peers.send(["b"], mark(1), bulk=bulk)
    if bulk:
        await until(lambda: a.peers.peer("b").bulk is None)
    else:
        await b.saw("disconnected", "a")
        await a.saw("connected", "b", times=2)
        await b.saw("connected", "a", times=2)
    assert a.peers.send(["b"], mark(2)) == ["b"]
    await b.saw("message", "a", mark(2))
    assert b.messages() == [mark(2)]


async def test_a_message_of_a_kind_of_a_newer_node_is_passed_over(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    a.peers.send(["b"], {"type": "gossip", "about": ["you"]})
    a.peers.send(["b"], mark(1))
    await b.saw("message", "a", mark(1))
    assert b.messages() == [mark(1)]
    assert b.changes() == [("connected", "a")]


async def test_of_many_strangers_the_oldest_is_sent_away(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "STRANGERS_MAX", 3)
    b = await cluster.start("b", "b")
    made = [await cluster.stranger("b") for _ in range(5)]
    for reader, _ in made[:2]:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert len(b.peers.links) == 3
    _, writer, answer = await cluster.greet("b", Node("a", cluster.addresses).hello())
    assert isinstance(answer, Hello)
    for _, other in [*made, (None, writer)]:
        other.close()


# All at once


@pytest.mark.parametrize("seed", range(5))
async def test_after_any_storm_all_nodes_are_connected_again(
    cluster: Cluster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections break, members come and go, nodes restart; then it ends. Nobody comes twice without leaving."""
    monkeypatch.setattr(peers_module, "REFUSED_SECONDS", 0.01)
    dice = random.Random(seed)
    nodes = {name: await cluster.start(name) for name in "abc"}
    retired: list[Node] = []
    for step in range(150):
        name = dice.choice("abc")
        node = nodes[name]
        match dice.randrange(8):
            case 0 | 1 if node.peers.links:
                dice.choice(list(node.peers.links)).abort()
            case 2:
                node.peers.set_members(cluster.only(dice.choice(["a", "b", "c", "ab", "ac", "bc"])))
            case 3:
                node.peers.set_members(cluster.addresses)
            case 4:
                node.refuse = dice.choice([None, NO_MEMBER])
            case 5 if step % 5 == 0:
                await node.peers.close()
                retired.append(node)
                nodes[name] = await cluster.start(name, boot=node.boot + 1)
            case _:
                node.peers.send("abc", chunk(step, 1000), bulk=dice.random() < 0.5)
        for _ in range(dice.randrange(10)):
            await asyncio.sleep(0)
    for node in nodes.values():
        node.refuse = None
        node.peers.set_members(cluster.addresses)
    for name, node in nodes.items():
        others = [other for other in "abc" if other != name]
        for bulk in (False, True):
            for other in others:
                await _heard(node, nodes[other], bulk)
    for node in [*retired, *nodes.values()]:
        for other in "abc":
            kinds = [event[0] for event in node.changes() if event[1] == other]
            assert ("connected", "connected") not in pairwise(kinds)


async def _heard(sender: Node, receiver: Node, bulk: bool) -> None:
    """A connection that is about to be lost may take the message with it: then it is sent again."""
    async with asyncio.timeout(20):
        number = 0
        while not any(message["type"] == "digest" and message["index"] > 0 for message in receiver.messages()):
            number += 1
            sender.peers.send([receiver.name], mark(number), bulk=bulk)
            await asyncio.sleep(0.001)
    receiver.events = [event for event in receiver.events if event[0] != "message"]


async def test_a_peer_that_takes_nothing_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "QUEUED_BYTES_MAX", 1 << 20)
    async with _deaf(cluster, "b", Node("b", cluster.addresses).hello()):
        a = await cluster.start("a", "ab")
        await a.saw("connected", "b")
        sent = 0
        while a.peers.send(["b"], chunk(1, 1 << 19)):
            sent += 1
            assert a.peers.queued_bytes("b") <= 1 << 20
            assert sent < 1000
        await a.saw("disconnected", "b")
        await a.peers.close()


async def test_closing_while_a_dial_succeeds_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop closes a connection whose making is cancelled without telling its protocol, and `close` waited for that.
    Found by a shard that was killed at the moment at which a peer came back."""
    made = peers_module._Dialed.connection_made
    closing: list[asyncio.Task[None]] = []

    def close_at_once(link: peers_module._Dialed, transport: Any) -> None:
        made(link, transport)
        if not closing and link._peers is a.peers:
            closing.append(asyncio.create_task(a.peers.close()))
            for dial in a.peers._tasks:
                dial.cancel()

    monkeypatch.setattr(peers_module._Dialed, "connection_made", close_at_once)
    a = await cluster.start("a")
    await cluster.start("b")
    async with asyncio.timeout(5):
        while not closing:
            await asyncio.sleep(0)
        await closing[0]
    assert not a.peers.links


async def test_a_taken_port_is_an_os_error(cluster: Cluster) -> None:
    await cluster.start("a")
    with pytest.raises(OSError, match="address already in use"):
        await Node("a", cluster.addresses).peers.start()


async def test_a_stranger_that_says_nothing_is_sent_away(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "OPENING_SECONDS", 0.05)
    await cluster.start("a")
    reader, writer = await cluster.stranger("a")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(("known", "allowed"), [(False, wire.HELLO_BYTES_MAX), (True, wire.FRAME_BYTES_MAX)])
async def test_a_huge_frame_is_refused_when_announced(cluster: Cluster, known: bool, allowed: int) -> None:
    b = await cluster.start("b")
    reader, writer = await cluster.stranger("b")
    if known:
        writer.write(wire.frame(Node("a", cluster.addresses).hello()))
        await reader.readexactly(4)
    with capture_logs() as logs:
        writer.write((allowed + 1).to_bytes(4, "big"))
        with contextlib.suppress(ConnectionError):
            await reader.read()
    assert [entry["event"] for entry in logs] == ["peer malformed"]
    assert b.messages() == []
    writer.close()


_HELLO = bytes(wire.frame(Hello(2, "c", "a", "uuid-a", 1, "http://x", "", "0", 7, 3)))
_FRAMED = st.binary(max_size=200).map(lambda payload: len(payload).to_bytes(4, "big") + payload)
_JUNK = st.lists(st.one_of(st.binary(max_size=100), _FRAMED), max_size=5).map(b"".join)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opening=st.sampled_from([b"", _HELLO]), junk=_JUNK)
def test_junk_at_the_port_neither_stops_nor_blocks_a_node(opening: bytes, junk: bytes) -> None:
    asyncio.run(_survives(opening + junk))


async def _survives(junk: bytes) -> None:
    cluster = Cluster()
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    b = await cluster.start("b")
    _, writer = await cluster.stranger("b")
    writer.write(junk)
    writer.write_eof()
    a = await cluster.start("a")
    await a.saw("connected", "b")
    await b.saw("connected", "a")  # else the loop could end while a connection is being accepted
    a.peers.send(["b"], mark(1))
    await b.saw("message", "a", mark(1))
    writer.close()
    await a.peers.close()
    await b.peers.close()
    assert failures == []


class _Deaf(asyncio.Protocol):
    """Says hello to whoever comes, if it has one, and reads nothing."""

    def __init__(self, hello: Hello | None) -> None:
        self.hello = hello
        self.transports: list[asyncio.Transport] = []

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()
        if self.hello is not None:
            transport.write(wire.frame(self.hello))
        self.transports.append(transport)


@contextlib.asynccontextmanager
async def _deaf(cluster: Cluster, name: str, hello: Hello | None) -> AsyncIterator[_Deaf]:
    """Such a one at the address of a node."""
    deaf = _Deaf(hello)
    host, port = cluster.addresses[name].split(":")
    server = await asyncio.get_running_loop().create_server(lambda: deaf, host, int(port))
    yield deaf
    server.close()
    for transport in deaf.transports:
        transport.abort()
    await server.wait_closed()


def _hang_once(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The next connection is never made, nor refused; the event says that it has begun."""
    loop, hanging = asyncio.get_running_loop(), asyncio.Event()
    make = loop.create_connection

    async def hang(*arguments: Any, **options: Any) -> Any:
        if hanging.is_set():
            return await make(*arguments, **options)
        hanging.set()
        return await loop.create_future()

    monkeypatch.setattr(loop, "create_connection", hang)
    return hanging


async def _fails(*_arguments: Any, **_options: Any) -> None:
    raise OSError("no connection today")
