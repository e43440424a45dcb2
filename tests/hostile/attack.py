"""What an attack is: a row of the table, a name, and what does it to a target and says what came back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.hostile.target import Target, Wire

#: The node closed and said nothing.
CLOSED = "closed"
#: The node took the bytes, and waits for more, as it may.
WAITING = "waits for the rest"

#: A request that cannot be meant so.
REFUSED = frozenset({"400", "404", "405", "408", "409", "410", "411", "413", "414", "415", "417", "422", "431"})
#: A connection that cannot be meant so.
BROKEN = frozenset({"400", CLOSED})


class Attack(NamedTuple):
    #: Of the table; attacks of one row follow each other.
    row: str
    name: str
    #: Gives what came back, one word for each request.
    run: Callable[[Target], list[str]]
    #: What may come back.
    may: frozenset[str]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def request(target: str | bytes, *headers: str | bytes, method: str = "GET", body: bytes | None = None) -> bytes:
    """A request as it should be, but for what it is given."""
    lines = [method.encode() + b" " + _bytes(target) + b" HTTP/1.1", b"Host: x", *map(_bytes, headers)]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def sent(row: str, name: str, data: bytes, may: Iterable[str], *, cut: bool = False, last: bool = True) -> Attack:
    """`data` to the leader, and to a follower, which may redirect. What is `cut` off says so, and nobody waits for
    more. Else the first answer is read, and with `last` a request as it should be follows, which must be answered once,
    or not at all: what came before was taken for one request."""

    def run(target: Target) -> list[str]:
        return [_exchanged(target, node, data, cut, last) for node in (target.leader, target.follower)]

    return Attack(row, name, run, frozenset(may) | {"307"})


_LAST = request("/healthz", "Connection: close")


def _exchanged(target: Target, node: str, data: bytes, cut: bool, last: bool) -> str:
    with target.open(node) as wire:
        wire.send(data)
        if cut:
            wire.end_sending()
            return " and ".join(map(str, wire.answers())) or CLOSED
        first = wire.answer("HEAD" if data.startswith(b"HEAD ") else "GET")
        if first is None:
            return CLOSED
        if last:
            wire.send(_LAST)
            rest = wire.answers()
            assert rest in ([], [200], [400]), f"{first[0]}, and then {rest}: the bytes were taken for several requests"
        return str(first[0])


class Session:
    """Requests one after the other on one connection, opened anew when the node closes it."""

    def __init__(self, target: Target, node: str) -> None:
        self._target, self._node = target, node
        self._wire: Wire | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.socket.close()

    def ask(self, data: bytes, method: str = "GET") -> tuple[str, bytes]:
        """Status and body; the status of none is CLOSED."""
        for _ in range(2):
            # A connection that was closed after the last answer gives none.
            fresh = self._wire is None
            wire = self._wire = self._wire or self._target.open(self._node)
            wire.send(data)
            answer = wire.answer(method)
            if answer is not None:
                return str(answer[0]), answer[1]
            wire.socket.close()
            self._wire = None
            if fresh:
                break
        return CLOSED, b""
