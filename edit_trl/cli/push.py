"""`edit-trl push`: push a trained model, a merged model or dual CoTs to the Hub, with a card."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.parser import Parser
from edit_trl.common.errors import InputError
from edit_trl.common.json_text import read_json_file
from edit_trl.hub.push import default_repo_id, find_source, push
from edit_trl.hub.repository import check_repo_id, check_revision

if TYPE_CHECKING:
    from edit_trl.evaluation.runs.schema import RunRecord
    from edit_trl.hub.card_facts import Evaluation


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl push`.

    Raises:
        InputError: There is nothing to push, or the Hub refused.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    source = find_source(options.run)
    repo_id = options.repo_id or default_repo_id(source.name, source.hub_model_id())
    check_repo_id(repo_id)
    if options.base_model:
        check_repo_id(options.base_model, "--base_model")
    check_revision(options.revision)
    if source.kind != "model" and (options.base_model or options.evaluation):
        raise InputError("--base_model and --evaluation are for models; this is a dataset")
    evaluations = find_evaluations(source.path, options.evaluation) if source.kind == "model" else []
    report = push(
        source,
        repo_id,
        base_model=options.base_model,
        evaluations=evaluations,
        private=options.private,
        revision=options.revision,
        dry_run=options.dry_run,
    )
    print(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl push",
        description="Push a trained model, with its tokenizer, recipe, results and card, or dual CoTs to the "
        "Hub. Checkpoints, optimizer states, journals and tokens are not uploaded. Accuracies on whole splits of "
        "benchmarks of the Hub, such as openai/gsm8k, also go to .eval_results/, from which the Hub's leaderboards "
        "read.",
        epilog="To resume a broken upload, run the same command again: what has arrived is not sent again. "
        "The token is that of `hf auth login`, or HF_TOKEN.",
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="the folder of a training run (its last finished stage is pushed), of a merged model or of "
        "`edit-trl generate`; or a file or folder of dual CoTs",
    )
    add("--repo_id", metavar="NAMESPACE/NAME", help="the repository (default: your account / the folder's name)")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="make a new repository private (the default); refused if it exists and is public",
    )
    visibility.add_argument("--public", action="store_false", dest="private", help="make a new repository public")
    add("--revision", metavar="BRANCH", help="the branch to push to; created if it does not exist")
    add(
        "--base_model", metavar="NAMESPACE/NAME", help="the base model's id on the Hub, if it was trained from a folder"
    )
    add(
        "--evaluation",
        metavar="RUN",
        nargs="+",
        default=[],
        help="runs of `edit-trl evaluate` or `suite` to show on the card, besides those in the run's folder",
    )
    add("--dry_run", action="store_true", help="print what would be pushed; send nothing")
    return parser


def find_evaluations(folder: Path, given: Sequence[str] = ()) -> list[Evaluation]:
    """Find finished runs of `edit-trl evaluate` and `suite` for the card of the model in `folder`.

    They are the runs in `given`, those in the model's folder, and runs of this model up to two levels below the
    parent of that folder.

    Raises:
        InputError: A run in `given` does not exist or is not finished.
    """
    from edit_trl.evaluation.runs.folder import RECORD_FILE, read_run

    runs = {run.path.resolve(): run for run in map(read_run, given)}
    around = [*folder.parent.glob(f"*/{RECORD_FILE}"), *folder.parent.glob(f"*/*/{RECORD_FILE}")]
    for file in sorted([*folder.rglob(RECORD_FILE), *around]):
        if file.parent.resolve() not in runs and _belongs_to(file, folder):
            runs[file.parent.resolve()] = read_run(file.parent)
    return [_evaluation(run.record, folder) for run in runs.values()]


def _belongs_to(record_file: Path, folder: Path) -> bool:
    """Whether a run is finished, and lies in `folder` or measured the model there."""
    try:
        record = read_json_file(record_file)
        is_own = folder in record_file.parents or Path(record["model"]).resolve() == folder.resolve()
        return record["finished"] is not None and is_own
    except (ValueError, KeyError, TypeError):  # another file of this name
        return False


def _evaluation(record: RunRecord, folder: Path) -> Evaluation:
    from edit_trl.evaluation.runs.scores import MAIN_SCORE
    from edit_trl.hub.card_facts import Evaluation

    return Evaluation(
        name=record.name,
        kind=record.kind,
        of_this_model=Path(record.model).resolve() == folder.resolve(),
        items=record.items,
        scores=record.scores,
        intervals=record.intervals,
        main=MAIN_SCORE[record.kind],
        tasks=record.groups.get("task", {}),
        finished=record.finished,
        setup=_setup(record),
        hub_datasets=record.hub_datasets,
    )


def _setup(record: RunRecord) -> str:
    """Return how the model of a run of `edit-trl evaluate` was asked, in a few words."""
    settings = record.settings
    samples, temperature = settings.get("samples") or 1, settings.get("temperature")
    words = [f"{samples} samples, vote: {settings.get('votes', 'majority')}"] if samples > 1 else []
    if temperature is not None:
        words.append(f"temperature {temperature:g}" if temperature else "greedy")
    if settings.get("max_new_tokens"):
        words.append(f"at most {settings['max_new_tokens']} new tokens")
    if settings.get("against"):
        words.append("contrastive decoding against another model")
    return "; ".join([*words, f"edit_trl {record.edit_trl}"])
