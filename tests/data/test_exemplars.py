"""Worked examples are checked before a teacher sees them."""

import json

import pytest
import yaml

from edit_trl.common.errors import InputError
from edit_trl.data.exemplars import Exemplar, load_exemplars

GOOD = {
    "question": "What is 2 + 2?",
    "chain": "2 + 2 = 4. Therefore, the answer is 4.",
    "wrong_chain": "2 + 2 = 5. Therefore, the answer is 5.",
    "answer": "4",
}


def test_yaml_and_json_lines(tmp_path):
    expected = [Exemplar(GOOD["question"], GOOD["chain"], "4", GOOD["wrong_chain"])]
    (tmp_path / "e.yaml").write_text(yaml.safe_dump([GOOD | {"answer": 4}]))
    (tmp_path / "e.jsonl").write_text(json.dumps(GOOD) + "\n\n")
    assert load_exemplars(tmp_path / "e.yaml") == load_exemplars(tmp_path / "e.jsonl") == expected


def test_an_unquoted_truth_value_is_the_word(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("- {question: q, chain: 'Therefore, the answer is True.', answer: True, task: t}")
    assert load_exemplars(path) == [Exemplar("q", "Therefore, the answer is True.", "True", None, "t")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chain": "It is 5. Therefore, the answer is 5."}, "'chain': has the answer '5', and the right one is '4'"),
        ({"chain": "It is four."}, "column 'chain': has no answer, and the right one is '4'"),
        ({"wrong_chain": GOOD["chain"]}, "column 'wrong_chain': has the answer '4', and the right one is '4'"),
        ({"wrong_chain": "Nothing."}, "column 'wrong_chain': has no answer"),
        ({"question": None}, "column 'question': must be a text, got None"),
        ({"wrong": "x"}, "'wrong' is no column; there are question, chain, answer, wrong_chain, task"),
    ],
)
def test_bad_entries_are_named(tmp_path, change, message):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump([GOOD, GOOD | change]))
    with pytest.raises(InputError) as caught:
        load_exemplars(path)
    assert f"{path}, entry 2, " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "a: 1", "- 3", "[", "- {question: q}"])
def test_files_that_hold_no_exemplars(tmp_path, text):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"e\.yaml"):
        load_exemplars(path)
    with pytest.raises(InputError, match="no file of exemplars at"):
        load_exemplars(tmp_path / "none.yaml")
