"""Confidence intervals and tests; scipy does the arithmetic.

There are two intervals for two questions. "On these tasks": the items are a sample, and the tasks are fixed.
"On other tasks like these": whole tasks are resampled, since the items of one task are alike (Miller,
arXiv 2411.00640). Tasks and seeds are few, and the percentile bootstrap of three to ten clusters is much too
narrow: nominal 95% intervals cover 50% to 90%. So the bootstrap gives only the standard error, whose variance
is multiplied by n / (n - 1), and Student's t gives its multiple (Cameron & Miller 2015, section VI;
Hesterberg 2015). `tests/evaluation/test_statistics.py` simulates the coverage of the intervals.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
# The most numbers to draw at a time: fast, without the memory of all resamples.
_MOST_DRAWS = 2_000_000
# The same where the draws are used several times, which is faster while the cache of a core holds them.
_MOST_SHARED_DRAWS = 100_000


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval; `low` and `high` are infinite if nothing is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The mean difference of paired scores.

    Attributes:
        error: The standard error; infinite with one item.
        freedom: The degrees of freedom of the error.
    """

    error: float
    freedom: float


class McNemar(NamedTuple):
    """The numbers of discordant pairs, and the two-sided exact p-value (1 without such pairs)."""

    fixed: int
    broken: int
    p_value: float


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    share: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap interval of a mean.

    Args:
        values: One value per item.
        clusters: The cluster of each item. If given, whole clusters are resampled; with a single cluster, items are.
        share: Whether values lie between 0 and 1.
        level: The confidence level.
        resamples: The number of resamples.
        seed: The seed of the resampling.

    Returns:
        The mean with the percentile interval over items, or over clusters the t interval with the standard
        error of the bootstrap. If all values of a share are 0 or all are 1, so that all resamples are the same,
        the interval is Wilson's. All three numbers are nan without values.
    """
    array = np.asarray(values, dtype=float)
    if clusters is None or len(set(clusters)) < 2 or (share and _is_wilson(array)):
        [interval] = bootstrap_intervals([array], [share], level=level, resamples=resamples, seed=seed)
        return interval
    mean, error = float(array.mean()), _bootstrap_error(array, clusters, resamples, seed)
    return Interval(mean, *_t_interval(mean, error, len(set(clusters)) - 1, level))


def bootstrap_intervals(
    samples: Sequence[np.ndarray],
    shares: Sequence[bool],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return the interval of each of several samples, as `bootstrap_interval` does for one.

    Samples of the same size share the items that are drawn, since to draw them takes longer than to add their values.

    Args:
        samples: One value per item, of each sample.
        shares: Whether the values of a sample lie between 0 and 1.
        level: The confidence level.
        resamples: The number of resamples.
        seed: The seed of the resampling, which begins anew for each size of sample.
    """
    from scipy.stats import binomtest, bootstrap

    intervals: dict[int, Interval] = {}
    by_size: dict[int, list[int]] = {}
    for index, (sample, share) in enumerate(zip(samples, shares, strict=True)):
        if not sample.size:
            intervals[index] = Interval(math.nan, math.nan, math.nan)
        elif share and _is_wilson(sample):
            wilson = binomtest(int(sample.sum()), sample.size).proportion_ci(level, method="wilson")
            intervals[index] = Interval(float(sample.mean()), float(wilson.low), float(wilson.high))
        elif sample.size == 1 or (sample == sample[0]).all():  # the one value may be nan
            intervals[index] = Interval(*[float(sample.mean())] * 3)
        else:
            by_size.setdefault(sample.size, []).append(index)
    for indexes in by_size.values():
        table = np.stack([samples[index] for index in indexes])
        result = bootstrap(
            (table,),
            np.mean,
            axis=1,
            method="percentile",
            confidence_level=level,
            n_resamples=0,
            bootstrap_result=_Resampled(_resampled_means(table, resamples, seed)),
        )
        for index, sample, low, high in zip(indexes, table, *result.confidence_interval, strict=True):
            intervals[index] = Interval(float(sample.mean()), float(low), float(high))
    return [intervals[index] for index in range(len(samples))]


