"""Scores, p-values and counts as text."""

from __future__ import annotations

import math

from edit_trl.evaluation.runs.scores import UNITS
from edit_trl.evaluation.statistics import Difference


def value_of(value: float, score: str) -> str:
    """Format a score, in percent, nats or tokens."""
    return f"{value:.3f}" if score in UNITS else f"{value:.1%}"


def amount(value: float, score: str, sign: bool = True) -> str:
    """Format a difference of scores with its unit, percentage points, nats or tokens."""
    return f"{number(value, score, sign)} {UNITS.get(score, 'points')}"


def number(value: float, score: str, sign: bool = True) -> str:
    """Format a difference of scores without its unit."""
    if not math.isfinite(value):
        return "any" if sign else "-"
    plus = "+" if sign else ""
    text = f"{value:{plus}.3f}" if score in UNITS else f"{100 * value:{plus}.1f}"
    return text if float(text) else text.lstrip("+-")  # no -0.0


def interval_text(difference: Difference, score: str) -> str:
    """Format the interval of a difference, such as +1.0 to +3.0."""
    if not math.isfinite(difference.error):
        return "unknown"
    return f"{number(difference.low, score)} to {number(difference.high, score)}"


def p_text(p_value: float) -> str:
    """Format a p-value with three decimals."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def count_text(count: float) -> str:
    """Format a count, or a mean count over pairs of seeds."""
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.1f}"
