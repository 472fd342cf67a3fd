"""Finds the final answer of a response and compares it with the known one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import answer_part
from edit_trl.data.answers import formulas
from edit_trl.data.answers.reading import AnswerType, Extraction, read
from edit_trl.data.answers.statements import Statement, cuts, run_on, statements_of

Verdict = Literal["correct", "wrong", "unparsed"]
VERIFIER_VERSION = "2"
"""Increase this when a response may get another verdict: only results of one version are comparable."""


@dataclass(frozen=True)
class AnswerCheck:
    """The verdict on a response.

    Attributes:
        verdict: `correct`, `wrong`, or `unparsed` for a response without an answer.
        value: The normalised answer of the response, or None.
        span: The answer's [start, end) characters in the response, or None.
    """

    verdict: Verdict
    value: str | None = None
    span: tuple[int, int] | None = None


# What may stand around an answer that is alone: a unit after a number, the text of an option after its letter.
_TAIL = {"number": re.compile(r"\D*"), "choice": re.compile(r"(?:(?<=\))|[).:]).*|\W*", re.DOTALL)}
_NO_WORD = re.compile(r"\W*")
# A line after #### is an answer if it holds little else; otherwise it is a heading: "#### 2. Verification".
_LINE_TAIL = {
    "number": re.compile(r"\s?(?:USD|EUR|GBP)?[^A-Z\d.:;!?]*[.!]?\s*"),
    "choice": re.compile(r"(?<=\)).*|\)\s.*|\W*"),
}
_LINE_HEAD = re.compile(r"\W*|.*=\W*")

# A statement that says something about the answer does not give it: "the answer is rounded to 2 decimal places".
_ABOUT_ANSWER = (
    "rounded|independent|useful|helpful|consistent|reasonable|plausible|verified|confirmed|checked|expressed|measured|"
    "the same|obtained|derived|based|correct|incorrect|right|wrong|unique|clear|dependent|divisible|stated|reported|"
    "written|supported|explained|well[- ]known"
)
_ABOUT_VALUE = "in|on|for|from|of|with|within|due|up|valid|true|false|possible|positive|even|odd|known|guaranteed|close"
_ADVERBS = r"\W*(?:(?:also|indeed|therefore|thus|now|then|still|always|only|really|fully|easily)\s+)*"
_ABOUT = re.compile(rf"{_ADVERBS}(?:{_ABOUT_ANSWER})\b(?!\s+(?:to\s+be|as\s+\d)\b)", re.IGNORECASE)
_ABOUT_NUMBER = re.compile(
    rf"{_ADVERBS}(?:{_ABOUT_ANSWER}|{_ABOUT_VALUE})\b(?!\s+(?:to\s+be|as\s+\d|by)\b)|.*\b(?:because|since)\b",
    re.IGNORECASE | re.DOTALL,
)
# Words that lead to an answer. After an article or a pronoun it is one only if no other statement gives it more
# directly, and after other words in small letters only if no other statement gives one at all.
_LEADS = re.compile(
    r"(?:that|(?:a|the)\s+(?:total|number|value|amount)|approx|about|around|almost|just|indeed|therefore|thus|then|now|still|"
    r"equals?|total|option|choice|letter|number|no|minus|negative|at|either|both|[a-z]+ly)\b|[^a-z]|.*[=:]|[a-z]\b(?!\s[a-z])",
    re.DOTALL,
)
_ARTICLES = re.compile(r"(?:the|an?|this|he|she|it|they|there|his|her|their|its|we|you|my|our|between)\b")


def infer_answer_type(answer: str) -> AnswerType:
    """Infer the type of a known answer from its text.

    A list is never inferred: "a, b" may also be a text, so the type of a list must be named. Nor is `math`.
    """
    text = answer.strip()
    if re.fullmatch(r"\(?[A-Z]\)?", text):
        return "choice"
    for kind in ("yes_no", "boolean"):
        if re.fullmatch("yes|no" if kind == "yes_no" else "true|false", text, re.IGNORECASE):
            return kind
    text = text.rstrip(".%").strip()
    number = read(text, 0, len(text), "number")
    if number is None or not number.value or " or " in number.value:
        return "text"
    return "number" if (number.start, number.end) == (0, len(text)) else "text"


def extract_answer(response: str | None, answer_type: AnswerType, *, lenient: bool = False) -> Extraction | None:
    """Find the final answer of a response.

    Thoughts are not read, nor is a question with which a model goes on after its answer.

    Args:
        response: A chain of thought, as a model wrote it; None contains no answer.
        answer_type: The type of answer to look for.
        lenient: If no statement gives an answer, take the last expression of the type (numbers, choices, yes/no
            and true/false), or the last formula between dollar signs (`math`).

    Returns:
        The answer of the last statement that gives one, or None.

    Raises:
        InputError: The answer type does not exist, or needs a package that is not installed.
    """
    check_answer_type(answer_type)
    response = response or ""
    part = answer_part(response)
    if part is None:
        return None
    start, end = part
    statements = statements_of(response, start, end, answer_type == "list")
    answer = _stated_answer(response, statements, end, answer_type)
    if answer is None and lenient and answer_type not in ("text", "list"):
        for limit in (*cuts(response, start, end), end):
            answer = _read(response, Statement("prose", start, limit), answer_type, last=True)
            if answer is not None:
                break
            start = limit
    if answer_type == "math":
        answer = formulas.in_one_spelling(answer)
    return answer if answer and answer.value else None


def check_answer(
    response: str | None, answer: str, answer_type: AnswerType | None = None, *, lenient: bool = False
) -> AnswerCheck:
    """Compare a response's final answer with the known one.

    Args:
        response: A chain of thought; None is `unparsed`.
        answer: The known answer.
        answer_type: The type of the answer; inferred from the known answer where None.
        lenient: As in `extract_answer`.

    Raises:
        InputError: The known answer is not of the given type.
    """
    answer_type = answer_type or infer_answer_type(answer)
    # Extraction comes first, since it also checks the type.
    extraction = extract_answer(response, answer_type, lenient=lenient)
    expected = _known_answer(answer, answer_type)
    if response is None or extraction is None:
        return AnswerCheck("unparsed")
    span, value = (extraction.start, extraction.end), extraction.value
    if answer_type == "math" and formulas.are_equal(answer, response[slice(*span)]):
        value = expected.value  # All right answers have the same vote, however they are written.
    return AnswerCheck("correct" if value == expected.value else "wrong", value, span)


def check_answer_type(answer_type: str) -> None:
    """Raise an InputError if there is no such type of answer, or the package that reads it is not installed."""
    if answer_type not in get_args(AnswerType):
        raise InputError(f"unknown answer type {answer_type!r}; choose one of {', '.join(get_args(AnswerType))}")
    if answer_type == "math":
        formulas.check_installed()


def _known_answer(text: str, answer_type: AnswerType) -> Extraction:
    """Read a known answer. It must be one answer and little else, or correct responses would be wrong."""
    answer = _read(text, Statement("known", 0, len(text)), answer_type)
    if answer_type == "math":
        answer = formulas.in_one_spelling(answer)
    is_alone = answer is not None and (
        answer_type in ("text", "list", "math")
        or (
            answer.value
            and " or " not in answer.value
            and not (answer_type == "number" and answer.value.endswith("/0"))
            and _NO_WORD.fullmatch(text, 0, answer.start)
            and _TAIL.get(answer_type, _NO_WORD).fullmatch(text, answer.end)
        )
    )
    if answer is None or not is_alone:
        raise InputError(f"the known answer {text!r} is not of type {answer_type!r}; name its type")
    return answer


def _stated_answer(text: str, statements: Sequence[Statement], end: int, answer_type: AnswerType) -> Extraction | None:
    """Return the answer of the last statement that gives one."""
    giving = [(statement, answer) for statement in statements if (answer := _read(text, statement, answer_type))]
    if giving:
        end = run_on(text, [statement for statement, _ in giving], end)
    answers = [(statement, answer) for statement, answer in reversed(giving) if statement.start < end]
    ranked = [(_rank(text, statement, answer, answer_type), answer) for statement, answer in answers]
    # `max` returns the first of equals, which is the last in the text.
    rank, answer = max(ranked, key=lambda pair: pair[0], default=(0, None))
    return answer if rank else None


def _rank(text: str, statement: Statement, answer: Extraction, answer_type: AnswerType) -> int:
    """Return how directly a statement gives an answer: from 3 to 1, or 0 if it only says something about it."""
    if statement.kind != "sentence":
        return 3
    if answer_type in ("text", "list", "math"):
        # Where no other statement gives an answer, such words are one.
        return 1 if _ABOUT.match(text, statement.start, statement.end) else 3
    lead = text[statement.start : answer.start].strip(" \t*_`$({[\"'“‘\n")
    if _ABOUT_NUMBER.match(lead + " "):
        return 0
    if not lead or _LEADS.match(lead):
        return 3
    return 2 if _ARTICLES.match(lead) else 1


def _read(text: str, statement: Statement, answer_type: AnswerType, last: bool = False) -> Extraction | None:
    start, end = statement.start, statement.end
    if answer_type == "math":
        answer = formulas.read(text, start, end, last)
    else:
        answer = read(text, start, end, answer_type, last)
    return answer if statement.kind != "hashes" or (answer and _is_line(text, statement, answer, answer_type)) else None


def _is_line(text: str, statement: Statement, answer: Extraction, answer_type: AnswerType) -> bool:
    """Whether a line after #### is an answer and not a heading."""
    if answer_type in ("text", "list", "math"):
        return not text[statement.end :].strip()
    tail = _LINE_TAIL.get(answer_type, _NO_WORD)
    return bool(
        _LINE_HEAD.fullmatch(text, statement.start, answer.start) and tail.fullmatch(text, answer.end, statement.end)
    )
