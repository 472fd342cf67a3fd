"""Navigate: do these steps lead back to the starting point?

    Do these instructions lead back to where you started? Always face forward. Take 3 steps forward.
    Take 2 steps left. Take 3 steps backward.

    Start at (0, 0). 3 steps forward: (0, 3). 2 steps left: (-2, 3). 3 steps backward: (-2, 0). You
    are away from the start. Therefore, the answer is No.

In half of the problems the person always faces forward; the others have turns.
"""

import random
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import NamedTuple

from edit_trl.data.procedural.problems import Mistake, Problem, Slip, follow, off_by
from edit_trl.data.procedural.vocabulary import in_number

_QUESTIONS = (
    "If you follow these instructions, do you return to the starting point? {orders}",
    "Do these instructions lead back to where you started? {orders}",
    "{orders} Are you back at the starting point?",
    "Follow these steps: {orders} Do you end where you began?",
)
_COMPASS = ("north", "east", "south", "west")
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
_WAYS = ("forward", "right", "backward", "left")  # quarter turns to the right: 0, 1, 2, 3
_TURNS = {1: "right", 2: "around", 3: "left"}


@dataclass(frozen=True)
class Move:
    """Steps in one of four directions, relative to the way that one faces.

    `written` is the number of steps that the chain names; it differs from `count` only in a wrong
    calculation.
    """

    count: int
    way: int
    written: int


@dataclass(frozen=True)
class Turn:
    """One to three quarter turns to the right."""

    quarters: int


Order = Move | Turn


class Place(NamedTuple):
    """A position, and the direction that one faces (an index into `_COMPASS`)."""

    x: int
    y: int
    facing: int

    @property
    def is_start(self) -> bool:
        return (self.x, self.y) == (0, 0)


_START = Place(0, 0, 0)


def make(rng: random.Random, difficulty: int) -> Problem | None:
    """Draw a problem; None if the mistake does not change the answer."""
    turning = rng.random() < 0.5
    walk = (_walk_with_turns if turning else _walk_facing_forward)(rng, difficulty)
    orders, misread, slip = _draw_slip(rng, walk, turning)
    opening = "Start at (0, 0), facing north." if turning else "Start at (0, 0)."
    take = partial(_take, turning)
    right, end = follow(_START, orders, take)
    wrong, wrong_end = follow(_START, misread, take, slip)
    if end.is_start == wrong_end.is_start:
        return None
    instructions = " ".join(_instruction(order, turning) for order in orders)
    stance = "You start facing north." if turning else "Always face forward."
    return Problem(
        question=rng.choice(_QUESTIONS).format(orders=f"{stance} {instructions}"),
        core=instructions,
        right=[opening, *right, *_conclusion(end)],
        wrong=[opening, *wrong, *_conclusion(wrong_end)],
        answer=["Yes" if end.is_start else "No"],
        wrong_answer=["Yes" if wrong_end.is_start else "No"],
        mistake=slip.kind,
    )


def _move(count: int, way: int) -> Move:
    return Move(count, way, written=count)


def _walk_facing_forward(rng: random.Random, difficulty: int) -> list[Order]:
    """Draw moves that lead back, in any order."""
    walk: list[Order] = [_move(rng.randint(1, 9), rng.randrange(4)) for _ in range(1 + difficulty)]
    x, y, _ = _end(walk)
    if x:
        walk.append(_move(abs(x), 3 if x > 0 else 1))
    if y:
        walk.append(_move(abs(y), 2 if y > 0 else 0))
    rng.shuffle(walk)
    return walk


