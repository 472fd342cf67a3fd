"""A problem with its correct and its wrong chain, both built from pieces of text.

A chain is a list of pieces that read as prose when joined. Both chains of a problem come from one generator
and have the same number of pieces, so that piece i of one corresponds to piece i of the other. A piece that
only one chain has is "" in the other. The key spans are the pieces that differ: they come from the
construction, not from a comparison of the finished texts.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Mistake = Literal[
    "calculation",  # the right operation with a wrong result
    "context value",  # a value of the question, misread
    "counting",  # an item counted that does not belong
    "direction",  # before instead of after, left instead of right
    "knowledge",  # a wrong fact, such as the length of a month
    "missing step",
    "operator",
    "order",  # two items in the wrong order
    "order of operations",
    "previous-step value",  # the result of an earlier step, copied wrongly
    "repeated step",
]

State = TypeVar("State")
Instruction = TypeVar("Instruction")


@dataclass(frozen=True)
class Slip:
    """The mistake of a wrong chain.

    Attributes:
        kind: The kind of mistake.
        step: The step with the mistake, from 0.
        delta: The error of a number, for kinds that need one.
    """

    kind: Mistake
    step: int
    delta: int = 0


@dataclass(frozen=True)
class Problem:
    """A problem with both chains.

    Attributes:
        question: The prompt.
        core: The problem without its wording. Two questions with the same core are the same problem.
        right: Pieces of the correct chain, up to the conclusion.
        wrong: Pieces of the wrong chain, up to the conclusion; as many as `right`.
        answer: Pieces of the correct answer.
        wrong_answer: Pieces of the wrong answer; as many as `answer`.
        mistake: The kind of mistake in the wrong chain.
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
    """The texts of both chains, and their key spans as `[start, end)` character offsets."""

    chosen: str
    rejected: str
    chosen_key_spans: list[list[int]]
    rejected_key_spans: list[list[int]]


def write_chains(problem: Problem) -> DualChain:
    """Join the pieces of both chains and their conclusions, and find the key spans.

    Raises:
        ValueError: The chains have different numbers of pieces (a bug in a generator).
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
    """Follow instructions one by one and write down each step.

    This function omits or repeats a step for the slips of these kinds; every other slip is passed to `take`.

    Args:
        state: The state before the first step.
        instructions: One per step.
        take: Takes one step; returns its pieces (always the same number) and the state after it.
        slip: The mistake to make, if any.

    Returns:
        The pieces of all steps, each with room for its repetition, and the final state.
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
    """Return one of the amounts with a random sign, so that wrong numbers are too low as often as too high."""
    return rng.choice(amounts) * rng.choice((-1, 1))
