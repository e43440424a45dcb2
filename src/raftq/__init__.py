"""raftq: a Raft-replicated message queue for work you cannot lose."""

from __future__ import annotations

__version__ = "0.1.0"
