"""Final answers: finds them in a response, normalises and compares them.

The answer of a chain is the text after its last marker, such as "Therefore, the answer is 42.". A response
without an answer is `unparsed`, which is neither correct nor wrong. Lenient extraction also accepts the last
expression of the answer's type; the strict and the lenient score are never mixed.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from edit_trl.common.errors import InputError

AnswerType = Literal["number", "choice", "yes_no", "boolean", "text", "list"]
Verdict = Literal["correct", "wrong", "unparsed"]
VERIFIER_VERSION = "1"
"""Increase this when a response may get another verdict: only results of one version are comparable."""


@dataclass(frozen=True)
class Extraction:
    """An answer found in a response.

    Attributes:
        value: The normalised answer; two answers are the same if their values are equal.
        start: First character of the answer in the response.
        end: Last character of the answer, exclusive.
    """

    value: str
    start: int
    end: int


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


# A line break may separate a colon from its answer; after a bare "is" it ends the statement.
_MARKERS = re.compile(
    r"""(?:
        \b(?:final\s+|correct\s+|right\s+)?answers?\b(?:\s+to\s+[^.:=?!\n]{1,80}?)?[\s*_]*
        (?:(?:(?:is|are|would\s+be)\b[ \t]*)?[:=]\s* | (?:is|are|would\s+be)\b[ \t]*)
      | \\boxed\s*(?=\{)
      | \#{4}\s*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# Characters around an answer that are not part of it.
_QUOTING = " \t*_`\"'“”‘’"
_WRAPPING = _QUOTING + "$"
# The group is atomic, so that a part of a time (12:30), a date (1/2/2020) or 1.000.000 is not a number.
_NUMBER = re.compile(
    r"""(?<![\w.:/])[-+−–]?(?:
        (?:\\?[$€£¥₹]\s?)?(?>
            \d+\ \d+/\d+
          | (?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)(?:\.\d+)? | \d+(?:\.\d+)? | \.\d+)
            (?:[eE][-+]?\d+ | \s?(?:[×*x]|\\times)\s?10\^\{?[-−]?\d+\}?)?
            (?:\s?/\s?\d+)?
        )(?![.:/]\d)
      | \\[dt]?frac\{-?\d+\}\{\d+\}
    )""",
    re.VERBOSE,
)
# More digits than this come from a model that did not stop. These numbers, and powers of ten with exponents
# of more than two digits, which would fill the memory, are compared as text.
_MOST_DIGITS = 400
_POWER = re.compile(r"(?:[eE]|(?:[×*x]|\\times)10\^\{?)([-+]?\d+)\}?")
_MIXED = re.compile(r"(\d+) (\d+)/(\d+)")
_CHOICE = re.compile(r"\(([A-Za-z])\)|(?<![\w'’])([A-Z])(?![\w'’])|^([a-z])(?=[^\w\s'’]|\s*$)")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_BOOLEAN = re.compile(r"\b(true|false)\b", re.IGNORECASE)
_SEPARATORS = re.compile(r"\s*(?:,|;|\band\b|\n|\s)\s*", re.IGNORECASE)
_HEDGE = re.compile(r"\s*(?:,|/|[-‑–]|\bor\b|\band\b|\bto\b)+\s*", re.IGNORECASE)
_NEGATION = re.compile(r"\bnot\s+$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
# The answer of "2 + 3 = 5" is 5; that of "8, since 2 + 3 = 5" is 8.
_EQUATION = re.compile(r"(?:[\d\s.,$€£¥₹%+*/×÷()−–-]*=)+(?=\s*[-−–$€£¥₹\\]*\d)")
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it)?|math(?:rm|bf))(?=\{)")
# Text that may follow a known answer: a unit, or an option's text.
_KNOWN_TAIL = {"number": re.compile(r"\D*"), "choice": re.compile(r"(?:(?<=\))|[).:]).*|\W*", re.DOTALL)}
_NO_WORD = re.compile(r"\W*")


def infer_answer_type(answer: str) -> AnswerType:
    """Infer the type of a known answer from its text.

    A list is never inferred: "a, b" may also be a text, so the type of a list must be named.
    """
    text = answer.strip()
    if re.fullmatch(r"\(?[A-Z]\)?", text):
        return "choice"
    if re.fullmatch(_YES_NO, text):
        return "yes_no"
    if re.fullmatch(_BOOLEAN, text):
        return "boolean"
    number = text.rstrip(".%").strip()
    return "number" if _NUMBER.fullmatch(number) else "text"


def extract_answer(response: str | None, answer_type: AnswerType, *, lenient: bool = False) -> Extraction | None:
    """Find the final answer of a response.

    Args:
        response: A chain of thought, as a model wrote it; None contains no answer.
        answer_type: The type of answer to look for.
        lenient: If no answer follows a marker, take the last expression of the type (numbers, choices, yes/no
            and true/false only).

    Returns:
        The answer after the last marker that has one, or None.

    Raises:
        InputError: The answer type does not exist.
    """
    if answer_type not in get_args(AnswerType):
        raise InputError(f"unknown answer type {answer_type!r}; choose one of {', '.join(get_args(AnswerType))}")
    response = response or ""
    limit = len(response)
    for marker in reversed(list(_MARKERS.finditer(response))):
        answer = _find(response, *_after(response, marker.end(), limit), answer_type)
        if answer is not None:
            return answer
        limit = marker.start()
    if lenient and answer_type not in ("text", "list"):
        return _find(response, 0, len(response), answer_type, last=True)
    return None


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
    if extraction is None:
        return AnswerCheck("unparsed")
    verdict = "correct" if extraction.value == expected.value else "wrong"
    return AnswerCheck(verdict, extraction.value, (extraction.start, extraction.end))


def _known_answer(text: str, answer_type: AnswerType) -> Extraction:
    """Read a known answer. It must be one answer and little else, or correct responses would be wrong."""
    answer = _find(text, 0, len(text), answer_type)
    is_alone = answer is not None and (
        answer_type in ("text", "list")
        or (
            " or " not in answer.value
            and _NO_WORD.fullmatch(text, 0, answer.start)
            and _KNOWN_TAIL.get(answer_type, _NO_WORD).fullmatch(text, answer.end)
        )
    )
    if not is_alone:
        raise InputError(f"the known answer {text!r} is not of type {answer_type!r}; name its type")
    return answer


def _after(response: str, start: int, limit: int) -> tuple[int, int]:
    """Return the [start, end) of the text that a marker refers to: the braces after it, or the rest of its sentence.

    The end is never beyond `limit`.
    """
    if response.startswith("{", start):
        depth = 0
        for position in range(start, limit):
            depth += {"{": 1, "}": -1}.get(response[position], 0)
            if not depth:
                return start + 1, position
    end = _SENTENCE_END.search(response, start, limit)
    return start, end.start() if end else limit


def _find(text: str, start: int, end: int, answer_type: AnswerType, last: bool = False) -> Extraction | None:
    wrapping = _WRAPPING if answer_type in ("text", "list") else _QUOTING
    while start < end and text[start] in wrapping:
        start += 1
    if answer_type in ("text", "list"):
        while end > start and text[end - 1] in _WRAPPING + ".!?,;:":
            end -= 1
        value = _NORMALISERS[answer_type](text[start:end])
        return Extraction(value, start, end) if value else None
    if answer_type == "number" and not last and (equation := _EQUATION.match(text, start, end)):
        start = equation.end()
    matches = [
        match
        for match in _PATTERNS[answer_type].finditer(text[start:end])
        if not _NEGATION.search(text[max(start, start + match.start() - 8) : start + match.start()])
    ]
    if answer_type == "choice":
        # A letter in brackets is an option; a bare letter may be a word ("A lot of ...").
        matches = [match for match in matches if match.group().startswith("(")] or matches
    if not matches:
        return None
    first = len(matches) - 1 if last else 0
    # "(A) or (B)" is one answer that names both options, so it equals neither of them.
    final = first
    while final + 1 < len(matches) and _HEDGE.fullmatch(
        text, start + matches[final].end(), start + matches[final + 1].start()
    ):
        final += 1
    values = dict.fromkeys(_NORMALISERS[answer_type](match.group()) for match in matches[first : final + 1])
    return Extraction(" or ".join(values), start + matches[first].start(), start + matches[final].end())


def _number(text: str) -> str:
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text).replace("−", "-").replace("–", "-")
    if len(text) <= _MOST_DIGITS:
        text = _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    digits = _POWER.sub(r"e\1", re.sub(r"[\s,$€£¥₹]", "", text))
    digits = re.sub(r"[+{}\\]", "", digits)
    if len(digits) > _MOST_DIGITS or re.search(r"e-?\d{3}", digits):
        return digits
    above, _, below = digits.partition("/")
    if not below:
        return str(Fraction(above))
    # x/0 is not a number; as text it equals no answer.
    return str(Fraction(above) / int(below)) if int(below) else digits


def _text(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = _LATEX_TEXT.sub(" ", folded)
    words = " ".join(re.sub(r"[^\w\s/.:+-]", " ", folded).split()).strip(" .")
    return words or " ".join(folded.split())  # an answer that consists of brackets keeps them


def _list(text: str) -> str:
    items = (_text(item) for item in _SEPARATORS.split(text.strip("[](){}")))
    return ", ".join(item for item in items if item)


_PATTERNS: dict[str, re.Pattern[str]] = {"number": _NUMBER, "choice": _CHOICE, "yes_no": _YES_NO, "boolean": _BOOLEAN}
_NORMALISERS: dict[str, Callable[[str], str]] = {
    "number": _number,
    "choice": lambda text: text.strip("()").upper(),
    "yes_no": str.lower,
    "boolean": str.lower,
    "text": _text,
    "list": _list,
}