class _Resampled(NamedTuple):
    """A result of `scipy.stats.bootstrap`, as far as it is read to make an interval of it."""

    bootstrap_distribution: np.ndarray


def _resampled_means(samples: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the means of resamples, of the shape (samples, resamples), with the draws of `scipy.stats.bootstrap`.

    `samples` has the shape (samples, items).
    """
    size, generator = samples.shape[1], np.random.default_rng(seed)
    means = np.empty((len(samples), resamples))
    is_binary = ((samples == 0) | (samples == 1)).all(axis=1)
    # Integers hold a bit field for each of several binary samples, so that one sum counts the ones in all of them.
    bits = size.bit_length()
    binary = np.flatnonzero(is_binary)
    groups = [binary[first : first + 63 // bits] for first in range(0, len(binary), 63 // bits)]
    shifts = [bits * np.arange(len(group))[:, None] for group in groups]
    fields = [(samples[g].astype(np.int64) << shift).sum(axis=0) for g, shift in zip(groups, shifts, strict=True)]
    batch = max(1, _MOST_SHARED_DRAWS // size)
    for start in range(0, resamples, batch):
        draws = generator.integers(0, size, (min(batch, resamples - start), size))
        columns = slice(start, start + len(draws))
        for row in np.flatnonzero(~is_binary):
            means[row, columns] = samples[row].take(draws).mean(axis=1)
        for group, shift, packed in zip(groups, shifts, fields, strict=True):
            means[group, columns] = (packed.take(draws).sum(axis=1) >> shift & 2**bits - 1) / size
    return means


def _is_wilson(values: np.ndarray) -> bool:
    """Return whether all values of a share are 0, or all are 1, so that all resamples are the same."""
    return bool(values.size) and values[0] in (0, 1) and bool((values == values[0]).all())


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Return the area under the ROC curve: how likely a positive is above a negative, where equals count half.

    None without positives or without negatives.
    """
    if not positives or not negatives:
        return None
    below = sorted(negatives)
    wins = sum(bisect_left(below, value) + bisect_right(below, value) for value in positives)
    return wins / (2 * len(positives) * len(negatives))


def paired_difference(
    baseline: np.ndarray,
    other: np.ndarray,
    clusters: Sequence[str] | None = None,
    *,
    share: bool = True,
    resamples: int = RESAMPLES,
) -> Difference:
    """Return the mean difference between the scores of two systems, with its paired interval.

    The difference of an item is that of its means over the seeds of each system. The variance over items (or
    clusters) is increased by the variance over the seeds of each system, which are whole training runs: the
    variance of their means, less the part that is explained by the variation of single items between seeds,
    which the variance over items already contains. Degrees of freedom are Satterthwaite's.

    Args:
        baseline: Scores of the baseline, shape (items, seeds).
        other: Scores of the other system on the same items, shape (items, seeds). The number of seeds may
            differ, since seeds are not paired.
        clusters: The cluster of each item, to resample whole clusters; items if None.
        share: Whether scores are between 0 and 1. Then, if no item differs, the error is the same as if one
            item differed, since a difference may be too rare to be observed.
        resamples: The number of resamples.
    """
    differences = other.mean(axis=1) - baseline.mean(axis=1)
    value, items = float(differences.mean()), len(differences)
    units = items if clusters is None else len(set(clusters))
    if units < 2:
        low, high = (-1.0, 1.0) if share else (-math.inf, math.inf)
        return Difference(value, low, high, math.inf, 0)
    # (variance, degrees of freedom); the first is the limit of the bootstrap over items.
    candidates = [(float(differences.var(ddof=1)) / items, items - 1)]
    if clusters is not None:
        candidates.append((_bootstrap_error(differences, clusters, resamples) ** 2, units - 1))
    # Tasks can differ less than their items by chance, but an interval on other tasks cannot be narrower.
    parts = [max(candidates, key=lambda part: _reach(*part))]
    parts += [(_seed_variance(scores), scores.shape[1] - 1) for scores in (baseline, other)]
    parts = [(variance, freedom) for variance, freedom in parts if variance > 1e-20]  # rounding
    if parts:
        total = sum(variance for variance, _ in parts)
        error = math.sqrt(total)
        freedom = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    else:
        error, freedom = 1 / items if share else 0.0, units - 1
    low, high = _t_interval(value, error, freedom)
    if share:
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(value, low, high, error, freedom)


def _seed_variance(scores: np.ndarray) -> float:
    """Return the variance of the mean that is due to whole seeds. `scores` has the shape (items, seeds)."""
    items, seeds = scores.shape
    if seeds < 2 or items < 2:
        return 0.0
    item_means, seed_means = scores.mean(axis=1, keepdims=True), scores.mean(axis=0)
    residuals = scores - item_means - seed_means + scores.mean()
    noise = float((residuals**2).sum()) / ((items - 1) * (seeds - 1)) / items
    return max(0.0, (float(seed_means.var(ddof=1)) - noise) / seeds)


def _bootstrap_error(values: np.ndarray, clusters: Sequence[str], resamples: int, seed: int = 0) -> float:
    """Return the standard error of the mean of all values, from resampling whole clusters (two or more)."""
    from scipy.stats import bootstrap

    names = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = np.bincount(names, weights=values), np.bincount(names)
    if np.ptp(sums / sizes) < 1e-12:
        return 0.0  # scipy warns of a degenerate distribution
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
    return max(1, _MOST_DRAWS // units)


def _t_interval(value: float, error: float, freedom: float, level: float = LEVEL) -> tuple[float, float]:
    reach = _reach(error**2, freedom, level)
    return value - reach, value + reach


def _reach(variance: float, freedom: float, level: float = LEVEL) -> float:
    """Return half the width of an interval."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)


def exact_mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Run the exact test of two paired shares, given whether each system is right for each item."""
    from scipy.stats import binomtest

    pairs = list(zip(before, after, strict=True))
    fixed = sum(bool(not a and b) for a, b in pairs)
    broken = sum(bool(a and not b) for a, b in pairs)
    if not fixed + broken:
        return McNemar(0, 0, 1.0)  # a binomial test needs a trial
    return McNemar(fixed, broken, float(binomtest(fixed, fixed + broken).pvalue))


def permutation_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a sign-flip test of a zero mean; exact for up to 13 items that differ."""
    from scipy.stats import permutation_test

    # Flipping the sign of a zero changes nothing.
    values = np.asarray([value for value in differences if value], dtype=float)
    if len(values) < 2:
        return 1.0
    result = permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,  # 13 items have 8192 sign flips, which are all tried
        batch=_batch(len(values)),
        rng=np.random.default_rng(0),
    )
    return float(min(result.pvalue, 1.0))


def seeds_p_value(difference: Difference, differences: Sequence[float]) -> float:
    """Return the two-sided p-value of no difference between systems with several seeds.

    The sign-flip test over items ignores the variance over seeds, and a permutation of three seeds cannot be
    significant (p is 0.1 at best). So this is the t test that belongs to the interval, which includes both
    variances. With few items, for which t is too optimistic, it is the sign-flip test if its p is larger.

    Args:
        difference: See `paired_difference`.
        differences: The difference of each item, of its means over seeds.
    """
    from scipy.stats import t

    flipped = permutation_p_value(differences)
    if not difference.error or not difference.freedom:
        return flipped
    return max(flipped, float(2 * t.sf(abs(difference.value) / difference.error, difference.freedom)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values of several tests, adjusted for their number (Holm 1979)."""
    largest, adjusted = 0.0, {}
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def minimum_detectable_effect(difference: Difference, *, power: float = 0.8) -> float:
    """Return the smallest true difference that a comparison detects with this probability; infinite with one item.

    Only the error and the degrees of freedom of `difference` are used.
    """
    from scipy.stats import t

    if not difference.freedom:
        return math.inf
    return float(sum(t.ppf([(1 + LEVEL) / 2, power], difference.freedom)) * difference.error)
