"""`edit-trl validate`: check a recipe and its dataset without loading a model."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from edit_trl.data.dual_cots import DatasetSource
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
    from edit_trl.teachers.generate_config import is_generate_recipe

    if own.config is not None and is_generate_recipe(own.config):
        return _check_generation(argv)
    from edit_trl.training.recipe.resolving import parse_options, read_recipe, resolve_runs
    from edit_trl.training.recipe.run_checks import check_runs

    if own.config is None and own.dataset is None:
        raise InputError("nothing to check: give --config RECIPE.yaml, --dataset DATA, or both")
    problems: list[str] = []
    named = {"dataset_name": own.dataset} if own.dataset else {}
    runs, values = [], named
    try:
        recipe = read_recipe(own.config)
        values = recipe.values | values
        options = parse_options(words, recipe) | named
        values |= options
        if own.config:
            runs = resolve_runs(recipe, options)
            check_runs(recipe, runs)
    except InputError as error:
        problems += [f"{own.config or 'options'}: {problem}" for problem in error.problems]
    # A recipe with problems may still name its rows: they are checked in the same go.
    try:
        sources = _sources(runs) or _named_source(values)
    except InputError as error:
        sources, problems = [], problems + error.problems
    for source in sources:
        try:
            rows = source.load()
            print(f"{source.name}{f' ({source.split})' if source.split else ''}: {len(rows)} dual CoTs")
        except InputError as error:
            problems += error.problems
            continue
        problems += _check_selection(rows, source, runs)
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


def _check_generation(argv: list[str]) -> int:
    """Check a recipe of `edit-trl generate` and all files that it names; no teacher is asked."""
    from edit_trl.common.options import read_options
    from edit_trl.teachers.generate_config import FLAGS, OPTIONS, read_generate_config
    from edit_trl.teachers.run import GenerationPlan

    path, options = read_options(argv, OPTIONS, FLAGS)
    print(GenerationPlan(read_generate_config(path, options)))
    print("valid")
    return 0


def _sources(runs: "Sequence[RunArguments]") -> "list[DatasetSource]":
    """Return every dataset that the runs would load, each once."""
    sources = []
    for run in runs:
        sources.append(run.data.train_source)
        if run.training.eval_strategy != "no":
            sources.append(run.data.eval_source)
        if run.data.suite_eval_steps is not None:
            sources.append(run.data.suite_source)
    return [source for number, source in enumerate(sources) if source not in sources[:number]]


def _named_source(values: Mapping[str, Any]) -> "list[DatasetSource]":
    """Return the training dataset that unchecked options name, if they do."""
    from edit_trl.training.recipe.data_arguments import DataArguments

    names = ("dataset_name", "dataset_train_split", "dataset_config", "dataset_revision", "column_mapping")
    options = {name: values[name] for name in names if name in values}
    return [DataArguments(**options).train_source] if isinstance(options.get("dataset_name"), str) else []


def _check_selection(rows: "Dataset", source: "DatasetSource", runs: "Sequence[RunArguments]") -> list[str]:
    """Return the problems of each run that trains on the rows, and print how many rows its view has."""
    problems = []
    for run in runs:
        data = run.data
        if data.train_source != source:
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
