"""Checks of options that belong to different classes.

Each class (`DataArguments`, the trainer's, TRL's `ModelConfig`) checks its own options.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from edit_trl.common.checks import at_least, not_negative
from edit_trl.common.errors import collect_problems
from edit_trl.data.view_mixture import read_weights
from edit_trl.data.views import PAIR_VIEWS, check_views
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.inherited_options import REFUSED_IN_RECIPES
from edit_trl.training.option_checks import as_mapping
from edit_trl.training.trainer_choice import TrainerName


def run_problems(values: Mapping[str, Any], trainer: TrainerName) -> Iterator[str]:
    """Yield the problems of a run's options in combination.

    Args:
        values: The options that were given, converted to their types.
        trainer: The run's trainer.
    """
    yield from _model_problems(values)
    yield from _mixture_problems(values)
    yield from _unused_problems(values)
    yield from _view_problems(values, trainer)
    yield from _suite_problems(values)


def _model_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if not values.get("model_name_or_path"):
        yield "`model_name_or_path` is missing: the student, as a Hub id or a path"
    if not values.get("dataset_name") and values.get("datasets") is None:
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
    if values.get("reference") == "adapter_off" and not values.get("use_peft"):
        yield "`reference: adapter_off` needs an adapter to switch off; set `use_peft: true`"


def _mixture_problems(values: Mapping[str, Any]) -> Iterator[str]:
    size = values.get("test_split_size")
    if size is not None and not (0 < size < 1 or (size >= 1 and size == int(size))):
        yield f"`test_split_size` must be a share below 1 or a whole number of rows, got {size:g}"
    if values.get("datasets") is None:
        if size is not None:
            yield (
                "`test_split_size` is for a mixture; write `datasets: [{path: ...}]` instead of `dataset_name`, or "
                "name `eval_dataset_name`"
            )
        return
    names = ("dataset_name", "dataset_config", "dataset_revision", "dataset_train_split")
    unused = [name for name in names if values.get(name) is not None]
    if unused:
        yield (
            f"`{'`, `'.join(unused)}` would have no effect beside `datasets`, where each dataset has its own `path`, "
            "`name`, `revision` and `split`; remove one of the two"
        )
    if values.get("eval_dataset_name"):
        if size is not None:
            yield "`test_split_size` and `eval_dataset_name` both name the rows to evaluate on; remove one"
        return
    files = [entry["path"] for entry in values["datasets"] if Path(entry["path"]).expanduser().is_file()]
    if files and size is None and _word(values.get("eval_strategy", "no")) != "no":
        yield (
            f"`eval_strategy: {_word(values['eval_strategy'])}` needs rows to evaluate on, and {files[0]} is a file, "
            "which has no other split; set `test_split_size: 0.05`, or `eval_dataset_name`"
        )


def _unused_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options that would have no effect beside the others."""
    for name, reason in REFUSED_IN_RECIPES.items():
        if values.get(name) not in (None, _default(name)):
            yield f"`{name}: {values[name]}` {reason}"
    names: tuple[str, ...] = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
    unused = [name for name in names if values.get(name)]
    if unused and "load_in_4bit" not in values:
        yield f"`{'`, `'.join(unused)}` need `load_in_4bit: true`"
    if values.get("eval_on_start") and _word(values.get("eval_strategy", "no")) == "no":
        yield "`eval_on_start: true` needs an evaluation; set `eval_strategy: steps` or `epoch`, or remove it"
    names = ("gradient_checkpointing", "activation_checkpointing")
    if len({values[name] for name in names if values.get(name) is not None}) > 1:
        yield "`gradient_checkpointing` and `activation_checkpointing` are two names of one option; remove one"
    yield from _loading_problems(values)


