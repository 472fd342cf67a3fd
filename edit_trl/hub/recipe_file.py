"""The recipe that goes to the Hub with a model (L2): its training, without the paths of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edit_trl.common.hub_ids import is_hub_id

# Of the place and the person, not of the model.
_PRIVATE = (
    *("output_dir", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_strategy"),
    *("hub_revision", "hub_always_push", "resume_from_checkpoint", "run_name", "logging_dir"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project"),
)


def recipe_text(
    stages: Sequence[tuple[str, Mapping[str, Any]]], name: str, base_model: str | None = None
) -> str:
    """A recipe that `edit-trl train` reads.

    Args:
        stages: Each stage's name and the options it was run with; one is a recipe without stages.
        name: Of the model; `output_dir` is named after it.
        base_model: The base model's id, where it was trained from a folder.

    Returns:
        YAML. Of a path of this machine only the last part is left.
    """
    import yaml

    shown = [(stage, _shown(options, base_model)) for stage, options in stages]
    first = shown[0][1]
    common = {k: v for k, v in first.items() if all(k in of and of[k] == v for _, of in shown)}
    recipe = {**common, "output_dir": f"outputs/{name}"}
    if len(shown) > 1:
        own = [(stage, {k: v for k, v in options.items() if k not in common}) for stage, options in shown]
        recipe["stages"] = [{"name": stage, **options} for stage, options in own]
    head = f"# How {name} was trained: edit-trl train --config recipe.yaml --dataset YOUR_DUAL_COTS\n"
    return head + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)


def _shown(options: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    shown = {k: _without_path(k, v) for k, v in options.items() if k not in _PRIVATE and v is not None}
    if base_model and "model_name_or_path" in shown:
        shown["model_name_or_path"] = base_model
    return shown


def _without_path(option: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_path(key, of) for key, of in value.items()}
    if not isinstance(value, str):
        return value
    named = option in ("model_name_or_path", "dataset_name", "eval_dataset_name") and not is_hub_id(value)
    is_elsewhere = value.startswith("~") or ".." in Path(value).parts or Path(value).is_absolute()
    return Path(value).name if named or is_elsewhere else value
