"""Intervals and tests (L3); scipy and statsmodels do the arithmetic.

Two questions have two intervals. "On these tasks": items are a sample, the tasks and what they ask are given.
"On other tasks like these": whole tasks are drawn anew, since items of one task are alike (Miller,
arXiv 2411.00640). Tasks and seeds are few, and the percentiles of a bootstrap of three or ten are much too
narrow (they cover 50% to 90% where 95% is said). So the bootstrap gives the standard error, made larger by
n / (n - 1) for what resampling n leaves out, and Student's t its multiple (Cameron & Miller 2015, section VI;
Hesterberg 2015). `tests/evaluation/test_statistics.py` simulates how often the intervals cover the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
# Numbers that are drawn at once: enough to be fast, and not the memory of all resamples.
_DRAWN = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval; `low` and `high` are infinite where nothing can be said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The mean difference of paired scores.

    Attributes:
        error: Its standard error; infinite with one item.
        freedom: Degrees of freedom of the error.
    """

    error: float
    freedom: float


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
    """The bootstrap interval of a mean.

    Args:
        values: One an item.
        clusters: Each item's cluster. Whole clusters are then drawn; with a single one, items.
        level: Of confidence.
        resamples: How many.
        seed: Of the draws.

    Returns:
        The mean and, of items, the percentile interval, of clusters, the t interval with the bootstrap's
        standard error. Where all values are 0 or all are 1, so that every resample is the same, Wilson's
        interval. nan without values.
    """
    from scipy.stats import bootstrap
    from statsmodels.stats.proportion import proportion_confint

    array = np.asarray(values, dtype=float)
    if not array.size:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(array.mean())
    if (array == array[0]).all() and array[0] in (0, 1):
        low, high = proportion_confint(array.sum(), array.size, alpha=1 - level, method="wilson")
        return Interval(mean, float(low), float(high))
    if clusters is not None and len(set(clusters)) > 1:
        error = _bootstrap_error(array, clusters, resamples, seed)
        low, high = _t_interval(mean, error, len(set(clusters)) - 1, level)
        return Interval(mean, low, high)
    if array.size == 1:
        return Interval(mean, mean, mean)
    result = bootstrap(
        (array,),
        np.mean,
        vectorized=True,
        method="percentile",
        confidence_level=level,
        n_resamples=resamples,
        batch=_batch(array.size),
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, *map(float, result.confidence_interval))


