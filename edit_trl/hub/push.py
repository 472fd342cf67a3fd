"""Pushing to the Hub: what a path holds, which of its files are uploaded, and the upload.

`huggingface_hub` is slow to import, so the modules of the cards are imported where they are used.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.run_file import RUN_FILE, read_run_file, stage_options
from edit_trl.hub.recipe_file import recipe_text
from edit_trl.hub.repository import CARD_FILES, account, model_files, open_repository, upload

if TYPE_CHECKING:
    from edit_trl.hub.card_facts import Evaluation
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
        path: The folder or file. Of a run with stages, the folder of the stage that finished last.
        name: The name of the file or folder that was asked for; the repository's, unless another is given.
    """

    kind: Literal["model", "generation", "rows"]
    path: Path
    name: str

    @property
    def repo_type(self) -> RepoType:
        """The type of the repository it goes to."""
        return "model" if self.kind == "model" else "dataset"

    def hub_model_id(self) -> str | None:
        """The repository that the recipe of a model names, if it names one."""
        return read_run_file(self.path).get("options", {}).get("hub_model_id") if self.kind == "model" else None


def find_source(run: str) -> Source:
    """Find what can be pushed at a path.

    Raises:
        InputError: There is nothing, a checkpoint, an unfinished run, or weights that are pickles.
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
    finished = {folder: state["finished"] for folder, state in stages.items() if state.get("finished")}
    if finished:
        return Source("model", _checked_model(max(finished, key=finished.__getitem__)), name)
    if stages or (path / RUN_FILE).is_file():
        raise InputError(f"{run}: no stage of this run is finished; run `edit-trl train` again to resume it")
    entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise InputError(f"{run} is no model, run or dataset of edit-trl; it holds {entries}")


def _checked_model(folder: Path) -> Path:
    state = read_run_file(folder)
    if state and not state.get("finished"):
        raise InputError(f"{folder}: this run is not finished; run `edit-trl train` again to resume it")
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickles = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "none"
        raise InputError(f"{folder} has no weights in safetensors (pickles, which are not pushed: {pickles})")
    return folder


def default_repo_id(name: str, hub_model_id: str | None = None, token: str | None = None) -> str:
    """The repository to push to when none is given: the recipe's, or a name under the account logged in.

    Args:
        name: Name of the repository where the recipe names none.
        hub_model_id: The recipe's option, with or without a namespace.
        token: Whose account is asked for; the login's where None.

    Raises:
        InputError: A namespace is needed, and nobody is logged in.
    """
    if hub_model_id and "/" in hub_model_id:
        return hub_model_id
    name, user = hub_model_id or name, account(token)
    if user is None:
        raise InputError(
            f"where to? Pass --repo_id your-name/{name}, or log in with `hf auth login`: no account is known"
        )
    return f"{user}/{name}"


# The files


def files_to_push(
    source: Source, repo_id: str, drafts: Path, *, base_model: str | None = None, evaluations: Sequence[Evaluation] = ()
) -> tuple[dict[str, Content], list[str]]:
    """Choose the files to upload, and write the card for this repository.

    Args:
        source: What is pushed.
        repo_id: Where it goes.
        drafts: An empty folder for the files that are written anew. It must exist until the upload is done.
        base_model: The base model's id on the Hub, where a model was trained from a folder.
        evaluations: The evaluations that a model's card shows.

    Returns:
        The files by their name in the repository, and notes for the user.
    """
    if source.kind == "model":
        return _model(source, repo_id, drafts, base_model, evaluations)
    if source.kind == "generation":
        return {name: source.path / name for name in GENERATED if (source.path / name).is_file()}, []
    return _rows(source.path, repo_id, drafts), []


def _model(
    source: Source, repo_id: str, drafts: Path, base_model: str | None, evaluations: Sequence[Evaluation]
) -> tuple[dict[str, Content], list[str]]:
    from edit_trl.hub.card_facts import read_facts
    from edit_trl.hub.model_card import write_card

    files = model_files(source.path, base_model)
    facts = read_facts(source.path)
    if facts is None:
        return files, ["no card.json beside the model, so its README.md is uploaded as it is"]
    licence = write_card(drafts, facts, repo_id=repo_id, base_model=base_model, evaluations=evaluations)
    files |= {name: drafts / name for name in CARD_FILES if (drafts / name).is_file()}
    stages = stage_options(source.path, [stage.name for stage in facts.stages])
    if stages:
        files["recipe.yaml"] = recipe_text(stages, repo_id.split("/")[-1], base_model).encode()
    elif (source.path / "recipe.yaml").is_file():  # beside a merged model
        files["recipe.yaml"] = source.path / "recipe.yaml"
    training = {stage.name: stage.results for stage in facts.stages}
    results = {"training": training, "evaluations": [_result(evaluation) for evaluation in evaluations]}
    files["results.json"] = (json.dumps(results, indent=2, default=str) + "\n").encode()
    return files, [licence.why] if licence.id == "other" else []


def _result(evaluation: Evaluation) -> dict[str, object]:
    result = asdict(evaluation)
    del result["main"]  # which score the card shows first
    return result


def _rows(path: Path, repo_id: str, drafts: Path) -> dict[str, Content]:
    """Dual CoTs as Parquet, one file per split, and their card."""
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


# The upload


def push_files(
    source: Source,
    repo_id: str,
    files: Mapping[str, Content],
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload files as one commit.

    Args:
        source: What is pushed.
        repo_id: The repository; created if there is none.
        files: The files by their name in the repository.
        private: See `open_repository`.
        revision: The branch; created if there is none.
        token: The login's own where None.

    Returns:
        What was pushed where, for the user.

    Raises:
        InputError: The Hub refused, or cannot be reached.
    """
    repository = open_repository(repo_id, repo_type=source.repo_type, private=private, revision=revision, token=token)
    commit = upload(
        files,
        repo_id,
        message=f"Push {source.name} with edit-trl",
        repo_type=source.repo_type,
        revision=revision,
        token=token,
    )
    visibility = "private" if repository.private else "public"
    line = f"pushed {len(files)} files of {source.path} to {repository.url} ({visibility}), commit {commit}"
    if private is False and repository.private:
        line += "\nit exists and is private, and stays so: its settings on the Hub make it public"
    return line


