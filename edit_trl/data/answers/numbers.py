"""Reads a number: as a whole, with everything that belongs to it, or not at all.

`12 000`, `3\\frac{1}{2}`, `2.5 × 10³`, `5!` and `minus 18` are numbers. `5x`, `3-i`, `2\\sqrt{3}`, `12:30` and `x < 13/5`
are not, and no part of them is one. A statement is split into tokens; the tokens around a number tell whether it stands
whole.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

UNREADABLE = ""
"""The value of an expression that is no number and stands where a number was expected."""


class Number(NamedTuple):
    """A number, or several such as "3 or 4", between two characters; see `UNREADABLE`."""

    value: str
    start: int
    end: int


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int
    spaced: bool
    match: re.Match[str]


_NONE = _Token("end", "", 0, 0, True, re.match("", ""))

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
  | (?P<word>[^\W\d_]{{2,}}(?:['’][^\W\d_]+)*)
  | (?P<letter>[^\W\d_])
  | (?P<equals>(?<!!)[=≈](?!>)|[=-]>|→|\\(?:approx|simeq|Rightarrow|implies|to)(?![A-Za-z]))
  | (?P<command>\\[A-Za-z]+|[√∛∞∑∫∪∩∅])
  | (?P<relation>[<>≤≥≠≮≯∈∉≡±∓])
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
      | \\[()\[\]] | \^\s?(?:\{\s?)?(?:\\circ\s?|[∘°])\}? | (?<![\d,])\\[,;:!\ ] | \\[,;:!\ ](?!\d) | \\(?=[%$€£&\#{}])
      | [$€£¥₹¢°%`"“”‘] | </?[A-Za-z][^<>]{0,80}>
      | (?<=[\w)}\]])\*+(?=[\w({\[\\√.-])(?P<attached>) | (?<=\s)\*+(?=\s)(?P<spaced>) | \*+ | (?<!\w)_+ | _+(?!\w|\{)""",
    re.VERBOSE,
)

# Units that may follow a number without a blank, and letters that may follow it after one.
_UNITS = frozenset(
    "kg mg g lb lbs oz cm mm km m mi in ft yd ml mL l L cl dl h hr hrs min mins s sec secs ms am pm mph kph kmh kWh Hz "
    "kHz MHz GHz KB MB GB TB st nd rd th ish c usd eur gbp USD EUR GBP cent cents dollar dollars euro euros year years "
    "day days hour hours minute minutes second seconds meter meters metre metres mile miles foot feet inch inches "
    "degree degrees percent people point points times".split()
)
_SPACED_LETTERS = frozenset("aAImghsLlBCFJKNVWR")
_ARTICLES = frozenset("aAI")
# Words that make an expression of a number: after it, after it with an operand following, before it, before "of" or
# "by" and it.
_OPERATION_AFTER = frozenset("squared cubed factorial pi divided multiplied modulo".split())
_OPERATION_BETWEEN = frozenset("plus minus times over point mod".split())
_OPERATION_BEFORE = frozenset("sqrt root log ln sin cos tan exp mod modulo times plus over than".split())
_OPERATION_OF = frozenset("root square cube log logarithm half third quarter factorial divided multiplied".split())
_MINUS_WORDS = frozenset({"minus", "negative"})
_HEDGES = frozenset({"or", "and", "to"})
_SHARES = frozenset("half third thirds quarter quarters fifth fifths tenth tenths".split())
_CLAUSES = frozenset("since because as so where given if when while that which for but and or after thus hence".split())
_OPERANDS = frozenset({"number", "open", "command"})


def find_number(text: str, start: int, end: int, last: bool = False) -> Number | None:
    """Find the number that a statement gives: its first one, or that at the end of its equation.

    Args:
        text: The text.
        start: First character of the statement.
        end: Last character of the statement, exclusive.
        last: Find the last number that stands whole instead.

    Returns:
        The number; one with the value `UNREADABLE` for an expression that is no number; None without digits.
    """
    tokens = _tokens(text, start, end)
    places = [place for place, token in enumerate(tokens) if token.kind == "number"]
    if not places:
        return None
    if last:
        return next((number for place in reversed(places) if (number := _whole(tokens, place, prose=True))), None)
    # "- 5" at the beginning of a line is an item of a list, and not minus five.
    in_list = text[:start].rstrip(" \t").endswith("\n")
    parts = _parts(tokens)
    number = _first_whole(parts[-1], in_list)
    if number is None:
        # "5 = 2 + 3": the other side may be a number and nothing else.
        sides = (side for part in reversed(parts[:-1]) if _is_short(part) and (side := _first_whole(part, in_list)))
        number = next(sides, None)
    elif len(parts) == 2 and _is_of_variables(parts[0]):
        number = None
    return number or Number(UNREADABLE, tokens[places[0]].start, tokens[places[-1]].end)


