"""A problem with its correct and its wrong chain, both built from pieces of text (L3).

A chain is a list of pieces that read as prose when joined. Both chains of a problem come from one
generator and have the same number of pieces, so that piece i of one stands where piece i of the
other does; a piece that is there on one side only is "" on the other. The key spans are the pieces
that differ: they come from the construction, not from a comparison of the finished texts.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Mistake = Literal[
    "calculation",  # a right operation with a wrong result
    "context value",  # something read from the question wrongly
    "counting",  # something counted that does not belong
    "direction",  # before for after, left for right
    "knowledge",  # a wrong fact, such as the length of a month
    "missing step",
    "operator",
    "order",  # two things in the wrong order
    "order of operations",
    "previous-step value",  # the result of an earlier step taken over wrongly
    "repeated step",
]

State = TypeVar("State")
Instruction = TypeVar("Instruction")


@dataclass(frozen=True)
class Slip:
    """The one error of a wrong chain.

    Attributes:
        kind: What went wrong.
        step: The step it happens in, counted from 0.
        delta: How far a number is off, for kinds that need one.
    """

    kind: Mistake
    step: int
    delta: int = 0


@dataclass(frozen=True)
class Problem:
    """One problem with both chains.

    Attributes:
        question: The prompt.
        core: The problem without its wording: two questions with one core are the same problem.
        right: Pieces of the correct chain, up to the conclusion.
        wrong: Pieces of the wrong chain, as many.
        answer: Pieces of the correct answer.
        wrong_answer: Pieces of the wrong answer, as many.
        mistake: The kind of the injected error.
    """

    question: str
    core: str
    right: list[str]
    wrong: list[str]
    answer: list[str]
    wrong_answer: list[str]
    mistake: Mistake


@dataclass(frozen=True)
class DualChain:
    """The texts of both chains and their key spans, `[start, end)` character offsets."""

    chosen: str
    rejected: str
    chosen_key_spans: list[list[int]]
    rejected_key_spans: list[list[int]]


def write_chains(problem: Problem) -> DualChain:
    """Joins the pieces of both chains and their conclusions, and finds the key spans.

    Raises:
        ValueError: If the chains do not have the same number of pieces (a generator's bug).
    """
    right = _concluded(problem.right, problem.answer)
    wrong = _concluded(problem.wrong, problem.wrong_answer)
    is_key = [a != b for a, b in zip(right, wrong, strict=True)]
    return DualChain("".join(right), "".join(wrong), _key_spans(right, is_key), _key_spans(wrong, is_key))


def _concluded(pieces: list[str], answer: list[str]) -> list[str]:
    return [*pieces, " Therefore, the answer is ", *answer, "."]


def _key_spans(pieces: list[str], is_key: list[bool]) -> list[list[int]]:
    spans: list[list[int]] = []
    end = 0
    for piece, key in zip(pieces, is_key, strict=True):
        start, end = end, end + len(piece)
        if not key or not piece:
            continue
        if spans and spans[-1][1] == start:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return spans


def follow(
    state: State,
    instructions: Iterable[Instruction],
    take: Callable[[State, Instruction, Slip | None], tuple[list[str], State]],
    slip: Slip | None = None,
) -> tuple[list[str], State]:
    """Takes the instructions one by one and writes down each step.

    A step that is left out or taken twice is handled here; every other slip is passed to `take`.

    Args:
        state: What is known before the first step.
        instructions: One for each step.
        take: Takes one step: its pieces (always the same number) and the state after it.
        slip: The error to make, if any.

    Returns:
        The pieces of all steps, and the last state. Each step has room for its own repetition.
    """
    pieces: list[str] = []
    for index, instruction in enumerate(instructions):
        here = slip if slip and slip.step == index else None
        times = {"missing step": 0, "repeated step": 2}.get(here.kind, 1) if here else 1
        for turn in range(2):
            written, after = take(state, instruction, here)
            if turn < times:
                pieces += written
                state = after
            else:
                pieces += [""] * len(written)
    return pieces, state


def off_by(rng: random.Random, *amounts: int) -> int:
    """One of the amounts with a random sign, so that wrong numbers are as often low as high."""
    return rng.choice(amounts) * rng.choice((-1, 1))
