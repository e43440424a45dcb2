"""What a shard is told about itself, and its limits."""

from __future__ import annotations

import msgspec

from raftq.replication.journal import TAIL_BYTES
from raftq.replication.progress import Flow, Timing
from raftq.replication.security import PeerSecurity
from raftq.replication.transfer import CHUNK_BYTES
from raftq.storage.machine.apply import VERSION_MAX


class ShardConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes."""

    node_id: str
    cluster_id: str
    node_uuid: str
    boot: int
    #: Peer addresses of the nodes that the cluster begins with; or, to join one, of any that are in it. Once the folder
    #: holds a configuration of its own, that one counts.
    members: dict[str, str]
    #: An empty folder waits to be added.
    join: bool = False
    peer_listen: str
    #: As the others reach it.
    peer_address: str
    #: What nodes prove to each other; None: whoever reaches the port is a peer.
    peer_security: PeerSecurity | None = None
    api_url: str
    version: str
    #: The newest machine version that this node runs.
    machine_version: int = VERSION_MAX
    timing: Timing = Timing()
    flow: Flow = Flow()
    disk_reserve_bytes: int = 256 * 1024 * 1024
    #: One entry gathers at most this many bytes of commands, or one larger command.
    entry_bytes: int = 512 * 1024
    #: And so much work (`commands.weight`), or one command that is more: applying it keeps every node from all else.
    entry_weight: int = 1_000
    #: Waiting to be put into an entry; beyond it `Overloaded`.
    waiting_bytes: int = 64 * 1024 * 1024
    waiting_commands: int = 20_000
    #: Proposed and not yet committed.
    uncommitted_bytes: int = 32 * 1024 * 1024
    #: Of the log, kept in memory.
    tail_bytes: int = TAIL_BYTES
    tick: float = 0.01
    #: What was only applied is written at most this much later.
    ride: float = 0.05
    #: Between two steps of expiry, unless the first left something due.
    expire_pause: float = 0.02
    #: Between two steps of a change of the members.
    members_pause: float = 0.1
    #: A commit that takes longer costs leadership.
    slow_commit: float = 2.0
    #: The log is cut when this many bytes could go.
    compact_bytes: int = 4 * 1024 * 1024
    #: The log is called long when it holds more, because a member lags.
    long_log_bytes: int = 1024 * 1024 * 1024
    #: One piece of a snapshot on its way.
    chunk_bytes: int = CHUNK_BYTES
    #: Applied in one go, before the loop gets a pass.
    apply_bytes: int = 4 * 1024 * 1024
    apply_seconds: float = 0.02
