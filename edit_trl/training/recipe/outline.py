"""A recipe as it is read: its options and the outline of its stages, before any of them is checked.

This module imports neither TRL nor torch: `edit-trl train` uses it before it starts the processes that do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edit_trl.common.environment import take_environment
from edit_trl.common.errors import InputError
from edit_trl.common.yaml_file import read_words

PAIR_OPTIONS = {
    *("mistake", "rows", "max_fork_confidence", "hardest_forks"),
    *("chosen_key_weight", "rejected_key_weight", "preference_weight"),
}
"""Options that choose or weigh pairs. Given on the command line, they are for the stages that train on pairs: a warm-up
keeps its rows and stays SFT on the correct chains."""


@dataclass(frozen=True)
class Recipe:
    """A recipe file as read.

    Attributes:
        path: The file; None for a run given by options alone.
        values: Its options, without `stages` and `env`.
        stages: (name, overrides) in order; empty for a recipe that is a single run.
        env: Its environment variables, which the commands have set when this is read.
    """

    path: Path | None
    values: dict[str, Any]
    stages: tuple[tuple[str, dict[str, Any]], ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[tuple[str | None, dict[str, Any]], ...]:
        """The stages; for a recipe without stages, a single one without a name."""
        return self.stages or ((None, {}),)


def read_recipe(path: str | Path | None) -> Recipe:
    """Read a recipe file and the outline of its stages.

    Args:
        path: The file; None for an empty recipe.

    Raises:
        InputError: The file is missing, is broken YAML (names line and column), is not a mapping, is a
            recipe of another command, or has malformed stages.
    """
    if path is None:
        return Recipe(None, {})
    path = Path(path)
    values = read_words(path, again=True)
    env = take_environment(values, str(path))
    if "teacher" in values or "base_urls" in values:
        raise InputError(f"{path}: this is a recipe of `edit-trl generate`, not of train")
    stages = values.pop("stages", None)
    problems = list(_stage_problems(stages))
    if values.get("output_dir") == "":
        problems.append("`output_dir` is empty; name the folder of the run")
    if problems:
        raise InputError(problems, heading=f"{path}:")
    outline = ((stage["name"], {k: v for k, v in stage.items() if k != "name"}) for stage in stages or ())
    return Recipe(path, values, tuple(outline), env)


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


# Where the rows come from is one choice, and so is their view: who makes it anew does not inherit these options.
_REPLACED = {
    "dataset_name": ("datasets", "test_split_size"),
    "datasets": ("dataset_name", "dataset_config", "dataset_revision", "dataset_train_split"),
    "view": ("views",),
    "views": ("view",),
}


def override(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with others that win over them."""
    replaced = {name for given, names in _REPLACED.items() if given in others for name in names}
    return {**{name: value for name, value in values.items() if name not in replaced}, **others}
