"""`edit-trl validate`: check a recipe and its dataset without loading a model."""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edit_trl.cli.parser import Parser, RecipeAction
from edit_trl.cli.recipe_command import RecipeOptions
from edit_trl.common.conversion import convert
from edit_trl.common.environment import read_recipe_words
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.options import hints_of

if TYPE_CHECKING:
    from edit_trl.data.dual_cots import DatasetSource
    from edit_trl.data.mixture import Mixture
    from edit_trl.training.recipe.resolving import RunArguments

# Options by which a recipe is not for training.
_NOT_OF_TRAIN = {
    *("model", "base_urls", "teacher", "student", "pairs", "families"),
    *("tasks", "harness", "from_run", "runs"),
}


def main(argv: list[str] | None = None) -> int:
    """Report every problem of a recipe and of its datasets at once.

    Returns:
        0 if there is none.

    Raises:
        InputError: All problems.
    """
    argv = sys.argv[1:] if argv is None else argv
    own, words = _parser().parse_known_args(argv)
    words_of_recipe = read_recipe_words(own.config) if own.config is not None else {}
    if own.config is not None and (kind := recipe_kind({*words_of_recipe, *_flags(argv)})) != "train":
        print(f"{own.config}: a recipe of `edit-trl {kind}`\n{_check_recipe(kind, argv, words_of_recipe)}\nvalid")
        return 0
    if own.config is None and own.dataset is None:
        raise InputError("nothing to check: give --config RECIPE.yaml, --dataset DATA, or both")
    from edit_trl.training.recipe.data_checks import data_problems, sources_of

    runs: list[RunArguments] = []
    values: dict[str, Any] = {"dataset_name": own.dataset} if own.dataset else {}
    problems: list[str] = []
    if own.config is not None or words:
        runs, values, problems = _read_runs(own.config, words, values)
    # A recipe with problems may still name its rows: they are checked in the same go.
    try:
        sources = sources_of(runs) or _named_source(values, own.config is not None)
    except InputError as error:
        sources, problems = [], problems + error.problems
    problems += data_problems(sources, runs, print, print)
    if problems:
        raise InputError(problems, heading="not valid:")
    for run in runs:
        name = f"stage {run.stage}" if run.stage else "one run"
        print(f"{own.config}: {name} -> {run.training.output_dir}")
    print("valid")
    return 0


def _read_runs(
    config: str | None, words: Sequence[str], named: dict[str, Any]
) -> "tuple[list[RunArguments], dict[str, Any], list[str]]":
    """Read and check a recipe for training and the options that win over it; imports TRL and torch.

    Returns:
        The runs, the options as far as they could be read, and the problems.
    """
    from edit_trl.training.recipe.outline import override, read_recipe
    from edit_trl.training.recipe.resolving import parse_options, resolve_runs
    from edit_trl.training.recipe.run_checks import check_runs

    runs: list[RunArguments] = []
    values = named
    try:
        recipe = read_recipe(config)
        values = override(recipe.values, named)
        options = parse_options(words, recipe) | named
        values = override(recipe.values, options)
        if config:
            runs = resolve_runs(recipe, options)
            check_runs(recipe, runs)
    except InputError as error:
        return runs, values, [f"{config or 'options'}: {problem}" for problem in error.problems]
    return runs, values, []


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl validate",
        description="Check a recipe of train, generate, evaluate, suite or judge, or a dataset; loads no model.",
        epilog="Options of the recipe may be given as --key value, as for the command itself.",
    )
    parser.add_argument("--config", action=RecipeAction, metavar="RECIPE.yaml", help="The recipe, or its name.")
    parser.add_argument("--dataset", metavar="DATA", help="A file, folder or Hub id; wins over the recipe's.")
    return parser


def _flags(argv: Sequence[str]) -> set[str]:
    names = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    return names - {"config", "dataset"}


def recipe_kind(names: Collection[str]) -> str:
    """Return the command that a recipe with these options is for: the one that knows most of them."""
    from edit_trl.teachers.generate_config import OPTIONS

    names = {*names}
    if names & {"stages", "model_name_or_path"} or not names & _NOT_OF_TRAIN:
        return "train"
    known = {"generate": OPTIONS.keys()} | {
        kind: _recipe_options(kind).names for kind in ("evaluate", "suite", "judge")
    }
    unknown = {kind: len(names - options) for kind, options in known.items()}
    kind = min(unknown, key=unknown.__getitem__)
    if unknown[kind]:  # a training recipe with a wrong name is one, too
        from edit_trl.training.recipe.resolving import option_names

        if len(names - option_names()) < unknown[kind]:
            return "train"
    return kind


def _recipe_options(kind: str) -> RecipeOptions:
    return import_module(f"edit_trl.cli.{kind}").recipe_options()


def _check_recipe(kind: str, argv: Sequence[str], recipe: Mapping[str, Any]) -> str:
    """Check a recipe that is not for training, and all files that it names; no model is asked or loaded."""
    from edit_trl.common.options import read_options
    from edit_trl.teachers.generate_config import FLAGS, OPTIONS, read_generate_config
    from edit_trl.teachers.run import GenerationPlan

    if kind == "generate":
        path, options = read_options(argv, OPTIONS, FLAGS)
        config = read_generate_config(path, options, recipe)
        plan = GenerationPlan(config)
        if config.arguments.train_recipe:
            from edit_trl.cli.rounds import check_rounds

            check_rounds(config)
        return str(plan)
    command = _recipe_options(kind)
    path, options = read_options(argv, command.names)
    return command.check(*command.build(path, options, recipe))


def _named_source(values: Mapping[str, Any], is_recipe: bool) -> "list[DatasetSource | Mixture]":
    """Return the training dataset that unchecked options name, if they do.

    Raises:
        InputError: The options are no text, and there is no recipe with which they were checked.
    """
    from edit_trl.data.mixture import read_datasets
    from edit_trl.training.recipe.data_arguments import DataArguments

    names = ("dataset_name", "dataset_train_split", "dataset_config", "dataset_revision", "column_mapping", "datasets")
    values = {name: values[name] for name in names if name in values}
    if values.get("datasets") is not None:
        try:
            values["datasets"] = read_datasets(values["datasets"])
        except InputError:
            return []  # reported with the recipe
    options, problems = convert(values, hints_of([DataArguments]))
    if not is_recipe:  # the values of a recipe were checked with it
        raise_problems(problems)
    is_named = isinstance(options.get("dataset_name"), str) or options.get("datasets")
    return [DataArguments(**options).train_source] if is_named else []