@contextmanager
def pushing(
    folder: Path,
    name: str,
    find_evaluations: Callable[[Path], Sequence[Evaluation]],
    *,
    hub_model_id: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Iterator[None]:
    """Push the model that is trained inside the block.

    Before the block, the repository is opened, so a push that would be refused stops the run before it is trained.
    After it, the folder is pushed as a whole, with its card and results. Only the main process does either.

    Args:
        folder: Where the model is saved.
        name: Name of the repository where `hub_model_id` is None.
        find_evaluations: Finds the evaluations of the model in a folder, for its card.
        hub_model_id: The repository.
        private: See `open_repository`.
        revision: The branch.
        token: The login's own where None.

    Raises:
        InputError: Nobody is logged in, or the Hub refused.
    """
    from accelerate import PartialState

    if not PartialState().is_main_process:
        yield
        return
    repo_id = default_repo_id(name, hub_model_id, token)
    open_repository(repo_id, private=private, revision=revision, token=token)
    yield
    source = find_source(str(folder))
    with tempfile.TemporaryDirectory(prefix="edit_trl-push-") as drafts:
        evaluations = find_evaluations(source.path)
        files, notes = files_to_push(source, repo_id, Path(drafts), evaluations=evaluations)
        try:
            print(push_files(source, repo_id, files, private=private, revision=revision, token=token))
        except InputError as error:
            raise InputError(
                f"{error}. The model is safe in {folder}: `edit-trl push {folder} --repo_id {repo_id}`"
            ) from error
        for note in notes:
            print(f"note: {note}")
