"""A recipe: a YAML file (and command-line options over it) -> checked arguments of each stage (L2).

Options are those of `DataArguments`, `DualCoTConfig` and TRL's `ModelConfig`. `stages` is a list of
named overrides, run in order; a recipe without it is one run. A stage whose `trainer` is one of TRL's has
that trainer's options in place of `DualCoTConfig`'s. Everything wrong with a recipe is reported at once.
"""

import argparse
import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig, TrlParser

from edit_trl.common.errors import InputError
from edit_trl.common.options import convert, hints_of, nearest, read_yaml
from edit_trl.training.config import NOT_FOR_DUAL_COTS, DualCoTConfig
from edit_trl.training.quantization import implied_options
from edit_trl.training.recipe.checks import run_problems
from edit_trl.training.recipe.data_arguments import DataArguments
from edit_trl.training.trainer_choice import TrainerName, options_class, trainers_named, trainers_with


def argument_classes(trainer: TrainerName) -> tuple[type, ...]:
    """The classes of all options of a run."""
    return DataArguments, options_class(trainer), ModelConfig


@dataclass(frozen=True)
class Recipe:
    """A recipe file as read.

    Attributes:
        path: The file; None for a run given by options alone.
        values: Its options, without `stages`.
        stages: (name, overrides) in order; empty for a recipe that is one run.
    """

    path: Path | None
    values: dict[str, Any]
    stages: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class RunArguments:
    """The checked arguments of one run: a stage, or a recipe without stages.

    Attributes:
        stage: The stage's name; None for a recipe without stages.
        values: The options that were given, converted, stage and command line applied.
        data: Where the rows come from.
        training: The trainer's configuration, a `DualCoTConfig` but for TRL's trainers; `output_dir` is the
            stage's own folder.
        model: TRL's model, PEFT and quantization options.
        left_out: Options of the command line that other stages have and this one's trainer does not.
    """

    stage: str | None
    values: dict[str, Any]
    data: DataArguments
    training: DualCoTConfig | TrainingArguments
    model: ModelConfig
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """What a person should hear of it before it runs."""
        if not self.left_out:
            return None
        names = ", ".join(f"--{name}" for name in self.left_out)
        return f"stage {self.stage} runs without {names}: no option of its trainer, {self.data.trainer}"


def read_recipe(path: str | Path | None) -> Recipe:
    """Read a recipe file and the outline of its stages.

    Raises:
        InputError: No such file, broken YAML (with line and column), not a mapping, or malformed
            stages.
    """
    if path is None:
        return Recipe(None, {})
    path = Path(path)
    values = read_yaml(path)
    if "teacher" in values or "base_urls" in values:
        raise InputError(f"{path}: this is a recipe of `edit-trl generate`, not of train")
    stages = values.pop("stages", None)
    problems = list(_stage_problems(stages))
    if problems:
        raise InputError(problems, heading=f"{path}:")
    return Recipe(
        path,
        values,
        tuple((s["name"], {k: v for k, v in s.items() if k != "name"}) for s in stages or ()),
    )


def _stage_problems(stages: Any) -> Iterator[str]:
    if stages is None:
        return
    if not isinstance(stages, list) or not stages:
        yield f"`stages` must be a list of `name:` and overrides, got {stages!r}"
        return
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.isidentifier():
            yield f"stage {number} needs a `name` of letters, digits and underscores, got {name!r}"
        elif names.index(name) != number - 1:
            yield f"two stages are named {name!r}"
        elif "output_dir" in stages[number - 1]:
            yield f"stage {name!r} sets `output_dir`; it is made from the recipe's and the stage's name"


def make_parser(
    prog: str | None = None, trainers: Sequence[TrainerName] = ("dual_cot",)
) -> argparse.ArgumentParser:
    """The command-line parser of all options of a recipe whose stages have these trainers."""

    class Parser(TrlParser):
        def error(self, message: str) -> typing.NoReturn:
            raise InputError(f"{message} (see `edit-trl train --help`)")

    classes = dict.fromkeys(cls for trainer in trainers for cls in argument_classes(trainer))
    # Most options are those of several trainers; of two that differ, that of TRL's trainer is read.
    return Parser(tuple(classes), prog=prog, allow_abbrev=False, conflict_handler="resolve")


def parse_options(argv: Sequence[str], recipe: "Recipe | None" = None) -> dict[str, Any]:
    """Command-line options -> the values given.

    Args:
        argv: The words.
        recipe: What they are over; its trainers decide which options there are.

    Raises:
        InputError: An option that does not exist (the nearest is named) or has the wrong type.
    """
    trainers = _trainers(recipe, argv)
    parser, not_given = make_parser(trainers=trainers), object()
    hints = {name: hint for trainer in trainers for name, hint in _hints(trainer).items()}
    parser.set_defaults(**dict.fromkeys(hints, not_given))
    for action in parser._actions:
        action.choices = None  # checked with the recipe's values, which names the nearest
    namespace, unknown = parser.parse_known_args(list(argv))
    problems = [
        f"unknown option {word}{_meant(word.split('=')[0].lstrip('-'), hints, trainers, '--')}"
        if word.startswith("-")
        else f"unexpected {word!r}"
        for word in unknown
        # The value after an unknown option is not a problem of its own.
        if word.startswith("-") or not unknown[unknown.index(word) - 1].startswith("-")
    ]
    if problems:
        raise InputError(problems)
    return {name: value for name, value in vars(namespace).items() if value is not not_given}


