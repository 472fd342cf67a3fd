"""Scores, intervals, flips and learning curves as the page draws them (L3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from edit_trl.evaluation.report.items import rounded
from edit_trl.evaluation.report.training_history import TrainingRun
from edit_trl.evaluation.runs.schema import Run
from edit_trl.evaluation.runs.scores import GROUPS, IN_NATS, LOWER_IS_BETTER, MAIN_SCORE, SCORES, names_in
from edit_trl.evaluation.statistics import bootstrap_interval, exact_mcnemar, paired_difference

# What tables and charts call the scores, and which are shares (0 to 1) rather than nats.
SCORE_LABELS = {
    "accuracy": ("Accuracy", "share of right answers, strict extraction"),
    "lenient_accuracy": ("Accuracy, lenient", "share of right answers, lenient extraction"),
    "unparsed": ("Unparsed", "share of items without an answer"),
    "cut_off": ("Cut off", "share of responses that ran into the length limit"),
    "preference": ("Preference", "share of pairs whose correct chain is likelier a token"),
    "margin": ("Margin", "nats a token by which the correct chain is likelier"),
    "key_preference": ("Key preference", "share of pairs whose correct key steps are likelier a token"),
    "key_margin": ("Key margin", "nats a token by which the correct key steps are likelier"),
    "no_wrong_turn": ("No wrong turn", "share of correct chains that greedy decoding would have written"),
    "right_branch": ("Right branch", "share of pairs where greedy decoding goes on as the correct chain"),
    "wrong_branch": ("Wrong branch", "share of pairs where greedy decoding goes on as the wrong chain"),
    "greedy_accuracy": ("Greedy accuracy", "share of right answers after the prefix that both chains share"),
}

# The charts of learning curves: their title and the metrics they show where they were logged.
CURVES = {
    "Likelihood a token (nats)": (
        *("logps/chosen_key", "logps/chosen_context", "logps/rejected_key", "logps/rejected_context"),
    ),
    "Preference and forks (share)": ("key_accuracy", "completion_accuracy", "fork/confidence", "fork/solved"),
    "Loss": ("loss",),
}
# As the suite callback logs them; no more than can be told apart.
_SUITE = tuple(
    f"suite/{name}"
    for name in (
        "key_preference",
        "preference",
        "no_wrong_turn",
        "right_branch",
        "greedy_accuracy",
        "accuracy",
    )
)
_MOST_POINTS = 300


def run_summary(run: Run) -> dict[str, Any]:
    """A run's settings, scores [value, low, high] and groups."""
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
    """Label, explanation, unit and direction of scores."""
    return {
        name: {
            "label": SCORE_LABELS[name][0],
            "help": SCORE_LABELS[name][1],
            "unit": "nats" if name in IN_NATS else "share",
            "lower_is_better": name in LOWER_IS_BETTER,
        }
        for name in names
    }


def group_scores(run: Run) -> dict[str, list[Any]]:
    """[name, items, scores] of each task, kind of mistake and source; scores are [value, low, high]."""
    members: dict[str, dict[str, list[Mapping[str, Any]]]] = {group: {} for group in GROUPS}
    for item in run.items:
        for group in GROUPS:
            for name in names_in(item, group):
                members[group].setdefault(name, []).append(item)
    scores = SCORES[run.record.kind]
    return {
        group: [
            [
                name,
                len(of),
                {score: _interval([value(item) for item in of]) for score, value in scores.items()},
            ]
            for name, of in each.items()
        ]
        for group, each in members.items()
    }


def _interval(values: Sequence[float | None]) -> list[float | None] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    interval = bootstrap_interval(known)
    return [rounded(value, 4) for value in (interval.value, interval.low, interval.high)]


def flips(kinds: Sequence[str], items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every two runs of a kind, paired item by item: how sure it is that one is better.

    The interval of the difference is the paired one on these tasks, the p-value the exact McNemar test's.

    Args:
        kinds: Each run's.
        items: As `page_items` gives them.
    """
    verdicts: list[dict[int, bool]] = [{} for _ in kinds]
    for number, item in enumerate(items):
        for run, outcome in item["runs"]:
            if (right := is_right(outcome)) is not None:
                verdicts[run][number] = right
    found = []
    for a, b in combinations(range(len(kinds)), 2):
        shared = sorted(verdicts[a].keys() & verdicts[b].keys())
        if kinds[a] != kinds[b] or not shared:
            continue
        before, after = ([verdicts[run][number] for number in shared] for run in (a, b))
        interval = paired_difference(*(np.array([side], dtype=float).T for side in (before, after)))
        bounds = [rounded(value, 4) for value in (interval.value, interval.low, interval.high)]
        p_value = exact_mcnemar(before, after).p_value
        found.append({"a": a, "b": b, "items": len(shared), "difference": bounds, "p_value": p_value})
    return found


def is_right(outcome: Mapping[str, Any]) -> bool | None:
    """What flips: the verdict, or the preference on key steps (None without any)."""
    return outcome["verdict"] == "correct" if "verdict" in outcome else outcome["key_preferred"]


def learning_curves(training: TrainingRun) -> dict[str, Any]:
    """A run's stages and, for each chart, its curves: [metric, held out or not, points [step, value]]."""
    stages = []
    for stage in training.stages:
        logged = {name for entry in stage.log for name in entry}
        charts = dict(CURVES)
        measured = {name.removeprefix("eval_") for name in logged}
        suite = [name for name in _SUITE if name in measured]
        if suite:
            charts["Suite during training (share)"] = tuple(suite)
        drawn = []
        for title, metrics in charts.items():
            curves = [
                [metric, bool(prefix), points]
                for metric in metrics
                for prefix in ("", "eval_")
                if (points := _points(stage.log, prefix + metric))
            ]
            if curves:
                drawn.append([title, curves])
        stages.append({"name": stage.name, "finished": stage.finished, "charts": drawn})
    return {"path": str(training.path), "stages": stages}


def _points(log: Sequence[Mapping[str, Any]], metric: str) -> list[list[float | None]]:
    points = [
        [entry["step"], rounded(float(entry[metric]), 4)]
        for entry in log
        if isinstance(entry.get(metric), int | float) and isinstance(entry.get("step"), int)
    ]
    stride = -(-len(points) // _MOST_POINTS) or 1
    return points if stride == 1 else points[:-1:stride] + points[-1:]
