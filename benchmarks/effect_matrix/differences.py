"""Differences between methods that start from the same checkpoints, with intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]


def difference(before: Sequence[Path], after: Sequence[Path], score: str) -> Record:
    """How much better a method's runs are than the baseline's.

    Both start from the same warm-up of a seed, so they are paired by seed as well as by item. An unpaired comparison,
    as `edit-trl compare` makes it, would hide the methods' effect behind the differences between warm-ups.

    Args:
        before: Runs of the baseline, one per seed.
        after: Runs of the method, in the same order of seeds.
        score: The score to compare, a name in `edit_trl.evaluation.runs.scores.SCORES`.
    """
    import numpy as np

    from edit_trl import compare_runs
    from edit_trl.evaluation.statistics import minimum_detectable_effect, paired_difference, seeds_p_value

    if len(before) == 1:
        overall = compare_runs(before[0], after[0], score=score).systems[0].overall
        change, p_value = overall.difference, overall.p_value
    else:
        changes = _scores(after, score) - _scores(before, score)
        changes = changes[~np.isnan(changes).any(axis=1)]
        change = paired_difference(np.zeros((len(changes), 1)), changes)
        p_value = seeds_p_value(change, changes.mean(axis=1))
    effect = minimum_detectable_effect(change)
    return {
        "seeds": len(before),
        "difference": change.value,
        "low": change.low,
        "high": change.high,
        "p_value": p_value,
        "minimum_detectable_effect": effect if math.isfinite(effect) else None,
    }


def _scores(folders: Sequence[Path], score: str) -> np.ndarray:
    """Scores of the same items in several runs, shape (items, runs); NaN where an item has no score."""
    import numpy as np

    from edit_trl.evaluation.runs.folder import read_run
    from edit_trl.evaluation.runs.schema import key_of
    from edit_trl.evaluation.runs.scores import SCORES

    runs = [read_run(folder) for folder in folders]
    if len({tuple(map(key_of, run.items)) for run in runs}) > 1:
        raise InputError(f"runs of other items: {', '.join(map(str, folders))}; run the cells again")
    columns = [[SCORES[run.record.kind][score](item) for item in run.items] for run in runs]
    return np.array(columns, dtype=float).T  # None becomes NaN


def accuracy_interval(folders: Sequence[Path]) -> list[float]:
    """The 95% interval of accuracy over items and seeds."""
    import numpy as np

    from edit_trl.evaluation.statistics import paired_difference

    scores = _scores(folders, "accuracy")
    mean = paired_difference(np.zeros((len(scores), 1)), scores)
    return [max(mean.low, 0.0), min(mean.high, 1.0)]
