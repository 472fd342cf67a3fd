"""Dual CoTs with their key steps, and statistics over them, for the viewer and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from edit_trl.common.alignment import common_prefix
from edit_trl.common.errors import InputError
from edit_trl.common.steps import words_of
from edit_trl.data.row import chain_text, is_chosen_alone, pairs_of, with_prompt
from edit_trl.key_steps import WORD_METHODS, KeyStepMethod, Span, key_words, locate_key_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUPS = ("task", "mistake", "source")


class Pair(NamedTuple):
    """A dual CoT with its key steps. Lengths and shares are measured in words, or in tokens.

    Attributes:
        row: Number of the row, from 1; pairs of one row share it where `rejected` is a list.
        id, task, source, mistake, answer, prompt: As in the row.
        chosen: Text of the correct chain.
        rejected: Text of the wrong chain; None for a correct chain alone.
        chosen_spans: Key steps of the correct chain, as [start, end) characters.
        rejected_spans: Key steps of the wrong chain, as [start, end) characters.
        chosen_length: Length of the correct chain.
        rejected_length: Length of the wrong chain; 0 without one.
        key_fraction: Share of both chains that is key; None for a correct chain alone.
        shared_prefix: Share of the correct chain before the fork; None for a correct chain alone.
    """

    row: int
    id: str | None
    task: str | None
    source: str | None
    mistake: list[str]
    answer: str | None
    prompt: str | list[dict[str, Any]]
    chosen: str
    rejected: str | None
    chosen_spans: list[Span]
    rejected_spans: list[Span]
    chosen_length: int
    rejected_length: int
    key_fraction: float | None
    shared_prefix: float | None

    def names(self, group: str) -> list[str]:
        """Return the pair's tasks, mistakes or sources."""
        value = getattr(self, group)
        return value if isinstance(value, list) else [value] if value is not None else []


@dataclass(frozen=True)
class Statistics:
    """Statistics of pairs. A value that needs a wrong chain is None where no pair has one.

    Attributes:
        rows: Number of rows that the pairs come from.
        pairs: Number of pairs with both chains.
        key_fraction: Mean share of the chains that is key.
        shared_prefix: Mean share of the correct chain before the fork.
        chosen_length: Mean length of the correct chains.
        rejected_length: Mean length of the wrong chains.
        median_length: Median length of all chains.
        longest: Length of the longest chain.
    """

    rows: int
    pairs: int
    key_fraction: float | None
    shared_prefix: float | None
    chosen_length: float
    rejected_length: float | None
    median_length: float
    longest: int


def locate_pairs(
    rows: Iterable[Mapping[str, Any]], method: KeyStepMethod = "words", tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Pair]:
    """Find the key steps of valid dual CoTs.

    Tokens of the tokenizer, a fast one, are aligned and counted; without a tokenizer, words are.

    Raises:
        InputError: A row lacks what the method needs.
    """
    pairs = []
    for number, row in enumerate(map(with_prompt, rows), 1):
        try:
            pairs += [_pair(number, pair, is_chosen_alone(row), method, tokenizer) for pair in pairs_of(row)]
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
    return pairs


def _pair(
    number: int, pair: Mapping[str, Any], alone: bool, method: KeyStepMethod, tokenizer: PreTrainedTokenizerBase | None
) -> Pair:
    chosen, rejected = chain_text(pair["chosen"]), chain_text(pair["rejected"])
    chosen_spans: list[Span] | None = []
    rejected_spans: list[Span] | None = []
    fraction = shared = None
    units: list[Sequence[Any]]
    if alone or tokenizer is not None or method not in WORD_METHODS:
        units = [_units(text, tokenizer) for text in (chosen, rejected)]
        if not alone:
            steps = locate_key_steps(
                chosen,
                rejected,
                tokenizer,
                method,
                chosen_spans=pair.get("chosen_key_spans"),
                rejected_spans=pair.get("rejected_key_spans"),
            )
            chosen_spans, rejected_spans, fraction = steps.chosen_spans, steps.rejected_spans, steps.key_fraction
    else:  # without the masks over all words, which nobody reads here
        sides = key_words(chosen, rejected, method)
        units = [side.text.words for side in sides]
        chosen_spans, rejected_spans = (side.spans for side in sides)
        count = sum(map(len, units))
        fraction = sum(end - start for side in sides for start, end in side.stretches) / count if count else 0.0
    if not alone:
        shared = common_prefix(*units) / len(units[0]) if units[0] else 0.0
    return Pair(
        row=number,
        id=pair.get("id"),
        task=pair.get("task"),
        source=pair.get("source"),
        mistake=pair.get("mistake") or [],
        answer=pair.get("answer"),
        prompt=pair["prompt"],
        chosen=chosen,
        rejected=None if alone else rejected,
        chosen_spans=chosen_spans or [],
        rejected_spans=rejected_spans or [],
        chosen_length=len(units[0]),
        rejected_length=0 if alone else len(units[1]),
        key_fraction=fraction,
        shared_prefix=shared,
    )


def _units(text: str, tokenizer: PreTrainedTokenizerBase | None) -> Sequence[Any]:
    return words_of(text)[0] if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"]


def pair_statistics(pairs: Sequence[Pair]) -> Statistics:
    """Return the statistics of at least one pair."""
    both = [pair for pair in pairs if pair.rejected is not None]
    lengths = [pair.chosen_length for pair in pairs] + [pair.rejected_length for pair in both]
    return Statistics(
        rows=len({pair.row for pair in pairs}),
        pairs=len(both),
        key_fraction=_mean_of_known(pair.key_fraction for pair in both),
        shared_prefix=_mean_of_known(pair.shared_prefix for pair in both),
        chosen_length=fmean(pair.chosen_length for pair in pairs),
        rejected_length=fmean(pair.rejected_length for pair in both) if both else None,
        median_length=median(lengths),
        longest=max(lengths),
    )


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def grouped_pairs(pairs: Sequence[Pair], group: str) -> dict[str, list[Pair]]:
    """Return pairs by task, mistake or source, largest group first; a pair with two mistakes is in both groups."""
    members = defaultdict(list)
    for pair in pairs:
        for name in pair.names(group):
            members[name].append(pair)
    return dict(sorted(members.items(), key=lambda entry: -len(entry[1])))
