"""Word sorting: put words into alphabetical order.

Sort these words alphabetically: river, acorn, forest, kettle

First letters: r for river, a for acorn, f for forest, k for kettle. In alphabetical order the
letters are a, f, k, r. Therefore, the answer is acorn, forest, kettle, river.
"""

import random
from itertools import pairwise

from edit_trl.data.procedural.problems import Mistake, Problem
from edit_trl.data.procedural.vocabulary import SORTABLE

_QUESTIONS = (
    "Sort these words alphabetically: {words}",
    "Put the following words in alphabetical order: {words}",
    "In what order does a dictionary list these words? {words}",
    "Arrange the words {words} from A to Z.",
    "Here is a list of words: {words}. Write it in alphabetical order.",
)


def make(rng: random.Random, difficulty: int) -> Problem:
    """Draw a problem; from difficulty 2 on, some words share their first letter."""
    words = _draw_words(rng, 3 + difficulty, ties=difficulty // 2)
    order = sorted(words)
    ties = [pair for pair in pairwise(order) if pair[0][0] == pair[1][0]]
    kinds: list[Mistake] = ["order", "order", "order", "order", "missing step", "repeated step"]
    if ties:
        kinds += ["knowledge", "knowledge", "knowledge"]
    mistake = rng.choice(kinds)
    confused = rng.choice(ties) if mistake == "knowledge" else None
    slots, wrong_slots = _slots(rng, order, mistake, confused)
    opening = f"First letters: {', '.join(f'{word[0]} for {word}' for word in words)}."
    return Problem(
        question=rng.choice(_QUESTIONS).format(words=", ".join(words)),
        core=" ".join(order),
        right=[opening, *_letters(slots), *_compared(ties, None)],
        wrong=[opening, *_letters(wrong_slots), *_compared(ties, confused)],
        answer=_listed(slots),
        wrong_answer=_listed(wrong_slots),
        mistake=mistake,
    )


def _draw_words(rng: random.Random, count: int, ties: int) -> list[str]:
    by_letter: dict[str, list[str]] = {}
    for word in SORTABLE:
        by_letter.setdefault(word[0], []).append(word)
    letters = rng.sample([x for x in by_letter if len(by_letter[x]) > 1], count - ties)
    words = [word for i, x in enumerate(letters) for word in rng.sample(by_letter[x], 1 + (i < ties))]
    rng.shuffle(words)
    return words


def _slots(
    rng: random.Random, order: list[str], mistake: Mistake, confused: tuple[str, str] | None
) -> tuple[list[str], list[str]]:
    """Return the order of the words in each chain; "" where only the other chain has a word."""
    letters = [word[0] for word in order]
    if mistake in ("missing step", "repeated step"):
        # Not a word that is compared with another: the chain mentions it again.
        at = rng.choice([i for i in range(1, len(order)) if letters.count(letters[i]) == 1])
        if mistake == "missing step":
            return order, [*order[:at], "", *order[at + 1 :]]
        return [*order[:at], "", *order[at:]], [*order[:at], order[at], *order[at:]]
    if confused is None:
        at = rng.choice([i for i in range(len(order) - 1) if letters[i] != letters[i + 1]])
    else:
        at = order.index(confused[0])
    return order, [*order[:at], order[at + 1], order[at], *order[at + 2 :]]


def _listed(slots: list[str]) -> list[str]:
    """Return the pieces of a list with commas; the first slot is never empty."""
    pieces = [slots[0]]
    for slot in slots[1:]:
        pieces += [", " if slot else "", slot]
    return pieces


def _letters(slots: list[str]) -> list[str]:
    return [" In alphabetical order the letters are ", *_listed([x[:1] for x in slots]), "."]


def _compared(ties: list[tuple[str, str]], confused: tuple[str, str] | None) -> list[str]:
    """Return the pieces that say, for each two words with the same first letter, which one comes first."""
    pieces = []
    for first, second in ties:
        at = next(i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y)
        shared = f' Both {first} and {second} start with "{first[:at]}", and '
        if (first, second) == confused:
            first, second = second, first
        pieces += [shared, first[at], " comes before ", second[at], ", so ", first, " goes first."]
    return pieces
