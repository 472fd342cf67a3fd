"""Comparison of two or more systems on the same items: what changed, and how certain the change is.

    from edit_trl import compare_runs
    comparison = compare_runs("outputs/base", ["outputs/edit_seed0", "outputs/edit_seed1"])

Every system is compared with the baseline, item by item, overall and in groups. See `statistics.py` for the
intervals and tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any, Literal

import numpy as np

from edit_trl.common.errors import InputError
from edit_trl.common.options import nearest
from edit_trl.evaluation.compare.matching import (
    Aligned,
    Key,
    Runs,
    System,
    align,
    check_comparable,
    read_systems,
    setting_differences,
)
from edit_trl.evaluation.runs.schema import RunKind, key_of
from edit_trl.evaluation.runs.scores import LOWER_IS_BETTER, MAIN_SCORE, SCORES, UNITS, names_in
from edit_trl.evaluation.statistics import (
    LEVEL,
    Difference,
    exact_mcnemar,
    holm,
    minimum_detectable_effect,
    paired_difference,
    permutation_p_value,
    seeds_p_value,
)

GroupBy = Literal["task", "mistake", "source"]
Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Flips:
    """How many items changed between right and wrong.

    With several seeds these are means over all pairs of seeds, so not always whole numbers.

    Attributes:
        fixed: Items that are wrong in the baseline and right in the other system.
        broken: Items that are right in the baseline and wrong in the other system.
        both_right: Items that are right in both.
        both_wrong: Items that are wrong in both.
    """

    fixed: float
    broken: float
    both_right: float
    both_wrong: float


@dataclass(frozen=True)
class PairedScores:
    """A score of two systems on the same items.

    Attributes:
        name: Name of the group.
        items: Number of items.
        baseline: Mean score of the baseline.
        other: Mean score of the other system.
        difference: `other - baseline`, with its interval on these tasks.
        p_value: Two-sided p-value of no difference.
        adjusted_p_value: The p-value adjusted by Holm's method for the number of groups; None overall.
        gain: The difference in the direction of a better score: positive is an improvement.
        verdict: "better" or "worse" where the interval of the difference excludes 0, else "no difference shown".
        flips: None if the items are not simply right or wrong by this score.
        minimum_detectable_effect: The smallest true change that is detected with a power of 80%.
    """

    name: str
    items: int
    baseline: float
    other: float
    difference: Difference
    p_value: float
    adjusted_p_value: float | None
    gain: float
    verdict: Verdict
    flips: Flips | None
    minimum_detectable_effect: float

    @property
    def final_p_value(self) -> float:
        """The p-value; in groups, the one that is adjusted by Holm's method."""
        return self.p_value if self.adjusted_p_value is None else self.adjusted_p_value

    @property
    def significantly_worse(self) -> bool:
        """Whether the score is significantly worse (5%; in groups, adjusted by Holm's method)."""
        return self.gain < 0 and self.final_p_value < 1 - LEVEL


@dataclass(frozen=True)
class SystemComparison:
    """One system against the baseline.

    Attributes:
        name: Name of the system.
        seeds: Number of seeds of the baseline and of the system.
        test: The test that gives the p-values.
        overall: The score over all items.
        over_tasks: The difference with its interval on other tasks like these; None with one task.
        tasks: Number of tasks.
        groups: The score of each group, by name.
        missing: For each run, the items that it lacks and another run has.
        unscored: Items that do not have the score in every run.
        fixed_items: (task, id) of the fixed items; None with several seeds, or if items are not right or wrong.
        broken_items: (task, id) of the broken items; None with several seeds, or if items are not right or wrong.
    """

    name: str
    seeds: tuple[int, int]
    test: str
    overall: PairedScores
    over_tasks: Difference | None
    tasks: int
    groups: dict[str, PairedScores]
    missing: dict[str, list[Key]]
    unscored: list[Key]
    fixed_items: list[Key] | None
    broken_items: list[Key] | None


