"""The settings of a node: `Config` is the only place where a setting's name, type, default and help stand.

The TOML key, the variable RAFTQ_<NAME>, the flag --<name> and the table in docs/configuration.md all follow from it
(`raftq.node.settings`). Nothing here reads a file, opens or binds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from raftq.node import addresses

#: A request is replicated in one piece, well within what peers take as one (`replication.wire`).
BATCH_BYTES_LIMIT = 32 << 20


class ByteCount(int):
    """Bytes: a whole number, or text as 256MiB."""


def about(text: str) -> Meta:
    """The help of a setting."""
    return Meta(description=text)


Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}$", title="name (letters, digits, . _ -)")]
Address = Annotated[str, Meta(pattern=addresses.PATTERN, title="host:port")]
Members = Annotated[dict[Name, Address], Meta(title="n1=host:port,...")]
Folder = Annotated[Path, Meta(title="folder")]
Size = Annotated[ByteCount, Meta(title="bytes, or 256MiB")]
Milliseconds = Annotated[int, Meta(ge=5, le=600_000, title="milliseconds, 5 to 600000")]
Seconds = Annotated[float, Meta(ge=0, le=3600, title="seconds, 0 to 3600")]
OptionalAddress = Annotated[str, Meta(pattern=f"{addresses.PATTERN}|^$", title="host:port")]
OptionalUrl = Annotated[str, Meta(pattern=r"^https?://[^\s/]+$|^$", title="URL")]
OptionalFile = Annotated[str, Meta(pattern=r"^[^\x00]*$", title="file")]
Switch = Annotated[bool, Meta(title="true or false")]


class Config(Struct, frozen=True, kw_only=True):
    node_id: Annotated[Name, about("Name of this node, unique in its cluster.")]
    cluster_id: Annotated[
        Name, about("Name of the cluster. Nodes of another cluster are refused, and so is the data of another cluster.")
    ]
    data: Annotated[Folder, about("Data folder, on a local disk. It belongs to this node alone.")]
    members: Annotated[
        Members,
        about(
            "The first members of the cluster and where their peers reach them, the same on every node; with `join`, "
            "some that are in it. In TOML a table. Empty: this node alone."
        ),
    ] = {}
    join: Annotated[
        Switch, about("With an empty folder: wait to be added to the cluster of `members` (`raftq cluster add`).")
    ] = False
    api_listen: Annotated[Address, about("Where HTTP is served.")] = "127.0.0.1:7701"
    api_url: Annotated[
        OptionalUrl,
        about(
            "Where clients reach this node; redirects name it. Empty: `http://` and `api_listen`, with a certificate `https://`."
        ),
    ] = ""
    peer_listen: Annotated[Address, about("Where the other nodes are heard.")] = "127.0.0.1:8701"
    peer_address: Annotated[
        OptionalAddress, about("Where the other nodes reach this one. Empty: as in `members`, else `peer_listen`.")
    ] = ""
    peer_secret_file: Annotated[
        OptionalFile,
        about("Holds the secret that all nodes of the cluster share (`raftq secret new`): who has it is a node."),
    ] = ""
    peer_tls_cert: Annotated[
        OptionalFile, about("Certificate of this node for its peers, in PEM: TLS between the nodes, both sides proven.")
    ] = ""
    peer_tls_key: Annotated[OptionalFile, about("Its private key.")] = ""
    peer_tls_ca: Annotated[OptionalFile, about("The authority of the nodes' certificates, and of nothing else.")] = ""
    api_tls_cert: Annotated[OptionalFile, about("Certificate of the API, in PEM with its chain: HTTPS alone.")] = ""
    api_tls_key: Annotated[OptionalFile, about("Its private key.")] = ""
    api_tls_ca: Annotated[
        OptionalFile,
        about("The authority of the other nodes' API, to which requests are passed on. Empty: those of the system."),
    ] = ""
    tokens: Annotated[Switch, about("Every request needs a token (`raftq tokens`).")] = False
    first_token_file: Annotated[
        OptionalFile,
        about("Names the token that the cluster begins with (`raftq tokens first`): its id and digest, no secret."),
    ] = ""
    insecure: Annotated[
        Switch,
        about("Start even though strangers can reach this node, with no secret or certificate, or without tokens."),
    ] = False
    election_ms_min: Annotated[
        Milliseconds,
        about("A follower that hears no leader for a random time from this to `election_ms_max` stands for election."),
    ] = 300
    election_ms_max: Annotated[
        Milliseconds, about("See `election_ms_min`. Raise both on a slow or distant network.")
    ] = 600
    heartbeat_ms: Annotated[Milliseconds, about("A leader is heard from at least this often.")] = 40
    disk_reserve_bytes: Annotated[
        Size, about("While a node has less free disk than this, enqueues get 507; leases and acks go on.")
    ] = ByteCount(256 << 20)
    body_bytes_max: Annotated[Size, about("The largest body of a message.")] = ByteCount(1 << 20)
    batch_messages_max: Annotated[
        int, Meta(ge=1, le=1000, title="messages, 1 to 1000"), about("The most messages of one request.")
    ] = 1000
    batch_bytes_max: Annotated[Size, about("The largest request; at most 32MiB.")] = ByteCount(8 << 20)
    wait_seconds_max: Annotated[Seconds, about("The longest that a lease may wait for a message.")] = 60.0
    stop_seconds_max: Annotated[
        Seconds, about("A stop answers what is in flight and hands leadership over within this time.")
    ] = 10.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("The least level that is logged, to stderr.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "logfmt", "human"], about("auto: human on a terminal, else json.")
    ] = "auto"

    @property
    def public_url(self) -> str:
        return self.api_url or f"{'https' if self.api_tls_cert else 'http'}://{self.api_listen}"

    @property
    def public_peer_address(self) -> str:
        return self.peer_address or self.members.get(self.node_id) or self.peer_listen

    @property
    def first_members(self) -> dict[str, str]:
        """Who the cluster begins with; with `join`, where it is found."""
        return self.members or {self.node_id: self.public_peer_address}


def contradiction(config: Config) -> str | None:
    """What is wrong between settings that are each right by themselves, and what to do; None when they agree."""
    return _wrong_addresses(config) or _wrong_files(config) or _wrong_amounts(config)


def _wrong_addresses(config: Config) -> str | None:
    own, url, peer = config.node_id, config.public_url, config.public_peer_address
    if config.join and not set(config.members) - {own}:
        return "to join, members must name at least one node of the cluster: add node=host:port"
    if config.members and own not in config.members and not config.join:
        return f"members does not hold this node: add {own}=host:port, or set join to be added to a cluster that runs"
    if config.members.get(own, peer) != peer:
        return f"peer_address is {peer}, but members has {own} at {config.members[own]}: make them equal"
    if any(addresses.is_wildcard(address) for address in (peer, *config.first_members.values())):
        return "other nodes cannot dial 0.0.0.0 or [::]: name the host in members, or peer_address"
    if addresses.is_wildcard(url.partition("://")[2]):
        return f"clients cannot dial {url}: set api_url to the URL that they use"
    for address in (config.api_listen, config.peer_listen, peer, *config.first_members.values()):
        if addresses.split(address)[1] > 65535:
            return f"{address}: a port is at most 65535"
    return None


def _wrong_files(config: Config) -> str | None:
    peer = {name: getattr(config, name) for name in ("peer_tls_cert", "peer_tls_key", "peer_tls_ca")}
    if any(peer.values()) and not all(peer.values()):
        given, missing = ([name for name, file in peer.items() if bool(file) is there] for there in (True, False))
        return f"{given[0]} is set, but not {' and '.join(missing)}: TLS between nodes takes certificate, key and CA"
    if bool(config.api_tls_cert) != bool(config.api_tls_key):
        names = ["api_tls_cert", "api_tls_key"]
        given_one, missing_one = names if config.api_tls_cert else reversed(names)
        return f"{given_one} is set, but not {missing_one}: HTTPS takes both"
    if config.api_tls_cert and config.api_url.startswith("http://"):
        return f"api_url is {config.api_url}, but with api_tls_cert only HTTPS is served: make it https://"
    return None


def _wrong_amounts(config: Config) -> str | None:
    if config.election_ms_max <= config.election_ms_min:
        return f"election_ms_max, {config.election_ms_max}, must be above election_ms_min, {config.election_ms_min}"
    if config.election_ms_min < 3 * config.heartbeat_ms:
        return (
            f"election_ms_min, {config.election_ms_min}, must be 3 times heartbeat_ms, {config.heartbeat_ms}, or more"
        )
    if config.batch_bytes_max < config.body_bytes_max:
        return f"batch_bytes_max, {config.batch_bytes_max}, must be body_bytes_max, {config.body_bytes_max}, or more"
    if config.batch_bytes_max > BATCH_BYTES_LIMIT:
        return f"batch_bytes_max, {config.batch_bytes_max}, must be {BATCH_BYTES_LIMIT}, 32MiB, or less"
    return None
