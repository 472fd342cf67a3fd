"""Tracking shuffled objects: people swap objects; what does one of them have at the end?

Alice, Ben and Carla each have a hat: Alice has the red hat, Ben has the blue hat and Carla has
the green hat. First, Alice and Ben swap hats. Then Ben and Carla swap hats. At the end, which
hat does Ben have?
Options:
(A) green
(B) red
(C) blue

Start: Alice red, Ben blue, Carla green. Alice and Ben swap: Alice blue, Ben red. Ben and Carla
swap: Ben green, Carla red. So Ben has the green hat, option (A). Therefore, the answer is (A).
"""

import random
from string import ascii_uppercase

from edit_trl.data.procedural.problems import Mistake, Problem, Slip, follow
from edit_trl.data.procedural.vocabulary import COLOURS, NAMES, joined

_STARTS = (
    "{people} each have a {thing}: {holdings}.",
    "At the start of a game, {people} hold one {thing} each: {holdings}.",
    "{people} were each given a {thing}: {holdings}.",
)
_ENDS = (
    "At the end, which {thing} does {owner} have?",
    "After all this, which {thing} does {owner} have?",
    "When they are done, which {thing} does {owner} have?",
)
_SWAPS = ("{a} and {b} swap {thing}s", "{a} and {b} trade {thing}s", "{a} and {b} exchange {thing}s")
_THINGS = ("hat", "ball", "mug", "kite", "balloon", "marble", "card")
_MISTAKES: tuple[Mistake, ...] = ("context value", "previous-step value", "missing step", "repeated step")

Holdings = dict[str, str]
Swap = tuple[str, str]


def make(rng: random.Random, difficulty: int) -> Problem | None:
    """Draw a problem; None if the mistake does not change the answer."""
    people = rng.sample(NAMES, 2 + difficulty)
    start = dict(zip(people, rng.sample(COLOURS, len(people)), strict=True))
    swaps = _draw_swaps(rng, people, difficulty + 1)
    owner, thing = rng.choice(people), rng.choice(_THINGS)
    slip, misread = _draw_slip(rng, people, swaps)
    right, end = follow(start, swaps, _swap)
    wrong, wrong_end = follow(start, misread, _swap, slip)
    if end[owner] == wrong_end[owner]:
        return None
    options = rng.sample(list(start.values()), len(people))
    opening = f"Start: {', '.join(f'{person} {colour}' for person, colour in start.items())}."
    letter, wrong_letter = _letter(options, end[owner]), _letter(options, wrong_end[owner])
    return Problem(
        question=_question(rng, start, swaps, thing, owner, options),
        core=f"{start} {swaps} {owner}",
        right=[opening, *right, *_conclusion(owner, thing, end[owner], letter)],
        wrong=[opening, *wrong, *_conclusion(owner, thing, wrong_end[owner], wrong_letter)],
        answer=["(", letter, ")"],
        wrong_answer=["(", wrong_letter, ")"],
        mistake=slip.kind,
    )


def _draw_swaps(rng: random.Random, people: list[str], count: int) -> list[Swap]:
    """Draw swaps of two people each; the same two never swap twice in a row."""
    swaps: list[Swap] = []
    while len(swaps) < count:
        a, b = rng.sample(people, 2)
        if not swaps or {a, b} != set(swaps[-1]):
            swaps.append((a, b))
    return swaps


def _draw_slip(rng: random.Random, people: list[str], swaps: list[Swap]) -> tuple[Slip, list[Swap]]:
    """Return the slip, and the swaps as the wrong chain reads them."""
    slip = Slip(rng.choice(_MISTAKES), rng.randrange(len(swaps)))
    if slip.kind != "context value":
        return slip, swaps
    a, b = swaps[slip.step]
    other = rng.choice([person for person in people if person not in (a, b)])
    misread = rng.choice([(a, other), (other, b)])
    return slip, [*swaps[: slip.step], misread, *swaps[slip.step + 1 :]]


def _swap(holdings: Holdings, swap: Swap, slip: Slip | None) -> tuple[list[str], Holdings]:
    a, b = swap
    after = {**holdings, a: holdings[b], b: holdings[a]}
    if slip and slip.kind == "previous-step value":
        after = holdings
    return [" ", a, " and ", b, " swap: ", a, " ", after[a], ", ", b, " ", after[b], "."], after


def _letter(options: list[str], colour: str) -> str:
    return ascii_uppercase[options.index(colour)]


def _conclusion(owner: str, thing: str, colour: str, letter: str) -> list[str]:
    return [f" So {owner} has the ", colour, f" {thing}, option (", letter, ")."]


def _question(
    rng: random.Random, start: Holdings, swaps: list[Swap], thing: str, owner: str, options: list[str]
) -> str:
    holdings = joined([f"{person} has the {colour} {thing}" for person, colour in start.items()])
    swap = rng.choice(_SWAPS)
    steps = [f"{swap.format(a=a, b=b, thing=thing)}." for a, b in swaps]
    story = f"First, {' Then '.join(steps)}"
    beginning = rng.choice(_STARTS).format(people=joined(list(start)), thing=thing, holdings=holdings)
    ending = rng.choice(_ENDS).format(thing=thing, owner=owner)
    listed = "\n".join(f"({_letter(options, colour)}) {colour}" for colour in options)
    return f"{beginning} {story} {ending}\nOptions:\n{listed}"
