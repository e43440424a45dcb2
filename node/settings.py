"""Reads a node's settings from a TOML file, then the environment, then flags, into a `Config`.

A setting given in several places is taken from the last of them. Whatever is wrong is said in one line that names the
place where it stands.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import inspect

from raftq.node.config import ByteCount, Config, contradiction
from raftq.node.exits import Exit, Fatal

#: The settings by name, in the order of the table.
FIELDS = {field.name: field for field in msgspec.structs.fields(Config)}
FILE_VARIABLE = "RAFTQ_CONFIG"
#: Of the commands that talk to a cluster.
_OTHER_VARIABLES = frozenset(("RAFTQ_URL", "RAFTQ_TOKEN", "RAFTQ_CA"))

_SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|TiB)?")
_SHIFTS = {None: 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}

#: (where it stands, setting, value as it stands there)
_Given = tuple[str, str, Any]


def variable(name: str) -> str:
    return f"RAFTQ_{name.upper()}"


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def choices(name: str) -> list[str]:
    """The values of a setting that has but a few."""
    info = inspect.type_info(FIELDS[name].type)
    assert isinstance(info, inspect.Metadata)
    return sorted(map(str, info.type.values)) if isinstance(info.type, inspect.LiteralType) else []


def is_switch(name: str) -> bool:
    """True or false: as a flag it takes no value."""
    return FIELDS[name].default is False


def says(name: str, what: Literal["title", "description"]) -> str:
    """The kind of a setting's values ("title"), or its help."""
    info = inspect.type_info(FIELDS[name].type)
    assert isinstance(info, inspect.Metadata)
    return str((info.extra_json_schema or {})[what])


def kind(name: str) -> str:
    """What a setting's value looks like, in words."""
    return ", ".join(choices(name)) or says(name, "title")


def load(flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None = None) -> Config:
    """`flags` holds the flags that were given, by the setting's name. Raises Fatal(CONFIG)."""
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    values: dict[str, Any] = {}
    for origin, name, value in (*_in_file(file), *_in_environment(environ), *_in_flags(flags)):
        values[name] = _converted(origin, name, value)
    for name in (name for name, field in FIELDS.items() if field.required and name not in values):
        raise Fatal(
            Exit.CONFIG, f"{name} is not set: give {flag(name)}, {variable(name)}, or {name} in a --config file"
        )
    config = Config(**values)
    if wrong := contradiction(config):
        raise Fatal(Exit.CONFIG, wrong)
    return config


def checked(name: str, value: str, where: str) -> Any:
    """The value of one setting, given `where`. Raises Fatal(CONFIG)."""
    return _converted(where, name, value)


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that name no setting but nearly do. (Others that begin with RAFTQ_ are of other commands.)"""
    known = {variable(name) for name in FIELDS} | {FILE_VARIABLE}
    ours = (key for key in environ if key.startswith("RAFTQ_") and key not in known | _OTHER_VARIABLES)
    return sorted(key for key in ours if difflib.get_close_matches(key, known, n=1, cutoff=0.85))


def _in_file(file: Path | None) -> Iterator[_Given]:
    if file is None:
        return
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fatal(Exit.CONFIG, f"cannot read the configuration {file}: {error.strerror}") from error
    except ValueError as error:
        raise Fatal(Exit.CONFIG, f"the configuration {file} is not TOML: {error}") from error
    for name, value in values.items():
        if name not in FIELDS:
            raise Fatal(Exit.CONFIG, f"{file}: there is no setting {name!r}{_did_you_mean(name)}")
        yield f"{file}: {name}", name, value


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, FIELDS, n=1)
    return f"; did you mean {close[0]}?" if close else "; docs/configuration.md lists them"


def _in_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    return ((variable(name), name, environ[variable(name)]) for name in FIELDS if variable(name) in environ)


def _in_flags(flags: Mapping[str, str]) -> Iterator[_Given]:
    return ((flag(name), name, value) for name, value in flags.items())


def _converted(origin: str, name: str, value: Any) -> Any:
    text = isinstance(value, str)
    try:
        read = _members(value) if text and name == "members" else value
        return msgspec.convert(read, FIELDS[name].type, strict=not text, dec_hook=_own_kind)
    except ValueError as error:
        why = f"expected {kind(name)}" if isinstance(error, msgspec.ValidationError) else error
        raise Fatal(Exit.CONFIG, f"{origin} is {value!r}: {why}") from error


def _members(text: str) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    if not all(separator for _, separator, _ in pairs):
        raise ValueError("expected n1=host:port,n2=host:port")
    members = {name: address for name, _, address in pairs}
    if len(members) < len(pairs):
        raise ValueError("expected each node once")
    return members


def _own_kind(kind: type, value: Any) -> Any:
    if kind is not Path:
        return _bytes(value)
    if isinstance(value, str) and value:
        return Path(value)
    raise ValueError


def _bytes(value: Any) -> ByteCount:
    size = _SIZE.fullmatch(str(value))
    if isinstance(value, bool) or size is None:
        raise ValueError
    return ByteCount(int(size[1]) << _SHIFTS[size[2]])
