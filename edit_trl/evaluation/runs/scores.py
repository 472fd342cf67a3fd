"""Scores of items (L3): each a number an item or None, and over a run their mean.

`accuracy` and `lenient_accuracy`: the share of right answers by strict and by lenient extraction; an answer
that is missing is not right. `unparsed`: no answer by strict extraction. `cut_off`: the share of responses
that ran into the limit. `preference`: the share of pairs whose correct chain is likelier a token; `margin`:
by how many nats; `key_preference` and `key_margin`: the same on key tokens, over pairs with some on both
sides. `no_wrong_turn`: the share of correct chains of which greedy decoding would have written every token.
`right_branch`, `wrong_branch`: where a greedy continuation of the shared prefix goes; `greedy_accuracy`:
whether it ends in the right answer, over pairs with a known answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edit_trl.evaluation.runs.schema import RunKind
from edit_trl.evaluation.statistics import bootstrap_interval

Score = Callable[[Mapping[str, Any]], float | None]


def _share(item: Mapping[str, Any], name: str) -> float | None:
    return None if item[name] is None else float(item[name])


def _greedy(item: Mapping[str, Any], name: str, wanted: str | bool) -> float | None:
    greedy = item["greedy"]
    if greedy is None or (name == "verdict" and item["answer"] is None):
        return None
    return float(greedy[name] == wanted)


SCORES: dict[RunKind, dict[str, Score]] = {
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
"""What each item counts for each score of its kind of run; None where it does not count."""

MAIN_SCORE: dict[RunKind, str] = {"evaluate": "accuracy", "suite": "key_preference"}
"""What is shown first, and compared unless another is named."""

LOWER_IS_BETTER = frozenset({"unparsed", "cut_off", "wrong_branch"})
IN_NATS = frozenset({"margin", "key_margin"})
"""The scores that are no shares, between 0 and 1."""
GROUPS = ("task", "mistake", "source")


def mean_scores(items: Sequence[Mapping[str, Any]], kind: RunKind) -> dict[str, float | None]:
    """Each score's mean over the items that have it; None where none has."""
    return {name: _mean(map(score, items)) for name, score in SCORES[kind].items()}


def grouped_scores(
    items: Sequence[Mapping[str, Any]], kind: RunKind
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Scores by task, by kind of mistake and by source, with `items`, how many there are.

    An item with several kinds of mistake counts for each; one without is in no group of that kind.
    """
    grouped = {}
    for group in GROUPS:
        members: dict[str, list[Mapping[str, Any]]] = {}
        for item in items:
            for name in names_in(item, group):
                members.setdefault(name, []).append(item)
        grouped[group] = {name: {"items": len(of), **mean_scores(of, kind)} for name, of in members.items()}
    return grouped


def names_in(item: Mapping[str, Any], group: str) -> list[str]:
    """The names of an item's groups of a kind: its task, its mistakes, its source."""
    value = item[group]
    return [] if value is None else value if isinstance(value, list) else [value]


def run_scores(
    items: Sequence[Mapping[str, Any]], kind: RunKind
) -> tuple[dict[str, float | None], dict[str, list[float]], dict[str, Any]]:
    """What `RunFolder.finish` wants: scores, intervals over items (the tasks taken as they are), groups."""
    intervals = {}
    for name, score in SCORES[kind].items():
        known = [value for value in map(score, items) if value is not None]
        if known:
            interval = bootstrap_interval(known)
            intervals[name] = [interval.low, interval.high]
    return mean_scores(items, kind), intervals, grouped_scores(items, kind)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
