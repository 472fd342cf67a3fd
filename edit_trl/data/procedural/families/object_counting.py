"""Object counting: how many of the items are of one group?

I have two pears, a leek, an apple and three figs. How many fruits do I have?

Start at 0 and count only the fruits. 2 pears: 0 + 2 = 2. 1 apple: 2 + 1 = 3. 3 figs: 3 + 3 = 6.
Therefore, the answer is 6.
"""

import random

from edit_trl.data.procedural.problems import Mistake, Problem, Slip, follow, off_by
from edit_trl.data.procedural.vocabulary import GROUP_PAIRS, GROUPS, NAMES, NUMBER_WORDS, in_number, joined

_QUESTIONS = (
    "I have {things}. How many {group} do I have?",
    "On the table there are {things}. How many {group} are on the table?",
    "{name} drew {things}. How many {group} did {name} draw?",
    "A box is full of pictures: {things}. How many {group} does it show?",
    "How many {group} are there among {things}?",
)
_MISTAKES: tuple[Mistake, ...] = (
    "calculation", "context value", "previous-step value", "counting", "missing step",
)  # fmt: skip

Item = tuple[int, str, bool]  # count, noun, whether the noun belongs to the group


def make(rng: random.Random, difficulty: int) -> Problem | None:
    """Draw a problem; None if the mistake does not change the answer."""
    group, items = _draw_items(rng, difficulty)
    slip, misread = _draw_slip(rng, items)
    opening = f"Start at 0 and count only the {group}."
    right, total = follow(0, items, _add)
    wrong, wrong_total = follow(0, misread, _add, slip)
    if total == wrong_total:
        return None
    things = joined([_in_words(rng, count, noun) for count, noun, _ in items])
    return Problem(
        question=rng.choice(_QUESTIONS).format(things=things, group=group, name=rng.choice(NAMES)),
        core=f"{group}: {items}",
        right=[opening, *right],
        wrong=[opening, *wrong],
        answer=[str(total)],
        wrong_answer=[str(wrong_total)],
        mistake=slip.kind,
    )


def _draw_items(rng: random.Random, difficulty: int) -> tuple[str, list[Item]]:
    group, other = rng.sample(rng.choice(GROUP_PAIRS), 2)
    members = rng.sample(GROUPS[group], 2 + min(difficulty, 3) + (difficulty > 4))
    others = rng.sample(GROUPS[other], (difficulty + 2) // 2)
    most = 2 + 2 * difficulty
    items = [(rng.randint(1, most), noun, noun in members) for noun in members + others]
    rng.shuffle(items)
    return group, items


def _draw_slip(rng: random.Random, items: list[Item]) -> tuple[Slip, list[Item]]:
    """Return the slip, and the items as the wrong chain reads them."""
    kind = rng.choice(_MISTAKES)
    members = [i for i, (_, _, belongs) in enumerate(items) if belongs]
    if kind == "counting":
        step = rng.choice([i for i in range(len(items)) if i not in members])
    else:
        first = 1 if kind in ("calculation", "previous-step value") else 0
        step = rng.choice(members[first:])
    slip = Slip(kind, step, off_by(rng, 1, 1, 2))
    count, noun, belongs = items[step]
    if kind == "context value":
        count = max(1, count + slip.delta)
    misread = (count, noun, belongs or kind == "counting")
    return slip, [*items[:step], misread, *items[step + 1 :]]


def _add(total: int, item: Item, slip: Slip | None) -> tuple[list[str], int]:
    count, noun, belongs = item
    if slip and slip.kind == "previous-step value":
        total = max(0, total + slip.delta)
    after = total + count
    if slip and slip.kind == "calculation":
        after += slip.delta if after + slip.delta > total else abs(slip.delta)
    numbers = [str(total), " + ", str(count), " = ", str(after)]
    pieces = [" ", str(count), " ", in_number(count, noun), ": ", *numbers, "."]
    return (pieces, after) if belongs else ([""] * len(pieces), total)


def _in_words(rng: random.Random, count: int, noun: str) -> str:
    if count == 1 and rng.random() < 0.8:
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return f"{NUMBER_WORDS[count]} {in_number(count, noun)}"
