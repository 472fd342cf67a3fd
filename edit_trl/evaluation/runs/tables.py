"""Runs as plain-text tables."""

from __future__ import annotations

from collections.abc import Iterable

from edit_trl.common.tables import aligned
from edit_trl.common.terminal import visible_line
from edit_trl.evaluation.runs.schema import Run, RunKind
from edit_trl.evaluation.runs.scores import GROUPS, UNITS

# The scores that are also shown for each group.
_IN_GROUPS: dict[RunKind, tuple[str, ...]] = {
    "evaluate": ("accuracy", "majority_accuracy", "lenient_accuracy", "unparsed", "cut_off"),
    "suite": (*("preference", "key_preference", "key_margin", "no_wrong_turn", "right_branch", "greedy_accuracy"),),
}

_ITEMS: dict[RunKind, str] = {"evaluate": "questions", "suite": "pairs"}


def run_table(run: Run) -> str:
    """Format every score with its 95% interval, then the main scores by task, kind of mistake and source.

    Scores that no item has are left out, as is a grouping with a single group of all items.
    """
    record, items = run.record, _ITEMS[run.record.kind]
    rows = [["", "score", "95% interval"]]
    for name in shown_scores(run):
        low, high = (format_score(name, bound) for bound in record.intervals.get(name, (None, None)))
        rows.append([name, format_score(name, record.scores[name]), f"{low} to {high}"])
    tables = [aligned([rows[:1], rows[1:]])]
    names = [name for name in _IN_GROUPS[record.kind] if record.scores.get(name) is not None]
    for group in GROUPS:
        groups = record.groups.get(group, {})
        if groups and [means.get("items") for means in groups.values()] != [record.items]:
            rows = [
                [name, f"{means.get('items') or 0:.0f}", *(format_score(score, means.get(score)) for score in names)]
                for name, means in groups.items()
            ]
            tables.append(aligned([[[group, items, *names]], rows]))
    return "\n\n".join([f"{visible_line(record.name)}: {record.items} {items}", *tables])


def shown_scores(run: Run) -> list[str]:
    """Return the names of the scores that a run has."""
    return [name for name, value in run.record.scores.items() if value is not None]


def score_meanings(names: Iterable[str]) -> str:
    """Return what each score is, as lines of plain text."""
    from edit_trl.evaluation.report.summary import SCORE_LABELS

    rows = [[name, SCORE_LABELS[name][1]] for name in names if name in SCORE_LABELS]
    return aligned([rows], left=2)


def format_score(score: str, value: float | None) -> str:
    """Format the value of a score: a share in percent, a margin in nats, a number of tokens."""
    if value is None:
        return "-"
    if score not in UNITS:
        return f"{value:.1%}"
    return f"{value:+.3f}" if UNITS[score] == "nats" else f"{value:,.1f}"
