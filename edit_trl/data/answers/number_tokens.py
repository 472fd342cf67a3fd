"""Splits a statement into tokens, of which one is a number with everything that belongs to it, and computes numbers."""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple


class Token(NamedTuple):
    """A part of a statement: its kind (a group of the pattern), place, and whether a blank stands before it."""

    kind: str | None
    text: str
    start: int
    end: int
    spaced: bool
    match: re.Match[str] | None


NOTHING = Token("end", "", 0, 0, True, None)

_SIGN = "[-+−–‐‑﹣－⁻]"
# What people put between thousands; a number uses one of them throughout.
_SEPARATOR = r"(?P<separator>,\\!|[\ \u00a0\u2007\u2008\u2009\u202f'’_,，٬~]|\\[,;:!\ ]|\\thinspace\ |\{,\}|\{\\,\})"
_PLAIN = r"(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
_PART = rf"(?:\{{\s?{_SIGN}?(?:\d{{1,3}}(?:(?:,|\{{,\}})\d{{3}})+|{_PLAIN})\s?\}}|\s?\d)"
_FRACTION = rf"\\[dtc]?frac\s?{_PART}\s?{_PART}"
_VULGAR = "[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒]"
_POWER = rf"(?:\s?(?:\^|\*\*)\s?(?:{_SIGN}?\d+|\{{\s?{_SIGN}?\d+\s?\}}|\({_SIGN}?\d+\))|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
# The alternatives of a number are atomic: one that does not stand whole must not be read as a shorter one.
_TOKEN = re.compile(
    rf"""
    (?P<number>(?>
        (?P<whole>\d+)(?:\s?(?P<mixed>{_FRACTION}|{_VULGAR})|(?:[ ]|[ ]and[ ])(?P<ratio>\d+[/⁄]\d+))
      | (?P<fraction>{_FRACTION}|{_VULGAR})
      | (?P<digits>\d{{1,3}}{_SEPARATOR}\d{{3}}(?:(?P=separator)\d{{3}})*(?!\d)(?:\.\d+)?
          | \d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d)(?:\.\d+)?
          | {_PLAIN})
        (?: [eE](?P<exponent>[-+]?\d+)
          | \s?(?:[×*x·⋅∙]|\\times|\\cdot)\s?10(?P<scientific>{_POWER})
          | (?P<power>{_POWER})
          | (?P<factorial>!(?![=!])) )?
        (?:\s?[/⁄]\s?(?P<below>\d+))?
      )(?:[ \u00a0~](?P<multiplier>(?i:hundred|thousand|million|billion|trillion))\b)?)
  | (?P<equality>(?:,\s?)?\b(?:which\s+(?:is|equals|gives|makes)\b|i\.e\.,?|that\s+is,))
  | (?P<equals>\b(?:equals|is\s+equal\s+to)\b|(?<!!)[=≈](?!>)|[=-]>|→
      |\\(?:approx|simeq|Rightarrow|implies|to)(?![A-Za-z]))
  | (?P<word>[^\W\d_]{{2,}}(?:['’][^\W\d_]+)*)
  | (?P<letter>[^\W\d_])
  | (?P<command>\\[A-Za-z]+|[√∛∞∑∫∪∩∅])
  | (?P<relation>!=|[<>≤≥≠≮≯∈∉≡±∓])
  | (?P<sign>{_SIGN})
  | (?P<operator>\*+|[×÷·⋅∙/⁄^_&!⁰¹²³⁴⁵⁶⁷⁸⁹])
  | (?P<open>[(\[{{])
  | (?P<close>[)\]}}])
  | (?P<comma>,)
  | (?P<other>\S)
    """,
    re.VERBOSE,
)
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Numbers of more digits come from a model that did not stop; they are compared as text.
_MOST_DIGITS = 400

