"""Reads a number: as a whole, with everything that belongs to it, or not at all.

`12 000`, `3\\frac{1}{2}`, `2.5 × 10³`, `5!` and `minus 18` are numbers. `5x`, `3-i`, `2\\sqrt{3}`, `12:30` and
`x < 13/5` are not, and no part of them is one. A statement is split into tokens; the tokens around a number tell
whether it stands whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edit_trl.data.answers.number_tokens import NOTHING, Token, tokens_of, value_of

UNREADABLE = ""
"""The value of an expression that is no number and stands where a number was expected."""


class Number(NamedTuple):
    """A number, or several such as "3 or 4", between two characters; see `UNREADABLE`."""

    value: str
    start: int
    end: int


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Units that may follow a number without a blank, and letters that may follow it after one.
_UNITS = _words(
    "kg mg g lb lbs oz cm mm km m mi in ft yd ml mL l L cl dl h hr hrs min mins s sec secs ms am pm mph kph kmh kWh Hz "
    "kHz MHz GHz KB MB GB TB st nd rd th ish c usd eur gbp USD EUR GBP cent cents dollar dollars euro euros year years "
    "day days hour hours minute minutes second seconds meter meters metre metres mile miles foot feet inch inches "
    "degree degrees percent people point points times"
)
_SPACED_LETTERS = frozenset("aAImghsLlBCFJKNVWR")
_ARTICLES = frozenset("aAI")
# Words that make an expression of a number: after it, after it with an operand following, before it, before "of" or
# "by" and it.
_OPERATION_AFTER = _words("squared cubed factorial pi divided multiplied modulo")
_OPERATION_BETWEEN = _words("plus minus times over point mod")
_OPERATION_BEFORE = _words("sqrt root log ln sin cos tan exp mod modulo times plus over than twice thrice")
_OPERATION_OF = _words("root square cube log logarithm half third quarter factorial divided multiplied sum product")
_SMALLER_UNITS = _words(
    "cents inches in minutes mins min seconds secs sec ounces oz grams g months weeks days hours cm mm meters metres m"
)
_MINUS_WORDS = frozenset({"minus", "negative"})
_HEDGES = frozenset({"or", "and", "to"})
_SHARES = _words("half third thirds quarter quarters fifth fifths tenth tenths")
_CLAUSES = _words("since because as so where given if when while that which for but after thus hence")
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
    tokens = tokens_of(text, start, end)
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


def _parts(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """Split a statement at its equals signs; "8, since 2 + 6 = 8" is one part, as its equation is an explanation."""
    parts: list[Sequence[Token]] = []
    begin = depth = 0
    seen_number = False
    for place, token in enumerate(tokens):
        after = tokens[place + 1] if place + 1 < len(tokens) else NOTHING
        depth += (token.kind == "open") - (token.kind == "close")
        seen_number = seen_number or token.kind == "number"
        # "8, which is 5 more" gives 8, and "the root of 16, which is 4" gives 4.
        is_equality = token.kind == "equality" and _first_whole(tokens[begin:place], False) is None
        if depth <= 0 and (token.kind == "equals" or is_equality):
            parts.append(tokens[begin:place])
            begin, seen_number = place + 1, False
        elif seen_number and (
            token.kind == "equality"
            or (token.kind == "comma" and after.spaced)
            or token.text == ";"
            or (token.kind == "word" and token.text.lower() in _CLAUSES)
            or (token.text == "and" and _first_whole(tokens[begin:place], False))
            or (token.kind == "sign" and token.spaced and after.spaced and after.kind == "word")
        ):
            break
    return [*parts, tokens[begin:]]


def _is_of_variables(part: Sequence[Token]) -> bool:
    """Whether the left side of an equation has variables and numbers, as in "x + 2y - 1 = 0", whose answer is no 0."""
    numbers = variables = depth = 0
    for place, token in enumerate(part):
        before = part[place - 1] if place else NOTHING
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
            after = part[place + 1] if place + 1 < len(part) else NOTHING
            is_times = token.text in "xX" and before.kind == "number" and after.kind == "number"
            variables += not (is_times or (token.text in _ARTICLES and after.kind == "word"))
    return bool(numbers and variables)


def _is_short(part: Sequence[Token]) -> bool:
    """Whether a side of an equation is a number with a unit and nothing else."""
    return sum(token.kind == "number" for token in part) == 1 and all(
        token.kind in ("number", "word", "sign", "open", "close") for token in part
    )


def _first_whole(tokens: Sequence[Token], in_list: bool) -> Number | None:
    place = next((place for place, token in enumerate(tokens) if token.kind == "number"), None)
    return None if place is None else _whole(tokens, place, in_list)


def _whole(tokens: Sequence[Token], place: int, in_list: bool = False, prose: bool = False) -> Number | None:
    """Return the number at a place and those that hedge it, or None if it is a part of an expression.

    In `prose`, an exclamation mark before a blank ends a sentence.
    """
    sign = _sign(tokens, place, in_list)
    if sign is None:
        return None
    negative, start = sign
    values = [value_of(tokens[place], negative, prose)]
    while (hedged := _hedged(tokens, place)) is not None:
        place, negative = hedged
        values.append(value_of(tokens[place], negative, prose))
    if _goes_on(tokens, place):
        return None
    return Number(" or ".join(dict.fromkeys(values)), start, tokens[place].end)


def _sign(tokens: Sequence[Token], place: int, in_list: bool) -> tuple[bool, int] | None:
    """Return whether a number is negative, and where its sign begins; None if an expression stands before it."""
    number = tokens[place]
    negative, start, nearest = False, number.start, number
    place, opened = _skip_open(tokens, place - 1)
    before = tokens[place] if place >= 0 else NOTHING
    is_minus = before.kind == "sign" or (before.kind == "word" and before.text.lower() in _MINUS_WORDS)
    if is_minus:
        sign, nearest = before, before
        place, opened_again = _skip_open(tokens, place - 1)
        opened = opened or opened_again
        before = tokens[place] if place >= 0 else NOTHING
        is_dash = sign.kind == "sign" and number.spaced and before.kind in ("word", "letter", "close") and sign.spaced
        if before.kind in ("number", "letter", "close", "operator") or (before.kind == "word" and not sign.spaced):
            return None
        if not is_dash and not (in_list and place < 0 and number.spaced):
            negative, start = sign.text != "+", sign.start
    return None if _is_operation(tokens, place, nearest, opened) else (negative, start)


def _skip_open(tokens: Sequence[Token], place: int) -> tuple[int, bool]:
    """Go back over opening brackets; also return whether the last of them is attached to what stands before it."""
    attached = False
    while place >= 0 and tokens[place].kind == "open":
        attached = not tokens[place].spaced
        place -= 1
    return place, attached


def _is_operation(tokens: Sequence[Token], place: int, nearest: Token, attached: bool) -> bool:
    """Whether the token at a place, the last before a number with its sign and brackets, makes an expression of it."""
    if place < 0:
        return False
    before = tokens[place]
    earlier = tokens[place - 1] if place else NOTHING
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


def _hedged(tokens: Sequence[Token], place: int) -> tuple[int, bool] | None:
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


def _goes_on(tokens: Sequence[Token], place: int) -> bool:
    """Whether the number at a place is only the beginning of an expression."""
    closed = place
    place += 1
    while place < len(tokens) and tokens[place].kind == "close":
        place += 1
    after, operand, third = (tokens[at] if at < len(tokens) else NOTHING for at in range(place, place + 3))
    is_attached = not after.spaced and place == closed + 1
    is_variable = operand.kind == "letter" and not (operand.text in _ARTICLES and third.kind == "word")
    match after.kind:
        case "number" | "command" | "relation":
            return True
        case "letter":
            is_unit = after.text in (_UNITS if is_attached else _SPACED_LETTERS) or not after.text.isascii()
            return not is_unit or after.text in "πτ"
        case "word":
            if is_attached:
                return after.text not in _UNITS and after.text.isascii()
            return _is_operation_word(after.text.lower(), operand, third) or _goes_on_after_unit(tokens, place)
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
            return after.text == "\\" or (after.text in "'’′" and operand.kind == "number" and not operand.spaced)
    return False


def _is_operation_word(word: str, operand: Token, third: Token) -> bool:
    """Whether a word after a number makes an expression of it, as in "5 squared", "5 times 3" and "5 and a half"."""
    return (
        word in _OPERATION_AFTER
        or (word in _OPERATION_BETWEEN and operand.kind in ("number", "letter", "command") and operand.text not in "aA")
        or (word == "to" and operand.text == "the" and third.text == "power")
        or (word == "and" and third.text in _SHARES)
    )


def _goes_on_after_unit(tokens: Sequence[Token], place: int) -> bool:
    """Whether another number belongs to the one before a unit: "4 boxes * 5 apples", "5 feet 3 inches"."""
    begin = place
    while place < len(tokens) and tokens[place].kind == "word" and tokens[place].text != "and":
        place += 1
    operation, operand = (tokens[at] if at < len(tokens) else NOTHING for at in (place, place + 1))
    if operand.kind == "number" and operation.text in ("+", "*", "×", "·", "⋅", "÷", "/", "\\times", "\\cdot", "\\div"):
        return True
    # "5 feet 3 inches" is neither 5 nor 3.
    place += operation.text == "and"
    number, unit = (tokens[at] if at < len(tokens) else NOTHING for at in (place, place + 1))
    return place - begin <= 2 and number.kind == "number" and unit.text.lower() in _SMALLER_UNITS
