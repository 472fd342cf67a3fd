"""The tokens of a suite's items are read where they are used; what is wrong with them is found all the same."""

import json
import re

import pytest
from conftest import ROWS
from report_data import suite_items, write_run

from edit_trl.common.errors import InputError
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.runs.stored_tokens import StoredTokens, split_tokens

TOKENS = '{"chosen": [[0, 5, -0.25], [5, 8, -1e-05], [0, 0, 0]], "rejected": []}'
LINE = f'{{"id": "a", "tokens": {TOKENS}}}'


def test_they_are_the_tokens_that_were_written(tmp_path):
    run = write_run(tmp_path, "suite", "student", suite_items(ROWS, 0.5))
    read = read_run(tmp_path, stored_tokens=True)
    assert read == run
    assert all(type(item["tokens"]) is StoredTokens for item in read.items)
    assert [*read.items[0]] == [*run.items[0]]
    plain = read_run(tmp_path)
    assert json.loads(json.dumps(plain.items)) == plain.items == read.items


def test_a_line_is_split_before_its_tokens():
    item, tokens = split_tokens(LINE.encode())
    assert item == {"id": "a", "tokens": {"chosen": [], "rejected": []}}
    assert tokens == json.loads(TOKENS)


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("-0.25", "true"),
        LINE.replace("-0.25", "1e99"),
        LINE.replace("-0.25", "NaN"),
        LINE.replace("-0.25", "-.25"),
        LINE.replace("[5,", "[05,"),
        LINE.replace("[5,", "[5, 6,"),
        LINE.replace("]]", "],]"),
        LINE.replace('"a"', '"a", "tokens": 5'),
        LINE.replace('"id": "a"', ""),
        LINE.replace('"a"', '"a'),
        LINE + " ",
        json.dumps(json.loads(LINE), separators=(",", ":")),
        json.dumps({"id": LINE}),
    ],
)
def test_any_other_line_is_left_to_be_parsed_as_a_whole(line):
    assert split_tokens(line.encode()) == (None, None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"tokens": {"chosen": [[0,', '"tokens": {"chosen": [[true,', "tokens.chosen[0][0]: True (bool) is no number"),
        ('"tokens": {"chosen": [[0,', '"tokens": {"chosen": [[00,', "not JSON"),
        (
            '"tokens": {"chosen": [',
            '"tokens": {"chosen": [[1, 2], ',
            "tokens.chosen[0]: [1, 2] (list) has not 3 values",
        ),
        ('"tokens": {', '"tokens": 5, "tokens": {', "the key 'tokens' is given twice"),
    ],
)
def test_tokens_that_were_edited_are_named_with_their_line(tmp_path, old, new, expected):
    write_run(tmp_path, "suite", "student", suite_items(ROWS, 0.5))
    file = tmp_path / "items.jsonl"
    first, second, *others = file.read_text().split("\n")
    file.write_text("\n".join([first, second.replace(old, new), *others]))
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        read_run(tmp_path, stored_tokens=True)
    assert str(caught.value).startswith(f"{file}, line 2: ")


def test_the_first_line_with_an_error_is_named(tmp_path):
    write_run(tmp_path, "suite", "student", suite_items(ROWS, 0.5))
    file = tmp_path / "items.jsonl"
    first, second, *others = file.read_text().split("\n")
    file.write_text("\n".join([first.replace('"preferred": ', '"preferred": 1'), second[:-1], *others]))
    with pytest.raises(InputError, match=r"line 1: ") as caught:
        read_run(tmp_path, stored_tokens=True)
    assert "line 2" not in str(caught.value)
