"""`host:port` texts: what they look like, and which of them nobody else can dial."""

from __future__ import annotations

import ipaddress

#: A host name, an IPv4 address or an IPv6 address in brackets; then a port.
PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/,=]+):\d{1,5}$"


def split(address: str) -> tuple[str, int]:
    """(host, port) of a text that matches PATTERN, the host without brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_wildcard(address: str) -> bool:
    """True for 0.0.0.0 and [::], on which one can listen but which one cannot dial."""
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
