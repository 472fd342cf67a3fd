"""The recipe that is uploaded with a model, without paths on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edit_trl.common.hub_ids import is_hub_id

# Options about the machine and the account, which do not change the training.
_PRIVATE = (
    *("output_dir", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_strategy"),
    *("hub_revision", "hub_always_push", "resume_from_checkpoint", "run_name", "logging_dir"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project"),
)


def recipe_text(stages: Sequence[tuple[str, Mapping[str, Any]]], name: str, base_model: str | None = None) -> str:
    """Return the YAML of a recipe for `edit-trl train`; paths on this machine are reduced to their last part.

    Args:
        stages: Name and options of each stage; a single one gives a recipe without stages.
        name: Name of the model, the last part of `output_dir`.
        base_model: The base model's id on the Hub, if it was trained from a folder.
    """
    import yaml

    options = [_public_options(values, base_model) for _, values in stages]
    common = {k: v for k, v in options[0].items() if all(k in other and other[k] == v for other in options)}
    recipe = {**common, "output_dir": f"outputs/{name}"}
    if len(stages) > 1:
        recipe["stages"] = [
            {"name": stage, **{k: v for k, v in own.items() if k not in common}}
            for (stage, _), own in zip(stages, options, strict=True)
        ]
    head = f"# How {name} was trained: edit-trl train --config recipe.yaml --dataset YOUR_DUAL_COTS\n"
    return head + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)


def _public_options(options: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    public = {k: _without_path(k, v) for k, v in options.items() if k not in _PRIVATE and v is not None}
    if base_model and "model_name_or_path" in public:
        public["model_name_or_path"] = base_model
    return public


def _without_path(option: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_path(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_path(option, item) for item in value]
    if not isinstance(value, str):
        return value
    names = ("model_name_or_path", "dataset_name", "eval_dataset_name", "path")  # the last one of `datasets`
    is_local = option in names and not is_hub_id(value)
    is_path = value.startswith("~") or ".." in Path(value).parts or Path(value).is_absolute()
    return Path(value).name if is_local or is_path else value
