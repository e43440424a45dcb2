"""Everything at once, seeded: two writers and two readers, killed at random places and started again, answers that are
lost, leases that pass. In the end each line is in one file, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from raftq.client.files.reading import FileReader
from raftq.client.files.writing import FileWriter
from raftq.client.transport import Exchange
from tests.client.files.conftest import LIMITS, Mover
from tests.client.files.crashes import Crash, Crasher
from tests.client.nodes import Fault, client_of


def lines_of(random: random.Random, name: str) -> bytes:
    lines = []
    for number in range(60):
        length = random.choice([0, 1, 10, 39, 40, 41, 200])
        lines.append(f"{name}{number}:".encode() * (length > 0) + random.randbytes(length).replace(b"\n", b"\xff"))
    return b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize("seed", range(4))
async def test_no_line_is_lost_or_doubled(mover: Mover, seed: int) -> None:
    rng = random.Random(seed)
    sources = [mover.file(name, lines_of(rng, name)) for name in ("a", "b")]
    outputs = [mover.folder / "one", mover.folder / "two"]
    for round_ in range(20):
        calm = round_ == 19
        writes = [_write(mover, path, rng, calm) for path in sources]
        await asyncio.gather(*writes, *(_read(mover, out, rng, calm) for out in outputs))
        mover.node.shard.later(rng.choice([0.0, 1.0, 31.0, 61.0]))
    await asyncio.gather(*(_read(mover, out, rng, calm=True) for out in outputs))
    union = b"".join(out.read_bytes() for out in outputs)
    assert sorted(union.split(b"\n")) == sorted(b"".join(path.read_bytes() for path in sources).split(b"\n"))


async def _write(mover: Mover, path: Path, rng: random.Random, calm: bool) -> None:
    crasher = Crasher(None if calm else rng.randrange(1, 40))
    async with client_of(mover.node, _faults(rng, calm)) as client:
        with contextlib.suppress(Crash):
            save_seconds = rng.choice([0.0, 1e9])
            writer = FileWriter(client, "jobs", path, limits=LIMITS, save_seconds=save_seconds, reached=crasher.reached)
            await writer.run()


async def _read(mover: Mover, path: Path, rng: random.Random, calm: bool) -> None:
    crasher = Crasher(None if calm else rng.randrange(1, 40))
    async with client_of(mover.node, _faults(rng, calm)) as client:
        with contextlib.suppress(Crash):
            reader = FileReader(
                client, "jobs", path, lines_max=5, until_empty=0.0 if calm else None, reached=crasher.reached
            )
            if not calm:
                asyncio.get_running_loop().call_later(0.05, reader.stop)
            await reader.run()


def _faults(rng: random.Random, calm: bool) -> Fault:
    def fault(exchange: Exchange) -> str | None:
        return None if calm or rng.random() > 0.2 else rng.choice(["lost", "sunk", "busy", "refused"])

    return fault
