"""Checks of options that belong to different classes.

Each class (`DataArguments`, the trainer's, TRL's `ModelConfig`) checks its own options.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edit_trl.common.checks import at_least, not_negative
from edit_trl.data.views import PAIR_VIEWS
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.trainer_choice import TrainerName


def run_problems(values: Mapping[str, Any], trainer: TrainerName) -> Iterator[str]:
    """Yield the problems of a run's options in combination.

    Args:
        values: The options that were given, converted to their types.
        trainer: The run's trainer.
    """
    yield from _model_problems(values)
    yield from _view_problems(values, trainer)
    yield from _suite_problems(values)


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
    if values.get("reference") == "adapter_off" and not values.get("use_peft"):
        yield "`reference: adapter_off` needs an adapter to switch off; set `use_peft: true`"


def _view_problems(values: Mapping[str, Any], trainer: TrainerName) -> Iterator[str]:
    yield from at_least(1, rows=values.get("rows"))
    view = values.get("view", "pairs")
    if trainer != "dual_cot":
        if view not in PAIR_VIEWS:
            yield (
                f"`trainer: {trainer}` learns from pairs, and `view: {view}` has chains alone; set one "
                f"of the views {', '.join(PAIR_VIEWS)}"
            )
        if values.get("suite_eval_steps") is not None:
            yield f"`suite_eval_steps` is for `trainer: dual_cot`, got {trainer!r}; measure with `edit-trl suite`"
        return
    if view in PAIR_VIEWS:
        return
    for name in ("rejected_key_weight", "preference_weight"):
        if values.get(name, DualCoTConfig.__dataclass_fields__[name].default):
            yield (
                f"`view: {view}` has chains alone, and `{name}` is about pairs; set `{name}: 0`, or "
                f"one of the views {', '.join(PAIR_VIEWS)}"
            )


def _suite_problems(values: Mapping[str, Any]) -> Iterator[str]:
    sizes = ("suite_eval_steps", "suite_rows", "suite_max_new_tokens")
    yield from at_least(1, **{name: values.get(name) for name in sizes})
    yield from not_negative(suite_accuracy_rows=values.get("suite_accuracy_rows"))
    if values.get("suite_dataset_split") is not None and not values.get("suite_dataset_name"):
        yield "`suite_dataset_split` is a split of `suite_dataset_name`, which is missing"
    if values.get("suite_eval_steps") is not None:
        return
    without_steps = [name for name in values if name.startswith("suite_") and values[name] is not None]
    if without_steps:
        yield f"`{'`, `'.join(without_steps)}` need `suite_eval_steps`, how often the suite is run"
    if str(values.get("metric_for_best_model", "")).removeprefix("eval_").startswith("suite/"):
        yield f"`metric_for_best_model: {values['metric_for_best_model']}` needs `suite_eval_steps`"
