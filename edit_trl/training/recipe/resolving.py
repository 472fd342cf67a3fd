"""Recipes (a YAML file, and options that win over it) and the checked arguments of their stages.

Options are those of `DataArguments`, of the trainer (`DualCoTConfig`, or TRL's class where a stage sets
`trainer`) and of TRL's `ModelConfig`. `stages` is a list of named overrides, run in order; a recipe without
it is a single run. All problems of a recipe are reported at once.
"""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig, TrlParser

from edit_trl.common.conversion import convert
from edit_trl.common.errors import InputError, collect_problems
from edit_trl.common.options import hints_of
from edit_trl.data.mixture import read_datasets
from edit_trl.data.view_mixture import read_weights
from edit_trl.data.views import PAIR_VIEWS
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.inherited_options import OF_EVERY_RUN, REFUSED
from edit_trl.training.option_checks import choices_of, option_problems
from edit_trl.training.quantization import implied_options
from edit_trl.training.recipe.checks import run_problems
from edit_trl.training.recipe.data_arguments import DataArguments
from edit_trl.training.recipe.option_table import meant, refuse_unknown, trainers_of
from edit_trl.training.recipe.outline import PAIR_OPTIONS, Recipe, override
from edit_trl.training.trainer_choice import TrainerName, options_class, trainers_named


def argument_classes(trainer: TrainerName) -> tuple[type, ...]:
    """Return the classes that hold all options of a run."""
    return DataArguments, options_class(trainer), ModelConfig


@dataclass(frozen=True)
class RunArguments:
    """The checked arguments of one run: a stage, or a recipe without stages.

    Attributes:
        stage: The stage's name; None for a recipe without stages.
        values: The options that were given, converted to their types, those of the stage and the command line applied.
        data: Where the rows come from.
        training: The trainer's configuration: a `DualCoTConfig`, or that of one of TRL's trainers, whose common class
            lacks most of their options. `output_dir` is the stage's own folder.
        model: TRL's model, PEFT and quantization options.
        left_out: Options of the command line that are for other stages: this one's trainer does not have them, or they
            are about pairs and it trains on correct chains alone.
    """

    stage: str | None
    values: dict[str, Any]
    data: DataArguments
    training: Any
    model: ModelConfig
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """A note for the user before the run starts, if there is one."""
        if not self.left_out:
            return None
        reasons: dict[str, list[str]] = {}
        for name in self.left_out:
            reason = f"no option of its trainer, {self.data.trainer}"
            if self.data.trainer == "dual_cot" and name in PAIR_OPTIONS:
                reason = "it trains on correct chains alone"
            reasons.setdefault(reason, []).append(f"--{name}")
        parts = (f"without {', '.join(names)}: {reason}" for reason, names in reasons.items())
        return f"stage {self.stage} runs {'; '.join(parts)}"


def make_parser(prog: str | None = None, trainers: Sequence[TrainerName] = ("dual_cot",)) -> argparse.ArgumentParser:
    """Return the command-line parser of all options of a recipe whose stages have these trainers."""

    class Parser(TrlParser):
        def error(self, message: str) -> typing.NoReturn:
            raise InputError(f"{message} (see `edit-trl train --help`)")

    classes: dict[Any, None] = dict.fromkeys(cls for trainer in trainers for cls in argument_classes(trainer))
    # Trainers share most options; where two define one differently, TRL's definition is parsed.
    return Parser(tuple(classes), prog=prog, allow_abbrev=False, conflict_handler="resolve")


def parse_options(argv: Sequence[str], recipe: Recipe | None = None) -> dict[str, Any]:
    """Parse command-line options into the values that were given.

    Args:
        argv: The words of the command line.
        recipe: The recipe that the options win over; its trainers decide which options exist.

    Raises:
        InputError: An option does not exist (names the nearest one) or has the wrong type.
    """
    trainers = trainers_of(recipe or Recipe(None, {}), argv)
    parser, not_given = make_parser(trainers=trainers), object()
    hints = {name: hint for trainer in trainers for name, hint in _hints(trainer).items()}
    parser.set_defaults(**dict.fromkeys(hints, not_given))
    for action in parser._actions:
        action.choices = None  # checked with the recipe's values, where the nearest choice is named
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        refuse_unknown(unknown, trainers, all_names())
    return {name: value for name, value in vars(namespace).items() if value is not not_given}


