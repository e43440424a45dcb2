"""What a shard is told about itself, and its limits."""

from __future__ import annotations

import msgspec

from raftq.replication.progress import Timing


class ShardConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes. `voters` maps every node of the cluster, this one included, to its peer address."""

    node_id: str
    cluster_id: str
    node_uuid: str
    boot: int
    voters: dict[str, str]
    peer_listen: str
    api_url: str
    version: str
    timing: Timing = Timing()
    disk_reserve_bytes: int = 256 * 1024 * 1024
    #: One entry gathers at most this many bytes of commands, or one larger command.
    entry_bytes: int = 1024 * 1024
    #: Waiting to be put into an entry; beyond it `Overloaded`.
    waiting_bytes: int = 64 * 1024 * 1024
    waiting_commands: int = 20_000
    #: Proposed and not yet committed.
    uncommitted_bytes: int = 32 * 1024 * 1024
    tick: float = 0.01
    #: What was only applied is written at most this much later.
    ride: float = 0.05
    #: Between two steps of expiry, unless the first left something due.
    expire_pause: float = 0.02
    #: A commit that takes longer costs leadership.
    slow_commit: float = 2.0
    #: The log is cut when this many bytes could go.
    compact_bytes: int = 4 * 1024 * 1024
    #: The log is called long when it holds more, because a member lags.
    long_log_bytes: int = 1024 * 1024 * 1024
    #: Applied in one go, before the loop gets a pass.
    apply_bytes: int = 4 * 1024 * 1024
