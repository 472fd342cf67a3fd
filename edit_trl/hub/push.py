"""Pushes to the Hub: find the model or dataset at a path, write its card, select its files and upload them.

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
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.json_text import checker, read_json_file
from edit_trl.common.run_file import RUN_FILE, read_run_file, stage_options
from edit_trl.hub.eval_results import RESULTS_FILE, eval_results
from edit_trl.hub.recipe_file import recipe_text
from edit_trl.hub.repository import CARD_FILES, account, model_files, open_repository, upload
from edit_trl.models.folders import check_folder

if TYPE_CHECKING:
    from edit_trl.hub.card_facts import Evaluation
    from edit_trl.hub.repository import Content, RepoType

WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")

CONFIGS = ("adapter_config.json", "config.json")

GENERATED = ("dual.parquet", "warm_up.parquet", "README.md")


@dataclass(frozen=True)
class Source:
    """A model or dataset to push.

    Attributes:
        kind: `model` (or adapter), `generation` (a folder of `edit-trl generate`) or `rows` (other dual CoTs).
        path: The folder or file. For a run with stages, the folder of the stage that finished last.
        name: Name of the file or folder that was given; the default name of the repository.
    """

    kind: Literal["model", "generation", "rows"]
    path: Path
    name: str

    @property
    def repo_type(self) -> RepoType:
        """The type of the repository it is pushed to."""
        return "model" if self.kind == "model" else "dataset"

    def hub_model_id(self) -> str | None:
        """Return the repository that a model's recipe names, if it names one."""
        if self.kind != "model":
            return None
        name = read_run_file(self.path).get("options", {}).get("hub_model_id")
        if (problem := checker(str | None)(name)) is not None:
            raise InputError(f"{self.path / RUN_FILE}: hub_model_id{problem}; pass --repo_id, or mend it")
        return name


def find_source(run: str) -> Source:
    """Find the model or dataset at a path.

    Raises:
        InputError: There is nothing, a checkpoint, an unfinished run, or a model without safetensors.
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
    check_folder(str(folder))
    return folder


def default_repo_id(name: str, hub_model_id: str | None = None, token: str | None = None) -> str:
    """Return the repository to push to if none is given: the recipe's `hub_model_id`, or the account's `name`.

    Raises:
        InputError: The namespace is missing, and there is no login.
    """
    if hub_model_id and "/" in hub_model_id:
        return hub_model_id
    name, user = hub_model_id or name, account(token)
    if user is None:
        raise InputError(
            f"where to? Pass --repo_id your-name/{name}, or log in with `hf auth login`: no account is known"
        )
    return f"{user}/{name}"


def push(
    source: Source,
    repo_id: str,
    *,
    base_model: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> str:
    """Write the card for a repository and upload all files as one commit.

    Args:
        source: The model or dataset.
        repo_id: The repository; created if it does not exist.
        base_model: The base model's id on the Hub, if the model was trained from a folder.
        evaluations: The evaluations to show on a model's card.
        private: See `open_repository`.
        revision: The branch; None for the main branch.
        token: Token of the Hub; None for that of the login.
        dry_run: Whether to send nothing and only list the files.

    Returns:
        A message for the user: what was (or would be) uploaded to where.

    Raises:
        InputError: A file cannot be uploaded, or the Hub refused or cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="edit_trl-push-") as folder:
        drafts = Path(folder)
        notes: list[str] = []
        if source.kind == "model":
            files, notes = _model_files(source.path, repo_id, drafts, base_model, evaluations)
            results, more_notes = eval_results(evaluations, repo_id, revision=revision, token=token)
            files |= results
            notes += more_notes
        elif source.kind == "generation":
            files = {name: source.path / name for name in GENERATED if (source.path / name).is_file()}
        else:
            files = _dataset_files(source.path, repo_id, drafts)
        if dry_run:
            message = _listing(source, repo_id, private, files)
        else:
            target: dict[str, Any] = {"repo_type": source.repo_type, "revision": revision, "token": token}
            repository = open_repository(repo_id, private=private, **target)
            # Results of an earlier push, which this model may not have.
            obsolete = {RESULTS_FILE} - {*files} if source.kind == "model" else set()
            message = f"Push {source.name} with edit-trl"
            commit = upload(files, repo_id, message=message, obsolete=obsolete, **target)
            visibility = "private" if repository.private else "public"
            message = f"pushed {len(files)} files of {source.path} to {repository.url} ({visibility}), commit {commit}"
            if private is False and repository.private:
                message += "\nthe repository existed and stays private; its settings on the Hub can make it public"
    return "\n".join([message, *(f"note: {note}" for note in notes)])


