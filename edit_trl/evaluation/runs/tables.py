"""Runs as plain-text tables (L3)."""

from __future__ import annotations

from edit_trl.common.tables import aligned
from edit_trl.common.terminal import visible_line
from edit_trl.evaluation.runs.schema import Run, RunKind
from edit_trl.evaluation.runs.scores import GROUPS, IN_NATS, SCORES

# What fits beside the name of a group.
_IN_GROUPS: dict[RunKind, tuple[str, ...]] = {
    "evaluate": tuple(SCORES["evaluate"]),
    "suite": (
        *("preference", "key_preference", "key_margin", "no_wrong_turn", "right_branch", "greedy_accuracy"),
    ),
}

_ITEMS: dict[RunKind, str] = {"evaluate": "questions", "suite": "pairs"}


def run_table(run: Run) -> str:
    """Every score with its 95% interval, then the main ones by task, kind of mistake and source.

    Scores that no item has are left out, and a grouping whose single group is all there is.
    """
    record, items = run.record, _ITEMS[run.record.kind]
    rows = [["", "score", "95% interval"]]
    for name, value in record.scores.items():
        if value is not None:
            low, high = (shown(name, bound) for bound in record.intervals[name])
            rows.append([name, shown(name, value), f"{low} to {high}"])
    tables = [aligned([rows[:1], rows[1:]])]
    names = [name for name in _IN_GROUPS[record.kind] if record.scores.get(name) is not None]
    for group in GROUPS:
        members = record.groups.get(group, {})
        if members and [of["items"] for of in members.values()] != [record.items]:
            rows = [
                [name, f"{of['items']:.0f}", *(shown(score, of[score]) for score in names)]
                for name, of in members.items()
            ]
            tables.append(aligned([[[group, items, *names]], rows]))
    return "\n\n".join([f"{visible_line(record.name)}: {record.items} {items}", *tables])


def shown(score: str, value: float | None) -> str:
    """A score's value as people read it: a share in percent, a margin in nats."""
    if value is None:
        return "-"
    return f"{value:+.3f}" if score in IN_NATS else f"{value:.1%}"
