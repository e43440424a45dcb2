"""Filters: which messages, by their attributes alone. Of subscriptions to topics, and of redrives.

A filter is a JSON object `{"attribute": [condition, ...]}`: each attribute has to meet one of its conditions. A
condition is

    a text, a number, true or false     the attribute is equal to it
    {"prefix": "eu-"}                   it is a text that begins so
    {"exists": false}                   it is not there (true: it is)
    {"anything_but": ["a", 1]}          it is there, and equal to none of these
    {"numeric": [">=", 1, "<", 10]}     it is a number within these bounds, one or two

A number is compared by its value, 1 and 1.0 alike, with nothing rounded; true and false are no numbers, and a text is
never equal to one. `{}` takes every message. Pure: a filter says the same on every node.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import msgspec

ATTRIBUTES_MAX = 10
#: Of one filter; each value of an `anything_but` counts as one.
CONDITIONS_MAX = 50
#: Of the JSON text.
BYTES_MAX = 4 * 1024

_ABSENT = object()
#: Stand for true and false where values are compared: Python has 1 equal to True.
_TRUE, _FALSE = object(), object()
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
#: A place on the line of numbers: `(x, 0)` is just before all that is equal to x, `(x, 1)` just after it.
_Edge = tuple[float, int]
_LEAST, _MOST = (float("-inf"), 0), (float("inf"), 1)
_decode = msgspec.json.Decoder().decode
_decode_attributes = msgspec.json.Decoder(dict[str, Any]).decode


class _Attribute:
    """All conditions of one attribute, each kind of them put together: what a value costs hardly depends on how many
    there are."""

    __slots__ = ("absent", "but", "edges", "equal", "prefixes", "present", "within")

    def __init__(self) -> None:
        #: Whether it may be absent, and whether it may be anything.
        self.absent = self.present = False
        self.equal: set[Any] = set()
        #: What it may not be: by all conditions of that kind, as one is enough. None: there are none.
        self.but: set[Any] | None = None
        self.prefixes: tuple[str, ...] = ()
        #: Intervals of numbers, (low, high) each, and the edges of their union: a number with an odd count of edges
        #: before it lies within one.
        self.within: list[tuple[_Edge, _Edge]] = []
        self.edges: list[_Edge] = []

    def takes(self, value: Any) -> bool:
        if value is _ABSENT:
            return self.absent
        key = _key(value)
        if self.present or key in self.equal or (self.but is not None and key not in self.but):
            return True
        if isinstance(value, str):
            return value.startswith(self.prefixes)
        return key is value and bisect_right(self.edges, (value, 0)) % 2 == 1

    def add(self, where: str, given: Any) -> None:
        """Raises ValueError."""
        if not isinstance(given, dict):
            self.equal.add(_value(where, given))
            return
        if len(given) != 1:
            raise ValueError(f"{where}: give one of {', '.join(_TAKES)}, this has {len(given)}")
        [(kind, operand)] = given.items()
        match kind, operand:
            case "prefix", str():
                self.prefixes += (operand,)
            case "exists", True:
                self.present = True
            case "exists", False:
                self.absent = True
            case "anything_but", [_, *_]:
                refused = {_value(f"{where}.anything_but[{at}]", one) for at, one in enumerate(operand)}
                self.but = refused if self.but is None else self.but & refused
            case "numeric", [_, _] | [_, _, _, _]:
                self._add_interval(where, operand)
            case _ if kind in _TAKES:
                raise ValueError(f"{where}: {kind} takes {_TAKES[kind]}")
            case _:
                raise ValueError(f"{where}: there is no condition {kind[:40]!r}; there are {', '.join(_TAKES)}")

    def _add_interval(self, where: str, operand: list[Any]) -> None:
        low, high = _LEAST, _MOST
        for sign, number in zip(operand[::2], operand[1::2], strict=True):
            if isinstance(number, bool) or not isinstance(number, int | float) or sign not in _SIGNS:
                raise ValueError(f"{where}: numeric takes {_TAKES['numeric']}")
            _value(where, number)
            before, after = (number, 0), (number, 1)
            low = max(low, {"=": before, ">=": before, ">": after}.get(sign, _LEAST))
            high = min(high, {"=": after, "<=": after, "<": before}.get(sign, _MOST))
        if low < high:
            self.within.append((low, high))
            self.edges = _union(self.within)


def _union(intervals: list[tuple[_Edge, _Edge]]) -> list[_Edge]:
    edges: list[_Edge] = []
    for low, high in sorted(intervals):
        if edges and low <= edges[-1]:
            edges[-1] = max(edges[-1], high)
        else:
            edges += [low, high]
    return edges


class Filter:
    __slots__ = ("_attributes", "text")

    def __init__(self, text: bytes, attributes: dict[str, _Attribute]) -> None:
        #: The filter as compact JSON: what is stored and shown.
        self.text = text
        self._attributes = attributes

    @property
    def takes_all(self) -> bool:
        return not self._attributes

    def matches(self, attributes: bytes) -> bool:
        """Whether a message with these attributes, a JSON object as text or nothing, is taken."""
        return self.takes(values(attributes))

    def takes(self, attributes: dict[str, Any]) -> bool:
        """The same for attributes that were read with `values`."""
        return all(conditions.takes(attributes.get(name, _ABSENT)) for name, conditions in self._attributes.items())


def values(attributes: bytes) -> dict[str, Any]:
    """The attributes of a message by name. What is no JSON object has none."""
    if not attributes:
        return {}
    try:
        return _decode_attributes(attributes)
    except msgspec.DecodeError:
        return {}


def parse(text: bytes) -> Filter:
    """The filter in a JSON text. Raises ValueError that says what is wrong where."""
    if len(text) > BYTES_MAX:
        raise ValueError(f"a filter takes at most {BYTES_MAX:,} bytes, this has {len(text):,}")
    try:
        given = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(given, dict):
        raise ValueError('is an object like {"attribute": [condition, ...]}')
    if len(given) > ATTRIBUTES_MAX:
        raise ValueError(f"a filter takes at most {ATTRIBUTES_MAX} attributes, this has {len(given)}")
    left = CONDITIONS_MAX
    attributes: dict[str, _Attribute] = {}
    for name, conditions in given.items():
        if not isinstance(conditions, list) or not conditions:
            raise ValueError(f"{name[:40]}: give an array of conditions, at least one")
        left -= sum(_weight(condition) for condition in conditions)
        if left < 0:
            raise ValueError(f"a filter takes at most {CONDITIONS_MAX} conditions, values of anything_but included")
        attributes[name] = _Attribute()
        for at, condition in enumerate(conditions):
            attributes[name].add(f"{name[:40]}[{at}]", condition)
    return Filter(msgspec.json.encode(given), attributes)


def _weight(condition: Any) -> int:
    but = condition.get("anything_but") if isinstance(condition, dict) else None
    return max(len(but), 1) if isinstance(but, list) else 1


_SIGNS = ("<", "<=", "=", ">=", ">")
_TAKES = {
    "prefix": "a text",
    "exists": "true or false",
    "anything_but": "an array of values, at least one",
    "numeric": 'an array like [">=", 1] or [">=", 1, "<", 10], its operators of < <= = >= >',
}


def _value(where: str, given: Any) -> Any:
    """What an attribute may be equal to, as its key."""
    if not isinstance(given, str | int | float):
        named = "null" if given is None else "an array" if isinstance(given, list) else "an object"
        raise ValueError(f"{where}: an attribute is a text, a number, true or false, never {named}")
    if isinstance(given, int) and not _INT_MIN <= given <= _INT_MAX:
        raise ValueError(f"{where}: {given} does not fit in 64 bits, so that no attribute is equal to it")
    return _key(given)


def _key(value: Any) -> Any:
    """The value itself, but for true and false."""
    return _TRUE if value is True else _FALSE if value is False else value
