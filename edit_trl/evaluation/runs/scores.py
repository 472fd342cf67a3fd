"""Scores: each item has a number or None for each score, and the score of a run is their mean.

`accuracy`, `lenient_accuracy`: share of correct answers by strict and by lenient extraction; a missing answer
    is not correct.
`unparsed`: share of items in which strict extraction found no answer.
`cut_off`: share of responses that reached the limit of tokens.
`preference`: share of pairs whose correct chain has the higher mean log-probability per token.
`margin`: difference of these log-probabilities, in nats.
`key_preference`, `key_margin`: the same over key tokens, for pairs with key tokens on both sides.
`no_wrong_turn`: share of correct chains of which greedy decoding would generate every token.
`right_branch`, `wrong_branch`: share of greedy continuations of the shared beginning that begin like the
    correct or like the wrong chain.
`greedy_accuracy`: share of these continuations that end in the correct answer, for pairs with an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edit_trl.evaluation.runs.schema import RunKind
from edit_trl.evaluation.statistics import Interval, bootstrap_interval

ItemScore = Callable[[Mapping[str, Any]], float | None]


def _share(item: Mapping[str, Any], name: str) -> float | None:
    return None if item[name] is None else float(item[name])


def _greedy(item: Mapping[str, Any], name: str, value: str | bool) -> float | None:
    greedy = item["greedy"]
    if greedy is None or (name == "verdict" and item["answer"] is None):
        return None
    return float(greedy[name] == value)


SCORES: dict[RunKind, dict[str, ItemScore]] = {
    "evaluate": {
        "accuracy": lambda item: float(item["verdict"] == "correct"),
        "lenient_accuracy": lambda item: float(item["lenient_verdict"] == "correct"),
        "unparsed": lambda item: float(item["verdict"] == "unparsed"),
        "cut_off": lambda item: item["cut_off"] / len(item["samples"]),
    },
    "suite": {
        "preference": lambda item: _share(item, "preferred"),
        "margin": lambda item: _share(item, "margin"),
        "key_preference": lambda item: _share(item, "key_preferred"),
        "key_margin": lambda item: _share(item, "key_margin"),
        "no_wrong_turn": lambda item: float(item["first_wrong"] is None),
        "right_branch": lambda item: _greedy(item, "branch", "right"),
        "wrong_branch": lambda item: _greedy(item, "branch", "wrong"),
        "greedy_accuracy": lambda item: _greedy(item, "verdict", "correct"),
        "cut_off": lambda item: _greedy(item, "cut_off", True),
    },
}
"""The value of an item for each score of its kind of run; None if it does not have the score."""

MAIN_SCORE: dict[RunKind, str] = {"evaluate": "accuracy", "suite": "key_preference"}
"""The score that is shown first, and compared by default."""

LOWER_IS_BETTER = frozenset({"unparsed", "cut_off", "wrong_branch"})
IN_NATS = frozenset({"margin", "key_margin"})
"""The scores in nats; all others are shares between 0 and 1."""
GROUPS = ("task", "mistake", "source")


def mean_scores(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, float | None]:
    """Return the mean of each score over the items that have it; None if no item has it."""
    return {name: _mean(map(score, items)) for name, score in SCORES[kind].items()}


def score_intervals(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, Interval]:
    """Return the bootstrap interval over items of each score that some item has."""
    values = {name: [value for value in map(score, items) if value is not None] for name, score in SCORES[kind].items()}
    return {name: bootstrap_interval(numbers, share=name not in IN_NATS) for name, numbers in values.items() if numbers}


def grouped_scores(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the scores by task, by kind of mistake and by source, with the number of `items`.

    An item with several kinds of mistake is in the group of each of them.
    """
    return {
        group: {
            name: {"items": len(members), **mean_scores(members, kind)}
            for name, members in group_items(items, group).items()
        }
        for group in GROUPS
    }


def group_items(items: Iterable[Mapping[str, Any]], group: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return the items of each task, kind of mistake or source."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        for name in names_in(item, group):
            groups.setdefault(name, []).append(item)
    return groups


def names_in(item: Mapping[str, Any], group: str) -> list[str]:
    """Return the groups of an item: its task, its mistakes or its source."""
    value = item[group]
    return [] if value is None else value if isinstance(value, list) else [value]


def run_scores(
    items: Sequence[Mapping[str, Any]], kind: RunKind
) -> tuple[dict[str, float | None], dict[str, list[float]], dict[str, Any]]:
    """Return the scores, their bootstrap intervals over items, and the groups, for `RunFolder.finish`."""
    intervals = {name: [one.low, one.high] for name, one in score_intervals(items, kind).items()}
    return mean_scores(items, kind), intervals, grouped_scores(items, kind)


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
