"""Intervals and tests, held against R 4.2.2 (base and stats), whose code is beside its numbers.

What R was given is rebuilt here from formulas that use whole numbers, so that both have the same data.
"""

import math
import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap

from edit_trl.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    bootstrap_intervals,
    exact_mcnemar,
    holm,
    minimum_detectable_effect,
    paired_difference,
    permutation_p_value,
    seeds_p_value,
)

BEFORE = np.array([[0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1]], dtype=float).T
AFTER = np.array([[1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1]], dtype=float).T
D = [0.8, -0.2, 0.5, 1.1, -0.4, 0.9, 0.3, 0.6]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pairs(fixed, broken, same=3):
    before = [False] * fixed + [True] * broken + [True, False] * same
    after = [True] * fixed + [False] * broken + [True, False] * same
    return before, after


# binom.test(5, 20)$p.value; binom.test(0, 6)$p.value; binom.test(1, 1)$p.value; binom.test(10, 20)$p.value;
# binom.test(432, 984)$p.value
@pytest.mark.parametrize(
    ("fixed", "broken", "p_value"),
    [(5, 15, 0.0413894653320313), (6, 0, 0.03125), (0, 1, 1.0), (10, 10, 1.0), (552, 432, 0.000145923332422471)],
)
def test_exact_mcnemar(fixed, broken, p_value):
    result = exact_mcnemar(*pairs(fixed, broken))
    assert (result.fixed, result.broken) == (fixed, broken)
    assert result.p_value == pytest.approx(p_value, rel=1e-9)
    # The same, counted out.
    tail = sum(math.comb(fixed + broken, k) for k in range(min(fixed, broken) + 1))
    assert result.p_value == pytest.approx(min(1.0, tail / 2 ** (fixed + broken - 1)), rel=1e-9)


def test_mcnemar_without_discordant_pairs_or_items():
    assert exact_mcnemar(*pairs(0, 0)) == (0, 0, 1.0)
    assert exact_mcnemar([], []) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="zip"):
        exact_mcnemar([True], [])


def test_holm():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005, 1), "holm")
    adjusted = holm(dict(zip("abcde", (0.01, 0.04, 0.03, 0.005, 1.0), strict=True)))
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": 1.0})
    assert holm({}) == {}
    assert holm({"one": 0.03}) == {"one": 0.03}


def test_sign_flips_of_few_items_are_all_tried():
    # s <- as.matrix(expand.grid(rep(list(c(-1, 1)), 8))); mean(abs(s %*% d) >= abs(sum(d)) - 1e-9)
    assert permutation_p_value(D) == pytest.approx(0.0625, abs=1e-12)
    assert permutation_p_value([-value for value in D]) == pytest.approx(0.0625, abs=1e-12)
    assert permutation_p_value([*D, 0.0, 0.0]) == permutation_p_value(D)  # a zero has no sign


def test_sign_flips_of_many_items_are_drawn():
    # u <- sin((1:300) * 1.7) + 0.08; 2 * pnorm(-abs(sum(u)) / sqrt(sum(u^2)))
    values = np.sin(np.arange(1, 301) * 1.7) + 0.08
    assert permutation_p_value(values) == pytest.approx(0.0457718250488213, abs=0.006)
    assert permutation_p_value(values) == permutation_p_value(values)


@pytest.mark.parametrize("values", [[], [0.0], [0.0] * 9, [1.0], [1.0, -1.0]])
def test_sign_flips_that_say_nothing(values):
    assert permutation_p_value(values) == 1.0


def test_a_paired_difference_over_items_is_the_paired_t_interval():
    # t.test(y, x, paired = TRUE): estimate, conf.int, stderr
    result = paired_difference(BEFORE, AFTER)
    assert result.value == pytest.approx(0.25)
    assert (result.low, result.high) == pytest.approx((-0.144934081750498, 0.644934081750498))
    assert result.error == pytest.approx(0.179435140641318)
    assert result.freedom == pytest.approx(11)
    # t.test(d)$conf.int
    result = paired_difference(np.zeros((8, 1)), np.array(D)[:, None], share=False)
    assert (result.low, result.high) == pytest.approx((0.00988214177157555, 0.890117858228424))


