"""Judgements -> judgements.jsonl, report.json and tables."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from edit_trl.common.files import write_whole
from edit_trl.common.tables import aligned
from edit_trl.evaluation.judge.judging import SCORES, Judgement

JUDGEMENTS_FILE, REPORT_FILE = "judgements.jsonl", "report.json"


def summarize(judgements: Sequence[Judgement], models: Sequence[str]) -> dict[str, Any]:
    """Summarize judgements; those that could not be read are only counted.

    Args:
        judgements: One judgement per item.
        models: Names of the models, in the order of the report.

    Returns:
        A dictionary with

        - `items`, `with_reference` and `outcomes`: counts;
        - `scores`, for each model: `items`, `mean` with `interval`, `histogram`, and `tasks`, the mean of each task;
        - `comparisons`, for each two models: the number of items in which the first has the higher score (`wins`), the
          same (`ties`) or the lower score (`losses`), and the mean `difference` with `interval`, from resampled tasks;
        - `positions`, for each position in which chains were shown: their mean score, and `effect`, the
          difference of their scores and the mean scores of the same models, with `interval`.

        Means and intervals are None if nothing was judged. Intervals are 95% intervals.
    """
    judged = [judgement for judgement in judgements if judgement.outcome == "judged"]
    return {
        "items": len(judgements),
        "with_reference": sum(judgement.chains.reference is not None for judgement in judgements),
        "outcomes": dict(sorted(Counter(judgement.outcome for judgement in judgements).items())),
        "scores": {model: _scores(judged, model) for model in models},
        "comparisons": [_comparison(judged, first, second) for first, second in combinations(models, 2)],
        "positions": [_position(judged, place) for place in range(len(models))],
    }


def save_judgements(judgements: Sequence[Judgement], report: Mapping[str, Any], folder: Path) -> None:
    """Write `judgements.jsonl`, one line per item and model, and `report.json`.

    The same judgements give the same bytes.
    """
    rows = [
        {
            "task": judgement.chains.task,
            "id": judgement.chains.id,
            "model": model,
            "position": position,
            "score": judgement.scores.get(model),
            "outcome": judgement.outcome,
            "reference": judgement.chains.reference is not None,
            "judgement": judgement.text,
        }
        for judgement in judgements
        for position, model in enumerate(judgement.order, 1)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_whole(folder / JUDGEMENTS_FILE, "".join(lines))
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / REPORT_FILE, text + "\n")


def format_report(report: Mapping[str, Any]) -> str:
    """Format plain-text tables of a report from `summarize`, with the count `not_in_every_run` added."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report["outcomes"].items())
    scores = [["model", "mean", "95% interval", *map(str, SCORES)]]
    for model, one in report["scores"].items():
        counts = [str(count) if count else "." for count in one["histogram"].values()]
        scores.append([model, _number(one["mean"]), _interval(one), *counts])
    comparisons = [["first", "second", "wins", "ties", "losses", "difference", "95% interval"]]
    for one in report["comparisons"]:
        counts = [str(one[name]) for name in ("wins", "ties", "losses")]
        comparisons.append([one["first"], one["second"], *counts, _number(one["difference"], "+.2f"), _interval(one)])
    positions = [["shown at", "mean", "effect", "95% interval"]]
    for one in report["positions"]:
        effect = _number(one["effect"], "+.2f")
        positions.append([f"place {one['position']}", _number(one["mean"]), effect, _interval(one)])
    tables = [aligned([rows[:1], rows[1:]], left) for rows, left in ((scores, 1), (comparisons, 2), (positions, 1))]
    positions_with_effect = [
        str(one["position"])
        for one in report["positions"]
        if one["interval"] and not one["interval"][0] <= 0 <= one["interval"][1]
    ]
    if positions_with_effect:
        tables.append(
            "The judge's scores depend on the place at which a chain is shown "
            f"({', '.join(positions_with_effect)}). The random order averages this out over items, not within "
            "one."
        )
    count = report["not_in_every_run"]
    more = f"; {count} more are not in every run" if count else ""
    return "\n\n".join([f"{report['items']} items: {outcomes}{more}", *tables])


def _scores(judged: Sequence[Judgement], model: str) -> dict[str, Any]:
    values = [judgement.scores[model] for judgement in judged]
    counts = Counter(values)
    tasks: dict[str, list[int]] = {}
    for judgement in judged:
        tasks.setdefault(judgement.chains.task, []).append(judgement.scores[model])
    mean, interval = _mean(values)
    return {
        "items": len(values),
        "mean": mean,
        "interval": interval,
        "histogram": {str(score): counts[score] for score in SCORES},
        "tasks": {task: sum(scores) / len(scores) for task, scores in tasks.items()},
    }


def _comparison(judged: Sequence[Judgement], first: str, second: str) -> dict[str, Any]:
    differences = [judgement.scores[first] - judgement.scores[second] for judgement in judged]
    mean, interval = _mean(differences, [judgement.chains.task for judgement in judged])
    return {
        "first": first,
        "second": second,
        "wins": sum(difference > 0 for difference in differences),
        "ties": differences.count(0),
        "losses": sum(difference < 0 for difference in differences),
        "difference": mean,
        "interval": interval,
    }


def _position(judged: Sequence[Judgement], place: int) -> dict[str, Any]:
    """Return the scores at a position, compared with the means of the models that were shown there."""
    totals: Counter[str] = Counter()
    for judgement in judged:
        totals.update(judgement.scores)
    models = [judgement.order[place] for judgement in judged]
    scores = [judgement.scores[model] for judgement, model in zip(judged, models, strict=True)]
    effects = [score - totals[model] / len(judged) for model, score in zip(models, scores, strict=True)]
    effect, interval = _mean(effects)
    return {"position": place + 1, "mean": _mean(scores)[0], "effect": effect, "interval": interval}


def _mean(values: Sequence[float], clusters: Sequence[str] | None = None) -> tuple[float | None, list[float] | None]:
    """Return a mean and its bootstrap interval; both are None without values."""
    from edit_trl.evaluation.statistics import bootstrap_interval

    mean = bootstrap_interval(values, clusters, share=False)
    return (None, None) if math.isnan(mean.value) else (mean.value, [mean.low, mean.high])


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _interval(one: Mapping[str, Any]) -> str:
    return "-" if one["interval"] is None else "{:.2f} to {:.2f}".format(*one["interval"])
