"""What the settings of a node name by file: certificates, the cluster's secret, the first token. Read once, at the
start; certificates again whenever they change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from raftq.node import secret_file
from raftq.node.config import Config
from raftq.node.exits import Exit, Fatal
from raftq.node.first_token import read
from raftq.node.secret_file import Unusable
from raftq.replication.security import PeerSecurity
from raftq.storage.machine.commands import CreateToken

if TYPE_CHECKING:
    from raftq.node.certificates import Certificates


class Security(NamedTuple):
    #: None without a certificate of its own and without an authority to trust.
    api: Certificates | None
    peers: Certificates | None
    #: None: who reaches the peers' port is a peer.
    peer: PeerSecurity | None
    first_token: CreateToken | None

    @property
    def sides(self) -> list[Certificates]:
        return [side for side in (self.api, self.peers) if side is not None]


def load(config: Config) -> Security:
    """Raises Fatal(CONFIG)."""
    try:
        api, peers = _certificates(config)
        secret = _secret(config.peer_secret_file)
        peer = None if secret is None and peers is None else PeerSecurity(secret, peers)
        return Security(api, peers, peer, read(Path(config.first_token_file)) if config.first_token_file else None)
    except Unusable as error:
        raise Fatal(Exit.CONFIG, str(error)) from error


def _certificates(config: Config) -> tuple[Certificates | None, Certificates | None]:
    if not (config.api_tls_cert or config.api_tls_ca or config.peer_tls_cert):
        return None, None
    from raftq.node.certificates import Certificates, Files  # takes a tenth of a second

    api = Files("api", _path(config.api_tls_cert), _path(config.api_tls_key), _path(config.api_tls_ca))
    peer = Files("peer", _path(config.peer_tls_cert), _path(config.peer_tls_key), _path(config.peer_tls_ca))
    return (
        Certificates(api, mutual=False) if api.cert or api.ca else None,
        Certificates(peer, mutual=True) if peer.cert else None,
    )


def _secret(file: str) -> bytes | None:
    return secret_file.secret(Path(file), "peer_secret_file") if file else None


def _path(file: str) -> Path | None:
    return Path(file) if file else None
