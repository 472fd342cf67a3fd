"""Intervals and tests (L3); scipy and statsmodels do the arithmetic.

Items of one task are alike, and tasks are few, so that a difference between two models on several tasks is
resampled by whole tasks as well as by items (Miller, arXiv 2411.00640; Cameron et al. 2008). Seeds of a system
are resampled with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
# Rows of a resample at once: enough to be fast, and not the memory of all of them.
_BLOCK = 200


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval; `low` and `high` are nan where nothing can be said."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Discordant pairs and the two-sided exact p-value; 1 where there are none."""

    fixed: int
    broken: int
    p_value: float


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of a mean.

    Args:
        values: One an item, or a row of them, shape (items, seeds); seeds are then resampled too.
        clusters: Each item's cluster. Clusters are drawn with replacement, then items within each. With one
            cluster, items alone.
        level: Of confidence.
        resamples: How many.
        seed: Of the draws.

    Returns:
        The mean and its interval; nan without values, the mean itself with one.
    """
    table = np.asarray(values, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    if not table.size:
        return Interval(math.nan, math.nan, math.nan)
    names = np.zeros(len(table), dtype=int)
    if clusters is not None:
        names = np.unique(np.asarray(clusters), return_inverse=True)[1]
    means = _resampled_means(table, names, resamples, np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(table.mean()), float(low), float(high))


def _resampled_means(
    table: np.ndarray, names: np.ndarray, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """Means of resampled items, clusters and columns. Shape (resamples,)."""
    order = np.argsort(names, kind="stable")
    table = table[order]
    sizes = np.bincount(names)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    columns = table.shape[1]
    means = np.empty(resamples)
    for block in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - block)
        sums, counts = np.zeros(rows), np.zeros(rows)
        # One draw of columns a resample: a seed is a whole training run.
        drawn_columns = random.integers(columns, size=(rows, columns)) if columns > 1 else None
        for _ in sizes:
            drawn = random.integers(len(sizes), size=rows)  # the cluster drawn for this place
            for cluster in np.unique(drawn):
                which = np.flatnonzero(drawn == cluster)
                size = sizes[cluster]
                items = starts[cluster] + random.integers(size, size=(len(which), size))
                if drawn_columns is None:
                    picked = table[items, 0]
                else:
                    picked = table[items[:, :, None], drawn_columns[which][:, None, :]].mean(axis=2)
                sums[which] += picked.sum(axis=1)
                counts[which] += size
        means[block : block + rows] = sums / counts
    return means


def exact_mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """The exact test of two paired shares.

    Args:
        before: Right or not, an item each, of the first system.
        after: Of the second.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    pairs = list(zip(before, after, strict=True))
    fixed = sum(not a and b for a, b in pairs)
    broken = sum(a and not b for a, b in pairs)
    if not fixed + broken:
        return McNemar(0, 0, 1.0)  # nothing speaks for a difference; statsmodels would divide by zero
    return McNemar(fixed, broken, float(mcnemar([[0, broken], [fixed, 0]], exact=True).pvalue))


def permutation_p_value(differences: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> float:
    """The two-sided sign-flip test of a mean difference of zero; exact for few items.

    Args:
        differences: One an item, averaged over seeds.
        resamples: How many, where there are too many flips to try them all.
        seed: Of the draws.
    """
    from scipy.stats import permutation_test

    values = np.asarray([value for value in differences if value], dtype=float)
    if not len(values):
        return 1.0
    result = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(min(result.pvalue, 1.0))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, each made larger for there being several (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))


def minimum_detectable_effect(
    differences: Sequence[float], *, level: float = LEVEL, power: float = 0.8
) -> float:
    """The smallest true difference that a comparison of so many such items finds with this power.

    From the normal approximation of a paired mean; nan with fewer than two items. Where no item differs,
    the spread is taken as if one did: none seen is not none there.

    Args:
        differences: One an item.
        level: Of confidence, two-sided.
        power: How often it is found.
    """
    from scipy.stats import norm

    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return math.nan
    spread = values.std(ddof=1) or math.sqrt(1 / len(values))
    z = norm.ppf(1 - (1 - level) / 2) + norm.ppf(power)
    return float(z * spread / math.sqrt(len(values)))