def _tokens(text: str, start: int, end: int) -> list[_Token]:
    region = _LAYOUT.sub(lambda m: m[0] if m.lastgroup else " " * len(m[0]), text[start:end])
    return [
        _Token(
            m.lastgroup, m[0], start + m.start(), start + m.end(), not m.start() or region[m.start() - 1].isspace(), m
        )
        for m in _TOKEN.finditer(region)
    ]


def _parts(tokens: Sequence[_Token]) -> list[Sequence[_Token]]:
    """Split a statement at its equals signs; "8, since 2 + 6 = 8" is one part, as its equation is an explanation."""
    parts: list[Sequence[_Token]] = []
    begin = depth = 0
    seen_number = False
    for place, token in enumerate(tokens):
        after = tokens[place + 1] if place + 1 < len(tokens) else _NONE
        depth += {"open": 1, "close": -1}.get(token.kind, 0)
        seen_number = seen_number or token.kind == "number"
        if token.kind == "equals" and depth <= 0:
            parts.append(tokens[begin:place])
            begin, seen_number = place + 1, False
        elif seen_number and (
            (token.kind == "comma" and after.spaced)
            or token.text == ";"
            or (token.kind == "word" and token.text.lower() in _CLAUSES)
            or (token.kind == "sign" and token.spaced and after.spaced and after.kind == "word")
        ):
            break
    return [*parts, tokens[begin:]]


def _is_of_variables(part: Sequence[_Token]) -> bool:
    """Whether the left side of an equation has variables and numbers, as in "x + 2y - 1 = 0", whose answer is no 0."""
    numbers = variables = depth = 0
    for place, token in enumerate(part):
        before = part[place - 1] if place else _NONE
        # The arguments of a function, and indexes, are parts of a name.
        if token.kind == "open" and (depth or (not token.spaced and before.kind in ("letter", "word", "command"))):
            depth += 1
        elif token.kind == "close" and depth:
            depth -= 1
        elif depth or before.text == "_":
            continue
        elif token.kind == "number":
            numbers += 1
        elif token.kind == "letter" and not (
            token.spaced and before.kind == "number" and token.text in _SPACED_LETTERS
        ):
            after = part[place + 1] if place + 1 < len(part) else _NONE
            variables += not (token.text in _ARTICLES and after.kind == "word")
    return bool(numbers and variables)


def _is_short(part: Sequence[_Token]) -> bool:
    """Whether a side of an equation is a number with a unit and nothing else."""
    return sum(token.kind == "number" for token in part) == 1 and all(
        token.kind in ("number", "word", "sign", "open", "close") for token in part
    )


def _first_whole(tokens: Sequence[_Token], in_list: bool) -> Number | None:
    place = next((place for place, token in enumerate(tokens) if token.kind == "number"), None)
    return None if place is None else _whole(tokens, place, in_list)


def _whole(tokens: Sequence[_Token], place: int, in_list: bool = False, prose: bool = False) -> Number | None:
    """Return the number at a place and those that hedge it, or None if it is a part of an expression.

    In `prose`, an exclamation mark before a blank ends a sentence.
    """
    sign = _sign(tokens, place, in_list)
    if sign is None:
        return None
    negative, start = sign
    values = [_value(tokens[place], negative, prose)]
    while (hedged := _hedged(tokens, place)) is not None:
        place, negative = hedged
        values.append(_value(tokens[place], negative, prose))
    if _goes_on(tokens, place):
        return None
    return Number(" or ".join(dict.fromkeys(values)), start, tokens[place].end)


def _sign(tokens: Sequence[_Token], place: int, in_list: bool) -> tuple[bool, int] | None:
    """Return whether a number is negative, and where it begins with its sign; None if an expression stands before it."""
    number = tokens[place]
    negative, start, nearest = False, number.start, number
    place, opened = _skip_open(tokens, place - 1)
    before = tokens[place] if place >= 0 else _NONE
    is_minus = before.kind == "sign" or (before.kind == "word" and before.text.lower() in _MINUS_WORDS)
    if is_minus:
        sign, nearest = before, before
        place, opened_again = _skip_open(tokens, place - 1)
        opened = opened or opened_again
        before = tokens[place] if place >= 0 else _NONE
        is_dash = sign.kind == "sign" and number.spaced and before.kind in ("word", "letter", "close") and sign.spaced
        if before.kind in ("number", "letter", "close", "operator") or (before.kind == "word" and not sign.spaced):
            return None
        if not is_dash and not (in_list and place < 0 and number.spaced):
            negative, start = sign.text != "+", sign.start
    return None if _is_operation(tokens, place, nearest, opened) else (negative, start)


def _skip_open(tokens: Sequence[_Token], place: int) -> tuple[int, bool]:
    """Go back over opening brackets; also return whether the last of them is attached to what stands before it."""
    attached = False
    while place >= 0 and tokens[place].kind == "open":
        attached = not tokens[place].spaced
        place -= 1
    return place, attached


