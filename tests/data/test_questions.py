"""Questions, from files as people have them."""

import json

import pytest
from datasets import Dataset

from edit_trl.common.errors import InputError
from edit_trl.data.questions import Question, read_questions

ROWS = [
    {"question": "What is 2 + 2?", "answer": "4"},
    {"question": " Is {x} odd? ", "answer": "yes", "id": "odd", "task": "parity", "answer_type": "yes_no"},
]
READ = [
    Question("row 1", "What is 2 + 2?", "4", None, "sums", "Do sums."),
    Question("odd", "Is {x} odd?", "yes", "yes_no", "parity", None),
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.parquet", "q"])
def test_every_format(tmp_path, name):
    keys = {key for row in ROWS for key in row}
    path = write(tmp_path / name, [dict.fromkeys(keys) | row for row in ROWS])
    assert read_questions(path, task="sums", task_descriptions={"sums": "Do sums."}) == READ


@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet"])
def test_a_file_has_no_other_split_and_no_configuration(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert read_questions(path, split="train", task="sums") == read_questions(path, task="sums")
    with pytest.raises(InputError, match=r"no split 'test'; choose the split from: train"):
        read_questions(path, split="test")
    with pytest.raises(InputError, match=r"is on this machine: dataset_config='main' only applies to"):
        read_questions(path, name="main")


def test_csv(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("problem,solution\nWhat is 007?,007\n", encoding="utf-8")
    mapping = {"problem": "question", "solution": "answer"}
    assert read_questions(path, column_mapping=mapping) == [Question("row 1", "What is 007?", "007")]


def test_gsm8k(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "How many?", "answer": "It is 2 + 2.\n#### 1,004"}])
    (question,) = read_questions(path, answer_after="####", answer_type="number")
    assert (question.answer, question.answer_type) == ("1,004", "number")


OPTIONS = "\nOptions:\n(A) red\n(B) green\n(C) blue"


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["red", "green", "blue"], "B", "(B)"),
        (["red", "green", "blue"], "(C)", "(C)"),
        (["(A) red", "(B) green", "(C)blue"], "A", "(A)"),
        (["red", "green", "blue"], 2, "(C)"),
        ({"text": ["red", "green", "blue"], "label": ["A", "B", "C"]}, "C", "(C)"),
        ({"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}, "3", "(C)"),
        ({"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}, "blue", "(C)"),
        (["red", "green", "blue"], "blue", "(C)"),
        (["red", "green", "blue"], ["B"], "(B)"),
    ],
)
def test_choices(tmp_path, choices, answer, expected):
    path = write(tmp_path / "q.jsonl", [{"question": "Which?", "answer": answer, "choices": choices}])
    assert read_questions(path) == [Question("row 1", "Which?" + OPTIONS, expected, "choice")]


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        ({"text": ["3", "2", "1"], "label": ["1", "2", "3"]}, "1", "(A)"),
        ({"text": ["B", "C", "A"], "label": ["A", "B", "C"]}, "A", "(A)"),
        (["B", "C", "A"], "A", "(A)"),
        (["3", "1", "2"], "1", "(B)"),
        (["3", "1", "2"], 1, "(B)"),
    ],
)
def test_a_label_comes_before_the_text_of_another_choice(tmp_path, choices, answer, expected):
    path = write(tmp_path / "q.jsonl", [{"question": "Which?", "answer": answer, "choices": choices}])
    assert read_questions(path)[0].answer == expected


@pytest.mark.parametrize(
    ("answers", "expected"), [(("0", "1", "2"), ["(A)", "(B)", "(C)"]), (("1", "3"), ["(A)", "(C)"])]
)
def test_digits_count_from_where_the_answers_do(tmp_path, answers, expected):
    choices = ["red", "green", "blue"]
    path = write(
        tmp_path / "q.jsonl", [{"question": "Which?", "answer": answer, "choices": choices} for answer in answers]
    )
    assert [question.answer for question in read_questions(path)] == expected
    assert read_questions(path, limit=1)[0].answer == expected[0]


