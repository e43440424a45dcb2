"""Numbers read from the system are what the system said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftq.bench import measure


@given(st.lists(st.integers(), min_size=1).map(sorted), st.floats(0.01, 1))
def test_percentile_is_the_least_value_that_covers_the_share(ordered: list[int], share: float) -> None:
    value = measure.percentile(ordered, share)
    assert sum(other <= value for other in ordered) >= share * len(ordered) - 1e-9
    assert sum(other < value for other in ordered) < share * len(ordered) + 1e-9


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        measure.percentile([], 0.5)


def test_median_of_an_even_number_is_one_of_them() -> None:
    assert measure.median([4.0, 1.0, 3.0, 2.0]) == 2.0


def test_metric_sums_over_labels_and_ignores_longer_names() -> None:
    text = '# HELP c x\n# TYPE c counter\nc{shard="0"} 3.0\nc{shard="1"} 4.5\nc_created 99\n'
    assert measure.metric(text, "c") == 7.5


def test_missing_metric_is_named() -> None:
    with pytest.raises(KeyError, match="commits"):
        measure.metric("other 1\n", "commits")


def test_memory_adds_up_over_processes() -> None:
    one = measure.parse_smaps(
        "00-ff ---p 0 00:00 0 [rollup]\nRss:  12 kB\nPss:  7 kB\nPss_Anon:  4 kB\nPss_File:  3 kB\n"
    )
    assert one == measure.Memory(12 * 1024, 7 * 1024, 3 * 1024)
    assert (one + one).pss == 14 * 1024


def test_memory_of_this_process() -> None:
    here = measure.memory([os.getpid()])
    assert here.rss >= here.pss > 0


def test_disk_counts_allocated_blocks_not_length(tmp_path: Path) -> None:
    before = measure.allocated_bytes(tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"x" * 65536)
    os.sync()
    assert 65536 <= measure.allocated_bytes(tmp_path) - before < 1 << 20


def test_file_system_is_that_of_the_longest_mount_point() -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\nproc /proc proc rw 0 0\n"
    assert measure.file_system(Path("/dev/shm/x"), mounts) == "tmpfs"
    assert measure.file_system(Path("/deviant"), mounts) == "ext4"


def test_idle_and_waiting_for_the_disk_are_not_busy() -> None:
    assert (
        measure.busy_ticks("cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 9 9 9 9 9 9 9 9 9 9\n") == 1 + 2 + 4 + 8 + 16 + 32
    )
