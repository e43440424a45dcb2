"""One HTTP request to a node, with the standard library alone and without following redirects."""

from __future__ import annotations

import functools
import http.client
import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec


class Access(NamedTuple):
    """What is shown to a node, and by which authorities its certificate has to be; None: those of the system. Never
    shown with the token."""

    token: str | None = None
    ca_file: Path | None = None

    def __repr__(self) -> str:
        return f"Access(ca_file={self.ca_file!r})"


NO_ACCESS = Access()


class Answer(NamedTuple):
    status: int
    #: The URL of a redirect.
    location: str | None
    text: str

    def json(self) -> Any:
        """Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.text)


def ask(method: str, url: str, body: str | None = None, *, seconds: float = 1.0, access: Access = NO_ACCESS) -> Answer:
    """What `curl -X method --json body url` gets. Raises OSError when no whole answer comes, each step in `seconds`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        trusting = _trusting(access.ca_file)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=seconds, context=trusting)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
    try:
        headers = {} if body is None else {"Content-Type": "application/json", "Accept": "application/json"}
        if access.token is not None:
            headers["Authorization"] = f"Bearer {access.token}"
        content = None if body is None else body.encode()
        connection.request(method, f"{parts.path}?{parts.query}".rstrip("?"), content, headers)
        response = connection.getresponse()
        return Answer(response.status, response.getheader("Location"), response.read().decode(errors="replace"))
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url} gave no whole answer: {error!r}") from error
    finally:
        connection.close()


@functools.cache
def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Raises OSError."""
    return ssl.create_default_context(cafile=ca_file)


def cluster(api_url: str, *, seconds: float = 1.0, access: Access = NO_ACCESS) -> dict[str, Any] | None:
    """What a node says of its cluster (GET /v1/cluster), None when it does not answer. One that waits to be added knows
    no token, so that it says nothing to anybody: it has no nodes."""
    try:
        answer = ask("GET", f"{api_url}/v1/cluster", seconds=seconds, access=access)
        if answer.status == 401:
            return {"cluster_id": "", "leader": None, "term": 0, "nodes": []}
        return answer.json() if answer.status == 200 else None
    except (OSError, msgspec.DecodeError):
        return None
