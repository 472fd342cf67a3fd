"""`edit-trl validate`: check a recipe and its dataset without loading a model."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from edit_trl.training.recipe.data_arguments import DataArguments
    from edit_trl.training.recipe.resolving import RunArguments


def main(argv: list[str] | None = None) -> int:
    """Report every problem of a recipe and of its datasets at once.

    Returns:
        0 if there is none.

    Raises:
        InputError: All problems.
    """
    argv = sys.argv[1:] if argv is None else argv
    own, words = _parser().parse_known_args(argv)
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
        options = parse_options(words, recipe) | ({"dataset_name": own.dataset} if own.dataset else {})
        values |= options
        if own.config:
            runs = resolve_runs(recipe, options)
    except InputError as error:
        problems += [f"{own.config or 'options'}: {problem}" for problem in error.problems]
    # A recipe with problems may still name its rows: they are checked in the same go.
    try:
        datasets = _datasets(runs) or _named_dataset(own.dataset, values)
    except InputError as error:
        datasets, problems = {}, problems + error.problems
    for (source, split), data in datasets.items():
        try:
            rows = data.load(source, split)
            print(f"{source}{f' ({split})' if split else ''}: {len(rows)} dual CoTs")
        except InputError as error:
            problems += error.problems
            continue
        problems += _check_selection(rows, source, split, runs)
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
        epilog="Options of the recipe may be given as --key value, as for the command itself.",
    )
    parser.add_argument("--config", metavar="RECIPE.yaml", help="The recipe.")
    parser.add_argument("--dataset", metavar="DATA", help="A file, folder or Hub id; wins over the recipe's.")
    return parser


def _is_generation(config: str) -> bool:
    from edit_trl.teachers.generate_config import is_generate_recipe

    return is_generate_recipe(config)


def _check_generation(argv: list[str]) -> int:
    """Check a recipe of `edit-trl generate` and all files that it names; no teacher is asked."""
    from edit_trl.common.options import read_options
    from edit_trl.teachers.generate_config import FLAGS, OPTIONS, read_generate_config
    from edit_trl.teachers.run import GenerationPlan

    path, options = read_options(argv, OPTIONS, FLAGS)
    print(GenerationPlan(read_generate_config(path, options)))
    print("valid")
    return 0


def _datasets(runs: "Sequence[RunArguments]") -> "dict[tuple[str, str | None], DataArguments]":
    """Every (source, split) that the runs would load, with the options to load it."""
    datasets = {}
    for run in runs:
        datasets[run.data.dataset_name, run.data.dataset_train_split] = run.data
        if run.training.eval_strategy != "no":
            datasets[run.data.eval_source] = run.data
        if run.data.suite_eval_steps is not None:
            datasets[run.data.suite_source] = run.data
    return datasets


def _named_dataset(dataset: str | None, values: Mapping[str, Any]) -> "dict[tuple[str, str | None], DataArguments]":
    """The dataset that options name which are not checked, or could not be."""
    from edit_trl.training.recipe.data_arguments import DataArguments

    source, split = dataset or values.get("dataset_name"), values.get("dataset_train_split")
    if not isinstance(source, str):
        return {}
    names = ("dataset_config", "dataset_revision", "column_mapping")
    return {(source, split): DataArguments(**{name: values[name] for name in names if name in values})}


def _check_selection(rows: "Dataset", source: str, split: str | None, runs: "Sequence[RunArguments]") -> list[str]:
    """The problems of the views of each run that trains on the rows; prints how many rows it trains on."""
    problems = []
    for run in runs:
        data = run.data
        if (data.dataset_name, data.dataset_train_split) != (source, split):
            continue
        stage = f"stage {run.stage}" if run.stage else ""
        try:
            selected = data.train_view(rows, run.training.seed)
        except InputError as error:
            problems += [f"{stage}: {problem}" if stage else problem for problem in error.problems]
            continue
        if (data.view, data.mistake, data.rows) != ("pairs", None, None):
            print(f"  {f'{stage}, ' if stage else ''}view {data.view}: {len(selected)} rows")
    return problems
