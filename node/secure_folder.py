"""The folder `secure` of a cluster that `raftq up --secure` runs: an authority with its certificates, the cluster's
secret, the id and digest of the first token, and a token of the supervisor that can see the cluster and nothing else.

Invariant: nobody but the owner of the folder can read it, and the first token is not in it. What a node or a command is
given are names of files.
"""

from __future__ import annotations

import functools
import secrets
from pathlib import Path

import msgspec

from raftq.node import probe, secret_file
from raftq.node.probe import Access

#: Of the namespace in which it may do something, where there is nothing.
_SUPERVISOR = "raftq-up"


def authority(cluster: Path) -> Path:
    """The file that a client of the cluster in `cluster` trusts."""
    return cluster / "secure" / "ca.crt"


class SecureFolder:
    def __init__(self, cluster: Path) -> None:
        self.path = cluster / "secure"
        #: Until it is told: a cluster whose first token was never told has none of use.
        self.first_token: str | None = None
        self._token = self.path / "supervisor.token"
        self._first = self.path / "first-token.json"
        self._secret = self.path / "cluster.secret"

    def prepare(self) -> None:
        """Make what is missing, the first token too. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._secret.exists():
            secret_file.write(self._secret, new_secret())
        if not self._token.exists():
            from raftq.node import first_token

            self.first_token, kept = first_token.make()
            self._first.unlink(missing_ok=True)
            secret_file.write(self._first, kept)

    def issue(self, node: str) -> None:
        """A certificate for `node`, unless it has one that is good for a while. Raises OSError."""
        from raftq.node.authority import Authority

        Authority(self.path).ensure(node, [])

    def flags(self, node: str) -> list[str]:
        """Of `raftq node`."""
        pem = {"cert": f"{node}.crt", "key": f"{node}.key", "ca": "ca.crt"}
        files = {f"{side}-tls-{kind}": self.path / name for side in ("peer", "api") for kind, name in pem.items()}
        files |= {"peer-secret-file": self._secret, "first-token-file": self._first}
        return ["--tokens", *(f"--{name}={file}" for name, file in files.items())]

    def access(self) -> Access:
        """Of the supervisor."""
        return Access(self.first_token or self._own_token(), self.path / "ca.crt")

    @functools.cache  # noqa: B019 - there is one of these to a process
    def _own_token(self) -> str:
        return self._token.read_text(encoding="utf-8").strip()

    def told(self, api_url: str) -> None:
        """The first token was told: from here on the supervisor has one of its own. Raises OSError."""
        grants = [{"scope": "consume", "names": _SUPERVISOR}]
        wanted = {"name": _SUPERVISOR, "namespace": _SUPERVISOR, "grants": grants}
        body = msgspec.json.encode(wanted).decode()
        answer = probe.ask("POST", f"{api_url}/v1/tokens", body, seconds=10, access=self.access())
        if answer.status != 201:
            raise ConnectionError(f"{api_url} gave no token: {answer.status} {answer.text[:200]}")
        secret_file.write(self._token, answer.json()["token"].encode() + b"\n")
        self.first_token = None


def new_secret() -> bytes:
    """Of a cluster: 256 random bits, as text."""
    return secrets.token_urlsafe(32).encode() + b"\n"
