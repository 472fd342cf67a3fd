"""Date understanding: count days and weeks from a date.

A chess club met on March 25, 2021. It met again 10 days later, then one week after that. On
what date was its last meeting? Answer in MM/DD/YYYY.

Count from one day to the next. 10 days after March 25: 25 + 10 = 35; March has 31 days and
35 - 31 = 4, so April 4. 7 days after April 4: 4 + 7 = 11, so April 11. Therefore, the answer is
04/11/2021.
"""

import random
from calendar import monthrange
from typing import NamedTuple

from edit_trl.data.procedural.problems import Mistake, Problem, Slip, follow, off_by
from edit_trl.data.procedural.vocabulary import MONTHS, NUMBER_WORDS, in_number

_STORIES = (
    ("A chess club met on {date}. It met again {hops}.", "On what date was its last meeting?"),
    ("Nora wrote a letter on {date}. She wrote more letters: {hops}.",
     "On what date did she write the last one?"),
    ("A museum changed its display on {date}. It changed it again {hops}.",
     "What was the date of the last change?"),
    ("A gardener watered a cactus on {date}, and again {hops}.",
     "When was the cactus last watered?"),
)  # fmt: skip
_FORMS = ("Answer in MM/DD/YYYY.", "Give the date in MM/DD/YYYY.", "Write it as MM/DD/YYYY.")
_NEAR = {
    1: "Yesterday was {date}.",
    -1: "Tomorrow is {date}.",
    2: "The day before yesterday was {date}.",
    -2: "The day after tomorrow is {date}.",
}
_MISTAKES: tuple[Mistake, ...] = (
    "calculation", "context value", "direction", "previous-step value", "missing step",
    "repeated step",
    *("knowledge",) * 3,  # changes the answer only where the month changes
)  # fmt: skip


class Date(NamedTuple):
    """A day of the calendar; the month counts from 1."""

    year: int
    month: int
    day: int


def make(rng: random.Random, difficulty: int) -> Problem | None:
    """Draw a problem; None if the mistake does not change the answer."""
    start = _draw_date(rng)
    near = difficulty < 3 and rng.random() < 0.5
    if near:
        hops = [rng.choice(list(_NEAR)), _draw_days(rng, difficulty) * rng.choice((-1, 1))]
    else:
        hops = [_draw_days(rng, difficulty) for _ in range(1 + (difficulty + 1) // 2)]
    slip, misread = _draw_slip(rng, hops)
    right, end = follow(start, hops, _hop)
    wrong, wrong_end = follow(start, misread, _hop, slip)
    if end == wrong_end:
        return None
    opening = f"Start at {MONTHS[start.month - 1]} {start.day}."
    story, query = _near_question(rng, start, hops) if near else _story(rng, start, hops)
    return Problem(
        question=f"{story} {query} {rng.choice(_FORMS)}",
        core=f"{start} {hops}",
        right=[opening, *right],
        wrong=[opening, *wrong],
        answer=_numeric(end),
        wrong_answer=_numeric(wrong_end),
        mistake=slip.kind,
    )


def _draw_date(rng: random.Random) -> Date:
    year, month = rng.randint(1985, 2035), rng.randint(1, 12)
    return Date(year, month, rng.randint(1, monthrange(year, month)[1]))


def _draw_days(rng: random.Random, difficulty: int) -> int:
    """Draw a number of days: whole weeks in about a third of cases, never more than the shortest month."""
    if rng.random() < 0.35:
        return 7 * rng.randint(1, min(4, 1 + difficulty))
    return rng.randint(2, min(28, 6 + 5 * difficulty))


def _draw_slip(rng: random.Random, hops: list[int]) -> tuple[Slip, list[int]]:
    """Return the slip, and the hops as the wrong chain reads them."""
    kind = rng.choice(_MISTAKES)
    step = rng.randrange(kind == "previous-step value", len(hops))
    slip = Slip(kind, step, off_by(rng, 1))
    days = hops[step]
    if kind == "direction":
        days = -days
    elif kind == "context value":
        days = days + slip.delta or days + 2 * slip.delta
    return slip, [*hops[:step], days, *hops[step + 1 :]]


def _hop(date: Date, days: int, slip: Slip | None) -> tuple[list[str], Date]:
    """Take one step: the sum, the change of month if there is one, and the new date."""
    kind, delta = (slip.kind, slip.delta) if slip else (None, 0)
    day = date.day
    if kind == "previous-step value":
        day += delta if 0 < day + delta <= monthrange(date.year, date.month)[1] else -delta
    total = day + days + (delta if kind == "calculation" else 0)
    after, change = _settle(date, total, kind == "knowledge")
    forward, count = days > 0, abs(days)
    pieces = [
        " ", str(count), " ", in_number(count, "day"), " ", "later" if forward else "earlier",
        ": ", str(day), " ", "+" if forward else "-", " ", str(count), " = ", str(total), *change,
        ", so ", MONTHS[after.month - 1], " ", str(after.day),
        "" if after.year == date.year else f", {after.year}", ".",
    ]  # fmt: skip
    return pieces, after


def _settle(date: Date, total: int, misremembered: bool) -> tuple[Date, list[str]]:
    """Turn a day count that may lie outside the month into a date, with the pieces that explain it."""
    month_of = date if total > 0 else _months_on(date, -1)
    length = monthrange(month_of.year, month_of.month)[1]
    if misremembered:
        length = {31: 30, 30: 31, 29: 28, 28: 29}[length]
    sign, day = ("-", total - length) if total > 0 else ("+", total + length)
    name, days = MONTHS[month_of.month - 1], str(length)
    change = ["; ", name, " has ", days, " days and ", str(total), " ", sign, " ", days, " = "]
    change.append(str(day))
    if 0 < total <= length:
        return date._replace(day=total), [""] * len(change)
    return (_months_on(date, 1) if total > 0 else month_of)._replace(day=day), change


def _months_on(date: Date, months: int) -> Date:
    index = date.year * 12 + date.month - 1 + months
    return date._replace(year=index // 12, month=index % 12 + 1)


def _numeric(date: Date) -> list[str]:
    return [f"{date.month:02}", "/", f"{date.day:02}", "/", str(date.year)]


def _written(rng: random.Random, date: Date) -> str:
    month = MONTHS[date.month - 1]
    return rng.choice((f"{month} {date.day}, {date.year}", f"{date.day} {month} {date.year}", "".join(_numeric(date))))


def _span_of_days(rng: random.Random, days: int) -> str:
    """Return a duration such as "10 days", "2 weeks" or "one week"; whole weeks are given in weeks."""
    if days % 7:
        return f"{days} {in_number(days, 'day')}"
    weeks = days // 7
    number = rng.choice((str(weeks), NUMBER_WORDS[weeks]))
    return f"{number} {in_number(weeks, 'week')}"


def _near_question(rng: random.Random, start: Date, hops: list[int]) -> tuple[str, str]:
    span = _span_of_days(rng, abs(hops[1]))
    if hops[1] > 0:
        query = rng.choice(("What is the date {} from today?", "What will the date be in {}?"))
    else:
        query = rng.choice(("What was the date {} ago?", "What was the date {} before today?"))
    return _NEAR[hops[0]].format(date=_written(rng, start)), query.format(span)


def _story(rng: random.Random, start: Date, hops: list[int]) -> tuple[str, str]:
    spans = [_span_of_days(rng, days) for days in hops]
    words = ", then ".join([f"{spans[0]} later", *(f"{span} after that" for span in spans[1:])])
    story, query = rng.choice(_STORIES)
    return story.format(date=_written(rng, start), hops=words), query
