"""JSON is read strictly, and checked against annotations, with the place of what is wrong."""

import json
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from edit_trl.common.errors import InputError
from edit_trl.common.json_text import bulk_checker, checker, read_json, read_json_file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "a.json, line 3: not JSON: Expecting property name"),
        ('[{"a": {"b": 1, "c": 2, "b": 3}}]', "the key 'b' is given twice"),
        ("[NaN]", "NaN is no number of JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        (b'"\xff"', "invalid start byte"),
        (r'{"a": "\ud800"}', r"'\\ud800', half of a surrogate pair"),
    ],
    ids=["cut", "twice", "nan", "deep", "digits", "utf8", "surrogate"],
)
def test_what_is_not_json(text, expected):
    with pytest.raises(InputError, match=expected):
        read_json(text, "a.json, line 3")


def test_a_whole_surrogate_pair_is_a_character():
    assert read_json(r'"\ud83d\ude80"', "a.json") == "🚀"


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder cannot be read: Is a directory"):
        read_json_file(tmp_path / "folder")
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json_file(tmp_path / "marked.json") == [1]


class Inner(TypedDict):
    span: Annotated[list[int], 2] | None
    kind: Literal["a", "b"]


class Outer(TypedDict):
    inner: list[Inner]
    scores: dict[str, float | None]
    tokens: list[Annotated[list[float], 3]]
    flag: bool
    more: Any


def outer(**changes):
    inner = [{"span": [0, 1], "kind": "a"}, {"span": None, "kind": "b"}]
    whole = {"inner": inner, "scores": {"x": 1, "y": None}, "tokens": [[0, 1, 0.5]], "flag": True, "more": [object]}
    return whole | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"inner": [{"span": [0], "kind": "a"}]}, ".inner[0].span: [0] (list) has not 2 values"),
        ({"inner": [{"span": [0, "x"], "kind": "a"}]}, ".inner[0].span[1]: 'x' is no integer"),
        ({"inner": [{"span": None, "kind": "c"}]}, ".inner[0].kind: 'c' is none of 'a', 'b'"),
        ({"inner": [5]}, ".inner[0]: 5 (int) is no object"),
        ({"inner": [{"kind": "a"}]}, ".inner[0]: span missing, or not known"),
        ({"scores": {"x": "y"}}, ".scores['x']: 'y' is no number"),
        ({"scores": {"x": float("inf")}}, ".scores['x']: inf (float) is no number"),
        ({"scores": []}, ".scores: [] (list) is no object"),
        ({"tokens": [[0, 1]]}, ".tokens[0]: [0, 1] (list) has not 3 values"),
        ({"tokens": [[0, 1, None]]}, ".tokens[0][2]: None (NoneType) is no number"),
        ({"flag": 1}, ".flag: 1 (int) is no true or false"),
        ({"other": 1}, ": other missing, or not known"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes, expected):
    assert checker(Outer)(outer(**changes)) == expected
    values = [outer(), outer(**changes), outer()]
    assert bulk_checker(Outer)(values) == (expected is None)


class Optional(TypedDict):
    word: str
    number: NotRequired[int | float]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (str | list[dict[str, Any]], ["a", [{"b": 1}], []], ["a", [5]]),
        (list[int] | list[str], [[1], ["a"], []], [[1], [1, "a"]]),
        (Literal["a", 1] | None, ["a", None, 1], ["a", ["a"]]),
        (Optional, [{"word": "a"}, {"word": "b", "number": 0.5}], [{"word": "a"}, {"number": 1}]),
        (float, [1, 0.5], [1, float("nan"), 2]),
        (int, [], [2**63]),
    ],
)
def test_many_values_are_checked_at_once(annotation, good, bad):
    for values in (good, bad):
        assert bulk_checker(annotation)(values) == all(checker(annotation)(value) is None for value in values)
    assert bulk_checker(annotation)(good)
    assert not bulk_checker(annotation)(bad)


def test_true_is_no_number():
    assert checker(int)(True) == ": True (bool) is no integer"
    assert checker(list[int])(json.loads("[1, true]")) == "[1]: True (bool) is no integer"
