"""Every kept input through its harness, also where there is no fuzzer: seeds, and what once failed."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.seeds import CORPUS, seeds

_CHANGES = 30


@pytest.mark.parametrize("name", HARNESSES)
def test_kept_inputs_are_taken_or_refused_as_documented(name: str) -> None:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert kept
    dice = random.Random(name)
    for data in kept:
        HARNESSES[name](data)
        for _ in range(_CHANGES):
            changed = bytearray(data)
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(changed) + 1)
                changed[at : at + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
            HARNESSES[name](bytes(changed))


def test_every_harness_takes_its_seeds() -> None:
    """`python -m tests.fuzz.seeds` writes them as they would be today."""
    seen = set()
    for harness, _, data in seeds():
        HARNESSES[harness](data)
        seen.add(harness)
    assert seen == HARNESSES.keys()
