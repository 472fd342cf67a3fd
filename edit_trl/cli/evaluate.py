"""`edit-trl evaluate`: a model answers questions, and its answers are checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.recipe_command import run_recipe
from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
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
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

    classes = (EvaluateArguments, EndpointArguments, Limits)
    return run_recipe("evaluate", argv, DESCRIPTION, classes, _evaluate, HIDDEN)


def _evaluate(arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, recipe_folder: Path) -> None:
    from edit_trl.evaluation.accuracy.measure import measure_accuracy, measure_with_harness
    from edit_trl.evaluation.harness import format_harness, load_harness_tasks
    from edit_trl.evaluation.runs.history import check_history
    from edit_trl.evaluation.runs.tables import run_table

    if arguments.harness and endpoint.base_urls:
        raise InputError("`harness` needs the model on this machine: leave out `base_urls`")
    loaded = harness = None
    if arguments.harness:
        harness = load_harness_tasks(arguments.harness, arguments.harness_include_path)
    if arguments.tasks:
        check_history(arguments.history)
        tasks = arguments.read_tasks(recipe_folder)
        say = partial(print, file=sys.stderr)
        say(f"{len(tasks.problems)} questions of {len(tasks.versions)} tasks")
        run, loaded = measure_accuracy(arguments, endpoint, limits, tasks, say)
        print(f"{run_table(run)}\n\n{run.path}")
    if harness is not None:
        results, file = measure_with_harness(arguments, harness, loaded)
        print(f"{format_harness(results)}\n{file}")
