"""A recipe: a YAML file (and command-line options over it) -> checked arguments of each stage (L2).

Options are those of `DataArguments`, `DualCoTConfig` and TRL's `ModelConfig`. `stages` is a list of
named overrides, run in order; a recipe without it is one run. Everything wrong with a recipe is
reported at once.
"""

import argparse
import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, TrlParser

from edit_trl.config import DualCoTConfig
from edit_trl.errors import InputError
from edit_trl.options import convert, hints_of, nearest, read_yaml
from edit_trl.quantization import implied_options
from edit_trl.views import PAIR_VIEWS, View


@dataclass
class DataArguments:
    """Where the dual CoTs come from and which of them are used; TRL's names, plus what it lacks."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dual CoTs: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets or "
            "`edit-trl generate`, or a Hub id.",
            "aliases": ["--dataset"],
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."}
    )
    dataset_train_split: str | None = field(
        default=None, metadata={"help": "Split to train on; 'train' where the dataset has splits."}
    )
    dataset_test_split: str = field(
        default="test",
        metadata={"help": "Split to evaluate on where eval_strategy is not 'no'."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub id to evaluate on instead of dataset_test_split."},
    )
    column_mapping: dict | str | None = field(
        default=None,
        metadata={
            "help": "Renames columns of the dataset, as JSON or YAML: "
            '\'{"correct": "chosen", "incorrect": "rejected"}\'.'
        },
    )

    view: View = field(
        default="pairs",
        metadata={
            "help": "As what the dual CoTs are trained on. 'pairs': as they are. 'rectified', "
            "'corrupted': the pairs that began as a wrong, or as a correct chain. 'chosen': each correct "
            "chain alone. 'unrectified': those that were correct from the start. 'repeat_sampling': those "
            "again and again, as many as all chains. 'dual_cot_sft': correct chains, and wrong ones marked "
            "as such. 'mt_cot', 'sbs': chain and answer as two tasks. 'scott': correct chains, and the "
            "answers of wrong ones. See edit_trl.views and recipes/baselines."
        },
    )
    mistake: list[str] | None = field(
        default=None,
        metadata={
            "help": "Only pairs with one of these kinds of mistake, as the column `mistake` names them. "
            "Views of chains alone are left as they are."
        },
    )
    rows: int | None = field(
        default=None,
        metadata={"help": "Only so many rows of the view, drawn with `seed`: systems of matched size."},
    )

    suite_eval_steps: int | None = field(
        default=None,
        metadata={
            "help": "Show the student a suite of dual CoTs every so many steps, and keep its scores in "
            "suite_history.jsonl; `metric_for_best_model: suite/key_preference` chooses weights by them."
        },
    )
    suite_dataset_name: str | None = field(
        default=None,
        metadata={"help": "The suite, as a file, folder or Hub id; the evaluation dataset by default."},
    )
    suite_dataset_split: str | None = field(default=None, metadata={"help": "Split of suite_dataset_name."})
    suite_rows: int | None = field(default=None, metadata={"help": "Only the suite's first so many pairs."})
    suite_accuracy_rows: int = field(
        default=0, metadata={"help": "How many of the suite's questions the student also answers."}
    )
    suite_max_new_tokens: int = field(
        default=256, metadata={"help": "Where the student's answers to a suite's questions are cut off."}
    )

    def __post_init__(self):
        if isinstance(self.column_mapping, str):
            try:
                self.column_mapping = json.loads(self.column_mapping)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"`column_mapping` is not JSON ({error}): {self.column_mapping!r}; write "
                    '\'{"theirs": "ours"}\''
                ) from error

    @property
    def suite_source(self) -> tuple[str | None, str | None]:
        """Where the suite is, and which split."""
        if self.suite_dataset_name:
            return self.suite_dataset_name, self.suite_dataset_split
        if self.eval_dataset_name:
            return self.eval_dataset_name, None
        return self.dataset_name, self.dataset_test_split


ARGUMENT_CLASSES = (DataArguments, DualCoTConfig, ModelConfig)


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
        training: The trainer's configuration; `output_dir` is the stage's own folder.
        model: TRL's model, PEFT and quantization options.
    """

    stage: str | None
    values: dict[str, Any]
    data: DataArguments
    training: DualCoTConfig
    model: ModelConfig


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


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command-line parser of all options of a recipe."""

    class Parser(TrlParser):
        def error(self, message: str) -> typing.NoReturn:
            raise InputError(f"{message} (see `edit-trl train --help`)")

    return Parser(ARGUMENT_CLASSES, prog=prog, allow_abbrev=False)


def parse_options(argv: Sequence[str]) -> dict[str, Any]:
    """Command-line options -> the values given.

    Raises:
        InputError: An option that does not exist (the nearest is named) or has the wrong type.
    """
    parser, not_given = make_parser(), object()
    parser.set_defaults(**dict.fromkeys(_hints(), not_given))
    namespace, unknown = parser.parse_known_args(list(argv))
    problems = [
        f"unknown option {word}{nearest(word.split('=')[0].lstrip('-'), _hints(), '--')}"
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
    for name, overrides in recipe.stages or ((None, {}),):
        values = {**recipe.values, **overrides, **options}
        if name is not None:
            values["output_dir"] = str(Path(values.get("output_dir") or "outputs") / name)
        try:
            runs.append(_resolve(name, values))
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
    values, problems = convert(values, _hints())
    # Not kept as values of the run: what is implied may differ on the machine that takes it up again.
    complete = values | implied_options(values)
    built: dict[type, Any] = {}
    for cls in ARGUMENT_CLASSES:
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
    problems += [*_model_problems(values), *_view_problems(values), *_suite_problems(values)]
    if not problems and built[DualCoTConfig].reference == "adapter_off" and not values.get("use_peft"):
        problems.append("`reference: adapter_off` needs an adapter to switch off; set `use_peft: true`")
    if problems:
        raise InputError(problems)
    data, training, model = (built[cls] for cls in ARGUMENT_CLASSES)
    return RunArguments(stage, values, data, training, model)


def _model_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if not values.get("model_name_or_path"):
        yield "`model_name_or_path` is missing: the student, as a Hub id or a path"
    if not values.get("dataset_name"):
        yield "`dataset_name` is missing: the dual CoTs, as a file, a folder or a Hub id"
    for bits in ("load_in_4bit", "load_in_8bit"):
        if values.get(bits) and not values.get("use_peft"):
            yield f"`{bits}: true` needs an adapter to train; set `use_peft: true`"
    targets = values.get("lora_target_modules") or ()
    if "lm_head" in ([targets] if isinstance(targets, str) else targets):
        yield (
            "LoRA on `lm_head` would never be trained; remove it from `lora_target_modules` "
            "('all-linear' leaves it out)"
        )


def _view_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("rows") is not None and values["rows"] < 1:
        yield f"`rows` must be at least 1, got {values['rows']}"
    view = values.get("view", "pairs")
    if view in PAIR_VIEWS:
        return
    for name in ("rejected_key_weight", "preference_weight"):
        if values.get(name, DualCoTConfig.__dataclass_fields__[name].default):
            yield (
                f"`view: {view}` has chains alone, and `{name}` is about pairs; set `{name}: 0`, or "
                f"one of the views {', '.join(PAIR_VIEWS)}"
            )


def _suite_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name in ("suite_eval_steps", "suite_rows", "suite_max_new_tokens"):
        if values.get(name) is not None and values[name] < 1:
            yield f"`{name}` must be at least 1, got {values[name]}"
    if values.get("suite_accuracy_rows", 0) < 0:
        yield f"`suite_accuracy_rows` cannot be negative, got {values['suite_accuracy_rows']}"
    if values.get("suite_dataset_split") is not None and not values.get("suite_dataset_name"):
        yield "`suite_dataset_split` is a split of `suite_dataset_name`, which is missing"
    if values.get("suite_eval_steps") is not None:
        return
    given = [name for name in values if name.startswith("suite_") and values[name] is not None]
    if given:
        yield f"`{'`, `'.join(given)}` need `suite_eval_steps`, how often the suite is run"
    if str(values.get("metric_for_best_model", "")).removeprefix("eval_").startswith("suite/"):
        yield f"`metric_for_best_model: {values['metric_for_best_model']}` needs `suite_eval_steps`"


def _hints() -> dict[str, Any]:
    """Every option and its type."""
    return hints_of(ARGUMENT_CLASSES)