def clustered():
    # k <- rep(1:6, c(10, 20, 15, 30, 5, 20)); i <- seq_along(k)
    # z <- (((i*7) %% 5 == 0) | (k == 2 & i %% 2 == 0)) - ((i*3) %% 11 == 0 | (k == 4 & i %% 3 == 0))
    k = np.repeat(np.arange(1, 7), (10, 20, 15, 30, 5, 20))
    i = np.arange(1, len(k) + 1)
    plus = ((i * 7) % 5 == 0) | ((k == 2) & (i % 2 == 0))
    minus = ((i * 3) % 11 == 0) | ((k == 4) & (i % 3 == 0))
    return minus[:, None].astype(float), plus[:, None].astype(float), [f"task {one}" for one in k]


def test_a_difference_over_tasks_is_the_cluster_robust_interval():
    # e <- tapply(z - mean(z), k, sum); se <- sqrt(6/5 * sum(e^2)) / length(z)
    # mean(z) + c(-1, 1) * qt(.975, 5) * se; the bootstrap's error is that up to its draws and uneven sizes
    before, after, tasks = clustered()
    result = paired_difference(before, after, tasks)
    assert result.value == pytest.approx(0.1)
    assert result.error == pytest.approx(0.124659536337979, rel=0.06)
    assert result.freedom == 5
    assert (result.low, result.high) == pytest.approx((-0.220447539749255, 0.420447539749255), abs=0.02)
    # sd(z) / sqrt(length(z))
    assert paired_difference(before, after).error == pytest.approx(0.0611340636419152)
    assert bootstrap_interval((after - before)[:, 0], tasks).low == pytest.approx(result.low)


def test_other_tasks_are_never_better_known_than_these():
    before, after, _ = clustered()
    in_turn = [f"task {number % 4}" for number in range(len(before))]
    over_items, over_tasks = paired_difference(before, after), paired_difference(before, after, in_turn)
    assert over_tasks.error >= over_items.error
    assert over_tasks.freedom == 3
    assert over_tasks.high - over_tasks.low > over_items.high - over_items.low


def seeds():
    # a <- outer(1:40, 1:3, function(i, s) as.numeric((i*s*7 + i) %% 10 < 4 + s))
    # b <- outer(1:40, 1:2, function(i, s) as.numeric((i*(s + 2)*3 + i) %% 10 < 5 + 2*s))
    i = np.arange(1, 41)[:, None]
    three, two = np.arange(1, 4), np.arange(1, 3)
    a = (i * three * 7 + i) % 10 < 4 + three
    b = (i * (two + 2) * 3 + i) % 10 < 5 + 2 * two
    return a.astype(float), b.astype(float)


def test_seeds_add_their_variance():
    # vs <- function(m) { f <- data.frame(v = c(m), i = factor(row(m)), s = factor(col(m)))
    #   ms <- anova(lm(v ~ i + s, f))[["Mean Sq"]]; max(0, (ms[2] - ms[3]) / nrow(m)) / ncol(m) }
    # dd <- rowMeans(b) - rowMeans(a); v <- c(var(dd) / 40, vs(a), vs(b)); df <- c(39, 2, 1) f <- sum(v)^2 / sum(v^2 /
    # df); mean(dd) + c(-1, 1) * qt(.975, f) * sqrt(sum(v)) 2 * pt(-abs(mean(dd)) / sqrt(sum(v)), f)
    before, after = seeds()
    result = paired_difference(before, after)
    assert result.value == pytest.approx(0.15)
    assert result.error == pytest.approx(0.125149483268582)
    assert result.freedom == pytest.approx(3.25478515107745)
    assert (result.low, result.high) == pytest.approx((-0.23121169280831, 0.53121169280831))
    differences = after.mean(axis=1) - before.mean(axis=1)
    assert seeds_p_value(result, differences) == pytest.approx(0.310628183835843)
    # The items alone would have called it sure.
    assert permutation_p_value(differences) < 0.01