@dataclass(frozen=True)
class Comparison:
    """Systems against a baseline.

    Attributes:
        kind: The kind of the runs.
        score: Name of the compared score.
        baseline: Name of the baseline.
        by: How items are grouped.
        systems: The other systems, in the order given.
        settings: Other settings in which the runs differ, which a person must judge.
    """

    kind: RunKind
    score: str
    baseline: str
    by: GroupBy
    systems: list[SystemComparison]
    settings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as values that JSON can hold; an infinite bound becomes None."""
        return _finite(asdict(self))


def compare_runs(
    baseline: Runs, *others: Runs, score: str | None = None, by: GroupBy = "task", any_decoding: bool = False
) -> Comparison:
    """Compare systems with a baseline, on the items that they share.

    Args:
        baseline: A run or its folder; or several of them, one per seed.
        others: The other systems, each given like the baseline.
        score: A name in `edit_trl.evaluation.runs.scores.SCORES`; the main score of the kind by default.
        by: How items are grouped; an item may be in the groups of several kinds of mistake.
        any_decoding: Whether to compare runs although their decoding differs, such as greedy decoding with
            self-consistency.

    Returns:
        The difference, its intervals and its p-value, overall and by group.

    Raises:
        InputError: A run cannot be read, is not finished or was written by another version; runs differ in their kind,
            questions, versions of a task or answer check; they share no item; or the score is unknown.
    """
    if not others:
        raise InputError("nothing to compare with: give the baseline and at least one other run")
    systems = read_systems((baseline, *others))
    kind = systems[0].runs[0].record.kind
    score = score or MAIN_SCORE[kind]
    if score not in SCORES[kind]:
        hint = nearest(score, SCORES[kind]) or f"; choose from {', '.join(SCORES[kind])}"
        raise InputError(f"`{kind}` has no score {score!r}{hint}")
    check_comparable(systems, score, any_decoding)
    first, *rest = systems
    compared = [_compare(first, system, score, by) for system in rest]
    return Comparison(kind, score, first.name, by, compared, setting_differences(systems))


def _compare(baseline: System, other: System, score: str, by: GroupBy) -> SystemComparison:
    aligned = align(baseline, other, score)
    before, after = aligned.before, aligned.after
    tasks = [item["task"] for item in aligned.items]
    indexes: dict[str, list[int]] = {}
    for index, item in enumerate(aligned.items):
        for name in names_in(item, by):
            indexes.setdefault(name, []).append(index)
    binary = bool(np.isin(np.hstack([before, after]), (0.0, 1.0)).all())
    groups = {name: _paired(name, before[rows], after[rows], score, binary) for name, rows in indexes.items()}
    adjusted = holm({name: group.p_value for name, group in groups.items()})
    over_tasks = paired_difference(before, after, tasks, share=score not in UNITS)
    single_seeds = max(before.shape[1], after.shape[1]) == 1
    fixed, broken = _flipped_items(aligned, score) if binary and single_seeds else (None, None)
    return SystemComparison(
        name=other.name,
        seeds=(before.shape[1], after.shape[1]),
        test=("exact McNemar test" if binary else "sign-flip permutation test")
        if single_seeds
        else "t test over items and seeds",
        overall=_paired("all", before, after, score, binary),
        over_tasks=over_tasks if len(set(tasks)) > 1 else None,
        tasks=len(set(tasks)),
        groups={name: replace(group, adjusted_p_value=adjusted[name]) for name, group in groups.items()},
        missing=aligned.missing,
        unscored=aligned.unscored,
        fixed_items=fixed,
        broken_items=broken,
    )


def _paired(name: str, before: np.ndarray, after: np.ndarray, score: str, binary: bool) -> PairedScores:
    """Compare one group, by scores of shape (items, seeds); `binary` tells whether each is 0 or 1."""
    difference = paired_difference(before, after, share=score not in UNITS)
    gain = 0.0 if abs(difference.value) < 1e-12 else difference.value  # rounding
    if score in LOWER_IS_BETTER:
        gain = -gain
    return PairedScores(
        name=name,
        items=len(before),
        baseline=float(before.mean()),
        other=float(after.mean()),
        difference=difference,
        p_value=_p_value(before, after, difference, binary),
        adjusted_p_value=None,
        gain=gain,
        verdict=_verdict(gain, difference),
        flips=_flips(before, after, score) if binary else None,
        minimum_detectable_effect=minimum_detectable_effect(difference),
    )


def _verdict(gain: float, difference: Difference) -> Verdict:
    if not gain or difference.low <= 0 <= difference.high:
        return "no difference shown"
    return "better" if gain > 0 else "worse"


def _p_value(before: np.ndarray, after: np.ndarray, difference: Difference, binary: bool) -> float:
    differences = after.mean(axis=1) - before.mean(axis=1)
    if max(before.shape[1], after.shape[1]) > 1:
        return seeds_p_value(difference, differences)
    if binary:
        return exact_mcnemar(before[:, 0] > 0, after[:, 0] > 0).p_value
    return permutation_p_value(differences)


def _flips(before: np.ndarray, after: np.ndarray, score: str) -> Flips:
    a, b = (_right(table, score).mean(axis=1) for table in (before, after))
    counts = ((1 - a) @ b, a @ (1 - b), a @ b, (1 - a) @ (1 - b))
    return Flips(*(round(float(count), 6) for count in counts))


def _flipped_items(aligned: Aligned, score: str) -> tuple[list[Key], list[Key]]:
    """Return the fixed and the broken items, with one seed of each system."""
    changes = (_right(aligned.after, score) - _right(aligned.before, score))[:, 0]
    keys = [key_of(item) for item in aligned.items]
    return list(compress(keys, changes == 1)), list(compress(keys, changes == -1))


def _right(table: np.ndarray, score: str) -> np.ndarray:
    return 1 - table if score in LOWER_IS_BETTER else table


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(one) for one in value]
    return value
