"""Scores, intervals, flips and learning curves in the form that the page draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from edit_trl.common.metric_names import MEANINGS, SCORE_LABELS
from edit_trl.evaluation.report.items import rounded
from edit_trl.evaluation.report.training_history import TrainingRun
from edit_trl.evaluation.runs.schema import Run
from edit_trl.evaluation.runs.scores import (
    LOWER_IS_BETTER,
    MAIN_SCORE,
    SCORES,
    UNITS,
    grouped_intervals,
)
from edit_trl.evaluation.statistics import Interval, exact_mcnemar, paired_difference

# The charts of learning curves: the title and the metrics, of which those that were logged are shown.
CURVES = {
    "Likelihood per token (nats)": tuple(
        f"logps/{part}" for part in ("chosen_key", "chosen_context", "rejected_key", "rejected_context")
    ),
    "Preference and forks (share)": ("key_accuracy", "completion_accuracy", "fork/confidence", "fork/solved"),
    "Loss": ("loss",),
}
# The names in the log of `SuiteCallback`; more curves could not be told apart.
_SUITE = tuple(
    f"suite/{name}"
    for name in ("key_preference", "preference", "no_wrong_turn", "right_branch", "greedy_accuracy", "accuracy")
)
_MOST_POINTS = 300


def run_summary(run: Run) -> dict[str, Any]:
    """Return the settings of a run, its scores as [value, low, high], and its groups."""
    record = run.record
    scores = {
        name: [rounded(record.scores.get(name), 4), *map(rounded, record.intervals.get(name, (None, None)))]
        for name in SCORES[record.kind]
        if record.scores.get(name) is not None
    }
    facts = {
        "Model": record.model,
        "Folder": str(run.path),
        "Measured": record.finished,
        "Tasks": ", ".join(f"{task} ({version})" for task, version in record.tasks.items()),
        "Seed": record.seed,
        "Settings": ", ".join(f"{name}: {value}" for name, value in record.settings.items()),
        "Weights": record.model_hash,
        "Data": record.data_hash,
        "Revision": record.git_revision,
        "Written by": f"edit_trl {record.edit_trl}, answer check {record.verifier}",
    }
    return {
        "kind": record.kind,
        "main": MAIN_SCORE[record.kind],
        "items": record.items,
        "facts": [[name, str(value)] for name, value in facts.items() if value not in (None, "")],
        "scores": scores,
        "groups": group_scores(run),
    }


def score_labels(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the label, explanation, unit and direction of each score."""
    return {name: score_label(*SCORE_LABELS[name], UNITS.get(name, "share"), name in LOWER_IS_BETTER) for name in names}


def score_label(label: str, explanation: str, unit: str, lower_is_better: bool = False) -> dict[str, Any]:
    """Return the label of a score in the form that the page reads."""
    return {"label": label, "help": explanation, "unit": unit, "lower_is_better": lower_is_better}


def group_scores(run: Run) -> dict[str, list[Any]]:
    """Return [name, items, scores] of each task, kind of mistake and source; scores are [value, low, high]."""
    names = SCORES[run.record.kind]
    return {
        group: [
            [name, count, {score: _bounds(intervals[score]) if score in intervals else None for score in names}]
            for name, (count, intervals) in groups.items()
        ]
        for group, groups in grouped_intervals(run.items, run.record.kind).items()
    }


def _bounds(interval: Interval) -> list[float | None]:
    return [rounded(value, 4) for value in (interval.value, interval.low, interval.high)]


def flips(kinds: Sequence[str], items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare each two runs of the same kind, item by item.

    The difference has the paired interval on these tasks, and the p-value is that of the exact McNemar test.
    `kinds` holds the kind of each run, and `items` comes from `page_items`.
    """
    verdicts: list[dict[int, bool]] = [{} for _ in kinds]
    for number, item in enumerate(items):
        for run, outcome in item["runs"]:
            if (right := is_right(outcome)) is not None:
                verdicts[run][number] = right
    comparisons = []
    for a, b in combinations(range(len(kinds)), 2):
        shared = sorted(verdicts[a].keys() & verdicts[b].keys())
        if kinds[a] != kinds[b] or not shared:
            continue
        before, after = ([verdicts[run][number] for number in shared] for run in (a, b))
        interval = paired_difference(np.array([before], dtype=float).T, np.array([after], dtype=float).T)
        p_value = exact_mcnemar(before, after).p_value
        comparisons.append({"a": a, "b": b, "items": len(shared), "difference": _bounds(interval), "p_value": p_value})
    return comparisons


def is_right(outcome: Mapping[str, Any]) -> bool | None:
    """Return whether an outcome is right: by its verdict, or its preference on key steps (None without any)."""
    return outcome["verdict"] == "correct" if "verdict" in outcome else outcome["key_preferred"]


def learning_curves(training: TrainingRun) -> dict[str, Any]:
    """Return the stages of a run; each chart has curves [metric, whether held out, points as [step, value]].

    `meanings` has [metric, what it is] of each metric that is drawn in a stage.
    """
    stages = []
    for stage in training.stages:
        logged = {name for entry in stage.log for name in entry}
        charts = dict(CURVES)
        suite = [name for name in _SUITE if name in logged or f"eval_{name}" in logged]
        if suite:
            charts["Suite during training (share)"] = tuple(suite)
        drawings = []
        for title, metrics in charts.items():
            curves = [
                [metric, bool(prefix), points]
                for metric in metrics
                for prefix in ("", "eval_")
                if (points := _points(stage.log, prefix + metric))
            ]
            if curves:
                drawings.append([title, curves])
        drawn = dict.fromkeys(str(metric) for _, curves in drawings for metric, *_ in curves)
        meanings = [[metric, MEANINGS[metric]] for metric in drawn]
        stages.append({"name": stage.name, "finished": stage.finished, "charts": drawings, "meanings": meanings})
    return {"path": str(training.path), "stages": stages}


def _points(log: Sequence[Mapping[str, Any]], metric: str) -> list[list[float | None]]:
    points = [
        [entry["step"], rounded(float(entry[metric]), 4)]
        for entry in log
        if isinstance(entry.get(metric), int | float) and isinstance(entry.get("step"), int)
    ]
    stride = -(-len(points) // _MOST_POINTS) or 1
    return points if stride == 1 else points[:-1:stride] + points[-1:]