def paired_difference(
    baseline: np.ndarray,
    other: np.ndarray,
    clusters: Sequence[str] | None = None,
    *,
    share: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """How much higher the other system's scores are, and the paired bootstrap's interval.

    An item's difference is that of its means over either system's seeds. To the variance over items (or
    clusters) comes that of the seeds of each system, which are whole training runs: the variance of their
    means, less the part that the items' own variation between seeds explains, which is in the first already.
    Degrees of freedom are Satterthwaite's.

    Args:
        baseline: Scores, shape (items, seeds).
        other: Likewise, of the same items; seeds may be fewer or more, and are not paired.
        clusters: Each item's cluster; whole clusters are drawn. Where None, items.
        share: The scores are between 0 and 1. Where no item differs, the error is then as if one did: none
            seen is not none there.
        level: Of confidence.
        resamples: How many.
        seed: Of the draws.
    """
    differences = other.mean(axis=1) - baseline.mean(axis=1)
    value, items = float(differences.mean()), len(differences)
    units = items if clusters is None else len(set(clusters))
    if units < 2:
        low, high = (-1.0, 1.0) if share else (-math.inf, math.inf)
        return Difference(value, low, high, math.inf, 0)
    over = [(float(differences.var(ddof=1)) / items, items - 1)]  # what the bootstrap of items tends to
    if clusters is not None:
        over.append((_bootstrap_error(differences, clusters, resamples, seed) ** 2, units - 1))
    # By chance tasks can differ less than their items say; no more is known of other tasks than of these.
    parts = [max(over, key=lambda part: _reach(*part, level))]
    parts += [(_seed_variance(scores), scores.shape[1] - 1) for scores in (baseline, other)]
    parts = [(variance, freedom) for variance, freedom in parts if variance > 1e-20]  # rounding is none
    if parts:
        total = sum(variance for variance, _ in parts)
        error = math.sqrt(total)
        freedom = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    else:
        error, freedom = 1 / items if share else 0.0, units - 1
    low, high = _t_interval(value, error, freedom, level)
    if share:
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(value, low, high, error, freedom)


def _seed_variance(scores: np.ndarray) -> float:
    """The variance of a mean over seeds that comes of the seeds as wholes. `scores`: (items, seeds)."""
    items, seeds = scores.shape
    if seeds < 2 or items < 2:
        return 0.0
    of_items, of_seeds = scores.mean(axis=1, keepdims=True), scores.mean(axis=0)
    own = scores - of_items - of_seeds + scores.mean()
    noise = float((own**2).sum()) / ((items - 1) * (seeds - 1)) / items
    return max(0.0, (float(of_seeds.var(ddof=1)) - noise) / seeds)


def _bootstrap_error(values: np.ndarray, clusters: Sequence[str], resamples: int, seed: int) -> float:
    """The standard error of the mean of all values, whole clusters (two or more) being drawn."""
    from scipy.stats import bootstrap

    names = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = np.bincount(names, weights=values), np.bincount(names)
    if np.ptp(sums / sizes) < 1e-12:
        return 0.0  # scipy warns of a distribution that is a point
    result = bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=_batch(len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(result.standard_error) * math.sqrt(len(sums) / (len(sums) - 1))


def _batch(units: int) -> int:
    return max(1, _DRAWN // units)


def _t_interval(value: float, error: float, freedom: float, level: float) -> tuple[float, float]:
    reach = _reach(error**2, freedom, level)
    return value - reach, value + reach


def _reach(variance: float, freedom: float, level: float) -> float:
    """Half an interval's width."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)


def exact_mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """The exact test of two paired shares.

    Args:
        before: Right or not, an item each, of the first system.
        after: Of the second.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    pairs = list(zip(before, after, strict=True))
    fixed = sum(bool(not a and b) for a, b in pairs)
    broken = sum(bool(a and not b) for a, b in pairs)
    if not fixed + broken:
        return McNemar(0, 0, 1.0)  # nothing speaks for a difference; statsmodels would divide by zero
    return McNemar(fixed, broken, float(mcnemar([[0, broken], [fixed, 0]], exact=True).pvalue))


def permutation_p_value(differences: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> float:
    """The two-sided sign-flip test of a mean difference of zero; exact for up to 13 items that differ.

    Args:
        differences: One an item.
        resamples: How many, where there are too many flips to try them all.
        seed: Of the draws.
    """
    from scipy.stats import permutation_test

    # A zero is the same whichever way it is flipped.
    values = np.asarray([value for value in differences if value], dtype=float)
    if len(values) < 2:
        return 1.0
    result = permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(len(values)),
        rng=np.random.default_rng(seed),
    )
    return float(min(result.pvalue, 1.0))


def seeds_p_value(difference: Difference, differences: Sequence[float]) -> float:
    """The two-sided test of no difference between systems of several seeds.

    Flipping the signs of items alone takes the seeds as given, and exchanging seeds says nothing with three
    of them (p is 0.1 at best). So it is the t test that belongs to the interval, which counts both; with
    few items, of which t knows too little, the sign-flip test where that is larger.

    Args:
        difference: See `paired_difference`.
        differences: One an item, of the means over seeds.
    """
    from scipy.stats import t

    flipped = permutation_p_value(differences)
    if not difference.error or not difference.freedom:
        return flipped
    return max(flipped, float(2 * t.sf(abs(difference.value) / difference.error, difference.freedom)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, each made larger for there being several (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))


def minimum_detectable_effect(difference: Difference, *, level: float = LEVEL, power: float = 0.8) -> float:
    """The smallest true difference that such a comparison finds with this power; infinite with one item.

    Args:
        difference: See `paired_difference`: its error and degrees of freedom count.
        level: Of confidence, two-sided.
        power: How often it is found.
    """
    from scipy.stats import t

    if not difference.freedom:
        return math.inf
    return float(sum(t.ppf([(1 + level) / 2, power], difference.freedom)) * difference.error)
