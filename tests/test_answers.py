import json
from pathlib import Path

import pytest

from edit_trl.answers import check_answer, extract_answer, infer_answer_type
from edit_trl.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"

CORRECT = [
    # number
    ("Therefore, the answer is 42.", "42", None),
    ("The answer is $1,234.50.", "1234.5", None),
    ("so the answer is 18 dollars", "18", None),
    ("The answer is 3.0", "3", None),
    ("The answer is 1/2.", "0.5", None),
    ("The answer is \\boxed{\\frac{3}{4}}.", "3/4", None),
    ("Hence \\boxed{7}", "7", None),
    ("Some steps.\n#### 1,000", "1000", None),
    ("the answer is −5 degrees", "-5", None),
    ("The answer is -$5", "-5", None),
    ("Answer: **12**", "12", None),
    ("the answer is 50%", "50", None),
    ("The answer is 1.5e3", "1500", None),
    ("The answer is 5. Q: next? The answer is 6.", "6", None),
    ("The final answer is: 9", "9", None),
    # choice
    ("The answer is (B).", "(B)", None),
    ("The answer is **(B)** red.", "(B)", None),
    ("answer: b.", "(B)", "choice"),
    ("The answer is option C", "C", None),
    ("The answer is A lot of (C)", "C", None),
    ("The answer is (B), not (A).", "(B)", None),
    # yes/no, true/false
    ("Answer: No, because it moved.", "No", None),
    ("So the answer is yes", "Yes", None),
    ("The answer is true.", "True", None),
    # text
    ("The answer is 06/24/2001.", "06/24/2001", "text"),
    ('The answer is "Hello,  World"!', "hello world", None),
    ("The answer is ｆｕｌｌ width.", "full width", None),
    ("So the answer is ] ].", "] ]", None),
    # list
    ("the answer is apple, bee and cat.", "apple bee cat", "list"),
    ("the answer is [apple, bee]", "apple, bee", "list"),
]
WRONG = [
    ("The answer is 43.", "42", None, "43"),
    ("The answer is 1,2.", "12", None, "1 or 2"),
    ("The answer is (A) or (B).", "(A)", None, "A or B"),
    ("The answer is 3 or 4", "3", None, "3 or 4"),
    ("The answer is 1/0", "0", None, "1/0"),
    ("The answer is False.", "True", None, "false"),
    ("The answer is bee, apple", "apple, bee", "list", "bee, apple"),
    ("The answer is 4. No: the answer is 5.", "4", None, "5"),
]
UNPARSED = [
    ("", "5", None),
    ("I do not know, perhaps 5", "5", None),
    ("The answer is a lot. So 7", "7", None),
    ("The answer is", "7", None),
    ("The answer is clear. It is (B)", "(B)", None),
    ("The answer is .", "word", None),
]


@pytest.mark.parametrize(("response", "answer", "kind"), CORRECT)
def test_correct(response, answer, kind):
    check = check_answer(response, answer, kind)
    assert check.verdict == "correct"
    start, end = check.span
    # What the span holds is an answer by itself.
    assert check_answer(f"The answer is {response[start:end]}", answer, kind).verdict == "correct"


@pytest.mark.parametrize(("response", "answer", "kind", "value"), WRONG)
def test_wrong(response, answer, kind, value):
    check = check_answer(response, answer, kind)
    assert (check.verdict, check.value) == ("wrong", value)


@pytest.mark.parametrize(("response", "answer", "kind"), UNPARSED)
def test_unparsed(response, answer, kind):
    check = check_answer(response, answer, kind)
    assert (check.verdict, check.value, check.span) == ("unparsed", None, None)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *[(text, "number") for text in ("5", "-5", "1,000", "3/4", "0.5", "50%", "$5")],
        *[("(A)", "choice"), ("B", "choice"), ("Yes", "yes_no"), ("no", "yes_no")],
        *[("True", "boolean"), ("apple", "text"), ("06/24/2001", "text"), ("a, b", "text")],
    ],
)
def test_inferred_types(answer, kind):
    assert infer_answer_type(answer) == kind


def test_lenient_takes_the_last_of_the_type():
    assert extract_answer("3 and then 7, I think", "number") is None
    assert extract_answer("3 and then 7, I think", "number", lenient=True).value == "7"
    assert extract_answer("(A)? No: (C)", "choice", lenient=True).value == "C"
    assert extract_answer("some words", "text", lenient=True) is None


def test_a_marker_wins_over_lenient():
    assert extract_answer("The answer is 3, not 7", "number", lenient=True).value == "3"


def test_endless_digits_are_no_trouble():
    assert check_answer("The answer is " + "1" * 20_000, "1").verdict == "wrong"


def test_unknown_type():
    with pytest.raises(InputError, match="unknown answer type 'numbers'"):
        extract_answer("The answer is 1", "numbers")


def test_known_answer_of_another_type():
    with pytest.raises(InputError, match="the known answer 'abc' is not of type 'number'"):
        check_answer("The answer is 1", "abc", "number")


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared data does not stand beside the project"
)


@needs_shared
def test_agrees_with_a_recorded_teacher():
    """5,184 real responses over 27 tasks, against the exact match recorded with them."""
    disagree = []
    for row in read("bbh/train.jsonl"):
        kind = "list" if row["task"] == "word_sorting" else None
        verdict = check_answer(row["teacher_response"], row["answer"], kind).verdict
        if (verdict == "correct") != row["teacher_correct"]:
            disagree.append(row)
    assert disagree == []


@needs_shared
def test_agrees_with_real_dual_cots():
    bad_answers, rows = 0, read("dual_cots/gsm8k_natural.jsonl")
    for row in rows:
        if "=" in row["answer"]:  # 4 rows hold a whole equation where the answer should be
            bad_answers += 1
            continue
        assert check_answer(row["chosen"], row["answer"]).verdict == "correct"
        assert check_answer(row["rejected"], row["answer"]).verdict == "wrong"
    assert (len(rows), bad_answers) == (2430, 4)
