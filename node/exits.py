"""The exit codes of `raftq`, and the exception that ends a process with one of them and one line.

A line says what is wrong and what to do about it. A service manager should start a node again after UNEXPECTED and
COMMIT_FAILED; the others need a person first (`needs_a_person`). docs/operations.md lists the codes; a test compares.

The module keeps to what Python 3.7 can read: a Python that is too old ends here, not in a SyntaxError.
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    #: What it is, as docs/operations.md and `raftq --help` say it.
    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    STOPPED = 0, "stopped as asked"
    UNEXPECTED = 1, "an error that raftq does not know; the log holds its traceback"
    USAGE = 2, "the command line is wrong"
    CONFIG = 10, "the configuration is wrong, or the data folder cannot be used"
    PORT_TAKEN = 11, "another program listens on the port"
    DISK_FULL = 12, "the disk of the data folder is full"
    DAMAGED = 13, "the environment is damaged, or was written by a newer version"
    FOREIGN_DATA = 14, "the data folder belongs to another cluster or another node"
    PYTHON_TOO_OLD = 15, "this Python is older than 3.11"
    UNSUPPORTED_SYSTEM = 16, "raftq does not run on this system"
    FOLDER_IN_USE = 17, "another process uses the data folder"
    COMMIT_FAILED = 18, "the disk refused a commit; what is on disk is whole, so start it again once the disk is well"
    NOT_READY = 19, "the cluster had no leader in time, or a node of it did not start"
    TOUR_FAILED = 20, "a step of the tour did not go as it should"
    FENCED = 21, "the data folder may not take part any more: it was removed, emptied, or is an old copy"
    UNAVAILABLE = 30, "no node could take it in time; it did not happen"
    OUTCOME_UNKNOWN = 31, "the answer was lost: it may have happened, or not"
    UNFINISHED = 32, "`raftq write` was stopped before the end of the file, and goes on from there"
    REFUSED = 33, "the cluster refused the request, and said why"
    NOT_ALL = 34, "there was nothing to lease, or a receipt was gone"
    FILE_REFUSED = 35, "the file cannot be written or read as it is"


class Fatal(Exception):
    """Ends the process with `code` and one line on stderr."""

    def __init__(self, code: Exit, line: str) -> None:
        super().__init__(line)
        self.code = code


def meaning(code: int) -> str:
    return next((known.meaning for known in Exit if known == code), "not one of raftq")


def needs_a_person(code: int) -> bool:
    """True when starting a node again would only meet the same fault."""
    return Exit.USAGE <= code < Exit.COMMIT_FAILED or code == Exit.FENCED or Exit.REFUSED <= code <= Exit.FILE_REFUSED
