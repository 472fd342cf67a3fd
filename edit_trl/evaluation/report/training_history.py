"""The log of a training run, read from its folder for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.json_text import checker, read_json_file
from edit_trl.common.run_file import RUN_FILE, read_run_file

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class StageLog:
    """The log of one stage of a training run.

    Attributes:
        name: Name of the stage; empty for a run without stages.
        finished: When the stage finished; None if it was interrupted.
        log: The entries that `transformers.Trainer` logged, in order: a step and its metrics.
    """

    name: str
    finished: str | None
    log: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TrainingRun:
    """A training run.

    Attributes:
        name: Name of its folder.
        path: Its folder.
        stages: The stages, in the order in which they ran.
    """

    name: str
    path: Path
    stages: Sequence[StageLog]


def is_training_run(path: Path) -> bool:
    """Return whether a folder is a training run of `edit-trl train` or a `Trainer`, or one of its stages."""
    return (path / RUN_FILE).is_file() or _state_file(path) is not None


def read_training_run(path: Path) -> TrainingRun:
    """Read the folder of a training run, or a folder of stages.

    Raises:
        InputError: There is no training run, one of its files cannot be read, or nothing was logged yet.
    """
    path = Path(path)
    if is_training_run(path):
        stages = [_read_stage(path, "")]
    else:
        folders = sorted(child for child in path.iterdir() if child.is_dir() and is_training_run(child))
        stages = [_read_stage(folder, folder.name) for folder in folders]
    if not stages:
        raise InputError(f"no training run at {path} (no {STATE_FILE} there)")
    # In the order in which they finished; a stage that has not finished is the last.
    stages.sort(key=lambda stage: stage.finished or "~")
    if not any(stage.log for stage in stages):
        raise InputError(f"{path}: this training run has not logged anything yet")
    return TrainingRun(path.resolve().name, path, stages)


def _read_stage(folder: Path, name: str) -> StageLog:
    state = _state_file(folder)
    log: Any = []
    if state:
        # A loss that was not finite is part of the log.
        values = read_json_file(state, finite=False)
        log = values.get("log_history", []) if isinstance(values, dict) else None
        if (problem := checker(list[dict[str, Any]])(log)) is not None:
            raise InputError(f"{state}: `log_history` is not a list of logged steps{problem}")
    return StageLog(name, read_run_file(folder).get("finished"), log)


def _state_file(folder: Path) -> Path | None:
    """Return the trainer state at the end of the run, or that of the last checkpoint if it was interrupted."""
    if (folder / STATE_FILE).is_file():
        return folder / STATE_FILE
    steps = {file: step for file in folder.glob(f"checkpoint-*/{STATE_FILE}") if (step := _step(file)) is not None}
    return max(steps, key=steps.__getitem__, default=None)


def _step(file: Path) -> int | None:
    number = file.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None
