"""`edit-trl report`: runs of evaluate, suite and train as one HTML page (L4)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.evaluation.report.training_history import TrainingRun
    from edit_trl.evaluation.runs.schema import Run


def main(argv: list[str] | None = None) -> int:
    """Runs `edit-trl report`.

    Args:
        argv: The options; those of the process by default.

    Raises:
        InputError: A folder that holds no run, a run that cannot be read, or an output that is no report.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    from edit_trl.evaluation.report import write_report
    from edit_trl.evaluation.report.page import free_path

    free_path(options.output)
    runs, training = read_folders(options.runs)
    title = options.title or _title(runs, training)
    path = write_report(runs, options.output, training, title=title)
    print(f"{path.resolve()}: {_counted(runs, training)}, {path.stat().st_size / 1e6:.1f} MB")
    if options.open:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            print("no browser was found to open it", file=sys.stderr)
    return 0


def read_folders(paths: list[Path]) -> tuple[list[Run], list[TrainingRun]]:
    """The runs in some folders, in the order they were given.

    A folder is a run, or holds runs: the stages of a training run, or runs side by side.

    Raises:
        InputError: Everything that is wrong with the folders, at once.
    """
    runs: dict[Path, Run] = {}
    training: dict[Path, TrainingRun] = {}
    problems = []
    for path in paths:
        try:
            found = _read(path)
        except InputError as error:
            problems += error.problems
            continue
        for kind, new in zip((runs, training), found, strict=True):
            again = [str(key) for key in new if key in kind]
            problems += [f"{key} is given twice" for key in again]
            kind |= new
    if problems:
        raise InputError(problems)
    return list(runs.values()), list(training.values())


def _read(path: Path) -> tuple[dict[Path, Run], dict[Path, TrainingRun]]:
    from edit_trl.evaluation.report.training_history import is_training_run, read_training_run
    from edit_trl.evaluation.runs.folder import ITEMS_FILE, RECORD_FILE, read_run

    path = path.parent if path.name in (RECORD_FILE, ITEMS_FILE) else path
    if not path.is_dir():
        raise InputError(f"no such folder: {path} (looked in {Path.cwd()})")
    children = sorted(child for child in path.iterdir() if child.is_dir())
    folders = [path] if (path / RECORD_FILE).is_file() else []
    folders = folders or [child for child in children if (child / RECORD_FILE).is_file()]
    runs = {folder.resolve(): read_run(folder) for folder in folders}
    trained = is_training_run(path) or any(map(is_training_run, children))
    if not runs and not trained:
        raise InputError(
            f"{path} holds no run of `edit-trl evaluate`, `suite` or `train` (no {RECORD_FILE}, "
            "trainer_state.json or run.json in it, or in a folder in it)"
        )
    return runs, {path.resolve(): read_training_run(path)} if trained else {}


def _title(runs: list[Run], training: list[TrainingRun]) -> str:
    names = list(dict.fromkeys([run.record.name for run in runs] or [one.name for one in training]))
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _counted(runs: list[Run], training: list[TrainingRun]) -> str:
    items = sum(len(run.items) for run in runs)
    parts = [f"{len(runs)} runs with {items:,} items"] if runs else []
    parts += [f"{len(training)} training runs"] if training else []
    return " and ".join(parts).replace("1 runs", "1 run").replace("1 training runs", "1 training run")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edit-trl report",
        description="Write runs as one HTML page: scores with intervals, learning curves, flips between "
        "models, and every item.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of runs of evaluate, suite and train, in any mix; or folders of such folders",
    )
    add(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: %(default)s); an earlier report is replaced",
    )
    add("--title", help="what the page is called")
    add("--open", action="store_true", help="open it in the browser")
    return parser
