from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import FileInUse, FileRefused
from raftq.client.files.reading import FileReader, ReadState
from raftq.client.files.sidecar import Sidecar
from raftq.client.models import NewMessage
from raftq.client.transport import AiohttpTransport, Answer, Exchange
from tests.client.files.conftest import CONTENT, LINES, Mover, crashed
from tests.client.files.crashes import Crash, Crasher

#: More than any lease of these tests.
LEASE_PASSES = 61.0


async def filled(mover: Mover, queue: str, content: bytes = CONTENT) -> None:
    await mover.write(queue, mover.file(f"source-of-{queue}", content))


async def test_killed_at_every_place_and_started_again(mover: Mover) -> None:
    """At the `at`-th place of the disk, of the network, or between two steps: the file is the same, bytes and order."""
    at = 0
    while True:
        at += 1
        queue, out = f"jobs{at}", mover.folder / f"out{at}"
        await filled(mover, queue)
        killed = await crashed(lambda crasher, queue=queue, out=out: mover.read(queue, out, crasher), at)  # type: ignore[misc]
        await mover.read(queue, out)
        assert out.read_bytes() == CONTENT, f"killed at place {at}"
        await mover.assert_nothing_left_but(queue)
        if not killed:
            break
    assert at > 80


async def test_killed_again_and_again(mover: Mover) -> None:
    for at in range(1, 80, 6):
        queue, out = f"jobs{at}", mover.folder / f"out{at}"
        await filled(mover, queue)
        for later in (at, at // 2 + 5, 7, at):
            with contextlib.suppress(Crash):
                await mover.read(queue, out, Crasher(later))
        await mover.read(queue, out)
        assert out.read_bytes() == CONTENT, f"killed at place {at}"


async def test_killed_at_every_place_and_started_after_its_lease_has_passed(mover: Mover) -> None:
    for at in range(1, 200, 2):
        queue, out = f"jobs{at}", mover.folder / f"out{at}"
        await filled(mover, queue)
        killed = await crashed(lambda crasher, queue=queue, out=out: mover.read(queue, out, crasher), at)  # type: ignore[misc]
        mover.node.shard.later(LEASE_PASSES)
        await mover.read(queue, out)
        assert out.read_bytes() == CONTENT, f"killed at place {at}"
        if not killed:
            break


async def test_killed_at_every_place_while_another_reads_on(mover: Mover) -> None:
    """The other gets what the lease of the killed one lets go; when that comes back, each line is in one of the two."""
    for at in range(1, 200, 2):
        queue, one, two = f"jobs{at}", mover.folder / f"one{at}", mover.folder / f"two{at}"
        await filled(mover, queue, CONTENT + b"\n")
        killed = await crashed(lambda crasher, queue=queue, one=one: mover.read(queue, one, crasher), at)  # type: ignore[misc]
        mover.node.shard.later(LEASE_PASSES)
        await mover.read(queue, two)
        await mover.read(queue, one)
        lines = one.read_bytes() + two.read_bytes()
        assert sorted(lines.split(b"\n")) == sorted([*LINES, b""]), f"killed at place {at}"
        await mover.assert_nothing_left_but(queue)
        if not killed:
            break


async def test_a_lease_that_passes_before_the_ack_leaves_its_lines_to_others(mover: Mover) -> None:
    await filled(mover, "jobs")
    one, two = mover.folder / "one", mover.folder / "two"

    class Slow(Crasher):
        def reached(self, step: str) -> None:
            if step == "spooled" and self.count == 0:
                self.count = 1
                mover.node.shard.later(LEASE_PASSES)

    state = await mover.read("jobs", one, Slow())
    assert (one.read_bytes(), state.lines) == (CONTENT, len(LINES))
    await mover.read("jobs", two)
    assert two.read_bytes() == b""


async def test_lines_come_in_order_when_a_lease_was_lost(mover: Mover) -> None:
    """The lease is granted and its answer lost with the process: the next one asks for that very lease."""
    await filled(mover, "jobs")
    out = mover.folder / "out"

    class Killed(Crasher):
        def reached(self, step: str) -> None:
            if step == "leased":
                raise Crash

    with contextlib.suppress(Crash):
        await mover.read("jobs", out, Killed())
    await mover.read("jobs", out)
    assert out.read_bytes() == CONTENT


async def test_two_files_without_a_last_newline_stay_lines(mover: Mover) -> None:
    await filled(mover, "jobs", b"a\nb")
    await mover.write("jobs", mover.file("more", b"c\nd"))
    out = mover.folder / "out"
    await mover.read("jobs", out)
    assert out.read_bytes() == b"a\nb\nc\nd"
    await mover.write("jobs", mover.file("third", b"e"))
    await mover.read("jobs", out)
    assert out.read_bytes() == b"a\nb\nc\nd\ne"


async def test_messages_that_no_write_made_are_lines_as_well(mover: Mover) -> None:
    async with Crasher().client(mover.node.url) as client:
        bodies = [b"bytes", "téxt", {"a": [1, None]}, 5, b""]
        foreign = NewMessage(body=b"keep", attributes={"raftq_line": "payroll", "raftq_parts": 1, "raftq_bytes": 4})
        await client.enqueue("payroll", [NewMessage(body=b"1234")])
        await client.enqueue("jobs", [*(NewMessage(body=body) for body in bodies), foreign])
        out = mover.folder / "out"
        await mover.read("jobs", out)
        assert out.read_text() == 'bytes\ntéxt\n{"a":[1,null]}\n5\n\nkeep\n'
        assert (await client.stats("payroll"))["ready"] == 1, "a queue was deleted on the word of a message"


async def test_a_file_that_no_read_began_is_refused(mover: Mover) -> None:
    out = mover.file("out", b"precious")
    with pytest.raises(FileRefused, match="is there already"):
        await mover.read("jobs", out)
    assert [path.name for path in mover.folder.iterdir()] == ["out"]


@pytest.mark.parametrize("content", [b"", CONTENT + b"mine"])
async def test_a_file_that_was_changed_is_refused(mover: Mover, content: bytes) -> None:
    await filled(mover, "jobs")
    out = mover.folder / "out"
    await mover.read("jobs", out)
    out.write_bytes(content)
    with pytest.raises(FileRefused, match="put it back as it was"):
        await mover.read("jobs", out)
    assert out.read_bytes() == content


async def test_another_queue_or_cluster_is_refused(mover: Mover) -> None:
    await filled(mover, "jobs")
    out = mover.folder / "out"
    await mover.read("jobs", out)
    with pytest.raises(FileRefused, match="is read from jobs"):
        await mover.read("other", out)


async def held(mover: Mover) -> Path:
    """A reader was killed before its first ack."""
    await filled(mover, "jobs")
    out = mover.folder / "out"

    class Killed(Crasher):
        def reached(self, step: str) -> None:
            sidecar = mover.folder / "out.raftq-read"
            if step == "saved" and json.loads(sidecar.read_text())["held"]:
                raise Crash

    with pytest.raises(Crash):
        await mover.read("jobs", out, Killed())
    return out


async def test_an_ack_in_doubt_for_too_long_is_refused(mover: Mover) -> None:
    out = await held(mover)
    sidecar = mover.folder / "out.raftq-read"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"saved_at": time.time() - 6.1 * 86_400}))
    with pytest.raises(FileRefused, match=r"holds 4 lines .* too long ago"):
        await mover.read("jobs", out)


