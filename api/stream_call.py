"""One operation of a stream as the handlers of the HTTP routes know it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from raftq.api.call import Call
from raftq.api.schemas import Schema

if TYPE_CHECKING:
    from raftq.api.streams import Stream

T = TypeVar("T")


class StreamCall(Call):
    """Its body is decoded already: `given` is the operation, which has the fields of the route's own struct."""

    __slots__ = ("_stream", "given", "left")

    def __init__(self, stream: Stream, queue: str, given: Any) -> None:
        super().__init__(stream.api, stream.request)
        self.parameters = [queue]
        self.content_type = self.answer_type = stream.format.content_type
        self.token, self.route = stream.token, stream.route
        self._stream = stream
        self.given = given
        #: The subscription that it is for has ended.
        self.left = False

    @property
    def gone(self) -> bool:
        return self.left or self._stream.ending

    @contextmanager
    def watch(self, gone: Callable[[], object]) -> Iterator[None]:
        watching = self._stream.watching
        watching[gone] = self
        try:
            yield
        finally:
            del watching[gone]

    def take_body(self, body: bytes) -> None:
        """All bodies of the messages together: what `bodies.plain` looks through."""
        self._body = body

    async def decode(self, schema: Schema[T], *, large: bool = False) -> T:  # noqa: ARG002 - the frame was within it
        given: T = self.given
        return given
