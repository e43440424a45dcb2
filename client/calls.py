"""One operation, carried to its end over lost connections, leader changes and refusals for the moment.

The rule of retries: what certainly was not applied is tried again until the deadline. What may have been is tried again
only when repeating is safe (`Call.repeatable`: it carries a request id, or doing it twice is doing it once); otherwise
OutcomeUnknown is raised at once. After an attempt that may have been applied nothing but success proves anything: what
remains at the deadline, and even a refusal, is OutcomeUnknown.

What is raised at the deadline tells the newest trouble, but for redirects. No attempt begins when too little time is
left for its answer: its outcome would be unknown, where that of all before is certain.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import msgspec

from raftq.client.discovery import Discovery, origin
from raftq.client.errors import Busy, OutcomeUnknown, Refused, Unavailable, refused
from raftq.client.models import Cluster
from raftq.client.transport import Answer, Distrusted, Exchange, Headers, Lost, NotSent, Socket, Transport

MSGPACK = "application/msgpack"
#: The last attempt has so long to be answered, or this share of a shorter timeout.
_ANSWER_SECONDS = 1.0
_ANSWER_SHARE = 0.25


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to go on.

    timeout_seconds: an operation in all, retries included; a long poll's wait comes on top. The last attempt begins
    a second before it ends, or after three quarters of it.
    attempt_seconds: one exchange; longer than a busy node takes, shorter than you want to wait for a frozen one.
    first_delay_seconds, max_delay_seconds: between attempts, doubled each time, with jitter.
    """

    timeout_seconds: float = 30.0
    attempt_seconds: float = 5.0
    look_seconds: float = 1.0
    first_delay_seconds: float = 0.02
    max_delay_seconds: float = 1.0

    def delays(self) -> Iterator[float]:
        delay = self.first_delay_seconds
        while True:
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            delay = min(delay * 2, self.max_delay_seconds)


class Call(NamedTuple):
    method: str
    path: str
    body: bytes | None = None
    #: Applying it twice is as good as once.
    repeatable: bool = False
    #: How long the node may hold the answer back (long poll).
    wait_seconds: float = 0.0
    timeout_seconds: float | None = None

    @property
    def reads(self) -> bool:
        return self.method == "GET"


class Trouble(NamedTuple):
    """Why an attempt brought no answer."""

    why: str
    #: It may have been applied all the same.
    maybe: bool
    #: The URL of the leader, as the node that was asked knows it.
    leader: str | None = None
    after_seconds: float = 0.0
    #: The leader took it in, and has no room for it now.
    busy: Busy | None = None
    #: Who answers there shows no certificate that is trusted, which does not pass by itself.
    distrusted: bool = False