async def test_an_ack_in_doubt_of_a_deleted_queue_is_refused(mover: Mover) -> None:
    out = await held(mover)
    async with Crasher().client(mover.node.url) as client:
        await client.delete_queue("jobs")
    with pytest.raises(FileRefused, match=r"was deleted; the 4 lines in .*out.raftq-read.lines were acked"):
        await mover.read("jobs", out)


async def test_a_spool_that_was_changed_is_refused(mover: Mover) -> None:
    out = await held(mover)
    lines = mover.folder / "out.raftq-read.lines"
    lines.write_bytes(lines.read_bytes()[:-1])
    with pytest.raises(FileRefused, match="was changed or removed"):
        await mover.read("jobs", out)


async def test_missing_parts_are_told_while_the_pointer_is_held(mover: Mover) -> None:
    await filled(mover, "jobs", b"L" * 100 + b"\nafter\n")
    async with Crasher().client(mover.node.url) as client:
        [pointer, _] = (await client.peek("jobs")).messages
        await client.delete_queue(str(pointer.attributes["raftq_line"]))
        out = mover.folder / "out"
        with pytest.raises(FileRefused, match=r"the parts of a line are missing .*raftq ack jobs \d") as caught:
            await mover.read("jobs", out)
        await client.ack("jobs", [str(caught.value).split()[-1].rstrip(")")])
    await mover.read("jobs", out)
    assert out.read_bytes() == b"after\n"


