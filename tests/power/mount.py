"""The file system whose power can be cut, from the side of who cuts it."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from raftq.node.waiting import wait_until

_FILESYSTEM = [sys.executable, "-P", "-m", "tests.power.filesystem"]
_TOP = Path(__file__).parents[2]
#: More than anything here takes.
_SECONDS = 60.0


class CannotMount(Exception):
    """This machine, or this user, has no FUSE."""


class Mount:
    """Mounted at `point` while it is used as a context. What survives a cut lies in `folder`, as plain files, and is
    what the next `mount` begins with."""

    def __init__(self, folder: Path) -> None:
        self.point = folder / "mount"
        self.point.mkdir(parents=True)
        self._folder, self._cuts = folder, 0
        self._saved.mkdir()
        self._log = folder / "filesystem.log"
        self._process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """With what survived the last cut. Raises CannotMount."""
        assert self._process is None
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [*_FILESYSTEM, str(self.point), str(self._saved)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": str(_TOP)},
            )
        self._process = process
        wait_until(lambda: self._mounted() or process.poll() is not None, _SECONDS, "the file system")
        if process.poll() is not None:
            self._process = None
            process.communicate()
            raise CannotMount(self._trouble())

    def cut(self, *, after: int, survives: float, seed: int) -> None:
        """Returns when the power is gone: just before the `after`th change from now, wherever that is in a commit. Who
        uses the file system then waits for ever: kill them, then `settle`. `survives` is how likely what was not synced
        does all the same."""
        self._cuts += 1
        self._say(f"{after} {survives} {seed} {self._saved}")
        assert self._hear() == "cut", self._trouble()

    def record(self, to: Path) -> None:
        """From now on write what a cut would leave, for some cuts at each change, as folders in `to`, in order."""
        to.mkdir()
        self._say(f"record {to}")
        assert self._hear() == "recording", self._trouble()

    def settle(self) -> str:
        """Unmounts after a cut. How much had not been synced, in words."""
        unsynced = self._hear()
        self.close()
        return unsynced

    def close(self) -> None:
        """Unmounts. Without a cut before, all that was written since `mount` is gone."""
        if self._process is not None:
            process, self._process = self._process, None
            process.communicate()
            assert process.returncode == 0, self._trouble()
        if self._mounted():
            subprocess.run(["fusermount3", "-u", "-z", str(self.point)], check=False, capture_output=True)
        wait_until(lambda: not self._mounted(), 10, f"{self.point} to be unmounted")

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _trouble(self) -> str:
        return f"the file system failed: {self._log.read_text().strip()}"

    @property
    def _saved(self) -> Path:
        return self._folder / f"saved{self._cuts}"

    def _mounted(self) -> bool:
        return any(line.split(" ")[1] == str(self.point) for line in Path("/proc/self/mounts").read_text().splitlines())

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def _hear(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _SECONDS)[0]:
            raise TimeoutError(f"the file system said nothing for {_SECONDS:g} s: was nothing changed?")
        return self._process.stdout.readline().decode().rstrip()


def why_not() -> str | None:
    """Why no file system can be mounted here; None when one can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse that this user may open"
    if shutil.which("fusermount3") is None or ctypes.util.find_library("fuse3") is None:
        return "FUSE is not installed: apt-get install fuse3"
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed: make setup"
    with tempfile.TemporaryDirectory(prefix="raftq-power-") as folder, Mount(Path(folder)) as mount:
        try:
            mount.mount()
        except CannotMount as error:
            return str(error).splitlines()[0]
    return None
