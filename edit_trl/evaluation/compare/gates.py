"""Gates: conditions that a comparison must meet in CI, and their results as JUnit XML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from edit_trl.common.errors import raise_problems
from edit_trl.common.terminal import visible, visible_line
from edit_trl.evaluation.compare.comparison import Comparison, SystemComparison
from edit_trl.evaluation.compare.score_text import amount, count_text, value_of
from edit_trl.evaluation.runs.scores import LOWER_IS_BETTER, UNITS
from edit_trl.evaluation.statistics import LEVEL

# A drop of exactly the allowed amount passes despite rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Gates:
    """Conditions that every system must meet; None for no condition.

    Attributes:
        min_score: The lowest allowed score, as a share between 0 and 1 or in nats.
        max_drop: The most by which the score may be worse than the baseline's, in the same unit.
        no_significant_regression: Whether the score must not be significantly worse (5%), overall or in any
            group (adjusted by Holm's method).
        max_broken: The most items that are right in the baseline and wrong in the system.
    """

    min_score: float | None = None
    max_drop: float | None = None
    no_significant_regression: bool = False
    max_broken: float | None = None

    def __bool__(self) -> bool:
        return self != Gates()


@dataclass(frozen=True)
class GateResult:
    """The result of a gate for a system.

    Attributes:
        gate: Name of the gate, as on the command line.
        system: Name of the system.
        passed: Whether the system met the gate.
        message: The measured value and the condition.
    """

    gate: str
    system: str
    passed: bool
    message: str


def check_gates(comparison: Comparison, gates: Gates) -> list[GateResult]:
    """Check which gates each system meets.

    Raises:
        InputError: A gate does not apply to the score, or its value is out of range.
    """
    _check(comparison, gates)
    results = []
    for system in comparison.systems:
        if gates.min_score is not None:
            results.append(_min_score(system, gates.min_score, comparison.score))
        if gates.max_drop is not None:
            results.append(_max_drop(system, gates.max_drop, comparison.score))
        if gates.no_significant_regression:
            results.append(_no_regression(system, comparison))
        if gates.max_broken is not None:
            results.append(_max_broken(system, gates.max_broken))
    return results


def junit_xml(results: Sequence[GateResult]) -> bytes:
    """Return JUnit XML with one test case per gate and system."""
    return _junit(
        (f"{result.gate}: {result.system}", "system-out" if result.passed else "failure", result.message, "gate")
        for result in results
    )


def junit_error_xml(message: str) -> bytes:
    """Return JUnit XML of a comparison that could not be made."""
    return _junit([("compare", "error", message, "InputError")])


def _junit(cases: Iterable[tuple[str, str, str, str]]) -> bytes:
    """Return JUnit XML of test cases: of each its name, outcome (a tag), message, and type of failure."""
    cases = list(cases)
    outcomes = Counter(outcome for _, outcome, _, _ in cases)
    counts = {"tests": len(cases), "failures": outcomes["failure"], "errors": outcomes["error"]}
    root = ElementTree.Element("testsuites")
    attributes = {"name": "edit-trl compare", **{name: str(count) for name, count in counts.items()}}
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for name, outcome, message, kind in cases:
        case = ElementTree.SubElement(suite, "testcase", classname="edit-trl.compare", name=visible_line(name))
        element = ElementTree.SubElement(case, outcome)
        element.text = visible(message)
        if outcome != "system-out":
            element.attrib |= {"message": visible_line(message.partition("\n")[0]), "type": kind}
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _check(comparison: Comparison, gates: Gates) -> None:
    score = comparison.score
    options = {"--max-broken": gates.max_broken, "--max-drop": gates.max_drop, "--min-score": gates.min_score}
    limits = {name: limit for name, limit in options.items() if limit is not None}
    errors = []
    for name, limit in limits.items():
        if not math.isfinite(limit):
            errors.append(f"{name} must be a finite number")
        if limit < 0 and name != "--min-score":
            errors.append(f"{name} cannot be negative, got {limit}")
        if limit > 1 and name != "--max-broken" and score not in UNITS:
            errors.append(f"{name} {limit:g}: `{score}` is a share between 0 and 1; write 0.5, or 50%")
    if score in LOWER_IS_BETTER and gates.min_score is not None:
        errors.append(f"--min-score: the lower `{score}` the better; use --max-drop")
    if gates.max_broken is not None and any(system.overall.flips is None for system in comparison.systems):
        errors.append(f"--max-broken: nothing is right or wrong by `{score}`; use --max-drop")
    raise_problems(errors)


def _min_score(system: SystemComparison, least: float, score: str) -> GateResult:
    value = system.overall.other
    message = f"{score} is {value_of(value, score)}, at least {value_of(least, score)} is required"
    return GateResult("min-score", system.name, value >= least - _ROUNDING, message)


def _max_drop(system: SystemComparison, most: float, score: str) -> GateResult:
    change = system.overall.difference.value
    drop = change if score in LOWER_IS_BETTER else -change
    message = (
        f"{score} changed by {amount(change, score)}, from {value_of(system.overall.baseline, score)} to "
        f"{value_of(system.overall.other, score)}; it may get worse by {amount(most, score, sign=False)}"
    )
    return GateResult("max-drop", system.name, drop <= most + _ROUNDING, message)


def _no_regression(system: SystemComparison, comparison: Comparison) -> GateResult:
    worse = [group for group in (system.overall, *system.groups.values()) if group.significantly_worse]
    parts = [
        f"{group.name} by {amount(abs(group.difference.value), comparison.score, sign=False)} "
        f"(p = {group.final_p_value:.2g})"
        for group in worse
    ]
    message = f"significantly worse ({1 - LEVEL:.0%}): " + (", ".join(parts) or "nothing")
    return GateResult("no-significant-regression", system.name, not worse, message)


def _max_broken(system: SystemComparison, most: float) -> GateResult:
    broken = system.overall.flips.broken if system.overall.flips else math.inf
    message = f"right before and wrong now: {count_text(broken)}, at most {count_text(most)} may be"
    return GateResult("max-broken", system.name, broken <= most + _ROUNDING, message)
