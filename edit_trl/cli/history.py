"""`edit-trl history`: the runs of evaluate and suite, as a table and as a plot of one metric."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from edit_trl.cli.parser import Parser
from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edit_trl.evaluation.runs.history import HistoryRow

# The width of a plot, in characters.
_WIDTH = 24


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl history`.

    Args:
        argv: The options; those of the process by default.

    Raises:
        InputError: The file is missing or is not a history, or no run has the metric.
    """
    options = _parser().parse_args(argv)
    if options.last is not None and options.last < 1:
        raise InputError(f"--last must be 1 or more, got {options.last}")
    from edit_trl.evaluation.runs.history import DEFAULT_FILE, read_history, with_score

    file = options.file or DEFAULT_FILE
    rows = read_history(file, kind=options.kind, name=options.name, model=options.model)
    if options.metric is not None:
        rows = with_score(rows, options.metric)
    earlier = max(len(rows) - options.last, 0) if options.last else 0
    rows = rows[earlier:]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif not rows:
        print(f"{file}: no matching run")
    else:
        _show(rows, options.metric, earlier)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl history",
        description="List the runs of evaluate and suite, the newest last, and plot a metric over them.",
    )
    add = parser.add_argument
    add("--file", metavar="FILE", help="the SQLite file (default: outputs/history.sqlite)")
    add("--metric", metavar="NAME", help="plot this score over the runs that have it, such as accuracy")
    add("--kind", choices=["evaluate", "suite"], help="only runs of this kind")
    add("--name", metavar="TEXT", help="only runs with this text in their name")
    add("--model", metavar="TEXT", help="only runs with this text in their model")
    add("--last", type=int, metavar="N", help="only the newest N")
    add("--json", action="store_true", help="print everything about them as JSON, in place of the table")
    return parser


def _show(rows: Sequence[HistoryRow], metric: str | None, earlier: int) -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 1000, highlight=False)
    console.print(_plot(rows, metric) if metric else _list(rows, console))
    if metric and len({row.data_hash for row in rows}) > 1:
        print("  the data differs between some of these runs (column data): compare only runs with the same data")
    if earlier:
        print(f"  {earlier} earlier run{'s' if earlier > 1 else ''} not shown")


def _list(rows: Sequence[HistoryRow], console: Console) -> Table:
    from edit_trl.evaluation.runs.scores import MAIN_SCORE

    # A wide terminal also shows the model and the folder. The score tells the kind of the run.
    more = console.width >= 120
    titles = ["finished", "name", "items>", "seed>", "score>", "revision", *["model", "folder"] * more]
    lines = []
    for row in rows:
        main_score = MAIN_SCORE.get(row.kind, "")
        score = row.scores.get(main_score)
        score_text = "-" if score is None else f"{main_score} {_value(score, main_score)}"
        cells = [_time(row), row.name, f"{row.items:,}", str(row.seed), score_text, row.git_revision or "-"]
        lines.append(cells + [row.model, row.path] * more)
    return _table(titles, lines)


def _plot(rows: Sequence[HistoryRow], metric: str) -> Table:
    """Plot one dot per run, between the lowest and the highest value."""
    values = [score for row in rows if (score := row.scores[metric]) is not None]
    low, high = min(values), max(values)
    ends = _value(low, metric), _value(high, metric)
    scale = f"{ends[0]}{ends[1]:>{_WIDTH - len(ends[0])}}" if high > low else ends[0]
    lines = []
    for row, value in zip(rows, values, strict=True):
        place = round((value - low) / (high - low) * (_WIDTH - 1)) if high > low else 0
        dots = "·" * place + "●" + "·" * (_WIDTH - 1 - place)
        lines.append([_time(row), row.name, row.data_hash[:6], _value(value, metric), dots])
    return _table(["finished", "name", "data", f"{metric}>", scale], lines)


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Make a table of texts without markup; a title that ends in ">" aligns its column to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from edit_trl.common.terminal import visible_line

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        # In a narrow terminal, long names are wrapped and numbers are not.
        folds = title in ("name", "model", "folder")
        justify: Literal["left", "right"] = "right" if title.endswith(">") else "left"
        table.add_column(
            Text(title.rstrip(">")), justify=justify, no_wrap=not folds, overflow="fold", min_width=8 * folds
        )
    for cells in lines:
        table.add_row(*(Text(visible_line(cell)) for cell in cells))
    return table


def _time(row: HistoryRow) -> str:
    return row.finished[:16].replace("T", " ")


def _value(value: float, name: str) -> str:
    from edit_trl.evaluation.runs.scores import SCORES, UNITS

    share = name not in UNITS and any(name in scores for scores in SCORES.values())
    return f"{value:.1%}" if share else f"{value:.3f}"
