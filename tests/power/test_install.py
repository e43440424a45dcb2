"""A power cut at any change on disk leaves the environment before a snapshot was installed, or the one after, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raftq.storage.environment import Environment
from raftq.storage.verify import verify
from tests.power.mount import Mount

pytestmark = [pytest.mark.power, pytest.mark.usefixtures("power")]

OLD = [(b"old%03d" % number, bytes(100)) for number in range(200)]
NEW = [(b"new%03d" % number, bytes(200)) for number in range(200)]

#: argv: the folder. Installs when it is told to.
_INSTALLS = """
import sys
from pathlib import Path
from raftq.storage import snapshot
from tests.power.test_install import NEW, OLD
from tests.storage.test_snapshot import CLUSTER, OWN, make
folder = Path(sys.argv[1])
leader = make(folder / "leader", NEW, applied=700)
snapshot.write(leader, folder / "file", CLUSTER)
leader.close()
environment = make(folder / "data", OLD)
head = snapshot.load(folder / "file", environment.incoming)
print("loaded", flush=True)
input()
environment.install(environment.incoming, OWN | head.meta(), (head.index, head.term))
environment.close()
"""


def test_a_power_cut_at_any_moment_of_an_install(tmp_path: Path) -> None:
    top = str(Path(__file__).parents[2])
    with Mount(tmp_path / "disk") as mount:
        mount.mount()
        process = subprocess.Popen(
            [sys.executable, "-c", _INSTALLS, str(mount.point)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([top, *sys.path])},
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "loaded\n"
            mount.record(tmp_path / "cuts")
            process.communicate("\n")
        assert process.returncode == 0
    found = [_found(cut / "data") for cut in sorted((tmp_path / "cuts").iterdir())]
    assert set(found) == {"old", "new"}
    assert found[0] == "old"
    assert found[-1] == "new"


def _found(folder: Path) -> str:
    environment = Environment(folder)
    try:
        verify(environment)
        with environment.begin_read() as txn:
            tables = [(bytes(key), bytes(value)[8:]) for key, value in txn.cursor(environment.tables)]
        state = environment.applied(), environment.log_bounds(), environment.meta("vote")
    finally:
        environment.close()
    assert (len(tables), state) in ((len(OLD), (7, (1, 9), b"n1")), (len(NEW), (700, (700, 700), b"n2")))
    assert tables[0][0] == (OLD if state[0] == 7 else NEW)[0][0]
    return "old" if state[0] == 7 else "new"