def resolve_runs(recipe: Recipe, options: Mapping[str, Any]) -> list[RunArguments]:
    """The checked arguments of every run of a recipe.

    Args:
        recipe: The recipe.
        options: Command-line options, which win over the recipe and its stages.

    Raises:
        InputError: All problems of the recipe, each stage included, at once.
    """
    problems: list[str] = []
    runs = []
    stages = recipe.stages or ((None, {}),)
    trainers = [({**recipe.values, **stage, **options}).get("trainer") or "dual_cot" for _, stage in stages]
    for (name, overrides), trainer in zip(stages, trainers, strict=True):
        taken = _options_of(trainer, trainers, options)
        values = {**recipe.values, **overrides, **taken}
        if name is not None:
            values["output_dir"] = str(Path(values.get("output_dir") or "outputs") / name)
        try:
            run = _resolve(name, values)
            left_out = tuple(option for option in options if option not in taken)
            runs.append(dataclasses.replace(run, left_out=left_out))
        except InputError as error:
            label = f"stage {name}: " if name else ""
            problems += [label + problem for problem in error.problems]
    if problems:
        # What is wrong at the top level is wrong in every stage: say it once.
        shared = [p for p in problems if p.startswith("stage ")]
        texts = [p.split(": ", 1)[1] for p in shared]
        count = max(len(recipe.stages), 1)
        everywhere = [t for t in dict.fromkeys(texts) if texts.count(t) == count]
        rest = [p for p in problems if p not in shared or p.split(": ", 1)[1] not in everywhere]
        raise InputError(everywhere + rest, heading=f"{recipe.path or 'command line'}:")
    return runs


def _resolve(stage: str | None, values: dict[str, Any]) -> RunArguments:
    [trainer] = trainers_named([values.get("trainer")])
    classes = argument_classes(trainer)
    hints = _hints(trainer)
    # An unknown key may be one of another trainer's.
    problems = [
        f"unknown key `{name}`{_meant(name, hints, [trainer])}" for name in values if name not in hints
    ]
    values, others = convert({name: value for name, value in values.items() if name in hints}, hints)
    problems += others
    # Not kept as values of the run: what is implied may differ on the machine that takes it up again.
    complete = values | implied_options(values)
    if trainer != "dual_cot" and complete.get("bf16") is None:
        # TRL asks for bf16 unless told otherwise, which fails on a machine without it.
        on_gpu = is_torch_bf16_gpu_available() and not complete.get("use_cpu")
        complete["bf16"] = on_gpu and not complete.get("fp16")
    built: dict[type, Any] = {}
    for cls in classes:
        names = {f.name for f in dataclasses.fields(cls)}
        try:
            built[cls] = cls(**{k: v for k, v in complete.items() if k in names})
        except InputError as error:
            problems += error.problems
        except (
            ValueError,
            ImportError,
        ) as error:  # what TRL and transformers raise for bad options
            problems.append(str(error))
    problems += run_problems(values, trainer)
    if problems:
        raise InputError(problems)
    data, training, model = (built[cls] for cls in classes)
    return RunArguments(stage, values, data, training, model)


def _hints(trainer: TrainerName) -> dict[str, Any]:
    """Every option of a run and its type."""
    return hints_of(argument_classes(trainer))


def _trainers(recipe: Recipe | None, argv: Sequence[str]) -> list[TrainerName]:
    """The trainers of a recipe's stages, with what the command line says of them."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--trainer")
    if (said := own.parse_known_args(list(argv))[0].trainer) is not None:
        return trainers_named([said])
    recipe = recipe or Recipe(None, {})
    stages = recipe.stages or ((None, {}),)
    return trainers_named(({**recipe.values, **stage}).get("trainer") for _, stage in stages)


def _options_of(trainer: Any, trainers: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the command line's options those that a stage has, where the stages have different trainers."""
    if len({*trainers}) == 1 or trainer not in typing.get_args(TrainerName):
        return dict(options)
    hints = _hints(trainer).keys() - (NOT_FOR_DUAL_COTS if trainer == "dual_cot" else ())
    return {name: value for name, value in options.items() if name in hints}


def _meant(name: str, hints: Mapping[str, Any], trainers: Sequence[TrainerName], prefix: str = "") -> str:
    """Whose option an unknown one is, or which was probably meant."""
    others = [trainer for trainer in trainers_with(name) if trainer not in trainers]
    if others:
        return (
            f": it is an option of the trainer {' and '.join(others)}, not of {' or '.join(trainers)}"
            + nearest(name, hints, prefix)
        )
    return nearest(name, hints, prefix)
