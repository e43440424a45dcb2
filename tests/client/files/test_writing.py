from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest

from raftq.client.errors import FileInUse, FileRefused
from raftq.client.files.sidecar import Sidecar
from raftq.client.files.writing import FileWriter, WriteState
from tests.client.files.conftest import CONTENT, LIMITS, LINES, Mover, crashed
from tests.client.files.crashes import Crash, Crasher


@pytest.mark.parametrize(
    "content", [CONTENT, CONTENT + b"\n", b"", b"\n", b"a", b"\n\nb", b"L" * 100, b"L" * 100 + b"\n"]
)
async def test_written_and_read_a_file_is_the_same(mover: Mover, content: bytes) -> None:
    written = await mover.write("jobs", mover.file("file", content))
    assert written.lines == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    assert await mover.content("jobs") == content


async def test_killed_at_every_place_and_started_again(mover: Mover) -> None:
    """At the `at`-th place of the disk, of the network, or between two steps."""
    at = 0
    while True:
        at += 1
        queue, path = f"jobs{at}", mover.file(f"file{at}")
        killed = await crashed(lambda crasher, queue=queue, path=path: mover.write(queue, path, crasher), at)  # type: ignore[misc]
        await mover.write(queue, path)
        assert await mover.content(queue) == CONTENT, f"killed at place {at}"
        await mover.assert_nothing_left_but(queue)
        if not killed:
            break
    assert at > 80


async def test_killed_at_every_place_with_an_old_sidecar(mover: Mover) -> None:
    """As before, but nothing is saved between the first batch and the last, and more than one process is killed."""
    for at in range(1, 60, 2):
        queue, path = f"jobs{at}", mover.file(f"file{at}")
        for crasher in (Crasher(at), Crasher(at // 2 + 3), Crasher(at)):
            with contextlib.suppress(Crash):
                await mover.write(queue, path, crasher, save_seconds=1e9)
        await mover.write(queue, path)
        assert await mover.content(queue) == CONTENT, f"killed at place {at}"


async def test_killed_while_a_reader_is_quick(mover: Mover) -> None:
    """The long line's pointer is read and its side queue deleted before the writer comes back: no part is left over."""
    for at in range(1, 200, 2):
        queue, path, out = f"jobs{at}", mover.file(f"file{at}"), mover.folder / f"out{at}"
        killed = await crashed(lambda crasher, queue=queue, path=path: mover.write(queue, path, crasher), at)  # type: ignore[misc]
        await mover.read(queue, out)
        await mover.write(queue, path)
        await mover.read(queue, out)
        assert out.read_bytes() == CONTENT, f"killed at place {at}"
        await mover.assert_nothing_left_but(queue)
        if not killed:
            break


async def test_a_finished_write_is_not_repeated_unless_asked(mover: Mover) -> None:
    path = mover.file("file")
    await mover.write("jobs", path)
    second = await mover.write("jobs", path)
    assert (second.already, second.lines) == (True, len(LINES))
    assert await mover.content("jobs") == CONTENT
    third = await mover.write("jobs", path, again=True)
    assert not third.already
    assert await mover.content("jobs") == CONTENT + b"\n" + CONTENT


async def test_another_content_after_a_finished_write_is_written(mover: Mover) -> None:
    await mover.write("jobs", mover.file("file", b"old\n"))
    await mover.write("jobs", mover.file("file", b"newer\n"))
    assert await mover.content("jobs") == b"old\nnewer\n"


async def half_written(mover: Mover) -> Path:
    path = mover.file("file")
    assert await crashed(lambda crasher: mover.write("jobs", path, crasher), 60)
    return path


async def test_a_file_that_changed_half_way_is_refused(mover: Mover) -> None:
    path = await half_written(mover)
    path.write_bytes(CONTENT + b"\nmore")
    with pytest.raises(FileRefused, match=r"has changed since.*--again"):
        await mover.write("jobs", path)
    await mover.write("jobs", path, again=True)


async def test_a_half_written_file_of_another_cluster_is_refused(mover: Mover) -> None:
    path = await half_written(mover)
    edit(path.with_name("file.raftq-write-jobs"), cluster_id="c2")
    with pytest.raises(FileRefused, match="into another cluster, c2"):
        await mover.write("jobs", path)


async def test_a_half_written_file_that_lay_too_long_is_refused(mover: Mover) -> None:
    path = await half_written(mover)
    edit(path.with_name("file.raftq-write-jobs"), saved_at=time.time() - 6.1 * 86_400)
    with pytest.raises(FileRefused, match="so long ago"):
        await mover.write("jobs", path)


def edit(sidecar: Path, **changes: object) -> None:
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))


async def test_a_write_goes_on_with_the_limits_it_began_with(mover: Mover) -> None:
    path = mover.file("file")
    assert await crashed(lambda crasher: mover.write("jobs", path, crasher), 60)
    await mover.write("jobs", path, limits=type(LIMITS)(batch_lines=2, line_bytes=1000, part_bytes=7))
    assert await mover.content("jobs") == CONTENT


async def test_one_writer_at_a_time(mover: Mover) -> None:
    path = mover.file("file")
    sidecar = Sidecar(path.with_name("file.raftq-write-jobs"), WriteState)
    with pytest.raises(FileInUse):
        await mover.write("jobs", path)
    sidecar.close()
    await mover.write("jobs", path)


async def test_stopped_it_ends_after_a_batch_and_goes_on_later(mover: Mover) -> None:
    path = mover.file("file")
    async with Crasher().client(mover.node.url) as client:
        writer = FileWriter(client, "jobs", path, limits=LIMITS, reached=lambda _: writer.stop())
        written = await writer.run()
    assert (written.finished, written.lines) == (False, 0)
    again = await mover.write("jobs", path)
    assert again.finished
    assert await mover.content("jobs") == CONTENT


async def test_progress_is_told_in_bytes(mover: Mover) -> None:
    told: list[int] = []
    await mover.write("jobs", mover.file("file"), progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, len(CONTENT))
