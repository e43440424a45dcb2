from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftq.client.errors import FileRefused
from raftq.client.files.source import Batch, Limits, LongLine, SourceFile

SMALL = Limits(batch_lines=3, line_bytes=8, part_bytes=5)


def cuts(source: SourceFile, limits: Limits = SMALL) -> list[Batch | LongLine]:
    found: list[Batch | LongLine] = []
    offset = 0
    while (cut := source.cut(offset, limits)) is not None:
        assert cut.offset == offset < cut.end
        found.append(cut)
        offset = cut.end
    return found


def content(source: SourceFile, cut: Batch | LongLine) -> bytes:
    lines = cut.lines if isinstance(cut, Batch) else [b"".join(source.parts(cut, SMALL.part_bytes))]
    return b"\n".join(lines) + (b"" if cut.open_end else b"\n")


@given(st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([b"\n", b"\r\n", b"x" * 8, b"y" * 9])), max_size=12))
def test_the_cuts_of_any_bytes_give_them_back(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    path = tmp_path_factory.mktemp("source") / "file"
    path.write_bytes(data)
    source = SourceFile(path)
    found = cuts(source)
    assert b"".join(content(source, cut) for cut in found) == data
    for cut in found:
        if isinstance(cut, Batch):
            assert 1 <= len(cut.lines) <= SMALL.batch_lines
            assert sum(map(len, cut.lines)) <= SMALL.line_bytes + 1
            assert not any(b"\n" in line for line in cut.lines)
        else:
            assert cut.line_bytes > SMALL.line_bytes
        assert source.cut(cut.offset, SMALL) == cut
    source.close()


@pytest.mark.parametrize(
    ("data", "lines", "open_end"),
    [
        (b"a", [b"a"], True),
        (b"a\n", [b"a"], False),
        (b"\n", [b""], False),
        (b"\n\n", [b"", b""], False),
        (b"a\r\nb", [b"a\r", b"b"], True),
        (b"12345678\n", [b"12345678"], False),
        (b"12345678", [b"12345678"], True),
    ],
)
def test_lines(tmp_path: Path, data: bytes, lines: list[bytes], open_end: bool) -> None:
    (tmp_path / "file").write_bytes(data)
    [cut] = cuts(SourceFile(tmp_path / "file"))
    assert isinstance(cut, Batch)
    assert (cut.lines, cut.open_end) == (lines, open_end)


def test_an_empty_file_has_no_batch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cuts(SourceFile(tmp_path / "file")) == []


def test_a_long_line_is_found_beyond_the_first_block(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000 + b"\nafter")
    long, after = cuts(SourceFile(tmp_path / "file"))
    assert (long.offset, long.end, long.open_end) == (0, 3_000_001, False)
    assert isinstance(after, Batch)


def test_the_identity_is_of_the_content_and_its_time(tmp_path: Path) -> None:
    path, copy = tmp_path / "file", tmp_path / "copy"
    path.write_bytes(b"a" * 200_000)
    before = SourceFile(path).identity
    copy.write_bytes(path.read_bytes())
    times = path.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert SourceFile(copy).identity == before
    path.write_bytes(b"a" * 199_999 + b"b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert SourceFile(path).identity != before


def test_a_file_that_grows_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a\n")
    source = SourceFile(path)
    source.check_unchanged()
    with path.open("ab") as more:
        more.write(b"b\n")
    with pytest.raises(FileRefused, match="changes while it is written"):
        source.check_unchanged()


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="no regular file"):
        SourceFile(Path("/dev/null"))
