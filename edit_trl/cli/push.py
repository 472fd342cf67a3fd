"""`edit-trl push`: a trained model, a merged one or dual CoTs to the Hub, with a card (L4)."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.cli.push_sources import (
    GENERATED,
    Source,
    find_evaluations,
    find_source,
    read_run_file,
    stage_options,
)
from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.hub.card_sections import Evaluation
    from edit_trl.hub.repository import Content, RepoType
    from edit_trl.training.recipe.resolving import RunArguments


def main(argv: list[str] | None = None) -> int:
    """Runs `edit-trl push`.

    Raises:
        InputError: Nothing there that can be pushed, or the Hub's refusal.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    source = find_source(options.run)
    repo_id = options.repo_id or default_repo_id(source.name, _wished_repo_id(source))

    from edit_trl.hub.repository import check_repo_id

    check_repo_id(repo_id)
    if options.base_model:
        check_repo_id(options.base_model, "--base_model")
    with tempfile.TemporaryDirectory(prefix="edit_trl-push-") as drafts:
        files, notes = _files(source, repo_id, options.base_model, options.evaluation, Path(drafts))
        if options.dry_run:
            print(_listing(source, repo_id, options.private, files, notes))
            return 0
        print(_push(source, repo_id, files, notes, options.private, options.revision))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edit-trl push",
        description="Push a trained model to the Hub, with its tokenizer, recipe, results and card; or dual "
        "CoTs. Checkpoints, optimizer states, journals and tokens stay here.",
        epilog="After an upload that broke, the same command goes on: what has arrived is not sent again. "
        "The token is that of `hf auth login`, or HF_TOKEN.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="the folder of a training run (its last finished stage is taken), of a merged model or of "
        "`edit-trl generate`; or a file or folder of dual CoTs",
    )
    add("--repo_id", metavar="NAMESPACE/NAME", help="where to (default: your account / the folder's name)")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="a private repository (the default for a new one); refused where it exists and is public",
    )
    visibility.add_argument(
        "--public", action="store_false", dest="private", help="make a new repository public"
    )
    add("--revision", metavar="BRANCH", help="the branch to push to; made where there is none")
    add(
        "--base_model",
        metavar="NAMESPACE/NAME",
        help="the base model's id on the Hub, where the training took it from a folder",
    )
    add(
        "--evaluation",
        metavar="RUN",
        nargs="+",
        default=[],
        help="folders of `edit-trl evaluate` or `suite` for the card, beside those in the run's folder",
    )
    add("--dry_run", action="store_true", help="say what would be pushed; nothing is sent")
    return parser


def default_repo_id(name: str, wished: str | None = None, token: str | None = None) -> str:
    """Where to push when nothing is said: what the recipe wished, or the account and a name.

    Raises:
        InputError: Nobody is logged in.
    """
    from edit_trl.hub.repository import account

    if wished and "/" in wished:
        return wished
    name, user = wished or name, account(token)
    if user is None:
        raise InputError(
            f"where to? Pass --repo_id your-name/{name}, or log in with `hf auth login`: no account is known"
        )
    return f"{user}/{name}"


def _wished_repo_id(source: Source) -> str | None:
    return (
        read_run_file(source.path).get("options", {}).get("hub_model_id") if source.kind == "model" else None
    )


# From a training


@contextmanager
def pushing(run: RunArguments, folder: Path, wanted: bool) -> Iterator[None]:
    """Around a training: see that its result may be pushed, and push it at the end.

    The trainer itself pushes nothing: the result is pushed whole, once its card and results are there.
    """
    training = run.training
    training.push_to_hub = False
    if not wanted:
        yield
        return
    from accelerate import PartialState

    is_main = PartialState().is_main_process
    if is_main:
        from edit_trl.hub.repository import open_repository

        name = (folder if run.stage is None else folder.parent).resolve().name
        token, private = training.hub_token, training.hub_private_repo
        repo_id = default_repo_id(name, training.hub_model_id, token)
        open_repository(repo_id, private=private, revision=training.hub_revision, token=token)
    yield
    if is_main:
        source = find_source(str(folder))
        with tempfile.TemporaryDirectory(prefix="edit_trl-push-") as drafts:
            files, notes = _files(source, repo_id, None, [], Path(drafts))
            try:
                print(_push(source, repo_id, files, notes, private, training.hub_revision, token))
            except InputError as error:
                raise InputError(
                    f"{error}. The model is safe in {folder}: `edit-trl push {folder} --repo_id {repo_id}`"
                ) from error


# The files


def _files(
    source: Source, repo_id: str, base_model: str | None, evaluations: Sequence[str], drafts: Path
) -> tuple[dict[str, Content], list[str]]:
    """Name in the repository -> what goes there, and what is worth saying of it."""
    if source.kind == "model":
        return _model(source, repo_id, base_model, find_evaluations(source.path, evaluations), drafts)
    if base_model or evaluations:
        raise InputError("--base_model and --evaluation are for models; this is a dataset")
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


def _push(
    source: Source,
    repo_id: str,
    files: Mapping[str, Content],
    notes: Sequence[str],
    private: bool | None,
    revision: str | None,
    token: str | None = None,
) -> str:
    from edit_trl.hub.repository import open_repository, upload

    repo_type = _repo_type(source)
    there = open_repository(repo_id, repo_type=repo_type, private=private, revision=revision, token=token)
    commit = upload(
        files,
        repo_id,
        message=f"Push {source.name} with edit-trl",
        repo_type=repo_type,
        revision=revision,
        token=token,
    )
    visibility = "private" if there.private else "public"
    lines = [f"pushed {len(files)} files of {source.path} to {there.url} ({visibility}), commit {commit}"]
    if private is False and there.private:
        lines.append("it exists and is private, and stays so: its settings on the Hub make it public")
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _repo_type(source: Source) -> RepoType:
    return "model" if source.kind == "model" else "dataset"


def _listing(
    source: Source, repo_id: str, private: bool | None, files: Mapping[str, Content], notes: Sequence[str]
) -> str:
    visibility = "public" if private is False else "private, if it is new" if private is None else "private"
    lines = [f"would push to the {_repo_type(source)} {repo_id} ({visibility}), from {source.path}:", ""]
    for name, content in sorted(files.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        lines.append(f"  {size:>14,}  {name}")
    if source.path.is_dir():
        stays = sorted(e.name + "/" * e.is_dir() for e in source.path.iterdir() if e.name not in files)
        lines += ["", f"stays here: {', '.join(stays) or 'nothing'}"]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])
