"""`edit-trl report`: runs of evaluate, suite and train as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.parser import Parser
from edit_trl.common.files import check_writable, is_stream
from edit_trl.common.garbage import collection_paused

if TYPE_CHECKING:
    from edit_trl.evaluation.report.training_history import TrainingRun
    from edit_trl.evaluation.runs.schema import Run


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl report`.

    Args:
        argv: The options; those of the process by default.

    Raises:
        InputError: A folder holds no run, a run cannot be read, or the output is a file but not a report.
    """
    options = _parser().parse_args(argv)
    check_writable(options.output)
    from edit_trl.evaluation.report import write_report
    from edit_trl.evaluation.report.folders import read_folders
    from edit_trl.evaluation.report.page import free_path

    free_path(options.output)
    with collection_paused():
        runs, training = read_folders(options.runs)
        title = options.title or title_of(runs, training)
        path = write_report(runs, options.output, training, title=title)
    say_written(path, counted(runs, training))
    if options.open:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            print("no browser was found to open it", file=sys.stderr)
    return 0


def say_written(path: Path, contents: str) -> None:
    """Say what was written; on stderr where the page itself may have gone to stdout."""
    if is_stream(path):
        print(f"{path}: {contents}", file=sys.stderr)
    else:
        print(f"{path.resolve()}: {contents}, {path.stat().st_size / 1e6:.1f} MB")


def title_of(runs: list[Run], training: list[TrainingRun]) -> str:
    """Return the names of the runs, the first few of them."""
    names = list(dict.fromkeys([run.record.name for run in runs] or [one.name for one in training]))
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def counted(runs: list[Run], training: list[TrainingRun]) -> str:
    """Return how many runs and items a report has."""
    items = sum(len(run.items) for run in runs)
    parts = [f"{len(runs)} run{'s' if len(runs) > 1 else ''} with {items:,} items"] if runs else []
    parts += [f"{len(training)} training run{'s' if len(training) > 1 else ''}"] if training else []
    return " and ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl report",
        description="Write runs as one HTML page: scores with intervals, learning curves, flips between "
        "models, and every item.",
    )
    add = parser.add_argument
    runs = "folders of runs of evaluate, suite and train, in any mix; or folders of such folders"
    add("runs", nargs="+", type=Path, metavar="RUN", help=runs)
    page = "the page (default: %(default)s); an earlier report is replaced"
    add("--output", type=Path, default=Path("report.html"), metavar="FILE", help=page)
    add("--title", help="title of the page")
    add("--open", action="store_true", help="open it in the browser")
    return parser