class Caller:
    def __init__(
        self,
        seeds: list[str],
        transport: Transport,
        patience: Patience,
        namespace: str | None = None,
        token: str | None = None,
    ) -> None:
        self.patience = patience
        self.discovery = Discovery(seeds, self._look, has_token=token is not None)
        self._transport = transport
        self._headers = Headers({"Accept": MSGPACK})
        if namespace is not None:
            self._headers["Raftq-Namespace"] = namespace
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._body_headers = Headers({**self._headers, "Content-Type": MSGPACK})

    async def call(self, call: Call) -> bytes:
        """The body of the successful answer. Raises Refused, Unavailable or OutcomeUnknown."""
        timeout = call.timeout_seconds or self.patience.timeout_seconds
        least = min(_ANSWER_SECONDS, timeout * _ANSWER_SHARE)
        last = _now() + call.wait_seconds + timeout - least
        maybe, told, distrusted = False, None, 0
        for attempt, delay in enumerate(self.patience.delays()):
            url = self.discovery.choose()
            outcome = await self._attempt(call, url, max(last - _now(), 0.0) + least)
            if isinstance(outcome, Answer):
                return outcome.body
            if isinstance(outcome, Refused):
                _raise_refusal(outcome, maybe)
            maybe = maybe or (outcome.maybe and not call.reads)
            told = outcome if told is None or outcome.leader is None else told
            distrusted = distrusted + 1 if outcome.distrusted else 0
            due = _now() >= last or distrusted > len(self.discovery.nodes())
            _give_up_if_due(call, told, maybe, due)
            await self._look_for_leader(outcome, url, last)
            # The first redirect is followed at once; later ones may be two nodes that name each other.
            if attempt or outcome.leader is None:
                await asyncio.sleep(max(0.0, min(max(delay, outcome.after_seconds), last - _now())))
        raise AssertionError("delays never end")

    async def download(
        self, path: str, take: Callable[[bytes], Awaitable[None]], silent_seconds: float
    ) -> tuple[str, Answer]:
        """Who gave it, and the answer to a GET whose body went to `take`: of the first of the seeds that answers, and
        does not refuse. Not repeated once it has begun. Raises Refused and Unavailable."""
        error: Refused | Unavailable | None = None
        for url in self.discovery.seeds:
            looked = await self._looked(url)
            if isinstance(looked, Trouble | Refused):
                error = error or (looked if isinstance(looked, Refused) else Unavailable(looked.why))
                continue
            try:
                exchange = Exchange("GET", url + path, self._headers, None, silent_seconds)
                answer = await self._transport.receive(exchange, take)
            except (NotSent, Lost) as trouble:
                raise Unavailable(f"{url}: {trouble}") from trouble
            outcome = _judge(answer, url)
            if isinstance(outcome, Answer):
                return url, outcome
            error = outcome if isinstance(outcome, Refused) else Unavailable(outcome.why)
        assert error is not None
        raise error

    async def connect(self, path: str, protocol: str) -> Socket:
        """A WebSocket to the leader, or to a node that knows it. Raises Refused and Unavailable."""
        deadline = _now() + self.patience.timeout_seconds
        for delay in self.patience.delays():
            url = self.discovery.choose()
            try:
                found = await self._transport.connect(url + path, self._headers, protocol)
                outcome = _judge(found, url) if isinstance(found, Answer) else found
            except (NotSent, Lost) as error:
                outcome = Trouble(str(error), maybe=False)
            if isinstance(outcome, Refused):
                raise outcome
            if not isinstance(outcome, Answer | Trouble):
                return outcome
            why = outcome.why if isinstance(outcome, Trouble) else f"{url} answered {outcome.status}"
            if _now() >= deadline:
                raise Unavailable(f"no node could take it in time ({why})")
            self.discovery.failed(url)
            await self.discovery.refresh()
            await asyncio.sleep(max(0.0, min(delay, deadline - _now())))
        raise AssertionError("delays never end")

    async def _attempt(self, call: Call, url: str, seconds: float) -> Answer | Refused | Trouble:
        """Within `seconds`, and within the patience for one."""
        timeout = min(self.patience.attempt_seconds + call.wait_seconds, seconds)
        headers = self._headers if call.body is None else self._body_headers
        try:
            answer = await self._transport.send(Exchange(call.method, url + call.path, headers, call.body, timeout))
        except NotSent as error:
            return Trouble(str(error), maybe=False, distrusted=isinstance(error, Distrusted))
        except Lost as error:
            return Trouble(f"{url}: {error}", maybe=True)
        return _judge(answer, url)

    async def _look_for_leader(self, trouble: Trouble, url: str, until: float) -> None:
        """After `trouble` with `url`, until loop time `until` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                if trouble.leader is not None and await self.discovery.redirected(trouble.leader):
                    return
                if trouble.busy is None:  # who is busy leads all the same
                    self.discovery.failed(url)
                    await self.discovery.refresh()

    async def _look(self, url: str) -> Cluster | None:
        looked = await self._looked(url)
        return looked if isinstance(looked, Cluster) else None

    async def _looked(self, url: str) -> Cluster | Refused | Trouble:
        exchange = Exchange("GET", url + "/v1/cluster", self._headers, None, self.patience.look_seconds)
        try:
            outcome = _judge(await self._transport.send(exchange), url)
            return outcome if not isinstance(outcome, Answer) else msgspec.msgpack.decode(outcome.body, type=Cluster)
        except Distrusted as error:
            return Trouble(str(error), maybe=False, distrusted=True)
        except (NotSent, Lost, msgspec.DecodeError):
            return Trouble(f"{url} does not answer", maybe=False)


def _judge(answer: Answer, url: str) -> Answer | Refused | Trouble:
    if answer.status < 300:
        return answer
    if answer.status in (307, 308):
        return Trouble(f"{url} does not lead", maybe=False, leader=_location(answer))
    problem = _problem(answer)
    why = f"{url} answered {answer.status}: {problem.get('detail') or problem.get('title') or ''}".rstrip(": ")
    if answer.status == 429:
        return Trouble(why, maybe=False, after_seconds=_retry_after(answer), busy=Busy(answer.status, problem))
    if answer.status >= 500 and answer.status != 507:
        return Trouble(why, maybe=problem.get("applied") != "no")
    return refused(answer.status, problem)


def _problem(answer: Answer) -> dict[str, Any]:
    """The problem document, whatever of it can be read: another program may answer at that address."""
    kind = answer.headers.get("Content-Type", "")
    decode = msgspec.msgpack.decode if "msgpack" in kind else msgspec.json.decode
    try:
        document = decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return document if isinstance(document, dict) else {}


def _location(answer: Answer) -> str | None:
    try:
        return origin(answer.headers.get("Location", ""))
    except ValueError:
        return None


def _retry_after(answer: Answer) -> float:
    try:
        return float(answer.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0


def _give_up_if_due(call: Call, told: Trouble, maybe: bool, due: bool) -> None:
    if maybe and not call.repeatable:
        raise OutcomeUnknown(f"the answer was lost, it may have happened or not ({told.why})")
    if not due:
        return
    if told.busy is not None:
        _raise_refusal(told.busy, maybe)
    if maybe:
        raise OutcomeUnknown(f"it may have happened or not: no answer in time ({told.why})")
    raise Unavailable(f"no node could take it in time ({told.why})")


def _raise_refusal(refused: Refused, maybe: bool) -> NoReturn:
    if maybe:
        raise OutcomeUnknown(f"it may have happened or not: an answer was lost, then: {refused}") from refused
    raise refused


def _now() -> float:
    return asyncio.get_running_loop().time()