def _model_files(
    folder: Path, repo_id: str, drafts: Path, base_model: str | None, evaluations: Sequence[Evaluation]
) -> tuple[dict[str, Content], list[str]]:
    """Return a model's files by their name in the repository, and notes for the user; write its card to `drafts`."""
    from edit_trl.hub.card_facts import read_facts
    from edit_trl.hub.model_card import write_card

    files = model_files(folder, base_model)
    facts = read_facts(folder)
    if facts is None:
        return files, ["no card.json beside the model, so its README.md is uploaded as it is"]
    licence = write_card(drafts, facts, repo_id=repo_id, base_model=base_model, evaluations=evaluations)
    files |= {name: drafts / name for name in CARD_FILES if (drafts / name).is_file()}
    stages = stage_options(folder, [stage.name for stage in facts.stages])
    if stages:
        files["recipe.yaml"] = recipe_text(stages, repo_id.split("/")[-1], base_model).encode()
    elif (folder / "recipe.yaml").is_file():  # a merged model has a copy
        files["recipe.yaml"] = folder / "recipe.yaml"
    training = {stage.name: stage.results for stage in facts.stages}
    # `main` only tells the card which score comes first.
    scores = [{name: value for name, value in asdict(run).items() if name != "main"} for run in evaluations]
    results = json.dumps({"training": training, "evaluations": scores}, indent=2, default=str)
    files["results.json"] = f"{results}\n".encode()
    return files, [licence.why] if licence.id == "other" else []


def _dataset_files(path: Path, repo_id: str, drafts: Path) -> dict[str, Content]:
    """Write dual CoTs as Parquet, one file per split, and their card."""
    from edit_trl.data.dual_cots import load_dual_cots, save_dual_cots
    from edit_trl.hub.dataset_card import dataset_card

    names: Any = ["train"]
    if (path / "dataset_dict.json").is_file():
        content = read_json_file(path / "dataset_dict.json")
        names = content.get("splits") if isinstance(content, dict) else None
        if (problem := checker(list[str])(names)) is not None:
            raise InputError(f"{path / 'dataset_dict.json'}: splits{problem}")
        invalid = [name for name in names if not re.fullmatch(r"\w+", name)]
        if invalid:
            raise InputError(f"{path}: a split named {invalid[0]!r} cannot be pushed; letters, digits and _ only")
    splits = {name: load_dual_cots(path, split=name) for name in names}
    in_repo = {name: f"data/{name}-00000-of-00001.parquet" for name in splits}
    for name, rows in splits.items():
        save_dual_cots(rows, drafts / in_repo[name])
    files: dict[str, Content] = {file: drafts / file for file in in_repo.values()}
    return files | {"README.md": dataset_card(splits, in_repo, repo_id.split("/")[-1]).encode()}


def _listing(source: Source, repo_id: str, private: bool | None, files: Mapping[str, Content]) -> str:
    visibility = {None: "private, if it is new", True: "private", False: "public"}[private]
    lines = [f"would push to the {source.repo_type} {repo_id} ({visibility}), from {source.path}:", ""]
    for name, content in sorted(files.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        lines.append(f"  {size:>14,}  {name}")
    if source.path.is_dir():
        entries = (entry for entry in source.path.iterdir() if entry.name not in files)
        names = sorted(entry.name + "/" * entry.is_dir() for entry in entries)
        lines += ["", f"stays here: {', '.join(names) or 'nothing'}"]
    return "\n".join(lines)


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
    """Push the model that is trained inside the block, with its card and results.

    The repository is opened before the block, so a push that would be refused stops the run before training. Only the
    main process opens and pushes.

    Args:
        folder: The folder that the model is saved to.
        name: Name of the repository if `hub_model_id` is None.
        find_evaluations: Returns the evaluations of the model in a folder, for its card.
        hub_model_id: The repository.
        private: See `open_repository`.
        revision: The branch; None for the main branch.
        token: Token of the Hub; None for that of the login.

    Raises:
        InputError: There is no login, or the Hub refused.
    """
    from accelerate import PartialState

    if not PartialState().is_main_process:
        yield
        return
    repo_id = default_repo_id(name, hub_model_id, token)
    open_repository(repo_id, private=private, revision=revision, token=token)
    yield
    source = find_source(str(folder))
    evaluations = find_evaluations(source.path)
    try:
        print(push(source, repo_id, evaluations=evaluations, private=private, revision=revision, token=token))
    except InputError as error:
        raise InputError(
            f"{error}. The model is safe in {folder}: `edit-trl push {folder} --repo_id {repo_id}`"
        ) from error