def test_wilson_where_every_resample_is_the_same():
    # prop.test(0, 20, correct = FALSE)$conf.int; prop.test(30, 30, correct = FALSE)$conf.int
    none, every = bootstrap_interval([0.0] * 20), bootstrap_interval([1.0] * 30, ["a", "b"] * 15)
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.161125158052819), abs=1e-12)
    assert (every.value, every.low, every.high) == pytest.approx((1.0, 0.886486606826031, 1.0))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_equal_values_of_another_scale_have_no_interval_of_a_share(value):
    interval = bootstrap_interval([value] * 5, share=False)
    assert (interval.value, interval.low, interval.high) == (value, value, value)
    interval = bootstrap_interval([value] * 6, ["a", "b"] * 3, share=False)
    assert (interval.low, interval.high) == (value, value)


def test_the_percentile_bootstrap_of_a_mean():
    # w <- (1:60)^1.5 / 100; bm <- replicate(100000, mean(sample(w, replace = TRUE))) quantile(bm, c(.025, .975))
    values = np.arange(1, 61) ** 1.5 / 100
    interval = bootstrap_interval(values)
    assert interval.value == pytest.approx(1.89791896660085)
    assert (interval.low, interval.high) == pytest.approx((1.5477336645939, 2.25699202608052), abs=0.03)
    assert bootstrap_interval(values) == interval
    assert bootstrap_interval(values, ["one"] * 60) == interval  # one cluster is none
    assert bootstrap_interval(values, seed=1) != interval
    narrow = bootstrap_interval(values, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_samples_share_their_draws():
    """Each has the interval of `scipy.stats.bootstrap` to the last bit, whichever other samples there are."""
    draw = np.random.default_rng(1)
    samples = [(draw.random(127) < 0.1 * number).astype(float) for number in range(1, 10)]  # more than an integer holds
    samples += [draw.normal(size=127), draw.normal(size=40), np.zeros(127), np.array([0.5])]
    intervals = bootstrap_intervals(samples, [True] * len(samples))
    for sample, interval in zip(samples[:-2], intervals, strict=False):
        rng = np.random.default_rng(0)
        alone = bootstrap((sample,), np.mean, method="percentile", n_resamples=2000, rng=rng).confidence_interval
        assert (interval.value, interval.low, interval.high) == (sample.mean(), *alone)
    assert intervals[-2:] == [bootstrap_interval(np.zeros(127)), bootstrap_interval([0.5])]


def test_minimum_detectable_effect():
    # power.t.test(n = 400, sd = .6, power = .8, type = "paired")$delta
    large = Difference(0.0, -1, 1, error=0.6 / 20, freedom=399)
    assert minimum_detectable_effect(large) == pytest.approx(0.0842668758600917, rel=1e-3)
    # power.t.test(n = 12, sd = sd(y - x), power = .8, type = "paired", strict = TRUE)$delta
    small = paired_difference(BEFORE, AFTER)
    assert minimum_detectable_effect(small) == pytest.approx(0.552373073080147, rel=2e-3)
    assert minimum_detectable_effect(small, power=0.9) > minimum_detectable_effect(small)


def test_one_item_says_nothing():
    one = np.ones((1, 1))
    result = paired_difference(0 * one, one)
    assert (result.value, result.low, result.high) == (1.0, -1.0, 1.0)
    assert minimum_detectable_effect(result) == math.inf
    assert seeds_p_value(paired_difference(np.zeros((1, 2)), np.ones((1, 3))), [1.0]) == 1.0
    result = paired_difference(0 * one, one, share=False)
    assert (result.low, result.high) == (-math.inf, math.inf)
    assert bootstrap_interval([0.3]) == bootstrap_interval([0.3], ["a"])
    assert bootstrap_interval([0.3]).low == 0.3


def test_one_task_says_nothing_of_others():
    result = paired_difference(BEFORE, AFTER, ["only"] * 12)
    assert (result.value, result.low, result.high) == (0.25, -1.0, 1.0)


@pytest.mark.parametrize("clusters", [None, ["a", "b", "c", "d"] * 5])
def test_no_item_that_differs_is_as_one_that_does(clusters):
    same = np.tile([[1.0], [0.0]], (10, 1))
    result = paired_difference(same, same, clusters)
    assert (result.value, result.error) == (0.0, 1 / 20)
    assert -0.2 < result.low < 0 < result.high < 0.2
    assert minimum_detectable_effect(result) > 0.05
    assert seeds_p_value(result, np.zeros(20)) == 1.0
    # Margins in nats have no unit of one item.
    result = paired_difference(same, same, clusters, share=False)
    assert (result.value, result.low, result.high) == (0.0, 0.0, 0.0)


def test_all_items_changed_alike():
    zeros, ones = np.zeros((20, 1)), np.ones((20, 1))
    result = paired_difference(zeros, ones)
    assert result.value == 1.0
    assert 0.85 < result.low < 1.0
    assert result.high == 1.0  # a difference of shares goes no further
    several = paired_difference(np.zeros((5, 3)), np.ones((5, 3)))
    assert seeds_p_value(several, np.ones(5)) == 0.0625  # 2 of 2**5 flips, however sure t is


def test_nothing_is_nan_save_without_values():
    assert math.isnan(bootstrap_interval([]).value)
    for items, first, second in [(1, 1, 1), (1, 2, 3), (2, 1, 1), (2, 2, 2), (3, 1, 4)]:
        for value in (0.0, 1.0):
            result = paired_difference(np.zeros((items, first)), np.full((items, second), value))
            assert not any(map(math.isnan, (result.value, result.low, result.high, result.freedom)))
            assert result.low <= result.value <= result.high


def coverage(trials, items, seeds=(1, 1), seed_spread=0.0, tasks=None, task_spread=0.0):
    """How often the interval holds the true change, which is 0.03."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(trials):
        easiness = random.uniform(0.2, 0.8, items)
        change = 0.03 + random.uniform(-0.1, 0.1, items)
        names = np.arange(items) % (tasks or 1)
        change += task_spread * random.standard_normal(tasks or 1)[names]
        tables = []
        for chance, count in zip((easiness, easiness + change), seeds, strict=True):
            shift = seed_spread * random.standard_normal(count)
            draws = random.random((items, count))
            tables.append((draws < np.clip(chance[:, None] + shift, 0, 1)).astype(float))
        result = paired_difference(*tables, names if tasks else None, resamples=300)
        held += result.low <= 0.03 <= result.high
    return held / trials


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"items": 25}, 0.935),
        ({"items": 400}, 0.935),
        ({"items": 400, "seeds": (3, 3)}, 0.935),
        ({"items": 400, "seeds": (3, 3), "seed_spread": 0.03}, 0.91),
        ({"items": 400, "seeds": (5, 5), "seed_spread": 0.03}, 0.91),
        ({"items": 200, "tasks": 3, "task_spread": 0.05}, 0.935),
        ({"items": 400, "tasks": 8, "task_spread": 0.1}, 0.92),
        ({"items": 400, "tasks": 27, "task_spread": 0.05}, 0.93),
        ({"items": 400, "tasks": 6, "task_spread": 0.05, "seeds": (3, 3), "seed_spread": 0.02}, 0.93),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(settings, least):
    assert least <= coverage(1500, **settings) <= 0.995
