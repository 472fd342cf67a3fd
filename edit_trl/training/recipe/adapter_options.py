"""The adapter that a student brings along: from the stage before, or as the recipe's student itself.

It is trained further as it is. A stage that asks for another adapter is refused, with both values; `lora_dropout`
can change, and `use_peft: false` merges the adapter into the model, whose weights are then all trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from edit_trl.common.errors import InputError, collect_problems
from edit_trl.models.adapters import ADAPTER_CONFIG, read_base_name
from edit_trl.models.loading import load_config
from edit_trl.training.lora_targets import matched_layers
from edit_trl.training.recipe.resolving import RunArguments

OPTIONS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""The options of `ModelConfig` about an adapter, and their names in PEFT."""


def adapter_problems(runs: Sequence[RunArguments]) -> list[list[str]]:
    """Return, for every run in order, its options that differ from the adapter that its student brings along."""
    problems: list[list[str]] = []
    student = str(runs[0].model.model_name_or_path)
    adapter: dict[str, Any] | None = None
    owner = ""
    for number, run in enumerate(runs):
        found: list[str] = []
        problems.append(found)
        if number and run.model.model_name_or_path != student:
            found.append(
                f"`model_name_or_path: {run.model.model_name_or_path}` would have no effect: a stage after the first "
                "trains what the stage before has saved; remove it"
            )
        if not number and is_adapter(student):
            with collect_problems(found):
                adapter, owner = _saved_options(student), f"the adapter {student}"
        if adapter is not None and not merges(run):
            with collect_problems(found):
                found += _differences(run.values, adapter, owner, student, run.training.trust_remote_code)
            adapter = adapter | {name: run.values[name] for name in ("lora_dropout",) if name in run.values}
        else:
            unused = [name for name in OPTIONS if name in run.values]
            # `use_peft: false` says in so many words that they are off.
            if unused and "use_peft" not in run.values:
                found.append(f"`{'`, `'.join(unused)}` need an adapter; set `use_peft: true`, or `false` for none")
            adapter = {name: getattr(run.model, name) for name in OPTIONS} if run.model.use_peft else None
        owner = owner if number == 0 and adapter is not None and is_adapter(student) else f"that of stage {run.stage}"
    return problems


def is_adapter(student: str | None) -> bool:
    """Return whether a student is the folder of an adapter."""
    return student is not None and bool(student) and (Path(student) / ADAPTER_CONFIG).is_file()


def merges(run: RunArguments) -> bool:
    """Return whether a run merges the adapter of its student: it says `use_peft: false`."""
    return run.values.get("use_peft") is False


def check_adapter(student: str, run: RunArguments) -> None:
    """Check that a run asks for no other adapter than the one in the folder of its student.

    Raises:
        InputError: The options that differ, with both values.
    """
    owner, remote = f"the adapter {student}", run.training.trust_remote_code
    problems = [*_differences(run.values, _saved_options(student), owner, student, remote)]
    if problems:
        raise InputError(problems)


def set_dropout(model: "PeftModel | PreTrainedModel", dropout: float) -> None:
    """Set the dropout of an adapter that is trained further, in place."""
    name = str(model.active_adapter)
    config: Any = model.peft_config[name]
    config.lora_dropout = dropout
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_dropout:
            module.lora_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()


def merge_student(model: PeftModel, student: str) -> PreTrainedModel:
    """Merge an adapter into its model and make all weights trainable.

    Args:
        model: The adapter on its model, in full precision.
        student: The folder of the adapter, which becomes the model's name.

    Raises:
        InputError: The adapter has weights that are not finite.
    """
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(f"{student} cannot be merged, as `use_peft: false` asks: {error}") from error
    merged.requires_grad_(True)
    merged.config._name_or_path = student  # also where its tokenizer is
    return merged


def _saved_options(adapter: str) -> dict[str, Any]:
    read_base_name(adapter)  # raises where the file cannot be read
    config = PeftConfig.from_pretrained(adapter)
    return {name: getattr(config, of_peft, None) for name, of_peft in OPTIONS.items()}


def _differences(
    asked: Mapping[str, Any], adapter: Mapping[str, Any], owner: str, student: str, trust_remote_code: bool
) -> Iterator[str]:
    for name in OPTIONS:
        if name not in asked or _plain(asked[name]) == _plain(adapter[name]):
            continue
        if name == "lora_dropout" and not adapter["lora_target_parameters"]:
            continue  # it is set
        if name == "lora_target_modules" and adapter[name] is not None:
            base = (read_base_name(student) if is_adapter(student) else student) or student
            config = load_config(base, trust_remote_code=trust_remote_code, option="model_name_or_path")
            if matched_layers(asked[name], config) == matched_layers(adapter[name], config):
                continue
        yield (
            f"`{name}: {_shown(asked[name])}` differs from the adapter that is trained further: {owner} has "
            f"{_shown(adapter[name])}. Remove it, or set `use_peft: false` to merge the adapter and train all weights"
        )


def _plain(value: Any) -> Any:
    """Return a value in which order, and a list of one item, make no difference."""
    if isinstance(value, list | tuple | set):
        return tuple(sorted(map(str, value)))
    return (value,) if isinstance(value, str) else value or None


def _shown(value: Any) -> str:
    items = _plain(value)
    if not isinstance(items, tuple):
        return str(value)
    text = ", ".join(items)
    return text if len(text) <= 80 else f"{text[:77]}..."
