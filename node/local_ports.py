"""Ports of 127.0.0.1: which are taken, and which a test may use."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"


def is_taken(port: int) -> bool:
    """Whether a program listens on it. (A connection of an ended program that still lingers is no obstacle.)"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def free_first(size: int, peer_ports: int) -> int:
    """A first API port for `size` nodes whose peers' ports are `peer_ports` higher. It lies below the ports that the
    system hands to outgoing connections, so that a node which is down for a while finds its own free again."""
    while True:
        first = random.randrange(10_000, 30_000)  # noqa: S311 - no secret
        if not any(is_taken(port + up) for port in range(first, first + size) for up in (0, peer_ports)):
            return first


def of(address: str) -> int:
    """The port at the end of a URL or an address."""
    return int(address.rpartition(":")[2])