def resolve_runs(recipe: Recipe, options: Mapping[str, Any]) -> list[RunArguments]:
    """Return the checked arguments of every run of a recipe.

    Args:
        recipe: The recipe.
        options: Options that win over the recipe and its stages: those of the command line, or of `train_recipe`.

    Raises:
        InputError: All problems of the recipe and of its stages, at once.
    """
    runs: list[RunArguments] = []
    problems: list[list[str]] = []
    trainers: list[Any] = [
        {**recipe.values, **stage, **options}.get("trainer") or "dual_cot" for _, stage in recipe.runs
    ]
    pairs = [
        _has_pairs(override(recipe.values, stage), trainer)
        for (_, stage), trainer in zip(recipe.runs, trainers, strict=True)
    ]
    for (stage, overrides), trainer, has_pairs in zip(recipe.runs, trainers, pairs, strict=True):
        own_options = _options_of(trainer, trainers, options)
        if any(pairs) and not has_pairs:
            own_options = {name: value for name, value in own_options.items() if name not in PAIR_OPTIONS}
        values = override(override(recipe.values, overrides), own_options)
        if stage is not None:
            values["output_dir"] = str(Path(values.get("output_dir") or "outputs") / stage)
        try:
            left_out = tuple(name for name in options if name not in own_options)
            runs.append(_resolve(stage, values, left_out))
            problems.append([])
        except InputError as error:
            problems.append(error.problems)
    if any(problems):
        raise InputError(by_stage(recipe, problems), heading=f"{recipe.path or 'command line'}:")
    return runs


def _has_pairs(values: Mapping[str, Any], trainer: TrainerName) -> bool:
    """Return whether a stage trains on pairs by what the recipe says of it, rather than on correct chains alone."""
    if trainer != "dual_cot":
        return True
    hints = _hints(trainer)
    values, _ = convert({name: value for name, value in values.items() if name in hints}, hints)
    names = [values.get("view", "pairs")]
    if values.get("views"):
        with collect_problems([]):  # reported when the stage is resolved
            names = list(read_weights(values["views"]))
    if not {*map(str, names)} & {*PAIR_VIEWS}:
        return False
    fields = DualCoTConfig.__dataclass_fields__
    weights = {name: values.get(name, fields[name].default) for name in _WEIGHTS}
    key, context, *others = weights.values()
    return any(others) or key != context


_WEIGHTS = ("chosen_key_weight", "chosen_context_weight", "rejected_key_weight", "preference_weight")


def resolve_run(recipe: Recipe, options: Mapping[str, Any], stage: str | None) -> RunArguments:
    """Return the checked arguments of the run that this process trains next.

    They are built after all others: `TrainingArguments` puts its device into accelerate's shared state, and
    removes the precision and the device of the run before from it.

    Raises:
        InputError: All problems of the recipe and of its stages, or no such stage.
    """
    run = pick_run(recipe, resolve_runs(recipe, options), stage)
    return _resolve(run.stage, run.values, run.left_out)


def pick_run(recipe: Recipe, runs: Sequence[RunArguments], stage: str | None) -> RunArguments:
    """Return the run of a stage.

    Raises:
        InputError: The recipe has no such stage, or has stages and none is named.
    """
    names = [run.stage for run in runs]
    if stage in names:
        return runs[names.index(stage)]
    if stage is None:
        raise InputError(
            f"{recipe.path} has the stages {', '.join(map(str, names))}; name one with --stage, or use "
            "`edit-trl train`, which launches each in turn"
        )
    raise InputError(f"no stage {stage!r} in {recipe.path}; it has: {', '.join(map(str, names))}")


