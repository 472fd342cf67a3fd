"""Solves the problems from the text of the question alone, to check the procedural teacher (L3).

Nothing here knows how a question was made: a solver reads it as a person would. From the rest of
the teacher it takes only the vocabulary (which nouns are fruits, the names of the months).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from edit_trl.data.procedural.vocabulary import GROUPS, MONTHS, NUMBER_WORDS, in_number

if TYPE_CHECKING:
    from edit_trl.data.procedural.families import Family


def solve_object_counting(question: str) -> str:
    """Adds up the things of the group that the question asks for."""
    asked = re.search(r"[Hh]ow many (.+?) (?:do|are|did|does) ", question).group(1)
    quantities = {"a": 1, "an": 1} | {word: n for n, word in enumerate(NUMBER_WORDS)}
    total = 0
    for noun in GROUPS[asked]:
        forms = f"{noun}|{in_number(2, noun)}"
        for quantity in re.findall(rf"\b(\w+) (?:{forms})\b", question):
            total += quantities[quantity]
    return str(total)


def solve_arithmetic(question: str) -> str:
    """Works out the expression with the usual precedence."""
    return str(_Parser(re.findall(r"\d+|[-+*()]", question), _ARITHMETIC).result())


def solve_boolean_expressions(question: str) -> str:
    """Works out the expression; "not" goes before "and", "and" before "or"."""
    # The words "and" and "or" may also stand in the wording: the expression is the longest run.
    runs = re.findall(r"(?:(?:True|False|not|and|or)\b|[() ])+", question)
    tokens = re.findall(r"\w+|[()]", max(runs, key=len))
    return str(bool(_Parser(tokens, _BOOLEAN).result()))


_ARITHMETIC = (
    {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    {"*": lambda a, b: a * b},
)
_BOOLEAN = (
    {"or": lambda a, b: a or b},
    {"and": lambda a, b: a and b},
)


class _Parser:
    """Recursive descent over binary operators in levels, the loosest first."""

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
    """Carries out the swaps and finds the letter of what the person has at the end."""
    held = dict(re.findall(r"(\w+) has the (\w+)", question))
    for a, b in re.findall(r"(\w+) and (\w+) (?:swap|trade|exchange) ", question):
        held[a], held[b] = held[b], held[a]
    asked = re.search(r"does (\w+) have\?", question).group(1)
    letters = {colour: letter for letter, colour in re.findall(r"\((\w)\) (\w+)", question)}
    return f"({letters[held[asked]]})"


def solve_word_sorting(question: str) -> str:
    """Sorts the words, which are the only ones between commas."""
    words = re.search(r"\w+(?:, \w+)+", question).group(0).split(", ")
    return ", ".join(sorted(words))


def solve_navigate(question: str) -> str:
    """Walks in the complex plane: north is 1j, a turn to the left multiplies by 1j."""
    place, ahead = 0, 1j
    turns = {"left": 1j, "right": -1j, "around": -1}
    ways = {"": 1, "forward": 1, "backward": -1, **turns}
    orders = re.findall(r"Turn (\w+)\.|Take (\d+) steps? ?(\w*)\.", question)
    for turn, count, way in orders:
        if turn:
            ahead *= turns[turn]
        else:
            place += int(count) * ways[way] * ahead
    return "Yes" if place == 0 else "No"


def solve_date_understanding(question: str) -> str:
    """Counts from the date in the question with the calendar of the standard library."""
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
    if found := re.search(r"(\d\d)/(\d\d)/(\d{4})", question):
        month, day, year = found.groups()
        return date(int(year), int(month), int(day))
    if found := re.search(rf"({names}) (\d+), (\d+)", question):
        name, day, year = found.groups()
    else:
        day, name, year = re.search(rf"(\d+) ({names}) (\d+)", question).groups()
    return date(int(year), MONTHS.index(name) + 1, int(day))


SOLVERS: Mapping[Family, Callable[[str], str]] = MappingProxyType(
    {
        "object_counting": solve_object_counting,
        "arithmetic": solve_arithmetic,
        "shuffled_objects": solve_shuffled_objects,
        "boolean_expressions": solve_boolean_expressions,
        "word_sorting": solve_word_sorting,
        "navigate": solve_navigate,
        "date_understanding": solve_date_understanding,
    }
)
