"""Two or more systems on the same items (L3): what changed, and how sure that is.

    from edit_trl import compare_runs
    comparison = compare_runs("outputs/base", ["outputs/edit_seed0", "outputs/edit_seed1"])

Each other system is compared with the baseline, item by item, overall and in groups. See `statistics.py` for
the intervals and tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from edit_trl.evaluation.runs.scores import IN_NATS, LOWER_IS_BETTER, MAIN_SCORE, SCORES, names_in
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


@dataclass(frozen=True)
class Flips:
    """What became of items that are right or wrong.

    With several seeds, the mean over every pairing of their seeds, so not always whole.

    Attributes:
        fixed: Wrong in the baseline, right in the other.
        broken: The other way round.
        both_right: Right in both.
        both_wrong: Wrong in both.
    """

    fixed: float
    broken: float
    both_right: float
    both_wrong: float


@dataclass(frozen=True)
class PairedScores:
    """A score of two systems on the same items.

    Attributes:
        name: Of the group.
        items: How many.
        baseline: The baseline's mean.
        other: The other's.
        difference: How much higher the other's is, with its interval on these tasks.
        p_value: Two-sided, of no difference.
        adjusted_p_value: By Holm's method, for there being several groups; None overall.
        better: Whether the change is to the better; None where there is none.
        flips: None for a score that is not right or wrong.
        minimum_detectable_effect: The smallest true change that so many items show, 4 times in 5.
    """

    name: str
    items: int
    baseline: float
    other: float
    difference: Difference
    p_value: float
    adjusted_p_value: float | None
    better: bool | None
    flips: Flips | None
    minimum_detectable_effect: float

    @property
    def significantly_worse(self) -> bool:
        """Whether the change is to the worse, and no chance (5%; of several groups, by Holm's method)."""
        p_value = self.p_value if self.adjusted_p_value is None else self.adjusted_p_value
        return self.better is False and p_value < 1 - LEVEL


@dataclass(frozen=True)
class SystemComparison:
    """One system against the baseline.

    Attributes:
        name: The system.
        seeds: Of the baseline and of the system.
        test: What gives the p-values.
        overall: Over all items.
        over_tasks: The difference with its interval on other tasks like these; None with one task.
        tasks: How many.
        groups: By name.
        missing: By run, the items that it lacks and another has.
        unscored: Items that do not have the score in every run.
        fixed_items: (task, id) of items that the system mended; None with several seeds, or where nothing is
            right or wrong.
        broken_items: Likewise, of the other ones.
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
        kind: Of the runs.
        score: What is compared.
        baseline: The baseline.
        by: What the groups are.
        systems: The others, in the order given.
        settings: Settings in which the runs differ, for a person to judge.
    """

    kind: RunKind
    score: str
    baseline: str
    by: GroupBy
    systems: list[SystemComparison]
    settings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; a bound that is infinite is None."""
        return _finite(asdict(self))


def compare_runs(
    baseline: Runs,
    *others: Runs,
    score: str | None = None,
    by: GroupBy = "task",
    any_decoding: bool = False,
) -> Comparison:
    """Compare systems with a baseline, on the items that they share.

    Args:
        baseline: A run, its folder, or several of them: its seeds.
        others: Likewise, each a system.
        score: A name in `edit_trl.evaluation.runs.scores.SCORES`; by default the kind's main score.
        by: What the groups are; an item may be in several kinds of mistake.
        any_decoding: Compare though decoding differs, as greedy with self-consistency.

    Returns:
        The difference, its intervals and p-value, overall and by group.

    Raises:
        InputError: Runs that cannot be read, are not finished or were written by another version; that asked
            something else, in another version of a task, judged otherwise or of another kind; that share no
            item; an unknown score.
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
    members: dict[str, list[int]] = {}
    for index, item in enumerate(aligned.items):
        for name in names_in(item, by):
            members.setdefault(name, []).append(index)
    binary = bool(np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all())
    groups = {name: _paired(name, before[of], after[of], score, binary) for name, of in members.items()}
    adjusted = holm({name: group.p_value for name, group in groups.items()})
    over_tasks = paired_difference(before, after, tasks, share=score not in IN_NATS)
    one_each = max(before.shape[1], after.shape[1]) == 1
    fixed, broken = _flipped_items(aligned, score) if binary and one_each else (None, None)
    return SystemComparison(
        name=other.name,
        seeds=(before.shape[1], after.shape[1]),
        test=("exact McNemar test" if binary else "sign-flip permutation test")
        if one_each
        else "t test over items and seeds",
        overall=_paired("all", before, after, score, binary),
        over_tasks=over_tasks if len(set(tasks)) > 1 else None,
        tasks=len(set(tasks)),
        groups={name: replace(of, adjusted_p_value=adjusted[name]) for name, of in groups.items()},
        missing=aligned.missing,
        unscored=aligned.unscored,
        fixed_items=fixed,
        broken_items=broken,
    )


def _paired(name: str, before: np.ndarray, after: np.ndarray, score: str, binary: bool) -> PairedScores:
    """Compare one group. `before`, `after`: (items, seeds); `binary`: every score is right or wrong."""
    difference = paired_difference(before, after, share=score not in IN_NATS)
    change = -difference.value if score in LOWER_IS_BETTER else difference.value
    return PairedScores(
        name=name,
        items=len(before),
        baseline=float(before.mean()),
        other=float(after.mean()),
        difference=difference,
        p_value=_p_value(before, after, difference, binary),
        adjusted_p_value=None,
        better=None if abs(change) < 1e-12 else change > 0,
        flips=_flips(before, after, score) if binary else None,
        minimum_detectable_effect=minimum_detectable_effect(difference),
    )


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
    """Items that were fixed and items that were broken, of one seed each."""
    change = (_right(aligned.after, score) - _right(aligned.before, score))[:, 0]
    fixed, broken = (
        [key_of(item) for item, moved in zip(aligned.items, change, strict=True) if moved == wanted]
        for wanted in (1, -1)
    )
    return fixed, broken


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