# LaTeX that only lays out what it holds, currencies, degrees, quotes, tags, and the marks around bold words. An
# asterisk between two operands is an operator.
_LAYOUT = re.compile(
    r"""\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|quad|qquad|Large|large|bf|rm|checkmark|blacksquare|therefore
        |degree|circ|square|pounds|euro)(?![A-Za-z])
      | \\(?:text|mbox|fbox|boxed|underline|operatorname|math|emph)[a-z]*\*?\s*(?=\{) | \\(?:text)?color\s*\{[^{}]*\}
      | \\[()\[\]] | \^\s?(?:\{\s?)?(?:\\circ\s?|[∘°])\}? | (?<![\d,])(?<!\d\{)\\[,;:!\ ] | (?<!\d\{)\\[,;:!\ ](?!\d)
      | \\(?=[%$€£&\#{}]) | [$€£¥₹¢°%`"“”‘] | </?[A-Za-z][^<>]{0,80}>
      | (?<=[\w)}\]])\*+(?=[\w({\[\\√.-])(?P<attached>) | (?<=\s)\*+(?=\s)(?P<spaced>) | \*+
      | (?<!\w)_+ | _+(?!\w|\{)""",
    re.VERBOSE,
)


def tokens_of(text: str, start: int, end: int) -> list[Token]:
    """Split a statement into tokens; what only lays out a text is left out."""
    region = _LAYOUT.sub(lambda m: m[0] if m.lastgroup else " " * len(m[0]), text[start:end])
    return [
        Token(
            m.lastgroup, m[0], start + m.start(), start + m.end(), not m.start() or region[m.start() - 1].isspace(), m
        )
        for m in _TOKEN.finditer(region)
    ]


def value_of(token: Token, negative: bool, prose: bool) -> str:
    """Return a number as a fraction, or as text where it would fill the memory or divides by zero."""
    assert token.match is not None  # only `NOTHING` has none, and it is no number
    digits = re.sub(r"[\s,{}\\]", "", token.text)
    sign = "-" if negative else ""
    group = token.match.groupdict(default="")
    if len(digits) > _MOST_DIGITS:
        return sign + digits
    if group["factorial"] and prose and token.match.string[token.match.end() : token.match.end() + 1].strip() == "":
        group["factorial"] = ""
    try:
        value = _fraction(group)
    except ZeroDivisionError:
        return sign + digits
    if value is None:
        return sign + digits
    return str(-value if negative else value)


def _fraction(group: dict[str, str]) -> Fraction | None:
    """Compute a number from the groups of its token, which are empty where it has none; None if too many digits."""
    if group["whole"]:
        return int(group["whole"]) + _ratio(group["mixed"] or group["ratio"])
    if group["fraction"]:
        return _ratio(group["fraction"])
    separator = group["separator"]
    value = Fraction(re.sub(r"[,_]", "", group["digits"].replace(separator, "") if separator else group["digits"]))
    power = _exponent(group["exponent"] or group["scientific"] or group["power"] or "0")
    if abs(power) >= 100 or (group["power"] and len(group["digits"]) * abs(power) > _MOST_DIGITS):
        return None
    if group["exponent"] or group["scientific"]:
        value *= Fraction(10) ** power
    elif group["power"]:
        value **= power
    elif group["factorial"]:
        if value.denominator != 1 or value > 200:
            return None
        value = Fraction(math.factorial(int(value)))
    if group["below"]:
        value /= int(group["below"])
    return value * 10 ** _ZEROS[group["multiplier"].lower()] if group["multiplier"] else value


def _exponent(text: str) -> int:
    text = re.sub(r"[\s^*{}()]", "", unicodedata.normalize("NFKC", re.sub("[−–‐‑﹣－⁻]", "-", text)))
    return int(text)


def _ratio(text: str) -> Fraction:
    """Return the value of "3/4", "½" or "\\frac{3}{4}"."""
    text = re.sub("[−–‐‑﹣－⁻]", "-", unicodedata.normalize("NFKC", text)).replace("{,}", "").replace(",", "")
    if "frac" not in text:
        above, below = re.split("[/⁄]", text)
    else:
        above, below = re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text) if "{" in text else list(text[-2:])
    return Fraction(above) / Fraction(below)
