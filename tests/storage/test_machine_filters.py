from __future__ import annotations

import operator
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftq.storage.machine import filters


def takes(conditions: Any, **attributes: Any) -> bool:
    text = msgspec.json.encode(attributes) if attributes else b""
    return filters.parse(msgspec.json.encode(conditions)).matches(text)


@pytest.mark.parametrize(
    ("conditions", "attributes", "taken"),
    [
        ({}, {}, True),
        ({"a": ["x"]}, {"a": "x"}, True),
        ({"a": ["x"]}, {"a": "y"}, False),
        ({"a": ["x"]}, {}, False),
        ({"a": ["x", "y"]}, {"a": "y"}, True),
        ({"a": ["x"], "b": [1]}, {"a": "x", "b": 1}, True),
        ({"a": ["x"], "b": [1]}, {"a": "x", "b": 2}, False),
        ({"a": [1]}, {"a": 1.0}, True),
        ({"a": [1]}, {"a": "1"}, False),
        ({"a": [1]}, {"a": True}, False),
        ({"a": [True]}, {"a": 1}, False),
        ({"a": [False]}, {"a": False}, True),
        ({"a": [0]}, {"a": -0.0}, True),
        ({"a": [9007199254740993]}, {"a": 9007199254740992.0}, False),
        ({"a": [9007199254740993]}, {"a": 9007199254740993}, True),
        ({"a": [{"prefix": "eu-"}]}, {"a": "eu-west"}, True),
        ({"a": [{"prefix": "eu-"}]}, {"a": "us"}, False),
        ({"a": [{"prefix": ""}]}, {"a": 1}, False),
        ({"a": [{"exists": True}]}, {"a": False}, True),
        ({"a": [{"exists": True}]}, {}, False),
        ({"a": [{"exists": False}]}, {}, True),
        ({"a": [{"exists": False}]}, {"a": ""}, False),
        ({"a": [{"exists": False}, "x"]}, {"a": "x"}, True),
        ({"a": [{"anything_but": ["x", 1]}]}, {"a": "y"}, True),
        ({"a": [{"anything_but": ["x", 1]}]}, {"a": 1.0}, False),
        ({"a": [{"anything_but": ["x", 1]}]}, {"a": True}, True),
        ({"a": [{"anything_but": ["x"]}]}, {}, False),
        ({"a": [{"numeric": [">=", 1, "<", 10]}]}, {"a": 1}, True),
        ({"a": [{"numeric": [">=", 1, "<", 10]}]}, {"a": 9.99}, True),
        ({"a": [{"numeric": [">=", 1, "<", 10]}]}, {"a": 10}, False),
        ({"a": [{"numeric": ["=", 1]}]}, {"a": True}, False),
        ({"a": [{"numeric": [">", 0]}]}, {"a": "5"}, False),
        ({"a": [{"numeric": [">", 0]}]}, {}, False),
        ({"a": [{"numeric": ["<", 9007199254740993]}]}, {"a": 9007199254740992.0}, True),
        ({"a": [{"numeric": ["<=", -1]}]}, {"a": -1.0}, True),
    ],
)
def test_what_a_filter_takes(conditions: Any, attributes: dict[str, Any], taken: bool) -> None:
    assert takes(conditions, **attributes) is taken


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "is not JSON"),
        (b'"\xff"', "is not JSON"),
        (b"[" * 2000, "is not JSON"),
        (b"[]", 'is an object like {"attribute": [condition, ...]}'),
        (b'{"a":"x"}', "a: give an array of conditions, at least one"),
        (b'{"a":[]}', "a: give an array of conditions, at least one"),
        (b'{"a":["x",null]}', "a[1]: an attribute is a text, a number, true or false, never null"),
        (b'{"a":[["x"]]}', "a[0]: an attribute is a text, a number, true or false, never an array"),
        (b'{"a":[{"anything_but":[{}]}]}', "a[0].anything_but[0]: an attribute is a text, a number, true or false"),
        (b'{"a":[{}]}', "a[0]: give one of prefix, exists, anything_but, numeric, this has 0"),
        (b'{"a":[{"prefix":"x","exists":true}]}', "a[0]: give one of prefix, exists, anything_but, numeric"),
        (b'{"a":[{"suffix":"x"}]}', "a[0]: there is no condition 'suffix'; there are prefix, exists, "),
        (b'{"a":[{"prefix":1}]}', "a[0]: prefix takes a text"),
        (b'{"a":[{"exists":1}]}', "a[0]: exists takes true or false"),
        (b'{"a":[{"anything_but":[]}]}', "a[0]: anything_but takes an array of values, at least one"),
        (b'{"a":[{"anything_but":"xy"}]}', "a[0]: anything_but takes an array of values, at least one"),
        (b'{"a":[{"numeric":[">"]}]}', "a[0]: numeric takes an array like"),
        (b'{"a":[{"numeric":["!",1]}]}', "a[0]: numeric takes an array like"),
        (b'{"a":[{"numeric":[">",true]}]}', "a[0]: numeric takes an array like"),
        (b'{"a":[{"numeric":[">",1,"<"]}]}', "a[0]: numeric takes an array like"),
        (b'{"a":[9223372036854775808]}', "a[0]: 9223372036854775808 does not fit in 64 bits"),
        (b'{"a":[1e999]}', "is not JSON"),
    ],
)
def test_what_is_no_filter(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as raised:
        filters.parse(text)
    assert str(raised.value).startswith(why)


def test_a_filter_is_bounded() -> None:
    filters.parse(msgspec.json.encode({f"a{at}": list(range(5)) for at in range(10)}))
    with pytest.raises(ValueError, match="at most 10 attributes, this has 11"):
        filters.parse(msgspec.json.encode({f"a{at}": [1] for at in range(11)}))
    with pytest.raises(ValueError, match="at most 50 conditions"):
        filters.parse(msgspec.json.encode({"a": [1], "b": [{"anything_but": list(range(50))}]}))
    with pytest.raises(ValueError, match="at most 4,096 bytes, this has 4,106"):
        filters.parse(msgspec.json.encode({"a": ["x" * 4_096]}))


VALUES = st.one_of(
    st.sampled_from(["", "a", "ab", "b", True, False, 0, 1, 1.0, 0.5, 2, 1 << 62, float(1 << 62), (1 << 62) + 1]),
    st.integers(-3, 3),
    st.floats(-3, 3),
)
NUMBERS = VALUES.filter(lambda value: not isinstance(value, str | bool))
BOUNDS = st.tuples(st.sampled_from(["<", "<=", "=", ">=", ">"]), NUMBERS)
CONDITIONS = st.one_of(
    VALUES,
    st.builds(lambda prefix: {"prefix": prefix}, st.sampled_from(["", "a", "ab"])),
    st.builds(lambda there: {"exists": there}, st.booleans()),
    st.builds(lambda but: {"anything_but": but}, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda bounds: {"numeric": [*sum(bounds, ())]}, st.lists(BOUNDS, min_size=1, max_size=2)),
)


def same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def meets(condition: Any, attributes: dict[str, Any]) -> bool:
    """One condition, by the book."""
    if not isinstance(condition, dict):
        return "a" in attributes and same(attributes["a"], condition)
    [(kind, operand)] = condition.items()
    if kind == "exists" or "a" not in attributes:
        return kind == "exists" and ("a" in attributes) == operand
    value = attributes["a"]
    if kind == "prefix":
        return isinstance(value, str) and value.startswith(operand)
    if kind == "anything_but":
        return not any(same(value, one) for one in operand)
    compare = {"<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">": operator.gt}
    bounds = zip(operand[::2], operand[1::2], strict=True)
    return not isinstance(value, str | bool) and all(compare[sign](value, bound) for sign, bound in bounds)


@given(
    st.lists(CONDITIONS, min_size=1, max_size=6), st.one_of(st.just({}), st.builds(lambda value: {"a": value}, VALUES))
)
@settings(max_examples=500, deadline=None)
def test_many_conditions_are_as_each_of_them(conditions: list[Any], attributes: dict[str, Any]) -> None:
    assert takes({"a": conditions}, **attributes) == any(meets(one, attributes) for one in conditions)


def test_what_is_kept_is_compact_and_the_same_filter() -> None:
    parsed = filters.parse(b' { "a" : [ 1.0 , {"numeric": [ ">", 1 ]} ] } ')
    assert parsed.text == b'{"a":[1.0,{"numeric":[">",1]}]}'
    assert filters.parse(parsed.text).text == parsed.text


def test_attributes_that_are_no_object_are_none() -> None:
    assert filters.parse(b'{"a":[{"exists":false}]}').matches(b"[1")
    assert filters.values(b'{"a":1}') == {"a": 1}
