"""`raftq secret new`: what the nodes of a cluster share."""

from __future__ import annotations

from pathlib import Path

import click

from raftq.node import secret_file
from raftq.node.exits import Exit, Fatal
from raftq.node.secure_folder import new_secret

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def secret() -> None:
    """Make the secret of a cluster."""


@secret.command()
@click.argument("file", type=_FILE)
def new(file: Path) -> None:
    """Make a secret in FILE, which must be new.

    Copy it to every node of the cluster, for its user alone, and name it there: peer_secret_file. Who has it is a node.
    """
    write(file, new_secret())
    click.echo(f"{file}: a new secret, for your user alone; copy it to each node, and start it with --peer-secret-file")


def write(file: Path, data: bytes) -> None:
    """Raises Fatal(FILE_REFUSED)."""
    try:
        secret_file.write(file, data)
    except FileExistsError as error:
        raise Fatal(Exit.FILE_REFUSED, f"{file} is there already, and is not replaced: name another") from error
    except OSError as error:
        raise Fatal(Exit.FILE_REFUSED, f"cannot write {file}: {error.strerror}") from error