def _walk_with_turns(rng: random.Random, difficulty: int) -> list[Order]:
    """Draw steps forward with turns between them, then the way back."""
    walk: list[Order] = [_move(rng.randint(1, 9), 0)]
    for _ in range(difficulty):
        if rng.random() < 0.2 * difficulty:
            walk.append(Turn(rng.choice((1, 3))))
        walk.append(_move(rng.randint(1, 9), 0))
    place = _end(walk)
    while not place.is_start:
        ahead = _AHEAD[place.facing]
        distance = -(place.x * ahead[0] + place.y * ahead[1])
        if distance > 0:
            walk.append(_move(distance, 0))
        else:
            walk.append(Turn(rng.choice((1, 3)) if distance == 0 else 2))
        place = _end(walk)
    return walk


def _end(walk: list[Order]) -> Place:
    return reduce(_follow_order, walk, _START)


def _follow_order(place: Place, order: Order) -> Place:
    if isinstance(order, Turn):
        return place._replace(facing=(place.facing + order.quarters) % 4)
    dx, dy = _AHEAD[(place.facing + order.way) % 4]
    return place._replace(x=place.x + dx * order.count, y=place.y + dy * order.count)


def _draw_slip(rng: random.Random, walk: list[Order], turning: bool) -> tuple[list[Order], list[Order], Slip]:
    """Return the orders of the question, the orders as the wrong chain reads them, and the slip.

    The walk leads back. In about half of the problems the question has this walk ("Yes" is right) and the wrong chain
    another; in the others the question has the other walk ("No" is right) and the slip leads back.
    """
    index = rng.randrange(len(walk))
    order = walk[index]
    slip = Slip(rng.choice(_mistakes(order, turning)), index)
    if slip.kind == "repeated step":
        return walk, walk, slip
    leads_back = rng.random() < 0.45
    if slip.kind == "missing step":
        if not leads_back:
            walk = [*walk[:index], _another(rng, order), *walk[index:]]
        return walk, walk, slip
    changed = [*walk[:index], _changed(rng, order, slip.kind), *walk[index + 1 :]]
    orders, misread = (walk, changed) if leads_back else (changed, walk)
    asked, read = orders[index], misread[index]
    if slip.kind == "calculation" and isinstance(asked, Move) and isinstance(read, Move):
        misread = [*misread[:index], replace(read, written=asked.count), *misread[index + 1 :]]
    return orders, misread, slip


def _mistakes(order: Order, turning: bool) -> list[Mistake]:
    if isinstance(order, Turn):
        return ["direction", "direction", "missing step", "repeated step"]
    kinds: list[Mistake] = ["context value", "calculation", "missing step", "repeated step"]
    return kinds if turning else [*kinds, "direction"]


def _another(rng: random.Random, order: Order) -> Order:
    if isinstance(order, Turn):
        return _changed(rng, order, "direction")
    return _move(rng.randint(1, 9), order.way)


def _changed(rng: random.Random, order: Order, kind: Mistake) -> Order:
    if isinstance(order, Turn):
        return Turn(rng.choice([quarters for quarters in _TURNS if quarters != order.quarters]))
    if kind == "direction":
        return replace(order, way=(order.way + 2) % 4)
    return _move(max(1, order.count + off_by(rng, 1)), order.way)


def _take(turning: bool, place: Place, order: Order, slip: Slip | None) -> tuple[list[str], Place]:
    after = _follow_order(place, order)
    if isinstance(order, Turn):
        return [" Turn ", _TURNS[order.quarters], ": facing ", _COMPASS[after.facing], "."], after
    way = _COMPASS[after.facing] if turning else _WAYS[order.way]
    steps = [" ", str(order.written), " ", in_number(order.written, "step"), " ", way]
    return [*steps, ": (", str(after.x), ", ", str(after.y), ")."], after


def _conclusion(place: Place) -> list[str]:
    return [" You are ", "back at" if place.is_start else "away from", " the start."]


def _instruction(order: Order, turning: bool) -> str:
    if isinstance(order, Turn):
        return f"Turn {_TURNS[order.quarters]}."
    way = "" if turning else f" {_WAYS[order.way]}"
    return f"Take {order.count} {in_number(order.count, 'step')}{way}."
