"""The rule of retries: what is tried again, and what is told of an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.errors import Busy, NotFound, OutcomeUnknown, Refused, Unavailable
from raftq.client.models import NewMessage
from raftq.client.transport import Answer, Exchange, Lost, NotSent
from tests.client.nodes import IMPATIENT, Node, ScriptedTransport, answer, client_of, problem

A, B, C = "http://a:1", "http://b:1", "http://c:1"
ENQUEUED = answer({"messages": [{"id": "1-0-1", "duplicate": False}], "index": 7}, 201)
HELLO = [NewMessage(body=b"hello")]


def cluster(leader: str | None) -> Answer:
    nodes = [{"id": url, "api_url": url} for url in (A, B, C)]
    return answer({"cluster_id": "c", "leader": leader, "term": 1, "nodes": nodes})


def scripted(*outcomes: Answer | Exception, leader: str | None = A) -> tuple[AsyncClient, ScriptedTransport]:
    """A client whose changes are answered with `outcomes` in turn, the last one for ever."""
    rest = chain(outcomes, repeat(outcomes[-1]))

    def script(exchange: Exchange) -> Answer:
        if exchange.url.endswith("/v1/cluster"):
            return cluster(leader)
        outcome = next(rest)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    transport = ScriptedTransport(script)
    return AsyncClient([A, B], patience=IMPATIENT, transport=transport), transport


def bodies(transport: ScriptedTransport) -> list[bytes | None]:
    return [exchange.body for exchange in transport.seen if exchange.method == "POST"]


@pytest.fixture
def lose_first() -> Callable[[str], Callable[[Exchange], str | None]]:
    """A fault for the first POST alone."""

    def make(kind: str) -> Callable[[Exchange], str | None]:
        faults: Iterator[str | None] = chain([kind], repeat(None))
        return lambda exchange: next(faults) if exchange.method == "POST" else None

    return make


@pytest.mark.parametrize("kind", ["lost", "sunk", "refused", "busy"])
async def test_an_enqueue_is_repeated_and_takes_effect_once(
    node: Node, kind: str, lose_first: Callable[[str], Callable[[Exchange], str | None]]
) -> None:
    async with client_of(node, lose_first(kind)) as client:
        enqueued = await client.enqueue("jobs", HELLO)
        assert len(enqueued.messages) == 1
        assert (await client.stats("jobs"))["totals"]["enqueued"] == 1


@pytest.mark.parametrize("kind", ["lost", "sunk"])
async def test_without_a_request_id_a_lost_answer_is_told_as_unknown(
    node: Node, kind: str, lose_first: Callable[[str], Callable[[Exchange], str | None]]
) -> None:
    async with client_of(node, lose_first(kind)) as client:
        with pytest.raises(OutcomeUnknown):
            await client.enqueue("jobs", HELLO, request_id=None)


async def test_without_a_request_id_what_was_not_applied_is_repeated() -> None:
    client, transport = scripted(NotSent("refused"), problem(503, "no"), ENQUEUED)
    await client.enqueue("jobs", HELLO, request_id=None)
    assert len(bodies(transport)) == 3


async def test_retries_are_the_same_bytes() -> None:
    client, transport = scripted(Lost("reset"), problem(503, "unknown"), ENQUEUED)
    await client.enqueue("jobs", HELLO)
    sent = bodies(transport)
    assert len(sent) == 3
    assert len(set(sent)) == 1


async def test_a_503_that_may_be_applied_is_unknown_without_a_request_id() -> None:
    client, _ = scripted(problem(503, "unknown"), ENQUEUED)
    with pytest.raises(OutcomeUnknown):
        await client.enqueue("jobs", HELLO, request_id=None)


async def test_a_server_error_that_says_nothing_may_be_applied() -> None:
    client, _ = scripted(Answer(502, {"Content-Type": "text/html"}, b"<h1>Bad gateway</h1>"))
    with pytest.raises(OutcomeUnknown):
        await client.enqueue("jobs", HELLO, request_id=None)


async def test_a_refusal_after_a_lost_answer_proves_nothing() -> None:
    client, _ = scripted(Lost("reset"), problem(404, "no"))
    with pytest.raises(OutcomeUnknown) as caught:
        await client.ack("jobs", ["1.1.0"])
    assert isinstance(caught.value.__cause__, NotFound)


@pytest.mark.parametrize("status", [409, 422, 507])
async def test_a_refusal_is_raised_with_its_fields_and_not_repeated(status: int) -> None:
    client, transport = scripted(problem(status, "no"))
    with pytest.raises(Refused) as caught:
        await client.enqueue("jobs", HELLO)
    refused = caught.value
    assert (refused.status, refused.type, str(refused)) == (status, "about:test", "Wait.")
    assert refused.fields["applied"] == "no"
    assert len(bodies(transport)) == 1


async def test_the_answer_of_another_program_is_a_refusal() -> None:
    client, _ = scripted(Answer(404, {"Content-Type": "text/html"}, b"\xff not here"))
    with pytest.raises(NotFound):
        await client.enqueue("jobs", HELLO)


async def test_an_answer_that_is_not_understood_is_unknown() -> None:
    client, _ = scripted(Answer(200, {}, b"<html>"))
    with pytest.raises(OutcomeUnknown):
        await client.enqueue("jobs", HELLO)


NO_TIME = Patience(timeout_seconds=0.05, first_delay_seconds=0.001, max_delay_seconds=0.002)


async def test_at_the_deadline_what_never_was_applied_is_unavailable() -> None:
    client, _ = scripted(NotSent("refused"))
    client._caller.patience = NO_TIME
    with pytest.raises(Unavailable):
        await client.enqueue("jobs", HELLO)


async def test_at_the_deadline_what_may_be_applied_is_unknown() -> None:
    client, _ = scripted(Lost("reset"), NotSent("refused"))
    client._caller.patience = NO_TIME
    with pytest.raises(OutcomeUnknown):
        await client.enqueue("jobs", HELLO)


async def test_a_read_that_is_lost_is_unavailable() -> None:
    client, _ = scripted(Lost("reset"))
    client._caller.patience = NO_TIME
    with pytest.raises(Unavailable):
        await client.stats("jobs")


async def test_backpressure_is_waited_for_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    client, _ = scripted(problem(429, "no", **{"Retry-After": "3"}), ENQUEUED)
    monkeypatch.setattr("raftq.client.calls.asyncio.sleep", sleep)
    assert (await client.enqueue("jobs", HELLO)).index == 7
    assert 3 in waits


class Clock:
    """Stands still but for sleeps, which last no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = self.now = asyncio.get_running_loop().time()
        monkeypatch.setattr("raftq.client.calls._now", lambda: self.now)
        monkeypatch.setattr("raftq.client.calls.asyncio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def passed_seconds(self) -> float:
        return self.now - self.begun


FULL = problem(429, "no", **{"Retry-After": "1"})


async def test_at_the_deadline_a_full_queue_is_told_in_the_words_of_the_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    async with client_of(node) as client:
        await client.define_queue("jobs", {"max_messages": 1})
        with pytest.raises(Busy) as caught:
            await client.enqueue("jobs", HELLO * 2)
        assert (caught.value.status, caught.value.type) == (429, "https://raftq.dev/problems/queue-full")
        assert str(caught.value).startswith("The queue jobs is full: ")
        assert isinstance(caught.value, Refused)
        assert isinstance(caught.value, Unavailable)


async def test_an_attempt_has_time_to_be_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    client, transport = scripted(FULL)
    client._caller.patience = Patience()
    with pytest.raises(Busy):
        await client.enqueue("jobs", HELLO)
    assert len(bodies(transport)) == 30
    assert min(exchange.timeout_seconds for exchange in transport.seen) >= 1
    assert 28 <= clock.passed_seconds <= 29


async def test_a_leader_that_is_busy_is_asked_again_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    client, transport = scripted(FULL, FULL, ENQUEUED)
    await client._caller.discovery.redirected(B)
    await client.enqueue("jobs", HELLO)
    assert [exchange.url.split("/v1")[0] for exchange in transport.seen] == [B, B, B]


@pytest.mark.parametrize(("refusal", "kind"), [(FULL, Busy), (problem(503, "no"), Unavailable)])
async def test_a_redirect_hides_no_words(
    monkeypatch: pytest.MonkeyPatch, refusal: Answer, kind: type[Exception]
) -> None:
    Clock(monkeypatch)
    redirect = Answer(307, {"Location": f"{A}/v1/queues/jobs/messages"}, b"")
    client, _ = scripted(refusal, redirect, leader=None)
    with pytest.raises(kind, match=r"Wait\."):
        await client.enqueue("jobs", HELLO)


async def test_at_the_deadline_the_newest_trouble_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    client, _ = scripted(FULL, NotSent("connection refused"))
    with pytest.raises(Unavailable, match="connection refused") as caught:
        await client.enqueue("jobs", HELLO)
    assert not isinstance(caught.value, Busy)


async def test_a_busy_node_proves_nothing_of_an_attempt_before(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    client, _ = scripted(Lost("reset"), FULL)
    with pytest.raises(OutcomeUnknown, match=r"Wait\.") as caught:
        await client.enqueue("jobs", HELLO)
    assert isinstance(caught.value.__cause__, Busy)


async def test_deleting_what_an_earlier_attempt_deleted_is_done() -> None:
    client, _ = scripted(Lost("reset"), problem(404, "no"))
    await client.delete_queue("jobs")
    with pytest.raises(NotFound):
        await scripted(problem(404, "no"))[0].delete_queue("jobs")


async def test_a_redirect_is_followed_and_the_leader_remembered() -> None:
    redirect = Answer(307, {"Location": f"{C}/v1/queues/jobs/messages"}, b"")
    transport = ScriptedTransport(lambda exchange: ENQUEUED if exchange.url.startswith(C) else redirect)
    client = AsyncClient([A], patience=IMPATIENT, transport=transport)
    await client.enqueue("jobs", HELLO)
    await client.enqueue("jobs", HELLO)
    assert [exchange.url.split("/v1")[0] for exchange in transport.seen] == [A, C, C]


async def test_redirects_that_go_in_a_circle_end_at_the_deadline() -> None:
    def script(exchange: Exchange) -> Answer:
        return Answer(307, {"Location": A if exchange.url.startswith(B) else B}, b"")

    transport = ScriptedTransport(script)
    client = AsyncClient([A], patience=NO_TIME, transport=transport)
    with pytest.raises(Unavailable):
        await client.enqueue("jobs", HELLO)
    assert len(transport.seen) < 200


async def test_when_the_leader_dies_the_next_one_is_found_through_the_others() -> None:
    dead: set[str] = set()
    leader = A

    def script(exchange: Exchange) -> Answer:
        node = exchange.url.split("/v1")[0]
        if node in dead:
            raise NotSent("connection refused")
        if exchange.url.endswith("/v1/cluster"):
            return cluster(leader)
        return ENQUEUED if node == leader else problem(503, "no")

    transport = ScriptedTransport(script)
    client = AsyncClient([A], patience=IMPATIENT, transport=transport)
    await client.cluster()
    await client.enqueue("jobs", HELLO)
    client._caller.discovery.failed(A)
    await client._caller.discovery.refresh()
    dead.add(A)  # the only seed
    leader = C
    await client.enqueue("jobs", HELLO)
    assert client._caller.discovery.leader == C
