"""Differences between methods that start from the same checkpoints, with intervals and tests.

The scores of a run's items are its marks, one character per item: see `effect_matrix.measure.MARKS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]
VALUES = {"1": 1.0, "0": 0.0, "-": math.nan}


def difference(before: Sequence[str], after: Sequence[str]) -> Record:
    """How much better a method's runs are than the baseline's.

    Both start from the same warm-up of a seed, so they are paired by seed as well as by item. An unpaired comparison,
    as `edit-trl compare` makes it, would hide the methods' effect behind the differences between warm-ups.

    Args:
        before: Marks of the baseline's items, one text per seed.
        after: Marks of the method's items, in the same order of seeds.

    Raises:
        InputError: The runs have other numbers of items.
    """
    import numpy as np

    from edit_trl.evaluation.statistics import (
        exact_mcnemar,
        minimum_detectable_effect,
        paired_difference,
        seeds_p_value,
    )

    changes = _scores([*after, *before])
    changes = changes[:, : len(after)] - changes[:, len(after) :]
    changes = changes[~np.isnan(changes).any(axis=1)]
    change = paired_difference(np.zeros((len(changes), 1)), changes)
    if len(before) == 1:
        p_value = exact_mcnemar(changes[:, 0] < 0, changes[:, 0] > 0).p_value
    else:
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


def _scores(runs: Sequence[str]) -> np.ndarray:
    """Scores of the same items in several runs, shape (items, runs); NaN where an item has no score."""
    import numpy as np

    if len({len(marks) for marks in runs}) > 1:
        sizes = ", ".join(str(len(marks)) for marks in runs)
        raise InputError(f"runs of {sizes} items, where all should have the same; run the cells again")
    return np.array([[VALUES[mark] for mark in marks] for marks in runs]).T


def accuracy_interval(runs: Sequence[str]) -> list[float]:
    """The 95% interval of accuracy over items and seeds, given the marks of each seed's items."""
    import numpy as np

    from edit_trl.evaluation.statistics import paired_difference

    scores = _scores(runs)
    mean = paired_difference(np.zeros((len(scores), 1)), scores)
    return [max(mean.low, 0.0), min(mean.high, 1.0)]
