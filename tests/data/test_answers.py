import json
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import answer_quality
import pytest

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import answer_part
from edit_trl.data.answers import check_answer, extract_answer, infer_answer_type
from edit_trl.data.answers.numbers import find_number

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


@pytest.mark.parametrize("loop", ["\nQuestion: a\n", "<answer>", "St. ", "\\,", "**", "$1$ or ", "a.", "which is "])
@pytest.mark.parametrize("kind", ["number", "text"])
def test_no_loop_takes_quadratic_time(loop, kind):
    started = time.perf_counter()
    extract_answer("The answer is " + loop * 3_000, kind, lenient=True)
    assert time.perf_counter() - started < 4


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


needs_math = pytest.mark.skipif(find_spec("math_verify") is None, reason="the extra `math` is not installed")


@pytest.mark.parametrize(
    ("group", "response", "answer", "kind", "verdict"),
    [
        pytest.param(*case, marks=needs_math if case[3] == "math" else (), id=f"{case[0]}-{number}")
        for number, case in enumerate(answer_quality.read_cases())
    ],
)
def test_hand_written_cases(group, response, answer, kind, verdict):
    assert check_answer(response, answer, kind, lenient=group == "lenient").verdict == verdict


def test_there_are_enough_cases():
    groups = [case[0] for case in answer_quality.read_cases()]
    assert len(groups) >= 150
    assert groups.count("math") == 19


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[
            (f"12{blank}000", "12000")
            for blank in (" ", "\u00a0", "\u2009", "\u202f", "\u2007", "'", "’", "_", ",", "，")
        ],
        *[(f"12{latex}000", "12000") for latex in ("\\,", "\\ ", "\\;", "{,}", ",\\!", "{\\,}", "~")],
        *[("1,00,000", "100000"), ("1 234 567.89", "123456789/100"), ("12 00", ""), ("12 0000", "")],
        *[(f"{minus}5", "-5") for minus in ("-", "−", "–", "‐", "‑", "﹣", "－", "- ", "minus ", "negative ", "-$")],
        *[("-(5)", "-5"), ("x = - 5", "-5"), ("Tom - 5", "5"), ("-5 to -7", "-5 or -7"), ("a-5", "")],
        *[
            ("3½", "7/2"),
            ("3 ½", "7/2"),
            ("-\\frac{1}{2}", "-1/2"),
            ("\\frac12", "1/2"),
            ("\\frac{1,000}{3}", "1000/3"),
        ],
        *[("10^6", "1000000"), ("10^{-3}", "1/1000"), ("10⁻³", "1/1000"), ("2.5·10^3", "2500"), ("5E3", "5000")],
        *[("5!", "120"), ("200!!", ""), ("5 hundred", "500"), ("2.5 Million", "2500000"), ("5 dozen", "5")],
        *[
            (text, "")
            for text in ("5x", "5 x", "3-i", "3+2i", "2√3", "√3", "17.5\\pi", "5 pi", "\\pm 8", "3_5", "5&6", "3e")
        ],
        *[
            (text, "")
            for text in ("x<5", "5 ≤ x", "x \\neq 3", "x != 3", "5 ± 2", "less than 5", "2 + 3", "2*3", "3 : 1")
        ],
        *[(text, "") for text in ("5 feet 3 inches", "5'3", "5 hours and 30 minutes", "5 squared", "the root of 16")],
        *[("5 apples and 3 pears", "5"), ("5 miles/hour", "5"), ("5 m^2", "5"), ("90^{\\circ}", "90"), ("20 °C", "20")],
        *[("4 boxes * 5 = 20 apples", "20"), ("ab + cd = 17", "17"), ("x + 2y = 17", ""), ("f(3) = 10", "10")],
        *[("the sum of 3 and 4, which is 7", "7"), ("8, which is 5 more", "8"), ("3 plus 4 equals 7", "7")],
        *[("5 x 3 = 15", "15"), ("9 = 3^2", "9"), ("x = 2 = y", "2"), ("3 < 4 = 4", "4"), ("7 (3 + 4 = 7)", "7")],
    ],
)
def test_a_number_is_read_whole_or_not_at_all(written, value):
    assert find_number(written, 0, len(written)).value == value


def test_the_span_of_a_number_is_all_of_it():
    response = "So the answer is \\boxed{-3\\frac{1}{2}} in all."
    extraction = extract_answer(response, "number")
    assert response[extraction.start : extraction.end] == "-3\\frac{1}{2}"


