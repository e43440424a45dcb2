"""The commands of `raftq`, by name. A command's module is imported when that command is asked for, and not before."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

import raftq as package
from raftq.node.exits import Exit


class Entry(NamedTuple):
    #: Holds a click command of the entry's name.
    module: str
    #: Its line in `raftq --help`; the same as the command's own, which is not read for that.
    summary: str


COMMANDS = {
    "up": Entry("raftq.cli.up", "Run a cluster on this machine."),
    "kill": Entry("raftq.cli.local", "Kill a node of the cluster that `raftq up` runs (SIGKILL)."),
    "start": Entry("raftq.cli.local", "Start a node that `raftq kill` killed."),
    "node": Entry("raftq.cli.node", "Run one node."),
    "enqueue": Entry("raftq.cli.messages", "Put messages into a queue."),
    "lease": Entry("raftq.cli.messages", "Lease messages from a queue."),
    "ack": Entry("raftq.cli.messages", "Ack leased messages: they are done."),
    "nack": Entry("raftq.cli.messages", "Hand leased messages back, counting a failure."),
    "stats": Entry("raftq.cli.cluster", "Show the counts of one queue, or of all."),
    "cluster": Entry("raftq.cli.cluster", "Show the nodes as the leader sees them; or change them."),
    "backup": Entry("raftq.cli.backup", "Save a backup of the cluster, while it works."),
    "restore": Entry("raftq.cli.backup", "Make a new cluster from a backup."),
    "recover": Entry("raftq.cli.recover", "Make a cluster of one node that is left, when a majority is lost for ever."),
    "tokens": Entry("raftq.cli.tokens", "Create, list, show and revoke tokens."),
    "tls": Entry("raftq.cli.tls", "Make certificates for tests."),
    "secret": Entry("raftq.cli.secret", "Make the secret of a cluster."),
    "write": Entry("raftq.cli.files", "Write a file into a queue, a message a line."),
    "read": Entry("raftq.cli.files", "Read a queue into a file, a line a message."),
    "simulate": Entry("raftq.cli.simulate", "Simulate a cluster under faults, and judge it."),
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name].module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), code.meaning) for code in Exit])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package.__version__, prog_name="raftq")
def raftq() -> None:
    """raftq: a message queue for work you cannot lose, on a cluster of equal nodes.

    \b
    Begin with:  raftq up
    """
