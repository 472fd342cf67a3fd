"""A comparison as text: for the terminal, and as Markdown for a pull request.

Names come from files, so markup and control characters in them are not interpreted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edit_trl.common.markdown import text
from edit_trl.common.terminal import visible, visible_line
from edit_trl.evaluation.compare.comparison import Comparison, PairedScores, SystemComparison
from edit_trl.evaluation.compare.gates import GateResult
from edit_trl.evaluation.compare.score_text import amount, count_text, interval_text, number, p_text, value_of
from edit_trl.evaluation.runs.schema import name_items
from edit_trl.evaluation.statistics import LEVEL

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_comparison(comparison: Comparison, gates: Sequence[GateResult], console: Console) -> None:
    """Print a comparison: the change overall and by group, and the results of the gates."""
    for system in comparison.systems:
        _plain(console, f"{comparison.score}: {system.name} against {comparison.baseline}", "bold")
        lines = _summary(comparison, system)
        width = max(len(title) for title, _ in lines)
        for title, line in lines:
            _plain(console, f"  {title:<{width}}  {line}")
        if system.groups:
            console.print(_table(comparison, system, console))
        else:
            _plain(console, f"  no item has a {comparison.by}\n")
    for result in gates:
        verdict, style = ("pass", "green") if result.passed else ("FAIL", "bold red")
        _plain(console, f"{verdict}  {result.gate}: {result.system}: {result.message}", style)


def _plain(console: Console, line: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(visible(line), style=style), soft_wrap=True)


def _summary(comparison: Comparison, system: SystemComparison) -> list[tuple[str, str]]:
    """Return the (title, line) pairs that summarize a system, in the terminal and in Markdown."""
    score, overall = comparison.score, system.overall
    tasks = f"{system.tasks} task{'s' if system.tasks > 1 else ''}"
    p_value = p_text(overall.p_value).replace("<", "< ") if overall.p_value < 0.001 else f"= {p_text(overall.p_value)}"
    lines = [
        ("items", f"{overall.items:,} in {tasks}"),
        (
            "change",
            f"{amount(overall.difference.value, score)}, {overall.verdict}: {value_of(overall.baseline, score)} to "
            f"{value_of(overall.other, score)}; p {p_value} ({system.test})",
        ),
        (f"{LEVEL:.0%}", f"{interval_text(overall.difference, score)} on these tasks"),
    ]
    if system.over_tasks:
        lines.append((f"{LEVEL:.0%}", f"{interval_text(system.over_tasks, score)} on other tasks like these"))
    effect = overall.minimum_detectable_effect
    if math.isfinite(effect):
        lines.append(("power", f"a true change of {amount(effect, score, sign=False)} is seen 4 times in 5"))
    if overall.flips:
        counts = map(count_text, vars(overall.flips).values())
        titles = ("fixed", "broken", "right in both", "wrong in both")
        lines.append(("flips", ", ".join(map(" ".join, zip(counts, titles, strict=True)))))
    return lines + [("note", line) for line in _notes(comparison, system)]


def _notes(comparison: Comparison, system: SystemComparison) -> list[str]:
    lines = [
        f"{path} lacks {len(keys):,} item{'s' if len(keys) > 1 else ''} of the other ({name_items(keys, 3)})"
        for path, keys in system.missing.items()
    ]
    if system.unscored:
        lines.append(f"{len(system.unscored):,} items have no {comparison.score} ({name_items(system.unscored, 3)})")
    if system.seeds == (1, 1):
        lines.append("one seed each: what another training run would change is not in the intervals")
    else:
        lines.append(f"seeds: {system.seeds[0]} of the baseline, {system.seeds[1]} of {system.name}")
    return lines + [f"setting {line}" for line in comparison.settings]


def _table(comparison: Comparison, system: SystemComparison, console: Console) -> Table:
    """Return the table of groups; a narrow terminal gets narrower columns and shortened names."""
    from rich.measure import Measurement

    # Without a larger `max_width`, the measurement is limited to the width of the terminal.
    unbound = console.options.update(max_width=10_000)
    for padding in (1, 0):
        table = _columns(comparison, system, padding)
        excess = Measurement.get(console, unbound, table).maximum - console.width
        if excess <= 0:
            return table
    return _columns(comparison, system, 0, max(max(map(len, system.groups)) - excess, 8))


def _columns(comparison: Comparison, system: SystemComparison, padding: int, longest: int = 1000) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, padding, 0, 0))
    flips = ["fixed", "broken", "both\nright", "both\nwrong"] if system.overall.flips else []
    table.add_column(comparison.by, no_wrap=True)
    for title in ("base", "other", f"change, {LEVEL:.0%}", "p, Holm", *flips):
        table.add_column(title, justify="right", no_wrap=True)
    for group in system.groups.values():
        name, *numbers = _cells(group, comparison.score)
        cells = [_cut(visible_line(name), longest), *numbers]
        table.add_row(*map(Text, cells), style=_style(group))
    return table


def _cut(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - end - 1]}…{name[-end:]}"


def _style(group: PairedScores) -> str:
    if group.final_p_value >= 1 - LEVEL or not group.gain:
        return ""
    return "green" if group.gain > 0 else "red"


def _cells(group: PairedScores, score: str) -> list[str]:
    difference = group.difference
    reach = (difference.high - difference.low) / 2 if math.isfinite(difference.error) else math.inf
    change = f"{number(difference.value, score)} ±{number(reach, score, sign=False):>4}"
    values = value_of(group.baseline, score), value_of(group.other, score)
    counts = map(count_text, vars(group.flips).values()) if group.flips else ()
    return [group.name, *values, change, p_text(group.final_p_value), *counts]


def markdown(comparison: Comparison, gates: Sequence[GateResult]) -> str:
    """Return a comparison as Markdown, for a pull request."""
    lines: list[str] = []
    for system in comparison.systems:
        lines += [f"### {comparison.score}: {text(system.name)} against {text(comparison.baseline)}", ""]
        lines += [f"- {title}: {text(line)}" for title, line in _summary(comparison, system)]
        lines += ["", *_markdown_table(comparison, system), ""]
    if gates:
        lines += ["| gate | system | result | |", "|---|---|---|---|"]
        for result in gates:
            verdict = "pass" if result.passed else "**failed**"
            lines.append(f"| {result.gate} | {text(result.system)} | {verdict} | {text(result.message)} |")
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_table(comparison: Comparison, system: SystemComparison) -> list[str]:
    if not system.groups:
        return [f"No item has a {comparison.by}."]
    score = comparison.score
    titles = [comparison.by, "items", "baseline", "other", "change", f"{LEVEL:.0%} interval", "p, Holm"]
    titles += ["fixed", "broken", "both right", "both wrong"] if system.overall.flips else []
    lines = [f"| {' | '.join(titles)} |", f"|---{'|---:' * (len(titles) - 1)}|"]
    for group in system.groups.values():
        name, before, after, _, p_value, *flips = _cells(group, score)
        bold = "**" if _style(group) else ""
        cells = [text(name), f"{group.items:,}", before, after]
        cells += [f"{bold}{number(group.difference.value, score)}{bold}", interval_text(group.difference, score)]
        lines.append(f"| {' | '.join([*cells, p_value, *flips])} |")
    return lines
