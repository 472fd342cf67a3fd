"""Stages that are finished, as `edit-trl train` finds out without a process that imports TRL and torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_trl.common.conversion import natural
from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import refuse_missing_folder
from edit_trl.common.run_file import read_run_file
from edit_trl.training.recipe.option_table import trainers_of
from edit_trl.training.recipe.outline import PAIR_OPTIONS, Recipe, override


def finished_line(folder: Path, finished: str) -> str:
    """Return the line about a stage that is not trained again."""
    return f"{folder} is finished ({finished}), nothing to do"


def find_finished(recipe: Recipe, stage: str | None, options: Mapping[str, Any]) -> str | None:
    """Return the line about a stage that has finished with the very options of the recipe; None for any other stage.

    None says nothing: a stage that would be refused, or whose options are written in another way than they were
    recorded, is left to `edit_trl.training.recipe.stage.find_start`, which checks all of them.
    """
    stages = dict(recipe.runs)
    # Which options of a command line are for which stage depends on the types of their trainers.
    is_open = len(stages) > 1 and bool(options.keys() & (PAIR_OPTIONS | {"trainer"}))
    if stage not in stages or is_open or (options and len(trainers_of(recipe, ())) > 1):
        return None
    values = override(override(recipe.values, stages[stage]), options)
    if stage is None and "output_dir" not in values:
        return None
    folder = Path(str(values.get("output_dir") or "outputs"), *([] if stage is None else [stage]))
    values["output_dir"] = str(folder)
    try:
        refuse_missing_folder(str(values.get("model_name_or_path")), "model_name_or_path")
        state = read_run_file(folder)
    except InputError:
        return None
    if not state.get("finished") or not _are_recorded(values, state.get("options", {})):
        return None
    return finished_line(folder, state["finished"])


def _are_recorded(values: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Return whether options are surely those that a run has recorded, after their types were known."""
    values = {name: value for name, value in values.items() if name != "hub_token"}  # never recorded
    return values.keys() == recorded.keys() and all(_is_recorded(values[name], recorded[name]) for name in values)


def _is_recorded(value: Any, recorded: Any) -> bool:
    # What a value may mean: what YAML makes of it, the text that it is, or a list of one.
    meanings = (natural(value), str(value) if isinstance(value, str) else value, [natural(value)])
    return any(meaning == recorded and isinstance(meaning, bool) == isinstance(recorded, bool) for meaning in meanings)