def test_digits_that_may_count_from_0_or_1(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "Which?", "answer": "1", "choices": ["red", "green"]}])
    with pytest.raises(
        InputError, match="digits may count from 0 or from 1 here: write an integer, which counts from 0"
    ):
        read_questions(path)


@pytest.mark.parametrize("answer", ["5π", "3 or 4", "12:30"])
def test_known_answers_that_are_no_whole_number(tmp_path, answer):
    path = write(tmp_path / "q.jsonl", [{"question": "Why?", "answer": answer}])
    with pytest.raises(
        InputError, match=rf"q\.jsonl, row 1, column 'answer': the known answer '{answer}' is not of type"
    ):
        read_questions(path, answer_type="number")


def test_math_without_its_extra_is_told_once_and_first(tmp_path, monkeypatch):
    monkeypatch.setattr("edit_trl.data.answers.formulas.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / "nothing.jsonl", answer_type="math")
    assert str(caught.value) == "answers of type 'math' need math-verify: pip install 'edit_trl[math]'"


def test_the_first_few(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": f"{n}?", "answer": str(n)} for n in range(9)])
    assert [question.answer for question in read_questions(path, limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"answer": None}, {}, "row 2, column 'answer': must be a text, got None"),
        ({"answer": " "}, {}, "row 2, column 'answer': must be a text, got ' '"),
        ({"answer": 4}, {}, "row 2, column 'answer': must be a text, got 4 (int); write numbers as text"),
        ({"answer": "four"}, {"answer_type": "number"}, "row 2, column 'answer': the known answer 'four' is not"),
        ({"question": ""}, {}, "row 2, column 'question': must be a text, got ''"),
        ({"id": 3}, {}, "row 2, column 'id': must be a text, got 3 (int)"),
        ({"task": ["a"]}, {}, "row 2, column 'task': must be a text"),
        ({"answer_type": "numbr"}, {}, "row 2, column 'answer_type': must be one of number, choice"),
        ({"choices": "a or b"}, {}, "row 2, column 'choices': must be a list of texts"),
        ({"choices": ["a", "b"], "answer": "C"}, {}, "row 2, column 'answer': must name one of the choices A, B"),
        ({}, {"answer_after": "####"}, "row 2, column 'answer': has no '####'"),
        ({"id": "row 1"}, {}, "id 'row 1' occurs 2 times"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, options, message):
    first = {"question": "What?", "answer": "#### 4"} if options.get("answer_after") else ROWS[0]
    path = write(tmp_path / "q.jsonl", [first, {"question": "Why?", "answer": "5"} | row])
    with pytest.raises(InputError) as caught:
        read_questions(path, **options)
    assert f"{path}" in str(caught.value)
    assert message in str(caught.value)


def test_all_problems_at_once(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "", "answer": 3}, {"question": "x", "answer": None}])
    with pytest.raises(InputError) as caught:
        read_questions(path)
    assert len(caught.value.problems) == 3


def test_missing_columns_and_files(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"problem": "x", "answer": "1"}])
    with pytest.raises(InputError, match=r"no column 'question'; it has problem, answer. Name what they are"):
        read_questions(path)
    with pytest.raises(InputError, match=r"no such file or folder: 'nothere\.jsonl'"):
        read_questions("nothere.jsonl")


def test_choices_that_cannot_be_lettered(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "Which?", "answer": 26, "choices": [str(n) for n in range(27)]}])
    with pytest.raises(InputError, match=r"column 'choices': must be a list of texts \(at most 26\)"):
        read_questions(path)
    path = write(tmp_path / "q.jsonl", [{"question": "Which?", "answer": "²", "choices": ["a", "b"]}])
    with pytest.raises(InputError, match="column 'answer': must name one of the choices A, B, got '²'"):
        read_questions(path)
