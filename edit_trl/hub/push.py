"""What of a run is pushed to the Hub, and the push itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.run_file import RUN_FILE, read_run_file, stage_options

if TYPE_CHECKING:
    from edit_trl.hub.card_sections import Evaluation
    from edit_trl.hub.repository import Content, RepoType

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


# The files


def files_to_push(
    source: Source, repo_id: str, base_model: str | None, evaluations: Sequence[Evaluation], drafts: Path
) -> tuple[dict[str, Content], list[str]]:
    """Name in the repository -> what goes there, and what is worth saying of it."""
    if source.kind == "model":
        return _model(source, repo_id, base_model, evaluations, drafts)
    if source.kind == "generation":
        return {name: source.path / name for name in GENERATED if (source.path / name).is_file()}, []
    return _rows(source.path, repo_id, drafts), []


def _model(
    source: Source, repo_id: str, base_model: str | None, evaluations: Sequence[Evaluation], drafts: Path
) -> tuple[dict[str, Content], list[str]]:
    from edit_trl.hub.card_facts import read_facts
    from edit_trl.hub.model_card import write_card
    from edit_trl.hub.recipe_file import recipe_text
    from edit_trl.hub.repository import CARD_FILES, model_files

    files, notes = model_files(source.path, base_model), []
    facts = read_facts(source.path)
    if facts is None:
        notes.append("no card.json beside the model, so its README.md goes as it is")
        return files, notes
    licence = write_card(drafts, facts, repo_id=repo_id, base_model=base_model, evaluations=evaluations)
    files |= {name: drafts / name for name in CARD_FILES if (drafts / name).is_file()}
    if licence.id == "other":
        notes.append(licence.why)
    names = [stage.name for stage in facts.stages]
    stages = stage_options(source.path, names)
    if stages:
        files["recipe.yaml"] = recipe_text(stages, repo_id.split("/")[-1], base_model).encode()
    elif (source.path / "recipe.yaml").is_file():  # beside a merged model
        files["recipe.yaml"] = source.path / "recipe.yaml"
    training = {stage.name: stage.results for stage in facts.stages}
    results = {"training": training, "evaluations": [_result(evaluation) for evaluation in evaluations]}
    files["results.json"] = (json.dumps(results, indent=2, default=str) + "\n").encode()
    return files, notes


def _result(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "kind": evaluation.kind,
        "of_this_model": evaluation.of_this_model,
        "items": evaluation.items,
        "scores": dict(evaluation.scores),
        "intervals": {name: list(interval) for name, interval in evaluation.intervals.items()},
        "tasks": {task: dict(scores) for task, scores in evaluation.tasks.items()},
    }


def _rows(path: Path, repo_id: str, drafts: Path) -> dict[str, Content]:
    """Dual CoTs as Parquet, a file a split, and their card."""
    from edit_trl.data.dual_cots import load_dual_cots, save_dual_cots
    from edit_trl.hub.dataset_card import dataset_card

    names = ["train"]
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        odd = [name for name in names if not re.fullmatch(r"\w+", str(name))]
        if odd:
            raise InputError(f"{path}: a split named {odd[0]!r} cannot be pushed; letters, digits and _ only")
    splits = {name: load_dual_cots(path, split=name) for name in names}
    in_repo = {name: f"data/{name}-00000-of-00001.parquet" for name in splits}
    for name, rows in splits.items():
        save_dual_cots(rows, drafts / in_repo[name])
    files: dict[str, Content] = {file: drafts / file for file in in_repo.values()}
    return files | {"README.md": dataset_card(splits, in_repo, repo_id.split("/")[-1]).encode()}


# Sending


def push_files(
    source: Source,
    repo_id: str,
    files: Mapping[str, Content],
    notes: Sequence[str],
    private: bool | None,
    revision: str | None,
    token: str | None = None,
) -> str:
    from edit_trl.hub.repository import open_repository, upload

    kind = repo_type(source)
    there = open_repository(repo_id, repo_type=kind, private=private, revision=revision, token=token)
    commit = upload(
        files,
        repo_id,
        message=f"Push {source.name} with edit-trl",
        repo_type=kind,
        revision=revision,
        token=token,
    )
    visibility = "private" if there.private else "public"
    lines = [f"pushed {len(files)} files of {source.path} to {there.url} ({visibility}), commit {commit}"]
    if private is False and there.private:
        lines.append("it exists and is private, and stays so: its settings on the Hub make it public")
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def repo_type(source: Source) -> RepoType:
    return "model" if source.kind == "model" else "dataset"
