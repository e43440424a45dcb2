"""Each event is one line that a machine can read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from raftq.node import logs


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def said(capsys: pytest.CaptureFixture[str], form: logs.Format) -> list[str]:
    logs.setup("info", form, "n1")
    log = structlog.get_logger("raftq.test")
    log.debug("not this")
    log.info("ready", leader="n2", term=3)
    logging.getLogger("aiohttp").warning("of %s", "a library")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    return capsys.readouterr().err.splitlines()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    ready, library, failed = map(json.loads, said(capsys, "json"))
    assert list(ready)[:4] == ["time", "level", "node", "event"]
    assert (ready["level"], ready["node"], ready["event"], ready["leader"], ready["term"]) == (
        "info", "n1", "ready", "n2", 3,
    )  # fmt: skip
    assert (library["level"], library["node"], library["event"]) == ("warning", "n1", "of a library")
    assert "ValueError: two\nlines" in failed["exception"]


def test_logfmt(capsys: pytest.CaptureFixture[str]) -> None:
    ready, library, failed = said(capsys, "logfmt")
    assert ready.endswith("level=info node=n1 event=ready leader=n2 term=3")
    assert 'event="of a library"' in library
    assert "ValueError: two\\nlines" in failed


def test_auto_is_json_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, "auto")[0])["event"] == "ready"


def test_human_shows_a_traceback_without_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(said(capsys, "human"))
    assert "ready" in text
    assert "ValueError" in text
    assert "locals" not in text


@pytest.mark.parametrize("form", ["json", "logfmt", "human"])
def test_what_others_wrote_neither_begins_a_line_nor_moves_a_cursor(
    capsys: pytest.CaptureFixture[str], form: logs.Format
) -> None:
    """A node id of a peer that was refused went into the log as it came, and could forge a line after a `\\r`."""
    logs.setup("info", form, "n1")
    evil = "n1\0\r\nlevel=critical \x1b[2J\x9b2J\x85\u2028\u202etxt\ud800"
    structlog.get_logger("raftq.test").info("refused peer", peer=evil, reason="\x1b[2J\r")
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "n1" in text
    plain = text.replace("\x1b[0m", "") if form == "human" else text
    assert "\x1b[2J" not in plain
    assert not set(plain) & set("\0\r\x9b\x85\u2028\u202e\ud800")
