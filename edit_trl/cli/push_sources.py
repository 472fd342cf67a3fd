"""What `edit-trl push` finds in a folder: a model or dual CoTs, and what was measured of it (L4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.hub.card_sections import Evaluation

RUN_FILE = "run.json"
"""Left in the folder of a training: what it was run with, and whether it is finished."""
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
CONFIGS = ("adapter_config.json", "config.json")
GENERATED = ("dual.parquet", "warm_up.parquet", "README.md")


@dataclass(frozen=True)
class Source:
    """What is pushed.

    Attributes:
        kind: `model` (or adapter), `generation` (a folder of `edit-trl generate`) or `rows` (dual CoTs in a
            file or folder of their own).
        path: The folder or file; of a run with stages, the last finished stage's.
        name: What it is called where nothing else is said.
    """

    kind: Literal["model", "generation", "rows"]
    path: Path
    name: str


def find_source(run: str) -> Source:
    """What there is to push at a path.

    Raises:
        InputError: Nothing, a checkpoint, a run that is not finished, or weights that are pickles.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return Source("rows", path, path.stem)
    if not path.is_dir():
        raise InputError(f"no such file or folder: {run!r} (looked in {Path.cwd()})")
    name = path.resolve().name
    if all((path / state).is_file() for state in ("trainer_state.json", "scheduler.pt")):
        raise InputError(f"{run} is a checkpoint, to resume from; push the folder of its run")
    if any((path / config).is_file() for config in CONFIGS):
        return Source("model", _checked_model(path), name)
    if (path / GENERATED[0]).is_file():
        return Source("generation", path, name)
    if any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        return Source("rows", path, name)
    stages = {file.parent: read_run_file(file.parent) for file in path.glob(f"*/{RUN_FILE}")}
    finished = {folder: run["finished"] for folder, run in stages.items() if run.get("finished")}
    if finished:
        return Source("model", _checked_model(max(finished, key=finished.__getitem__)), name)
    if stages or (path / RUN_FILE).is_file():
        raise InputError(
            f"{run}: no stage of this run is finished; run `edit-trl train` again and it goes on"
        )
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise InputError(f"{run} is no model, run or dataset of edit-trl; it holds {held}")


def _checked_model(folder: Path) -> Path:
    state = read_run_file(folder)
    if state and not state.get("finished"):
        raise InputError(f"{folder}: this run is not finished; run `edit-trl train` again and it goes on")
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickles = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "none"
        raise InputError(f"{folder} has no weights in safetensors (pickles, which are not pushed: {pickles})")
    return folder


def read_run_file(folder: Path) -> dict[str, Any]:
    """`run.json` of a stage; empty where there is none."""
    file = folder / RUN_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error


def stage_options(folder: Path, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The options that each stage of a model was run with; empty where a stage's are not known."""
    if any(Path(name).name != name for name in names):
        return []  # no name of a stage, and not to be followed out of the run
    folders = [folder if name == names[-1] else folder.parent / name for name in names]
    options = [read_run_file(of).get("options") for of in folders]
    if not all(options):
        return []
    return list(zip(names, options, strict=True))


# What was measured


def find_evaluations(folder: Path, given: Sequence[str]) -> list[Evaluation]:
    """Finished runs of `edit-trl evaluate` and `suite`: those given, and those beside or in a model's folder.

    Raises:
        InputError: One that is given is no such run, or not finished.
    """
    from edit_trl.evaluation.runs.folder import RECORD_FILE, read_run

    found: dict[Path, Evaluation] = {}
    for path in map(Path, given):
        found[path.resolve()] = _evaluation(read_run(path), folder)
    for file in sorted([*folder.rglob(RECORD_FILE), *folder.parent.glob(f"*/{RECORD_FILE}")]):
        if file.parent.resolve() in found or not _is_finished(file):
            continue
        evaluation = _evaluation(read_run(file.parent), folder)
        if evaluation.of_this_model or folder in file.parents:
            found[file.parent.resolve()] = evaluation
    return [*found.values(), *_measured_by_quickstart(folder)]


def _is_finished(file: Path) -> bool:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("finished") is not None
    except (ValueError, AttributeError):
        return False


def _evaluation(run: Any, folder: Path) -> Evaluation:
    from edit_trl.evaluation.runs.scores import MAIN_SCORE
    from edit_trl.hub.card_sections import Evaluation

    record = run.record
    return Evaluation(
        name=record.name,
        kind=record.kind,
        of_this_model=Path(record.model).resolve() == folder.resolve(),
        items=record.items,
        scores=record.scores,
        intervals=record.intervals,
        main=MAIN_SCORE[record.kind],
        tasks=record.groups.get("task", {}),
    )


def _measured_by_quickstart(folder: Path) -> list[Evaluation]:
    """The accuracies in `results.json` beside the stages: a model's name -> `AccuracyResult.to_dict()`."""
    from edit_trl.evaluation.runs.scores import MAIN_SCORE, run_scores
    from edit_trl.hub.card_sections import Evaluation

    file = folder.parent / "results.json"
    try:
        models = json.loads(file.read_text(encoding="utf-8"))["models"] if file.is_file() else {}
        evaluations = []
        for name, result in models.items():
            scores, intervals, groups = run_scores(result["items"], "evaluate")
            items = len(result["items"])
            main, tasks = MAIN_SCORE["evaluate"], groups["task"]
            own = name == folder.name
            evaluations.append(Evaluation(name, "evaluate", own, items, scores, intervals, main, tasks))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # another program's results.json
    return evaluations
