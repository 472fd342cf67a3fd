"""Reads the answer of a statement by its type: two answers are the same if their values are equal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edit_trl.data.answers.numbers import find_number

AnswerType = Literal["number", "choice", "yes_no", "boolean", "text", "list", "math"]


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


# Characters around an answer that are not part of it.
_QUOTING = " \t*_`\"'“”‘’"
_WRAPPING = _QUOTING + "$\n"
_CURRENCY = re.compile(r"(?:\\?[$€£¥₹]|\bRs\.?)\s?\Z")
# "A" and "I" before a word in small letters are an article and a pronoun, unless that word goes on after an option.
_CHOICE = re.compile(
    r"""(?<!\w)\((?P<bracketed>[A-Za-z])\) | (?<!\w)\[(?P<squared>[A-Z])\]
      | (?<!\w)(?<!\w['’])(?:[B-HJ-Z]
          | [AI](?!\s+(?!(?:because|since|as|is|and|or|but|not|due|for|in|with)\b)[a-z]))(?!\w|['’]\w)
      | ^[a-z](?=[^\w\s'’]|\s*$) | (?<=\boption\ )[a-z]\b | (?<=\bchoice\ )[a-z]\b""",
    re.VERBOSE,
)
# "A red ball" may still name an option where nothing else does; "A lot" does not.
_ARTICLE = re.compile(r"^A(?=\s+(?!(?:lot|few|bit|couple|number|little|good|great|certain|single)\b)[a-z])")
_YES_NO = re.compile(
    r"\b(?:yes|no(?!\s+(?:one|longer|further|more|other|matter|doubt|problem|need)\b))\b", re.IGNORECASE
)
_BOOLEAN = re.compile(r"\b(?:true|false)\b", re.IGNORECASE)
_SEPARATORS = re.compile(r"\s*(?:,|;|\band\b|\n|\s)\s*", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•+]|\d+[.)])\s+", re.MULTILINE)
_HEDGE = re.compile(r"\s*(?:,|/|[-‑–]|\bor\b|\band\b|\bto\b)+\s*", re.IGNORECASE)
_NEGATION = re.compile(
    r"(?:\b(?:not|neither|nor|rather than|instead of)|n['’]t(?: be)?)\s+(?:(?:an?|the|option|choice|be)\s+)*\Z",
    re.IGNORECASE,
)

# How people write the same sign.
_SIGNS = {
    "!=": "≠", "<=": "≤", ">=": "≥", "==": "=", "<->": "↔", "->": "→", "=>": "⇒", "\\le": "≤", "\\leq": "≤",
    "\\ge": "≥", "\\geq": "≥", "\\ne": "≠", "\\neq": "≠", "\\lt": "<", "\\gt": ">", "\\times": "×", "\\cdot": "·",
    "\\div": "÷", "\\sqrt": "√", "\\pi": "π", "\\cup": "∪", "\\cap": "∩", "\\in": "∈", "\\to": "→", "\\rightarrow": "→",
    "\\land": "∧", "\\wedge": "∧", "\\lor": "∨", "\\vee": "∨", "\\neg": "¬", "\\lnot": "¬", "\\infty": "∞", "\\pm": "±",
    "\\approx": "≈", "−": "-", "–": "-", "‐": "-", "‑": "-", "⁄": "/",
}  # fmt: skip
_SIGN = re.compile(r"\\[a-zA-Z]+|<->|[!<>=]=|[-=]>|[−–‐‑⁄]")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LAYOUT = re.compile(
    r"""\\(?:left|right|quad|qquad|displaystyle)(?![a-zA-Z])
      | \\[()\[\],;:!%$\ ] | \\(?=[{}])
      | (?<=[\w)}\]])\*+(?=[\w({\[\\√]) (?P<attached>) | (?<=\s)\*+(?=\s) (?P<spaced>)
      | \*+ | (?<!\w)_+ | _+(?![\w{]) | ["“”„'‘’`$,;?…] | —""",
    re.VERBOSE,
)
_EXCLAMATION = re.compile(r"(?<![\d)\]}])(?<!\b[^\W\d_])!")
_LATEX_TEXT = re.compile(r"\\(?:text|math|mbox|operatorname)[a-z]*\s*\{([^{}]*)\}")
_SINGLE = re.compile(r"(?<=[\^_√])\{([\w.+-]+)\}")
_AROUND_OPERATORS = re.compile(r"\s*([-+*/=<>≤≥≠≈^:·×÷∧∨∩∪∈→←↔⇒|&¬√~±()\[\]{}])\s*")
_IN_BRACKETS = re.compile(r"\A\s*\(([\w\s.'’-]+)\)\s*\Z")


def read(text: str, start: int, end: int, answer_type: AnswerType, last: bool = False) -> Extraction | None:
    """Read the answer of a statement.

    Args:
        text: The response.
        start: First character of the statement.
        end: Last character of the statement, exclusive.
        answer_type: The type of answer to look for; not `math`.
        last: Read the last expression of the type instead of the first.

    Returns:
        The answer; one with an empty value where another expression stands in its place; None without an answer.
    """
    if answer_type in ("text", "list"):
        return read_phrase(text, start, end, _list_value if answer_type == "list" else text_value)
    if answer_type == "number":
        return _read_number(text, start, end, last)
    while start < end and text[start] in _QUOTING:
        start += 1
    region = text[start:end]
    matches = [match for match in _PATTERNS[answer_type].finditer(region) if not _is_negated(region, 0, match.start())]
    if answer_type == "choice":
        # A letter in brackets is an option; a bare letter may be a word.
        matches = [match for match in matches if match.lastgroup] or matches
        if not matches and not last and (article := _ARTICLE.match(region)):
            matches = [article]
    if not matches:
        return None
    first = final = len(matches) - 1 if last else 0
    # "(A) or (B)" is one answer that names both options, so it equals neither of them.
    while final + 1 < len(matches) and _HEDGE.fullmatch(region, matches[final].end(), matches[final + 1].start()):
        final += 1
    fold = str.upper if answer_type == "choice" else str.lower
    values = dict.fromkeys(fold(match[0].strip("()[]")) for match in matches[first : final + 1])
    return Extraction(" or ".join(values), start + matches[first].start(), start + matches[final].end())


def read_phrase(text: str, start: int, end: int, normalise: Callable[[str], str | None]) -> Extraction | None:
    """Read the whole of a statement, without the quotes around it and its full stop."""
    while start < end and text[start] in _WRAPPING:
        start += 1
    while end > start and (text[end - 1] in _WRAPPING + ".?,;:" or _EXCLAMATION.fullmatch(text, end - 1, end)):
        end -= 1
    value = normalise(text[start:end])
    return Extraction(value, start, end) if value else None


def text_value(text: str) -> str:
    """Return a text without its layout, in small letters; signs that tell two texts apart stay."""
    text = _SUPERSCRIPT.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _LATEX_TEXT.sub(r" \1 ", _IN_BRACKETS.sub(r"\1", folded))
    words = _SIGN.sub(lambda match: _SIGNS.get(match[0], match[0]), words)
    words = _LAYOUT.sub(lambda match: match[0] if match.lastgroup else " ", words).replace("**", "^")
    words = _EXCLAMATION.sub(" ", words)
    words = _SINGLE.sub(r"\1", words)
    words = _AROUND_OPERATORS.sub(r"\1", words)
    return " ".join(words.split()).strip(" .") or " ".join(folded.split())


def _is_negated(text: str, start: int, end: int) -> bool:
    return bool(_NEGATION.search(text, max(start, end - 40), end))


def _list_value(text: str) -> str:
    items = (text_value(item) for item in _SEPARATORS.split(_BULLET.sub("", text.strip("[](){}\n"))))
    return ", ".join(item for item in items if item)


def _read_number(text: str, start: int, end: int, last: bool) -> Extraction | None:
    number = find_number(text, start, end, last)
    while number and not last and _is_negated(text, start, number.start):
        start = number.end
        number = find_number(text, start, end)
    if number is None:
        return None
    currency = _CURRENCY.search(text, max(start, number.start - 5), number.start)
    return Extraction(number.value, currency.start() if currency else number.start, number.end)


_PATTERNS: dict[str, re.Pattern[str]] = {"choice": _CHOICE, "yes_no": _YES_NO, "boolean": _BOOLEAN}
