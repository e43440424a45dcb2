"""Structured logs to stderr: JSON or logfmt lines for machines, coloured ones for a terminal.

One event is one line, a traceback included (as a field), whatever peers or clients put into its values. Records of the
standard library's logging go the same way.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

Format = Literal["auto", "json", "logfmt", "human"]

#: Characters that begin a line, move a terminal's cursor, turn text around or cannot be written; the renderers escape
#: line feeds themselves, and that of JSON all of them.
_HIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def setup(level: str, form: Format, node_id: str) -> None:
    """From here on, every line of this process goes to stderr and names the node."""

    def name_node(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["node"] = node_id
        return event

    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    common: list[Processor] = [structlog.stdlib.add_log_level, stamp, name_node]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=common, processors=_last_steps(resolved(form)))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def resolved(form: Format) -> Literal["json", "logfmt", "human"]:
    if form == "auto":
        return "human" if sys.stderr.isatty() else "json"
    return form


def _last_steps(form: Literal["json", "logfmt", "human"]) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if form == "human":
        plain = structlog.dev.plain_traceback
        return [strip, _shown, structlog.dev.ConsoleRenderer(timestamp_key="time", exception_formatter=plain)]
    lines = [structlog.processors.JSONRenderer()] if form == "json" else [_shown, structlog.processors.LogfmtRenderer()]
    return [strip, structlog.processors.format_exc_info, _in_order, *lines]


def _shown(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Every value with what is hidden in it as an escape."""
    for key, value in event.items():
        if isinstance(value, str) and _HIDDEN.search(value):
            event[key] = _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return event


def _in_order(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """What every line has, first."""
    first = {key: event.pop(key) for key in ("time", "level", "node", "event") if key in event}
    return {**first, **event}
