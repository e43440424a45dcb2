"""One harness under atheris: `python -m tests.fuzz.one NAME [libFuzzer's flags and corpus folders]`."""

from __future__ import annotations

import sys
import time

import atheris

#: Of the processor, for one input.
SECONDS_MAX = 1.0


def main() -> None:
    with atheris.instrument_imports(include=["raftq", "cronsim"]):
        from tests.fuzz.harnesses import HARNESSES
    harness = HARNESSES[sys.argv.pop(1)]

    def once(data: bytes) -> None:
        began = time.process_time()
        harness(data)
        took = time.process_time() - began
        assert took < SECONDS_MAX, f"{len(data)} bytes took {took:.1f} s"

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
