"""Whether strangers could reach a node as it is set up, and what then keeps them out.

Everybody on a machine may use what listens on its loopback address. What listens elsewhere must know its peers and its
clients: a node that does not refuses to start, unless it is told that this is meant.
"""

from __future__ import annotations

import ipaddress
import socket

from raftq.node import addresses, listening
from raftq.node.config import Config


def refusal(config: Config) -> str | None:
    """Why the node must not start, and what to do. Raises Fatal for an address that cannot be listened on."""
    missing = _missing(config)
    if config.insecure or not missing:
        return None
    open_at = _open(config)
    if open_at is None:
        return None
    return (
        f"{open_at} can be reached from other machines, and this node has no {' and no '.join(missing)}: "
        f"{'; '.join(missing.values())}; or listen on 127.0.0.1; or --insecure if strangers may do everything"
    )


def warnings(config: Config) -> list[str]:
    """What somebody on the network could read or do, of a node that starts."""
    open_at = _open(config)
    if open_at is None:
        return []
    found = []
    if missing := _missing(config):
        found.append(f"insecure: {open_at} can be reached from other machines, with no {' and no '.join(missing)}")
    if not config.public_url.startswith("https:"):
        found.append(
            "clients speak plain HTTP: tokens and messages can be read on their way, and tokens used by who reads them;"
            " set api_tls_cert and api_tls_key"
        )
    if not config.peer_tls_cert:
        found.append("nodes speak without TLS: messages can be read on their way; set peer_tls_cert, _key and _ca")
    return found


def _missing(config: Config) -> dict[str, str]:
    """What is missing: how to have it."""
    missing = {}
    if not (config.peer_secret_file or config.peer_tls_cert):
        missing["cluster secret"] = "`raftq secret new FILE` and --peer-secret-file FILE on every node"
    if not config.tokens:
        missing["tokens"] = "`raftq tokens first FILE`, --first-token-file FILE and --tokens"
    return missing


def _open(config: Config) -> str | None:
    """The first address at which other machines may reach this node."""
    settings = {"api_listen": config.api_listen, "peer_listen": config.peer_listen}
    return next((f"{name} {address}" for name, address in settings.items() if not _is_local(address, name)), None)


def _is_local(address: str, setting: str) -> bool:
    """Whether all that the address stands for is loopback."""
    host, port = addresses.split(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise listening.refusal(error, address, setting) from error
    return all(ipaddress.ip_address(str(at[0]).partition("%")[0]).is_loopback for *_, at in found)
