import json
import time
from pathlib import Path

import pytest

from edit_trl.common.errors import InputError
from edit_trl.data.answers import check_answer, extract_answer, infer_answer_type

SHARED = Path(__file__).parents[3] / "shared" / "data"

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
    ("The answer is 3 1/2 cups", "3.5", None),
    ("The answer is -\\$18.", "-18", None),
    ("The answer is \\(1{,}000\\).", "1000", None),
    ("The answer is 1.2 × 10^3.", "1200", None),
    ("The answer is 2.5e-1", "1/4", None),
    ("The answer is 2 + 3 = 5.", "5", None),
    ("The answer is 4 * $5 = $20 in all", "20", None),
    ("The answer is 8, since 10 - 2 = 8 and 3 = 3", "8", None),
    ("The answer is not 5, it is 6.", "6", None),
    ("Answer:\n- 5 apples", "5", None),  # a bullet, no sign
    ("**Answer**: 5", "5", None),
    ("The answer to the second question is 5.", "5", None),
    ("The answer is: 5\nQ: 7 apples and", "5", None),
    # choice
    ("The answer is **b**", "B", None),
    ("The answer is B) blue, as A is not", "(B) blue", "choice"),
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
    ("\\boxed{\\text{New York}}", "new york", None),
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
    ("The answer is 5-7", "5", None, "5 or 7"),
    ("The answer is 5 to 7", "5", None, "5 or 7"),
    ("The answer is 1e999", "1", None, "1e999"),  # no number of a thousand digits is made
    ("The answer is 1e99999999999", "1", None, "1e99999999999"),
    ("The answer is 0.3333333333333333", "1/3", None, "3333333333333333/10000000000000000"),
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
    (None, "5", None),
    ("The answer is\nQ: 7 apples", "7", None),
    ("The answer isn't 7", "7", None),
    ("The answer is not True", "True", None),
    ("The answer is 12:30", "12", None),
    ("The answer is 1/2/2020", "1/2", None),
    ("The answer is 1.000.000", "1", None),
    ("The answer is (None of the above).", "(B)", None),
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


@pytest.mark.parametrize(
    ("response", "kind", "found"),
    [
        ("So the answer is about $1,234.50!", "number", "$1,234.50"),
        ("**Final answer:** **(B)** red", "choice", "(B)"),
        ('😀 The answer is "Ж, 猫".', "text", "Ж, 猫"),
    ],
)
def test_the_span_is_the_answer_alone(response, kind, found):
    extraction = extract_answer(response, kind)
    assert response[extraction.start : extraction.end] == found


@pytest.mark.parametrize("loop", ["\\boxed{", "the answer is ", "the answer to ", "1,", "- ", "1 or ", "1 = ", "not "])
def test_a_model_that_repeats_itself_costs_no_time(loop):
    started = time.perf_counter()
    extract_answer("The answer is " + loop * 5_000, "number")
    assert time.perf_counter() - started < 2


def test_unknown_type():
    with pytest.raises(InputError, match="unknown answer type 'numbers'"):
        extract_answer("The answer is 1", "numbers")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *[(text, "number") for text in ("abc", "3 or 4", "apartment 5", "2 hours * $15 = $30")],
        *[("A lot", "choice"), ("(A) or (B)", "choice"), ("apple", "choice")],
        *[("maybe yes", "yes_no"), ("not True", "boolean"), (" ", "text"), ("[]", "list")],
    ],
)
def test_known_answer_of_another_type(answer, kind):
    with pytest.raises(InputError) as caught:
        check_answer("The answer is 1", answer, kind)
    assert str(caught.value) == f"the known answer {answer!r} is not of type {kind!r}; name its type"


@pytest.mark.parametrize(
    ("answer", "kind", "response"),
    [("18 dollars", "number", "18"), ("(B) red", "choice", "(B)"), ("b", "choice", "B"), ("Yes.", "yes_no", "yes")],
)
def test_known_answers_may_have_a_tail(answer, kind, response):
    assert check_answer(f"The answer is {response}", answer, kind).verdict == "correct"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").split("\n") if line]


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data does not stand beside the project")


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
def test_agrees_with_gsm8k_and_the_authors_exemplars():
    rows = read("gsm8k/train.jsonl")
    wrong = [r for r in rows if check_answer(f"{r['rationale']}\n#### {r['answer']}", r["answer"]).verdict != "correct"]
    assert (len(rows), wrong) == (7473, [])
    exemplars = read("dual_cots/bbh_exemplars.jsonl")
    for row in exemplars:
        answer = row["chosen"].rsplit("answer is ", 1)[1].rstrip(".")
        assert check_answer(row["chosen"], answer).verdict == "correct"
        assert check_answer(row["rejected"], answer).verdict == "wrong"
    assert len(exemplars) == 54


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
