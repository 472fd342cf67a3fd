"""Scores: each item has a number or None for each score, and the score of a run is their mean.

`accuracy`, `lenient_accuracy`: share of correct answers by strict and by lenient extraction; a missing answer
    is not correct.
`unparsed`: share of items in which strict extraction found no answer.
`cut_off`: share of responses that reached the limit of tokens.
`majority_accuracy`: where votes have weights, share of questions that the majority of the same responses answers
    correctly.
`weight_auc`: area under the ROC curve of the weights of right and wrong responses to the same question: how likely a
    right one has more weight than a wrong one. 0.5 is chance. `weight_auc_pooled` is the same over the responses to all
    questions, which a weight that only knows hard questions from easy ones raises too.
`no_weight`: share of questions where no answer has any weight, so that the majority decided.
`generated_tokens`, `weight_tokens`: tokens per question that were generated, and that were run to find the weights.
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
from functools import partial
from typing import Any

import numpy as np

from edit_trl.evaluation.runs.schema import RunKind
from edit_trl.evaluation.statistics import Interval, area_under_curve, bootstrap_intervals

ItemScore = Callable[[Mapping[str, Any]], float | None]


def _share(item: Mapping[str, Any], name: str) -> float | None:
    return None if item[name] is None else float(item[name])


def _greedy(item: Mapping[str, Any], name: str, value: str | bool) -> float | None:
    greedy = item["greedy"]
    if greedy is None or (name == "verdict" and item["answer"] is None):
        return None
    return float(greedy[name] == value)


def _weighted(item: Mapping[str, Any], score: ItemScore) -> float | None:
    """Return a score of an item whose votes have weights; None for any other."""
    return score(item) if "majority_verdict" in item else None


def weight_auc(items: Iterable[Mapping[str, Any]]) -> float | None:
    """Return how well the weights of responses tell the right ones from the wrong ones; None without either."""
    weights: dict[str, list[float]] = {}
    for item in items:
        for sample in item.get("samples", ()):
            if sample.get("weight") is not None:
                weights.setdefault(sample["verdict"], []).append(sample["weight"])
    return area_under_curve(weights.get("correct", ()), weights.get("wrong", ()))


WEIGHTED_VOTES: dict[str, ItemScore] = {
    "majority_accuracy": lambda item: float(item["majority_verdict"] == "correct"),
    "weight_auc": lambda item: weight_auc([item]),
    "no_weight": lambda item: float(item.get("no_weight", False)),
    "generated_tokens": lambda item: float(sum(sample["tokens"] for sample in item["samples"])),
    "weight_tokens": lambda item: float(sum(sample.get("weight_tokens", 0) for sample in item["samples"])),
}
"""The scores of items whose votes have weights. Runs without such items do not have these scores at all."""

SCORES: dict[RunKind, dict[str, ItemScore]] = {
    "evaluate": {
        "accuracy": lambda item: float(item["verdict"] == "correct"),
        **{name: partial(_weighted, score=score) for name, score in WEIGHTED_VOTES.items()},
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

MAIN_SCORE: dict[str, str] = {"evaluate": "accuracy", "suite": "key_preference"}
"""The score that is shown first, and compared by default."""

LOWER_IS_BETTER = frozenset({"unparsed", "cut_off", "wrong_branch", "no_weight", "generated_tokens", "weight_tokens"})
UNITS = {"margin": "nats", "key_margin": "nats", "generated_tokens": "tokens", "weight_tokens": "tokens"}
"""The units of scores; all others are shares between 0 and 1."""
GROUPS = ("task", "mistake", "source")


def mean_scores(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, float | None]:
    """Return the mean of each score over the items that have it; None if no item has it."""
    means = {name: _mean(map(score, items)) for name, score in SCORES[kind].items()}
    means = {name: mean for name, mean in means.items() if mean is not None or name not in WEIGHTED_VOTES}
    pooled = weight_auc(items)
    return means if pooled is None else means | {"weight_auc_pooled": pooled}


def score_intervals(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, Interval]:
    """Return the bootstrap interval over items of each score that some item has."""
    [intervals] = _intervals_of([_known(_score_table(items, kind))])
    return intervals


def grouped_intervals(
    items: Sequence[Mapping[str, Any]], kind: RunKind
) -> dict[str, dict[str, tuple[int, dict[str, Interval]]]]:
    """Return by task, by kind of mistake and by source the number of items, and what `score_intervals` returns."""
    table = _score_table(items, kind)
    members: dict[tuple[str, str], list[int]] = {}
    for group in GROUPS:
        for index, item in enumerate(items):
            for name in names_in(item, group):
                members.setdefault((group, name), []).append(index)
    intervals = _intervals_of(
        [_known({name: values[indexes] for name, values in table.items()}) for indexes in members.values()]
    )
    groups: dict[str, dict[str, tuple[int, dict[str, Interval]]]] = {group: {} for group in GROUPS}
    for ((group, name), indexes), of_group in zip(members.items(), intervals, strict=True):
        groups[group][name] = len(indexes), of_group
    return groups


def _score_table(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, np.ndarray]:
    """Return a value per item for each score; nan where the item does not have the score."""
    return {name: np.array([*map(score, items)], dtype=float) for name, score in SCORES[kind].items()}


def _known(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores that some item has, each with the values of the items that have it."""
    known = {name: values[~np.isnan(values)] for name, values in table.items()}
    return {name: values for name, values in known.items() if values.size}


def _intervals_of(tables: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, Interval]]:
    samples = [values for table in tables for values in table.values()]
    intervals = iter(bootstrap_intervals(samples, [name not in UNITS for table in tables for name in table]))
    return [{name: next(intervals) for name in table} for table in tables]


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