class Interrupted(AiohttpTransport):
    """Something happens before the first exchange whose URL holds a text."""

    def __init__(self, text: str, happens: Callable[[Exchange], Awaitable[None]]) -> None:
        super().__init__()
        self._text, self._happens, self._happened = text, happens, False

    async def send(self, exchange: Exchange) -> Answer:
        if self._text in exchange.url and not self._happened:
            self._happened = True
            await self._happens(exchange)
        return await super().send(exchange)


async def test_parts_that_another_reader_has_taken_are_no_damage(mover: Mover) -> None:
    """The lease passes before the parts are looked at; the other reader gets the line and deletes them."""
    await filled(mover, "jobs", b"a\n" + b"L" * 100 + b"\nb\n")
    one, two = mover.folder / "one", mover.folder / "two"

    async def another_reads(_: Exchange) -> None:
        mover.node.shard.later(LEASE_PASSES)
        await mover.read("jobs", two)

    async with AsyncClient(mover.node.url, transport=Interrupted(".line-", another_reads)) as client:
        state = await FileReader(client, "jobs", one, until_empty=0.0).run()
    assert (state.lines, one.read_bytes()) == (0, b"")
    assert two.read_bytes() == b"a\n" + b"L" * 100 + b"\nb\n"
    await mover.assert_nothing_left_but("jobs")


async def test_a_poll_that_was_let_go_and_granted_later_is_found_again(mover: Mover) -> None:
    await filled(mover, "jobs", b"")
    out = mover.folder / "out"
    polls: list[asyncio.Task[Answer]] = []
    polling = asyncio.Event()
    async with Crasher().client(mover.node.url) as other:
        await other.define_queue("jobs")

        async def goes_on_alone(exchange: Exchange) -> None:
            polls.append(asyncio.create_task(AiohttpTransport.send(alone, exchange)))
            polling.set()
            await asyncio.Event().wait()

        alone = AiohttpTransport()
        async with AsyncClient(mover.node.url, transport=Interrupted("/lease", goes_on_alone)) as client:
            reader = FileReader(client, "jobs", out)
            running = asyncio.ensure_future(reader.run())
            await polling.wait()
            reader.stop()
            assert (await running).lines == 0
        await other.enqueue("jobs", [NewMessage(body=b"line")])
        assert b"line" in (await polls[0]).body
        await alone.close()
    await mover.read("jobs", out)
    assert out.read_bytes() == b"line\n"


async def test_one_reader_a_file(mover: Mover) -> None:
    out = mover.folder / "out"
    sidecar = Sidecar(mover.folder / "out.raftq-read", ReadState)
    with pytest.raises(FileInUse):
        await mover.read("jobs", out)
    sidecar.close()


async def test_stopped_while_it_waits_it_ends_at_once(mover: Mover) -> None:
    await filled(mover, "jobs", b"a\n")
    out = mover.folder / "out"
    async with Crasher().client(mover.node.url) as client:
        first = asyncio.Event()
        reader = FileReader(client, "jobs", out, progress=lambda _offset, lines: lines and first.set())
        running = asyncio.ensure_future(reader.run())
        await first.wait()
        reader.stop()
        state = await running
    assert state.lines == 1


async def test_a_reader_may_begin_before_the_queue_is_there(mover: Mover) -> None:
    out = mover.folder / "out"
    async with Crasher().client(mover.node.url) as client:
        reader = FileReader(client, "jobs", out, progress=lambda _offset, lines: lines == 10 and reader.stop())
        running = asyncio.ensure_future(reader.run())
        await filled(mover, "jobs")
        assert (await running).lines == len(LINES)


async def test_until_empty_waits_for_the_lines_that_others_hold(mover: Mover) -> None:
    await filled(mover, "jobs", b"a\nb\n")
    out = mover.folder / "out"
    async with Crasher().client(mover.node.url) as client:
        [other] = await client.lease("jobs", lease_seconds=30)
        first = asyncio.Event()
        options = {"progress": lambda _offset, lines: lines and first.set()}
        running = asyncio.ensure_future(mover.read("jobs", out, **options))
        await first.wait()
        await client.release("jobs", [other.receipt])
        assert (await running).lines == 2
    assert out.read_bytes() == b"b\na\n"