@pytest.mark.parametrize(
    "known",
    [
        "5π",
        "5k",
        "5x",
        "7 < x",
        r"17.5\pi",
        "3-i",
        "5-7",
        "3 or 4",
        "5 feet 3 inches",
        "12:30",
        "1/0",
        "2 + 3",
        "about 5",
    ],
)
def test_known_numbers_are_read_by_the_same_rules(known):
    with pytest.raises(InputError, match="is not of type 'number'"):
        check_answer(None, known, "number")


@pytest.mark.parametrize(
    ("known", "response"),
    [("3½", "7/2"), ("2 million", "2,000,000"), ("12 000", "12000"), ("10!", "3628800"), ("−5", "-5"), ("10^6", "1e6")],
)
def test_known_numbers_may_be_written_as_answers_are(known, response):
    assert infer_answer_type(known) == "number"
    assert check_answer(f"The answer is {response}.", known, "number").verdict == "correct"


@pytest.mark.parametrize(
    ("response", "part"),
    [
        ("So it is 4.", "So it is 4."),
        *[(f"<{tag}>5</{tag}>4", "4") for tag in ("think", "thinking", "reasoning", "THINK")],
        *[("[THINK]5[/THINK]4", "4"), ("◁think▷5◁/think▷4", "4"), ("5</think>4", "4"), ("<think>5", None)],
        ("<|channel|>analysis<|message|>5<|end|><|start|>assistant<|channel|>final<|message|>4", "4"),
        ("<think>5</think>4<think>", None),
        ("analysisPerhaps it is 5.assistantfinalIt is 4.", "It is 4."),
        ("analysisPerhaps it is 5.", None),
        ("Our analysis is done: 4", "Our analysis is done: 4"),
    ],
)
def test_only_what_follows_the_thoughts_is_read(response, part):
    found = answer_part(response)
    assert (found and response[slice(*found)]) == part
    if part is None:
        assert check_answer(response, "5", lenient=True).verdict == "unparsed"


def test_the_span_after_thoughts_is_that_of_the_response():
    response = "<think>The answer is 5.</think>The answer is 4."
    extraction = extract_answer(response, "number")
    assert response[extraction.start :] == "4."


@pytest.mark.parametrize(
    "question",
    [
        *[
            "\n\nWhat is 5 + 5?\n",
            "\nQuestion: What is 5 + 5?\n",
            "\n\nQ: 5 + 5\n",
            "\n**Problem 2:** 5 + 5\n",
            "\nHuman: 5 + 5\n",
        ],
        *["<|im_end|>\n<|im_start|>user\n", "\n### Question\n5 + 5\n", "\n\nTom has 5. How many do two Toms have?\n"],
    ],
)
def test_a_question_of_the_models_own_ends_the_response(question):
    response = f"It is 4. The answer is 4.{question}It is 10. The answer is 10.{question}It"
    assert check_answer(response, "4", "number").value == "4"
    assert check_answer(response, "4", "number", lenient=True).value == "4"
    assert check_answer(f"4{question}", "4", "number", lenient=True).value == "4" or question.startswith("\n\n")


@pytest.mark.parametrize(
    "doubt", ["Wait, is that right?", "Does that make sense?", "What if x is 2?", "How do we check this?"]
)
def test_a_model_may_correct_itself(doubt):
    assert check_answer(f"The answer is 4.\n\n{doubt}\nNo. The answer is 5.", "5", "number").verdict == "correct"


def test_a_question_within_the_chain_is_a_step():
    response = "The first part is 3.\n\nWhat is left?\nIt is 4.\n\nSo the answer is 4."
    assert check_answer(response, "4", "number").verdict == "correct"


ABOUT_THE_ANSWER = [
    *("The answer is rounded to 2 decimals.", "I hope the answer is clear to all 3 of you.", "The answer is not 41."),
    *("The answer is in dollars (2 decimals).", "Double-check the answer: 84 / 2 = 42 and 1 + 1 = 2."),
    *("The answer is between 40 and 50.", "The answer is also in appendix 2.", "The answer is less than 50."),
    *("The answer is an integer, because 6 and 7 are.", "This answer is the result of 6 * 7."),
    *("The answer is only valid for n > 3.", "The answer is the same as for 3.", "If the answer is 41, it fails."),
    *("If you have another answer: 5 is wrong.", "Final answer: see above."),
]


