"""`edit-trl validate`: check a recipe and its dataset without loading a model."""

import argparse
import sys
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def main(argv: list[str] | None = None) -> int:
    """Report every problem of a recipe and of its datasets at once; return 0 if there is none."""
    argv = sys.argv[1:] if argv is None else argv
    own, rest = _parser().parse_known_args(argv)
    if own.config is not None and _is_generation(own.config):
        return _check_generation(argv)
    from edit_trl.training.recipe.resolving import parse_options, read_recipe, resolve_runs

    if own.config is None and own.dataset is None:
        raise InputError("nothing to check: give --config RECIPE.yaml, --dataset DATA, or both")
    problems: list[str] = []
    runs, values = [], {}
    try:
        recipe = read_recipe(own.config)
        values |= recipe.values
        options = parse_options(rest, recipe) | ({"dataset_name": own.dataset} if own.dataset else {})
        values |= options
        if own.config:
            runs = resolve_runs(recipe, options)
    except InputError as error:
        problems += [f"{own.config or 'options'}: {problem}" for problem in error.problems]
    # A recipe that does not hold still names its rows: they are checked in the same go.
    named = own.dataset or values.get("dataset_name")
    fallback = [(named, values.get("dataset_train_split"), values)] if isinstance(named, str) else []
    for source, split, given in _datasets(runs) or fallback:
        try:
            rows = _check_dataset(source, split, given)
            print(f"{source}{f' ({split})' if split else ''}: {len(rows)} dual CoTs")
        except InputError as error:
            problems += error.problems
            continue
        try:
            _check_selection(rows, source, split, runs)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems, heading="not valid:")
    for run in runs:
        name = f"stage {run.stage}" if run.stage else "one run"
        print(f"{own.config}: {name} -> {run.training.output_dir}")
    print("valid")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edit-trl validate",
        allow_abbrev=False,
        description="Check a recipe of train or generate, and a dataset, without loading a model.",
        epilog="Options of the recipe may be given as --key value, as to the command itself.",
    )
    parser.add_argument("--config", metavar="RECIPE.yaml", help="The recipe.")
    parser.add_argument("--dataset", metavar="DATA", help="File, folder or Hub id; wins over the recipe's.")
    return parser


def _is_generation(config: str) -> bool:
    from edit_trl.teachers.generate_config import is_generate_recipe

    return is_generate_recipe(config)


def _check_generation(argv: list[str]) -> int:
    """A recipe of `edit-trl generate`, and all that it names; nothing is asked of a teacher."""
    from edit_trl.cli.option_parsing import read_options
    from edit_trl.teachers.generate_config import FLAGS, OPTIONS, read_generate_config
    from edit_trl.teachers.run import GenerationPlan

    path, options = read_options(argv, OPTIONS, FLAGS)
    print(GenerationPlan(read_generate_config(path, options)))
    print("valid")
    return 0


def _datasets(runs) -> list[tuple[str, str | None, dict]]:
    """(source, split, options) of every dataset the runs would read, each once."""
    found = {}
    for run in runs:
        data = run.data
        found[data.dataset_name, data.dataset_train_split] = run.values
        if run.training.eval_strategy != "no":
            split = None if data.eval_dataset_name else data.dataset_test_split
            found[data.eval_dataset_name or data.dataset_name, split] = run.values
        if data.suite_eval_steps is not None:
            found[data.suite_source] = run.values
    return [(source, split, values) for (source, split), values in found.items()]


def _check_dataset(source: str, split: str | None, values: dict) -> "Dataset":
    from edit_trl.data.dual_cots import load_dual_cots
    from edit_trl.training.recipe.data_arguments import DataArguments

    data = DataArguments(column_mapping=values.get("column_mapping"))
    return load_dual_cots(
        source,
        name=values.get("dataset_config"),
        split=split,
        revision=values.get("dataset_revision"),
        column_mapping=data.column_mapping,
    )


def _check_selection(rows: "Dataset", source: str, split: str | None, runs) -> None:
    """What each run that trains on the rows takes of them."""
    from edit_trl.data.views import select_rows

    problems = []
    for run in runs:
        data, seed = run.data, run.training.seed
        if (data.dataset_name, data.dataset_train_split) != (source, split):
            continue
        try:
            kept = select_rows(
                rows, data.view, mistake=data.mistake, rows=data.rows, seed=seed, source=source
            )
        except InputError as error:
            problems += [
                f"stage {run.stage}: {problem}" if run.stage else problem for problem in error.problems
            ]
            continue
        if (data.view, data.mistake, data.rows) != ("pairs", None, None):
            print(f"  {f'stage {run.stage}, ' if run.stage else ''}view {data.view}: {len(kept)} rows")
    if problems:
        raise InputError(problems)
