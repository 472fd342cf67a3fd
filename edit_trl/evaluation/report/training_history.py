"""What a training run logged (L3), read from its folder for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.run_file import RUN_FILE, read_run_file

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Stage:
    """One stage of a training run.

    Attributes:
        name: The stage's; empty for a run without stages.
        finished: When; None where it was interrupted.
        log: What `transformers.Trainer` logged, in order: each a step and its metrics.
    """

    name: str
    finished: str | None
    log: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TrainingRun:
    """A training run.

    Attributes:
        name: Its folder's.
        path: Its folder.
        stages: In the order they were run.
    """

    name: str
    path: Path
    stages: Sequence[Stage]


def is_training_run(path: Path) -> bool:
    """Whether a folder is what `edit-trl train` or a Trainer leaves, a stage of it included."""
    return (path / RUN_FILE).is_file() or _state_file(path) is not None


def read_training_run(path: Path) -> TrainingRun:
    """Read a run's folder, or one of stages.

    Raises:
        InputError: There is no run, a file of it cannot be read, or nothing was logged yet.
    """
    path = Path(path)
    if is_training_run(path):
        stages = [_read_stage(path, "")]
    else:
        folders = sorted(child for child in path.iterdir() if child.is_dir() and is_training_run(child))
        stages = [_read_stage(folder, folder.name) for folder in folders]
    if not stages:
        raise InputError(f"no training run at {path} (no {STATE_FILE} there)")
    # Stages follow each other; the one that has not ended is the last.
    stages.sort(key=lambda stage: stage.finished or "~")
    if not any(stage.log for stage in stages):
        raise InputError(f"{path}: this training run has not logged anything yet")
    return TrainingRun(path.resolve().name, path, stages)


def _read_stage(folder: Path, name: str) -> Stage:
    state = _state_file(folder)
    log = _read(state).get("log_history", []) if state else []
    if not (isinstance(log, list) and all(isinstance(entry, dict) for entry in log)):
        raise InputError(f"{state}: `log_history` is no list of logged steps")
    finished = read_run_file(folder).get("finished")
    return Stage(name, finished if isinstance(finished, str) else None, log)


def _state_file(folder: Path) -> Path | None:
    """The state at the end of the run; of the last checkpoint where it was interrupted."""
    if (folder / STATE_FILE).is_file():
        return folder / STATE_FILE
    saved = [file for file in folder.glob(f"checkpoint-*/{STATE_FILE}") if _step(file) is not None]
    return max(saved, key=_step, default=None)


def _step(file: Path) -> int | None:
    number = file.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} is no record of a training run")
    return values
