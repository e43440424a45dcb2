"""The console script `raftq`: refuses what it cannot run on, runs the command, and turns every error into one line.

What it imports at the top is only what a Python too old for raftq can read.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from raftq.node.exits import Exit, Fatal

PYTHON_MIN = (3, 11)


def main() -> NoReturn:
    """Runs the command line of this process and ends it with an exit code of `raftq.node.exits`."""
    try:
        refuse_unsupported()
        hear_ctrl_c()
        sys.exit(run(sys.argv[1:]))
    except Fatal as error:
        end(error.code, str(error))


def refuse_unsupported() -> None:
    """Raises Fatal when this Python or this system cannot run raftq."""
    if sys.version_info[:2] < PYTHON_MIN:
        have = ".".join(map(str, sys.version_info[:3]))
        raise Fatal(Exit.PYTHON_TOO_OLD, f"raftq needs Python 3.11 or newer, this is {have} ({sys.executable})")
    if sys.platform not in ("linux", "darwin"):
        raise Fatal(Exit.UNSUPPORTED_SYSTEM, f"raftq runs on Linux and macOS, not {sys.platform}: use a container")
    if sys.maxsize < 2**32:
        raise Fatal(Exit.UNSUPPORTED_SYSTEM, "raftq needs a 64-bit Python: its environment is mapped into memory")


def hear_ctrl_c() -> None:
    """Also when a shell script started this in the background, and so with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(arguments: list[str]) -> int:
    """The exit code of the command. Raises Fatal."""
    import click

    from raftq.cli.commands import raftq

    try:
        return raftq.main(arguments, prog_name="raftq", standalone_mode=False) or 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "raftq"
        raise Fatal(Exit.USAGE, f"{one_line(error.format_message())} ({where} --help)") from error
    except click.ClickException as error:
        raise Fatal(Exit.UNEXPECTED, one_line(error.format_message())) from error
    except ModuleNotFoundError as error:
        if (error.name or "raftq").startswith("raftq"):
            raise
        raise Fatal(Exit.CONFIG, f"{error.name} is not installed: pip install 'raftq[server]'") from error
    except (click.Abort, KeyboardInterrupt) as error:
        raise SystemExit(130) from error
    except BrokenPipeError as error:  # as in `raftq stats | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from error


def one_line(text: str) -> str:
    return " ".join(text.split())


def end(code: Exit, line: str) -> NoReturn:
    """The one line, then the exit."""
    sys.stderr.write(f"raftq: {line}\n")
    sys.exit(int(code))