def _is_operation(tokens: Sequence[_Token], place: int, nearest: _Token, attached: bool) -> bool:
    """Whether the token at a place, the last before a number with its sign and brackets, makes an expression of it."""
    if place < 0:
        return False
    before = tokens[place]
    earlier = tokens[place - 1] if place else _NONE
    is_attached = attached or not nearest.spaced
    if before.kind in ("number", "command", "relation", "operator") or before.text == "\\":
        return True
    if before.kind == "close":
        return is_attached
    if before.kind == "letter":
        return is_attached or before.text not in _ARTICLES
    if before.kind == "word":
        word = before.text.lower()
        return (
            is_attached
            or word in _OPERATION_BEFORE
            or (word in ("of", "by") and earlier.text.lower() in _OPERATION_OF)
            or (word == "or" and earlier.text.lower() == "plus")
        )
    # The minutes of a time, the end of 1.000.000.
    return before.text in (":", ".") and is_attached and not before.spaced and earlier.kind == "number"


def _hedged(tokens: Sequence[_Token], place: int) -> tuple[int, bool] | None:
    """Return the place of a number that hedges the one before it ("3 or 4", "5-7") and whether it is negative."""
    joined = negative = False
    for after in range(place + 1, len(tokens)):
        token = tokens[after]
        if token.kind == "number":
            return (after, negative) if joined or negative is None else None
        if token.kind == "comma" or (token.kind == "word" and token.text in _HEDGES):
            joined, negative = True, False
        elif token.kind == "sign" and token.text != "+":
            # Between two numbers it makes a range; after another word it is a minus.
            joined, negative = True, joined
        elif token.kind not in ("open", "close"):
            return None
    return None


def _goes_on(tokens: Sequence[_Token], place: int) -> bool:
    """Whether the number at a place is only the beginning of an expression."""
    closed = place
    place += 1
    while place < len(tokens) and tokens[place].kind == "close":
        place += 1
    after, operand, third = (tokens[at] if at < len(tokens) else _NONE for at in range(place, place + 3))
    is_attached = not after.spaced and place == closed + 1
    is_variable = operand.kind == "letter" and not (operand.text in _ARTICLES and third.kind == "word")
    match after.kind:
        case "number" | "command" | "relation":
            return True
        case "letter":
            return (
                after.text not in (_UNITS if is_attached else _SPACED_LETTERS)
                and after.text.isascii()
                or after.text in "πτ"
            )
        case "word":
            if is_attached:
                return after.text not in _UNITS and after.text.isascii()
            return _is_operation_word(after.text.lower(), operand, third) or _has_operation_after_unit(tokens, place)
        case "sign":
            return operand.kind in _OPERANDS or is_variable
        case "operator":
            if after.text in "^_!" or after.text in "⁰¹²³⁴⁵⁶⁷⁸⁹":
                return True
            return operand.kind in _OPERANDS or operand.kind == "sign" or is_variable
        case "open":
            if is_attached:
                return operand.kind in ("number", "letter", "command", "sign")
            return operand.kind == "letter" and third.kind == "sign"
        case "comma":
            return operand.kind == "command" or is_variable
        case "other":
            if after.text in ":.":
                return operand.kind == "number" and after.spaced == operand.spaced
            return after.text == "\\"
    return False


def _is_operation_word(word: str, operand: _Token, third: _Token) -> bool:
    """Whether a word after a number makes an expression of it, as in "5 squared", "5 times 3" and "5 and a half"."""
    return (
        word in _OPERATION_AFTER
        or (word in _OPERATION_BETWEEN and operand.kind in ("number", "letter", "command") and operand.text not in "aA")
        or (word == "to" and operand.text == "the" and third.text == "power")
        or (word == "and" and third.text in _SHARES)
    )


def _has_operation_after_unit(tokens: Sequence[_Token], place: int) -> bool:
    """Whether a unit of few words is followed by an operation with another number: "4 boxes * 5 apples"."""
    while place < len(tokens) and tokens[place].kind == "word":
        place += 1
    operation, operand = (tokens[at] if at < len(tokens) else _NONE for at in (place, place + 1))
    is_operation = operation.text in ("+", "\\times", "\\cdot") or (
        operation.kind == "operator" and operation.text != "!"
    )
    return is_operation and operand.kind == "number"


def _value(token: _Token, negative: bool, prose: bool) -> str:
    """Return a number as a fraction, or as text where it would fill the memory or divides by zero."""
    digits = re.sub(r"[\s,{}\\]", "", token.text)
    sign = "-" if negative else ""
    group = token.match.groupdict()
    if len(digits) > _MOST_DIGITS:
        return sign + digits
    if group["factorial"] and prose and token.match.string[token.match.end() : token.match.end() + 1].strip() == "":
        group["factorial"] = None
    try:
        value = _fraction(group)
    except ZeroDivisionError:
        return sign + digits
    if value is None:
        return sign + digits
    return str(-value if negative else value)


def _fraction(group: dict[str, str | None]) -> Fraction | None:
    """Compute a number from the groups of its token; None if it has too many digits."""
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
        above, below = re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text) if "{" in text else text[-2:]
    return Fraction(above) / Fraction(below)