def _loading_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options that `model_init_kwargs` would override, or that the run sets itself."""
    kwargs = as_mapping(values.get("model_init_kwargs"))
    if not isinstance(kwargs, Mapping):
        return
    options = {"revision": "model_revision", "dtype": "dtype", "attn_implementation": "attn_implementation"}
    for name, option in options.items():
        if name in kwargs and option in values and kwargs[name] != values[option]:
            yield (
                f"`model_init_kwargs: {{{name}: {kwargs[name]}}}` and `{option}: {values[option]}` contradict each "
                "other; remove one"
            )
    yield from (f"`model_init_kwargs` cannot set {name!r}: {_SET_BY[name]}" for name in _SET_BY if name in kwargs)


_SET_BY = {
    "use_safetensors": "weights are loaded from safetensors alone; remove it",
    "quantization_config": "write `load_in_4bit: true` or `load_in_8bit: true`",
    "load_in_4bit": "write `load_in_4bit: true` as an option of its own",
    "torch_dtype": "write `dtype`",
    "trust_remote_code": "write `trust_remote_code: true` as an option of its own",
}


def _default(name: str) -> Any:
    field = DualCoTConfig.__dataclass_fields__[name]
    return field.default if field.default_factory is MISSING else field.default_factory()


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


def _view_problems(values: Mapping[str, Any], trainer: TrainerName) -> Iterator[str]:
    yield from at_least(1, rows=values.get("rows"))
    names, problems = _views(values)
    if problems:
        yield from problems
        return
    alone = [name for name in names if name not in PAIR_VIEWS]
    if trainer != "dual_cot":
        if alone:
            yield (
                f"`trainer: {trainer}` learns from pairs, and `view: {alone[0]}` has chains alone; set one "
                f"of the views {', '.join(PAIR_VIEWS)}"
            )
        if values.get("suite_eval_steps") is not None:
            yield f"`suite_eval_steps` is for `trainer: dual_cot`, got {trainer!r}; measure with `edit-trl suite`"
        return
    if len(alone) < len(names):
        return
    for name in ("rejected_key_weight", "preference_weight"):
        if values.get(name, DualCoTConfig.__dataclass_fields__[name].default):
            yield (
                f"`view: {', '.join(alone)}` has chains alone, and `{name}` is about pairs; set `{name}: 0`, or "
                f"one of the views {', '.join(PAIR_VIEWS)}"
            )


def _views(values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the views, and what is wrong with a mixture of them."""
    views = values.get("views")
    if views is None:
        return [values.get("view", "pairs")], []
    problems: list[str] = []
    with collect_problems(problems):
        views = read_weights(views)
        problems += check_views(views)
        if "view" in values:
            problems.append("`view` and `views` both say which rows to train on; leave one out")
    return list(views), problems


def _suite_problems(values: Mapping[str, Any]) -> Iterator[str]:
    sizes = ("suite_eval_steps", "suite_rows", "suite_max_new_tokens", "stop_at_plateau")
    yield from at_least(1, **{name: values.get(name) for name in sizes})
    yield from not_negative(suite_accuracy_rows=values.get("suite_accuracy_rows"))
    if values.get("suite_dataset_split") is not None and not values.get("suite_dataset_name"):
        yield "`suite_dataset_split` is a split of `suite_dataset_name`, which is missing"
    metric = str(values.get("metric_for_best_model", "")).removeprefix("eval_")
    if values.get("stop_at_plateau") is not None:
        if values.get("suite_eval_steps") is None:
            yield "`stop_at_plateau` needs `suite_eval_steps`, how often the student is measured"
        elif not values.get("suite_accuracy_rows") and not metric.startswith("suite/"):
            yield (
                "`stop_at_plateau` watches the accuracy: set `suite_accuracy_rows`, the number of questions, or name "
                "another score of the suite with `metric_for_best_model`"
            )
    if values.get("suite_eval_steps") is not None:
        return
    without_steps = [name for name in values if name.startswith("suite_") and values[name] is not None]
    if without_steps:
        yield f"`{'`, `'.join(without_steps)}` need `suite_eval_steps`, how often the suite is run"
    if metric.startswith("suite/"):
        yield f"`metric_for_best_model: {values['metric_for_best_model']}` needs `suite_eval_steps`"
