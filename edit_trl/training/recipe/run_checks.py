"""Checks of all runs of a recipe before the first one starts: of this machine, and from one stage to the next.

They are not part of `resolve_runs`, so that the memory of a run can be estimated on another machine than its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.training.recipe.adapter_options import adapter_problems
from edit_trl.training.recipe.resolving import Recipe, RunArguments, by_stage, resolve_run, resolve_runs
from edit_trl.training.requirements import requirement_problems


def check_runs(recipe: Recipe, runs: Sequence[RunArguments]) -> None:
    """Check that this machine can train all runs, and that each can go on from the one before.

    Raises:
        InputError: All problems of all runs.
    """
    of_adapters = adapter_problems(runs)
    problems = [
        [*requirement_problems(run.training, run.model), *of_adapter]
        for run, of_adapter in zip(runs, of_adapters, strict=True)
    ]
    if any(problems):
        raise InputError(by_stage(recipe, problems), heading=f"{recipe.path or 'command line'}:")


def checked_run(recipe: Recipe, options: Mapping[str, Any], stage: str | None) -> RunArguments:
    """Return the run that this process trains next, after all runs of the recipe are checked.

    Raises:
        InputError: See `check_runs` and `resolve_run`.
    """
    check_runs(recipe, resolve_runs(recipe, options))
    return resolve_run(recipe, options, stage)
