import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from edit_trl.common.conversion import Word, convert, natural
from edit_trl.common.errors import InputError
from edit_trl.common.options import Options, read_mapping


class Strategy(StrEnum):
    NO = "no"
    STEPS = "steps"


W = Word
HINTS = {
    "whole": int,
    "number": float,
    "flag": bool,
    "text": str,
    "text_or_none": str | None,
    "any": Any,
    "texts": list[str] | None,
    "numbers": list[float] | None,
    "choice": Literal["a", "no"] | None,
    "mapping": dict[str, str] | None,
    "kwargs": dict[str, Any] | str | None,
    "bare": dict | None,
    "text_or_list": str | list[str],
    "text_or_flag": str | bool,
    "id_or_false": Literal[False] | str | None,
    "whole_or_text": int | str | None,
    "strategy": Strategy | str,
    "flags": dict[str, bool],
    "hub_token": str | None,
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("whole", W("5"), 5),
        ("whole", "5", 5),
        ("whole", W("1_000"), 1000),
        ("whole", W("1e3"), 1000),
        ("whole", 5.0, 5),
        ("number", W("1e-4"), 1e-4),
        ("number", 3, 3.0),
        ("flag", W("no"), False),
        ("flag", W("On"), True),
        ("flag", "true", True),
        ("text", W("no"), "no"),
        ("text", W("007"), "007"),
        ("text", W("1e5"), "1e5"),
        ("text", "two\nlines\t", "two\nlines\t"),
        ("text", Path("a/b"), "a/b"),
        ("text_or_none", None, None),
        ("texts", W("a"), ["a"]),
        ("texts", [W("5"), W("no")], ["5", "no"]),
        ("texts", ("a", "b"), ["a", "b"]),
        ("numbers", [W("1"), W("1e-3"), "2"], [1.0, 1e-3, 2.0]),
        ("numbers", W("2"), [2.0]),
        ("choice", W("no"), "no"),
        ("mapping", {W("1"): W("5")}, {"1": "5"}),
        ("kwargs", {W("0"): W("1e-6"), W("b"): {W("0"): [W("no"), "1e-6"]}}, {"0": 1e-6, "b": {0: [False, "1e-6"]}}),
        ("kwargs", '{"min_lr": 1}', '{"min_lr": 1}'),
        ("bare", {W("a"): {W("b"): W("2")}}, {"a": {"b": 2}}),
        ("text_or_list", W("1"), "1"),
        ("text_or_list", [W("1")], ["1"]),
        ("text_or_flag", W("true"), True),
        ("text_or_flag", "true", "true"),
        ("id_or_false", W("off"), False),
        ("id_or_false", W("0"), "0"),
        ("whole_or_text", W("8"), 8),
        ("whole_or_text", W("8-bit"), "8-bit"),
        ("strategy", W("no"), "no"),
        ("strategy", Strategy.STEPS, Strategy.STEPS),
        ("flags", {W("a"): W("off")}, {"a": False}),
    ],
)
def test_a_value_becomes_what_its_option_is(name, value, expected):
    converted, problems = convert({name: value}, HINTS)
    assert problems == []
    assert converted == {name: expected}
    # Exactly these types: JSON and PyYAML know no subclass of str.
    assert repr(converted[name]) == repr(expected)
    assert not isinstance(converted[name], Word)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("whole", W("1.5"), "`whole: '1.5'`: expected a whole number"),
        ("whole", W("010"), "`whole: '010'`: expected a whole number"),
        ("whole", W("9" * 5000), f"`whole: '{'9' * 56}...`: expected a whole number"),
        ("whole", True, "`whole: True`: expected a whole number, got bool"),
        ("whole", None, "`whole: None`: must not be empty, expected a whole number"),
        ("whole", 10**30, f"`whole: {10**30}`: is too large a number"),
        ("whole", [1], "`whole: [1]`: expected a whole number, got list"),
        ("number", W("nan"), "`number: 'nan'`: expected a number"),
        ("number", W(".nan"), "`number: nan`: must be a finite number"),
        ("number", math.inf, "`number: inf`: must be a finite number"),
        ("number", W("1e400"), "`number: inf`: must be a finite number"),
        ("number", W("2024-13-45"), "`number: '2024-13-45'`: expected a number"),
        ("flag", W("maybe"), "`flag: 'maybe'`: expected true or false"),
        ("flag", 1, "`flag: 1`: expected true or false, got int"),
        ("text", 5, "`text: 5`: expected a text, got int"),
        ("text", "a\0b", "`text: 'a\\x00b'`: a text cannot hold the character U+0000"),
        ("text", "\x1b[31m", "`text: '\\x1b[31m'`: a text cannot hold the character U+001B"),
        ("text", "\ud800", "`text: '\\ud800'`: a text cannot hold the character U+D800"),
        ("texts", [5], "`texts[0]: 5`: expected a text, got int"),
        ("texts", ["a", None], "`texts[1]: None`: must not be empty, expected a text"),
        ("texts", [[W("a")]], "`texts[0]: ['a']`: expected a text, got list"),
        ("texts", ["a\0"], "`texts[0]: 'a\\x00'`: a text cannot hold the character U+0000"),
        ("numbers", [W("1"), W("x")], "`numbers[1]: 'x'`: expected a number"),
        ("choice", W("b"), "`choice: 'b'`: expected one of a, no"),
        ("mapping", {W("a"): [1]}, "`mapping.a: [1]`: expected a text, got list"),
        ("mapping", {5: "x"}, "`mapping, key: 5`: expected a text, got int"),
        ("mapping", W("x"), "`mapping: 'x'`: expected a mapping"),
        ("kwargs", {"a": [W(".inf")]}, "`kwargs.a[0]: inf`: must be a finite number"),
        ("kwargs", {"a": {"b": "\0"}}, "`kwargs.a.b: '\\x00'`: a text cannot hold the character U+0000"),
        ("hub_token", ["hf_secret"], "`hub_token: ...`: expected a text, got list"),
        ("wohle", 1, "unknown key `wohle`; did you mean `whole`?"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(name, value, message):
    converted, problems = convert({name: value}, HINTS)
    assert (converted, problems) == ({}, [message])


def test_natural_values_are_those_of_json():
    value = natural({W("a"): [W("1"), W("1e-3"), W("yes"), "yes", None], W("yes"): {W("1"): W("x")}})
    assert value == {"a": [1, 1e-3, True, "yes", None], "yes": {1: "x"}}
    json.dumps(value)


@dataclass(frozen=True)
class Sizes(Options):
    rows: int = 3
    rate: float = 0.5
    names: list[str] | None = None

    def errors(self):
        if self.rows < 1:
            yield "`rows` must be at least 1"


def test_options_are_checked_in_python_too():
    sizes = Sizes(rows="5", rate=1, names="a")
    assert sizes == Sizes(5, 1.0, ["a"])
    assert repr(sizes) == "Sizes(rows=5, rate=1, names=['a'])"  # hashes of records tell 1 from 1.0
    with pytest.raises(InputError) as caught:
        Sizes(rows="many", rate=math.nan, names=[1])
    assert caught.value.problems == [
        "`rows: 'many'`: expected a whole number",
        "`rate: nan`: must be a finite number",
        "`names[0]: 1`: expected a text, got int",
    ]
    with pytest.raises(InputError, match="`rows` must be at least 1"):
        Sizes(rows=0)


def test_a_mapping_of_texts():
    assert read_mapping('{"theirs": "ours"}', "--column_mapping") == {"theirs": "ours"}
    assert read_mapping({W("a"): W("b")}, "column_mapping") == {"a": "b"}
    for value in ("[1]", '{"a": [1]}', "{", {"a": 5}, "x"):
        with pytest.raises(InputError, match=r'column_mapping.*write it as \{"theirs": "ours"\}'):
            read_mapping(value, "column_mapping")