@pytest.mark.parametrize("sentence", ABOUT_THE_ANSWER)
@pytest.mark.parametrize("gap", [" ", "\n\n"])
def test_a_sentence_about_the_answer_does_not_give_it(sentence, gap):
    assert check_answer(f"Therefore, the answer is 42.{gap}{sentence}", "42", "number").verdict == "correct"


@pytest.mark.parametrize(
    "sentence", ["The answer is 5.", "The answer is actually 5.", "The answer is a total of 5 apples."]
)
def test_a_later_sentence_that_gives_the_answer_wins(sentence):
    assert check_answer(f"The answer is 42. No, wait. {sentence}", "5", "number").verdict == "correct"


@pytest.mark.parametrize(
    "sentence", ["The answer is correct.", "I hope this answer is helpful!", "The answer is supported by the text."]
)
def test_a_sentence_about_an_answer_of_words(sentence):
    assert check_answer(f"So the answer is Paris. {sentence}", "Paris", "text").verdict == "correct"
    assert check_answer("So the answer is correct.", "correct", "text").verdict == "correct"


@needs_math
def test_math_in_threads():
    """math-verify's own time limit needs the main thread; ours does not."""
    verdicts = []

    def check(number: int) -> None:
        response = f"The answer is $\\frac{{{number}}}{{{2 * number}}}$."
        verdicts.append(check_answer(response, "0.5", "math").verdict)

    threads = [threading.Thread(target=check, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == ["correct"] * 6


@needs_math
@pytest.mark.parametrize(
    ("response", "answer", "verdict", "value"),
    [
        (r"\boxed{9^{9^{9^{9}}}}", "3", "wrong", "9**(9**(9**9))"),
        (r"\boxed{10^{10^{10}}}", "10^{10^{10}}", "correct", "10**(10**10)"),
        (r"\boxed{(10^9)!}", "3", "wrong", None),
        (r"\boxed{__import__('os').system('exit 1')}", "3", "wrong", None),
        (r"\boxed{" + "(1+" * 600 + "}", "3", "unparsed", None),
        (r"\boxed{\frac{1}{0}}", "3", "wrong", None),
        (r"\boxed{x=\frac{-1\pm\sqrt5}{2}}", r"\frac{-1\pm\sqrt{5}}{2}", "correct", None),
        ("The answer is silent.", "listen", "wrong", "silent"),
        ("nothing", "3", "unparsed", None),
    ],
)
def test_math_that_is_hard(response, answer, verdict, value):
    check = check_answer(response, answer, "math")
    assert check.verdict == verdict
    assert value is None or check.value == value


@needs_math
def test_right_answers_of_type_math_have_one_vote():
    values = {
        check_answer(f"\\boxed{{{text}}}", "1/2", "math").value for text in (r"\frac12", "0.5", "50\\%", r"\frac{2}{4}")
    }
    assert values == {"1/2"}


@needs_math
def test_a_process_that_was_ended_is_started_again():
    from edit_trl.data.answers import formulas

    check_answer(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", "math")
    formulas._worker._process.kill()
    formulas._worker_value.cache_clear()
    assert check_answer(r"\boxed{\sqrt{8}}", "3", "math").verdict == "unparsed"  # what is asked when it ends
    formulas._worker_value.cache_clear()
    assert check_answer(r"\boxed{\sqrt{18}}", r"3\sqrt{2}", "math").verdict == "correct"


def test_math_without_its_extra():
    code = (
        "import sys; sys.modules['math_verify'] = None; from importlib import util; "
        "util.find_spec = lambda name: None\n"
        "from edit_trl.data.answers import check_answer\n"
        "check_answer('The answer is 1.', '1', 'math')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "answers of type 'math' need math-verify: pip install 'edit_trl[math]'" in ended.stderr


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
def test_thousands_in_bulk():
    """A sample of the rows in each way of writing thousands; benchmarks/answer_quality.py reads all."""
    for written, count in answer_quality.count_gsm8k(SHARED, every=10).items():
        assert count.failures == [], written
        assert count.cases == 748


@needs_shared
def test_no_fragment_of_an_expression_is_a_number():
    count = answer_quality.count_fragments(SHARED)
    assert count.failures == []
    assert count.cases == 356


@pytest.mark.slow
@needs_shared
def test_thousands_in_all_rows():
    for written, count in answer_quality.count_gsm8k(SHARED).items():
        assert (written, count.failures, count.cases) == (written, [], 7473)


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
