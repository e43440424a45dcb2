"""Binding an address, with the reason in one line when that fails."""

from __future__ import annotations

import errno
import socket

from raftq.node import addresses
from raftq.node.exits import Exit, Fatal


def bind(address: str, setting: str) -> socket.socket:
    """A socket bound to `address`, not listening yet. Raises Fatal naming `setting`."""
    host, port = addresses.split(address)
    try:
        family, *_, name = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(name)
    except OSError as error:
        raise refusal(error, address, setting) from error
    return bound


def refusal(error: OSError, address: str, setting: str) -> Fatal:
    """Why `address` cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        line = f"{address} is taken by another program: stop that, or set another {setting}"
        return Fatal(Exit.PORT_TAKEN, line)
    if error.errno == errno.EACCES:
        return Fatal(Exit.CONFIG, f"no permission to listen on {address}: set {setting} to a port above 1023")
    return Fatal(
        Exit.CONFIG, f"cannot listen on {address} ({error.strerror}): set {setting} to an address of this machine"
    )
