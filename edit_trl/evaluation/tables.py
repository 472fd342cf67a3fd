"""Runs as plain-text tables (L3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edit_trl.evaluation.runs import Run
from edit_trl.evaluation.scores import GROUPS, SCORES

# Means of log-probabilities; everything else is a share.
_IN_NATS = frozenset({"margin", "key_margin"})
_MOST_GROUPS = 40


def run_table(run: Run) -> str:
    """Every score overall, with its 95% interval, then by task, kind of mistake and source.

    Scores that no item has are left out, and groupings with a single group, which is all of them.
    """
    record = run.record
    names = [name for name in SCORES[record.kind] if record.scores.get(name) is not None]
    rows = [["", "items", *(name.replace("_", " ") for name in names)]]
    rows.append(["all", str(record.items), *(shown(name, record.scores[name]) for name in names)])
    rows.append(["95% interval", "", *(_interval(name, record.intervals.get(name)) for name in names)])
    blocks = [rows]
    for group in GROUPS:
        members = record.groups.get(group, {})
        if len(members) > 1:
            block = [_member_row(name, scores, names) for name, scores in members.items()]
            more = len(block) - _MOST_GROUPS
            blocks.append(block[:_MOST_GROUPS] + ([[f"and {more} more"]] if more > 0 else []))
    return f"{record.name}\n{aligned(blocks)}"


def _member_row(name: str, scores: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return [name, f"{scores['items']:.0f}", *(shown(score, scores.get(score)) for score in names)]


def shown(score: str, value: float | None) -> str:
    """A score's value as people read it: a share in percent, a margin in nats."""
    if value is None:
        return "-"
    return f"{value:+.3f}" if score in _IN_NATS else f"{value:.1%}"


def _interval(score: str, interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"{low:+.2f} {high:+.2f}" if score in _IN_NATS else f"{100 * low:.1f} to {100 * high:.1f}"


def aligned(blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    """Rows of cells in columns, a rule between blocks; the first column to the left, numbers to the right."""
    width = max(len(row) for block in blocks for row in block)
    full = [[[*row, *[""] * (width - len(row))] for row in block] for block in blocks]
    widths = [max(len(row[column]) for block in full for row in block) for column in range(width)]
    lines: list[str] = []
    for block in full:
        if lines:
            lines.append("-" * (sum(widths) + 2 * (width - 1)))
        for first, *cells in block:
            numbers = (cell.rjust(size) for cell, size in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)
