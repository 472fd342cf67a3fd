"""Pairs of chains, and the bounds that decide which pairs are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edit_trl.common.checks import at_least
from edit_trl.common.options import Options
from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.answers import extract_answer
from edit_trl.data.questions import Question
from edit_trl.key_steps import locate_key_steps


@dataclass(frozen=True)
class ChainPair:
    """A correct chain and a wrong one of the same question.

    Attributes:
        question: The question.
        chosen: The correct chain.
        rejected: The wrong chain.
        source: The pair's origin: `rectified`, `rectified_minimal`, `corrupted`, `on_policy`, `own` or
            `pivot`.
        sample: Number of the pair among those of the same source and question.
        mistake: Kinds of mistake, where they were labelled.
        mistake_text: The labeller's whole answer.
        chosen_key_spans: [start, end) characters of the key step in the correct chain, where it is known.
        rejected_key_spans: [start, end) characters of the key step in the wrong chain, where it is known.
        critique: What is wrong with the wrong chain, in words.
    """

    question: Question
    chosen: str
    rejected: str
    source: str
    sample: int
    mistake: tuple[str, ...] | None = None
    mistake_text: str | None = None
    chosen_key_spans: tuple[tuple[int, int], ...] | None = None
    rejected_key_spans: tuple[tuple[int, int], ...] | None = None
    critique: str | None = None

    @property
    def id(self) -> str:
        """Unique in a generation."""
        return f"{self.question.id}/{self.source}/{self.sample}"


@dataclass(frozen=True)
class Bounds(Options):
    """Limits that a pair must respect.

    Attributes:
        min_key_fraction: Smallest share of words that may differ between the chains.
        max_key_fraction: Largest share of words that may differ; above it the wrong chain is another text
            rather than the same text with a mistake.
        max_length_ratio: Largest ratio of the longer chain's characters to the shorter one's.

    Raises:
        InputError: No pair can respect the bounds.
    """

    min_key_fraction: float = 0.0
    max_key_fraction: float = 0.9
    max_length_ratio: float = 3.0

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from at_least(1, max_length_ratio=self.max_length_ratio)
        if not 0 <= self.min_key_fraction < self.max_key_fraction <= 1:
            yield (
                "0 <= `min_key_fraction` < `max_key_fraction` <= 1 must hold, got "
                f"{self.min_key_fraction} and {self.max_key_fraction}"
            )


def filter_pairs(pairs: Sequence[ChainPair], bounds: Bounds) -> tuple[list[ChainPair], dict[str, list[str]]]:
    """Return the pairs that respect the bounds, each once and in order, and the ids of the others, by reason."""
    remaining: list[ChainPair] = []
    dropped: dict[str, list[str]] = {}
    seen: set[tuple[str, str, str]] = set()
    for pair in pairs:
        reason = _reason(pair, bounds)
        content = (pair.question.question, pair.chosen, pair.rejected)
        if reason is None and content in seen:
            reason = "duplicate"
        seen.add(content)
        if reason is None:
            remaining.append(pair)
        else:
            dropped.setdefault(reason, []).append(pair.id)
    return remaining, dropped


def _reason(pair: ChainPair, bounds: Bounds) -> str | None:
    if pair.chosen == pair.rejected:
        return "chosen equals rejected"
    if len({bool(split_thoughts(chain).thoughts) for chain in (pair.chosen, pair.rejected)}) > 1:
        return "thoughts in one of the chains only"
    chosen, rejected = (extract_answer(chain, pair.question.kind) for chain in (pair.chosen, pair.rejected))
    if chosen and rejected and chosen.value == rejected.value:
        return "same answer on both sides"
    shorter, longer = sorted((len(pair.chosen), len(pair.rejected)))
    if longer > bounds.max_length_ratio * shorter:
        return "lengths too different"
    fraction = locate_key_steps(pair.chosen, pair.rejected).key_fraction
    if fraction < bounds.min_key_fraction:
        return "key fraction too small"
    if fraction > bounds.max_key_fraction:
        return "key fraction too large"
    return None
