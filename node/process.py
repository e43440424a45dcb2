"""The process around a node: logs, event loop, signals, and the end with an exit code and one line."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from typing import Any

import structlog
import uvloop

from raftq.node import doctor, exposure, folders, identity, listening, logs, security
from raftq.node.config import Config
from raftq.node.exits import Exit, Fatal
from raftq.node.node import Node
from raftq.replication.shard import Fenced
from raftq.storage.environment import Environment, StorageError
from raftq.storage.machine.commands import UnknownCommand

#: Seconds a thread may keep the interpreter: 5 ms, the default, is ten times a whole cycle. At 0.1 ms instead of 0.5
#: the writer gets back in time to end a commit under load: 1.2 times as many batches (docs/decisions/0006).
SWITCH_SECONDS = 0.0001

_log = structlog.get_logger("raftq.node")


def run(config: Config, *, until_stdin_closes: bool) -> int:
    """Runs the node until it is told to stop; the exit code."""
    logs.setup(config.log_level, config.log_format, config.node_id)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, until_stdin_closes=until_stdin_closes))
    except Exception as error:
        return _ended(config, error)
    _log.info("stopped")
    return Exit.STOPPED


async def _serve(config: Config, *, until_stdin_closes: bool) -> None:
    files_max = doctor.raise_file_limit()
    if (refusal := exposure.refusal(config)) is not None:
        raise Fatal(Exit.CONFIG, refusal)
    guarded = security.load(config)
    bound = listening.bind(config.api_listen, "api_listen")
    environment = Environment(config.data)
    me = identity.begin(environment, config.cluster_id, config.node_id)
    node = Node(config, environment, me, guarded)
    await node.start(bound)
    _log.info("started", api=config.public_url, peers=config.peer_listen, data=str(config.data), start=me.boot)
    for warning in doctor.warnings(config, environment, os.environ, files_max):
        _log.warning(warning)
    for warning in exposure.warnings(config):
        _log.warning(warning)
    for side in guarded.sides:
        side.look()
    _settle_memory()
    stop = _stop_wanted(watch_stdin=until_stdin_closes)
    ends: list[asyncio.Future[Any]] = [stop, node.failed]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if node.failed.done():
        raise node.failed.result()
    _log.info("stopping", reason=stop.result())
    await node.stop()
    if node.failed.done():
        raise node.failed.result()


def _settle_memory() -> None:
    """What start-up made is not looked at again by the collector, which runs rarely from here on: the hot paths make no
    cycles. (Single enqueues from 128 connections: p99 36 ms with Python's defaults, 20 ms with these.)"""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _stop_wanted(*, watch_stdin: bool) -> asyncio.Future[str]:
    """Ends with the reason when the process is told to stop. A second signal ends it at once, as a crash would."""
    loop = asyncio.get_running_loop()
    wanted: asyncio.Future[str] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if wanted.done():
            os._exit(128 + number)
        wanted.set_result(number.name)

    def on_stdin() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            if not wanted.done():
                wanted.set_result("standard input closed")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if watch_stdin:
        loop.add_reader(0, on_stdin)
    return wanted


def _ended(config: Config, error: Exception) -> Exit:
    """The exit code of what made the node fail, after one line that says it."""
    code = _exit_of(config, error)
    if code is Exit.UNEXPECTED:
        _log.critical("this should not have happened: please report it", exit_code=int(code), exc_info=error)
    else:
        _log.critical(_line(config, error), exit_code=int(code))
    return code


def _line(config: Config, error: Exception) -> str:
    """What went wrong; of the data, also in which folder."""
    line, folder = str(error), str(config.data)
    return line if isinstance(error, Fatal) or folder in line else f"{folder}: {line}"


def _exit_of(config: Config, error: Exception) -> Exit:
    match error:
        case Fatal():
            return error.code
        case UnknownCommand():
            return Exit.DAMAGED
        case Fenced():
            return Exit.FENCED
        case StorageError():
            return folders.exit_of(error, config.data)
        case _:
            return Exit.UNEXPECTED
