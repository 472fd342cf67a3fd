"""`edit-trl push`: a trained model, a merged one or dual CoTs to the Hub, with a card (L4)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.common.run_file import read_run_file
from edit_trl.hub.push import Source, files_to_push, find_source, push_files, repo_type

if TYPE_CHECKING:
    from edit_trl.hub.card_sections import Evaluation
    from edit_trl.hub.repository import Content
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
    if source.kind != "model" and (options.base_model or options.evaluation):
        raise InputError("--base_model and --evaluation are for models; this is a dataset")
    evaluations = find_evaluations(source.path, options.evaluation) if source.kind == "model" else []
    with tempfile.TemporaryDirectory(prefix="edit_trl-push-") as drafts:
        files, notes = files_to_push(source, repo_id, options.base_model, evaluations, Path(drafts))
        if options.dry_run:
            print(_listing(source, repo_id, options.private, files, notes))
            return 0
        print(push_files(source, repo_id, files, notes, options.private, options.revision))
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
    return list(found.values())


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
            evaluations = find_evaluations(source.path, [])
            files, notes = files_to_push(source, repo_id, None, evaluations, Path(drafts))
            try:
                print(push_files(source, repo_id, files, notes, private, training.hub_revision, token))
            except InputError as error:
                raise InputError(
                    f"{error}. The model is safe in {folder}: `edit-trl push {folder} --repo_id {repo_id}`"
                ) from error


def _listing(
    source: Source, repo_id: str, private: bool | None, files: Mapping[str, Content], notes: Sequence[str]
) -> str:
    visibility = "public" if private is False else "private, if it is new" if private is None else "private"
    lines = [f"would push to the {repo_type(source)} {repo_id} ({visibility}), from {source.path}:", ""]
    for name, content in sorted(files.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        lines.append(f"  {size:>14,}  {name}")
    if source.path.is_dir():
        stays = sorted(e.name + "/" * e.is_dir() for e in source.path.iterdir() if e.name not in files)
        lines += ["", f"stays here: {', '.join(stays) or 'nothing'}"]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])