def by_stage(recipe: Recipe, problems: Sequence[Sequence[str]]) -> list[str]:
    """Return the problems of every stage; those that all stages share come first and once."""
    if not recipe.stages:
        return list(problems[0])
    shared = [problem for problem in dict.fromkeys(problems[0]) if all(problem in each for each in problems)]
    return shared + [
        f"stage {name}: {problem}"
        for (name, _), each in zip(recipe.stages, problems, strict=True)
        for problem in each
        if problem not in shared
    ]


def _resolve(stage: str | None, values: dict[str, Any], left_out: tuple[str, ...]) -> RunArguments:
    [trainer] = trainers_named([values.get("trainer")])
    hints = _hints(trainer)
    problems = [f"unknown key `{name}`{meant(name, [trainer], all_names())}" for name in values if name not in hints]
    values, misspelt = _respelt(values, trainer)
    problems += misspelt
    if values.get("datasets") is not None:
        with collect_problems(problems):
            values, datasets = values | {"datasets": []}, values["datasets"]
            values["datasets"] = read_datasets(datasets)
    values, not_converted = convert({name: value for name, value in values.items() if name in hints}, hints)
    problems += not_converted
    # Not part of the run's values: what is implied may differ on the machine that resumes it.
    complete = values | implied_options(values)
    if trainer != "dual_cot" and complete.get("bf16") is None:
        # TRL asks for bf16 by default, which fails on a machine without it.
        on_gpu = is_torch_bf16_gpu_available() and not complete.get("use_cpu")
        complete["bf16"] = on_gpu and not complete.get("fp16")
    built: list[Any] = []
    for cls in argument_classes(trainer):
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in complete.items() if name in names}
        # Our classes check themselves.
        found = [] if cls in (DataArguments, DualCoTConfig) else option_problems(cls, own)
        problems += found
        if found:
            continue
        try:
            built.append(cls(**own))
        except InputError as error:
            problems += error.problems
        # What TRL and transformers raise for bad options, and for files that options name
        except (ValueError, TypeError, ImportError, OSError) as error:
            problems.append(" ".join(str(error).split()))
    problems += run_problems(values, trainer)
    if problems:
        raise InputError(problems)
    data, training, model = built
    return RunArguments(stage, values, data, training, model, left_out)


def _respelt(values: dict[str, Any], trainer: TrainerName) -> tuple[dict[str, Any], list[str]]:
    """Return the values with YAML's `no` as the word, and `resume_from_checkpoint: true` as what is done anyway."""
    cls: Any = options_class(trainer)
    words = choices_of(cls)
    values = {name: "no" if value is False and "no" in words.get(name, ()) else value for name, value in values.items()}
    resume = str(values.get("resume_from_checkpoint", "")).lower()
    if resume == "true":  # a run is resumed wherever it can be
        del values["resume_from_checkpoint"]
    if resume == "false":
        del values["resume_from_checkpoint"]
        return values, ["`resume_from_checkpoint: false`: a run is resumed in its folder; choose another `output_dir`"]
    return values, []


def option_names() -> set[str]:
    """Return the names of all options of recipes, of any trainer."""
    return {"stages", *(name for names in all_names().values() for name in names)}


def all_names() -> dict[str, list[str]]:
    """Return the names of the options of every trainer."""
    return {trainer: [*_hints(trainer)] for trainer in typing.get_args(TrainerName)}


def _hints(trainer: TrainerName) -> dict[str, Any]:
    """Return the type of every option of a run, by name."""
    return hints_of(argument_classes(trainer))


def _options_of(trainer: TrainerName, trainers: Sequence[TrainerName], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those that only the trainers of other stages have."""
    others = {name for other in trainers_named(trainers) for name in _usable_options(other)}
    own = _usable_options(trainer) if trainer in typing.get_args(TrainerName) else others
    return {name: value for name, value in options.items() if name in own or name not in others}


def _usable_options(trainer: TrainerName) -> set[str]:
    return _hints(trainer).keys() - (REFUSED.keys() - OF_EVERY_RUN if trainer == "dual_cot" else set())
