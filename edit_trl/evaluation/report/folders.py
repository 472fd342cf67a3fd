"""The runs in the folders that `edit-trl report` is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edit_trl.common.errors import InputError, collect_problems, raise_problems
from edit_trl.evaluation.report.training_history import TrainingRun, is_training_run, read_training_run
from edit_trl.evaluation.runs.folder import ITEMS_FILE, RECORD_FILE, read_run
from edit_trl.evaluation.runs.schema import Run


def read_folders(paths: Sequence[Path]) -> tuple[list[Run], list[TrainingRun]]:
    """Read the runs in some folders, in the order in which they were given.

    Args:
        paths: Each is a run, or a folder of runs: the stages of a training run, or runs side by side.

    Raises:
        InputError: Everything that is wrong with the folders, at once.
    """
    runs: dict[Path, Run] = {}
    training: dict[Path, TrainingRun] = {}
    errors: list[str] = []
    for path in paths:
        with collect_problems(errors):
            runs_here, training_here = _read(path)
            errors += [f"{key} is given twice" for key in runs_here if key in runs]
            errors += [f"{key} is given twice" for key in training_here if key in training]
            runs |= runs_here
            training |= training_here
    raise_problems(errors)
    return list(runs.values()), list(training.values())


def _read(path: Path) -> tuple[dict[Path, Run], dict[Path, TrainingRun]]:
    path = path.parent if path.name in (RECORD_FILE, ITEMS_FILE) else path
    if not path.is_dir():
        raise InputError(f"no such folder: {path} (looked in {Path.cwd()})")
    children = sorted(child for child in path.iterdir() if child.is_dir())
    folders = [path] if (path / RECORD_FILE).is_file() else []
    folders = folders or [child for child in children if (child / RECORD_FILE).is_file()]
    runs = {folder.resolve(): read_run(folder, stored_tokens=True) for folder in folders}
    has_training = is_training_run(path) or any(map(is_training_run, children))
    if not runs and not has_training:
        raise InputError(
            f"{path} holds no run of `edit-trl evaluate`, `suite` or `train` (no {RECORD_FILE}, "
            "trainer_state.json or run.json in it, or in a folder in it)"
        )
    return runs, {path.resolve(): read_training_run(path)} if has_training else {}
