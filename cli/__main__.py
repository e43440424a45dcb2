"""`python -m raftq.cli` is `raftq`."""

from __future__ import annotations

from raftq.cli.main import main

main()
