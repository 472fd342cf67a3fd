"""Solves the problems from the text of the question only, to check the procedural teacher.

A solver does not know how a question was made; it reads the question as a person would. It shares only the
vocabulary with the teacher (which nouns are fruits, the names of the months).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING

from edit_trl.data.procedural.vocabulary import GROUPS, MONTHS, NUMBER_WORDS, in_number

if TYPE_CHECKING:
    from edit_trl.data.procedural.families import Family


def _found(pattern: str, question: str) -> re.Match[str]:
    match = re.search(pattern, question)
    if match is None:
        raise ValueError(f"no question of this family: {question!r}")
    return match


def solve_object_counting(question: str) -> str:
    """Add up the items of the group that the question asks for."""
    group = _found(r"[Hh]ow many (.+?) (?:do|are|did|does) ", question).group(1)
    quantities = {"a": 1, "an": 1} | {word: n for n, word in enumerate(NUMBER_WORDS)}
    total = 0
    for noun in GROUPS[group]:
        forms = f"{noun}|{in_number(2, noun)}"
        for quantity in re.findall(rf"\b(\w+) (?:{forms})\b", question):
            total += quantities[quantity]
    return str(total)


def solve_arithmetic(question: str) -> str:
    """Evaluate the expression with the usual precedence."""
    return str(_Parser(re.findall(r"\d+|[-+*()]", question), _ARITHMETIC).result())


def solve_boolean_expressions(question: str) -> str:
    """Evaluate the expression; "not" binds tighter than "and", and "and" tighter than "or"."""
    # The wording of the question may also contain "and" and "or": the expression is the longest run.
    runs = re.findall(r"(?:(?:True|False|not|and|or)\b|[() ])+", question)
    tokens = re.findall(r"\w+|[()]", max(runs, key=len))
    return str(bool(_Parser(tokens, _BOOLEAN).result()))


_ARITHMETIC = ({"+": lambda a, b: a + b, "-": lambda a, b: a - b}, {"*": lambda a, b: a * b})
_BOOLEAN = ({"or": lambda a, b: a or b}, {"and": lambda a, b: a and b})


class _Parser:
    """Recursive descent over levels of binary operators, from the loosest to the tightest."""

    def __init__(self, tokens: list[str], levels: tuple[dict[str, Callable], ...]):
        self.tokens = tokens
        self.levels = levels

    def result(self) -> int | bool:
        value = self._level(0)
        if self.tokens:
            raise ValueError(f"left over: {self.tokens}")
        return value

    def _level(self, index: int) -> int | bool:
        if index == len(self.levels):
            return self._operand()
        value = self._level(index + 1)
        while self.tokens and self.tokens[0] in self.levels[index]:
            combine = self.levels[index][self.tokens.pop(0)]
            value = combine(value, self._level(index + 1))
        return value

    def _operand(self) -> int | bool:
        token = self.tokens.pop(0)
        if token == "not":
            return not self._operand()
        if token == "(":
            value = self._level(0)
            self.tokens.pop(0)
            return value
        return token == "True" if token in ("True", "False") else int(token)


def solve_shuffled_objects(question: str) -> str:
    """Carry out the swaps and find the letter of what the person has at the end."""
    holdings = dict(re.findall(r"(\w+) has the (\w+)", question))
    for a, b in re.findall(r"(\w+) and (\w+) (?:swap|trade|exchange) ", question):
        holdings[a], holdings[b] = holdings[b], holdings[a]
    person = _found(r"does (\w+) have\?", question).group(1)
    letters = {colour: letter for letter, colour in re.findall(r"\((\w)\) (\w+)", question)}
    return f"({letters[holdings[person]]})"


def solve_word_sorting(question: str) -> str:
    """Sort the words; no other words of the question are separated by commas."""
    words = _found(r"\w+(?:, \w+)+", question).group(0).split(", ")
    return ", ".join(sorted(words))


def solve_navigate(question: str) -> str:
    """Walk in the complex plane: north is 1j, and a turn to the left multiplies by 1j."""
    place, ahead = 0j, 1j
    turns: dict[str, complex] = {"left": 1j, "right": -1j, "around": -1}
    ways: dict[str, complex] = {"": 1, "forward": 1, "backward": -1, **turns}
    orders = re.findall(r"Turn (\w+)\.|Take (\d+) steps? ?(\w*)\.", question)
    for turn, count, way in orders:
        if turn:
            ahead *= turns[turn]
        else:
            place += int(count) * ways[way] * ahead
    return "Yes" if place == 0 else "No"


def solve_date_understanding(question: str) -> str:
    """Count from the date in the question with the calendar of the standard library."""
    day = _date_in(question)
    from_then_to_today = {
        "day before yesterday was": 2,
        "Yesterday was": 1,
        "Tomorrow is": -1,
        "day after tomorrow is": -2,
    }
    for phrase, days in from_then_to_today.items():
        if phrase in question:
            day += timedelta(days=days)
    back = -1 if re.search(r"\bago\b|before today", question) else 1
    numbers = "|".join(NUMBER_WORDS)
    for number, unit in re.findall(rf"(\d+|{numbers}) (day|week)s?\b", question):
        count = int(number) if number.isdigit() else NUMBER_WORDS.index(number)
        day += timedelta(days=back * count * (7 if unit == "week" else 1))
    return day.strftime("%m/%d/%Y")


def _date_in(question: str) -> date:
    names = "|".join(MONTHS)
    if match := re.search(r"(\d\d)/(\d\d)/(\d{4})", question):
        month, day, year = match.groups()
        return date(int(year), int(month), int(day))
    if match := re.search(rf"({names}) (\d+), (\d+)", question):
        name, day, year = match.groups()
    else:
        day, name, year = _found(rf"(\d+) ({names}) (\d+)", question).groups()
    return date(int(year), MONTHS.index(name) + 1, int(day))


SOLVERS: Mapping[Family, Callable[[str], str]] = {
    "object_counting": solve_object_counting,
    "arithmetic": solve_arithmetic,
    "shuffled_objects": solve_shuffled_objects,
    "boolean_expressions": solve_boolean_expressions,
    "word_sorting": solve_word_sorting,
    "navigate": solve_navigate,
    "date_understanding": solve_date_understanding,
}
