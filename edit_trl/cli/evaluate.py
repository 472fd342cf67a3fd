"""`edit-trl evaluate`: a model answers questions, and its answers are checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.recipe_command import RecipeOptions, run_recipe
from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import refuse_missing_folder

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.evaluation.accuracy.tasks import Tasks
    from edit_trl.evaluation.harness import HarnessTasks
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

DESCRIPTION = (
    "Let a model answer questions and check its answers. Run the command again to resume an interrupted run. "
    "Options, in the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)

# Prices and budgets are for teachers.
HIDDEN = ("prompt_price", "completion_price", "max_cost")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or resume its run; see `run_recipe`.

    Raises:
        InputError: Anything wrong with the recipe, the tasks or the model, before anything is generated.
    """
    return run_recipe("evaluate", argv, DESCRIPTION, recipe_options(), _evaluate)


def recipe_options() -> RecipeOptions:
    """Return the options of the command."""
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

    return RecipeOptions((EvaluateArguments, EndpointArguments, Limits), _check, HIDDEN)


def _read(
    arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, recipe_folder: Path
) -> tuple[Tasks | None, HarnessTasks | None]:
    """Return the tasks, and those of lm-evaluation-harness, if the recipe names some."""
    from edit_trl.evaluation.harness import load_harness_tasks
    from edit_trl.evaluation.runs.history import check_history

    arguments.check_place(endpoint, limits)
    if arguments.against:
        refuse_missing_folder(arguments.against, "against")
    if arguments.harness and endpoint.base_urls:
        raise InputError("`harness` needs the model on this machine: leave out `base_urls`")
    harness = None
    if arguments.harness:
        harness = load_harness_tasks(arguments.harness, arguments.harness_include_path)
    if not arguments.tasks:
        return None, harness
    check_history(arguments.history)
    return arguments.read_tasks(recipe_folder), harness


def _check(arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, recipe_folder: Path) -> str:
    tasks, harness = _read(arguments, endpoint, limits, recipe_folder)
    if endpoint.base_urls:
        endpoint.endpoint()
    else:
        refuse_missing_folder(arguments.model)
    counts = f"{len(tasks.problems)} questions of {len(tasks.versions)} tasks" if tasks else "no tasks of our own"
    return f"{counts}{', lm-evaluation-harness' if harness else ''}; model {arguments.model}"


def _evaluate(arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, recipe_folder: Path) -> None:
    from edit_trl.evaluation.accuracy.measure import measure_accuracy, measure_with_harness
    from edit_trl.evaluation.harness import format_harness
    from edit_trl.evaluation.runs.tables import run_table, score_meanings, shown_scores

    tasks, harness = _read(arguments, endpoint, limits, recipe_folder)
    loaded = None
    if tasks is not None:
        say = partial(print, file=sys.stderr)
        say(f"{len(tasks.problems)} questions of {len(tasks.versions)} tasks")
        run, loaded = measure_accuracy(arguments, endpoint, limits, tasks, say)
        print(f"{run_table(run)}\n\n{score_meanings(shown_scores(run))}\n\n{run.path}")
    if harness is not None:
        results, file = measure_with_harness(arguments, harness, loaded)
        print(f"{format_harness(results)}\n{file}")
