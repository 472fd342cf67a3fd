"""`edit-trl suite`: whether a model prefers the correct to the wrong chain of the same question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.cli.recipe_command import RecipeOptions, run_recipe
from edit_trl.common.hub_ids import refuse_missing_folder

if TYPE_CHECKING:
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

DESCRIPTION = (
    "Score the correct and the wrong chain of each question under a model: which chain is more likely, at which "
    "token does greedy decoding leave the correct chain, and which of the two does it follow from their shared "
    "beginning? Run the command again to resume an interrupted run. "
    "Options, in the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or resume its run; see `run_recipe`.

    Raises:
        InputError: Anything wrong with the recipe, the pairs or the model, before anything is scored.
        FloatingPointError: A log-probability is not finite; names the pair.
    """
    return run_recipe("suite", argv, DESCRIPTION, recipe_options(), _suite, _meanings)


def recipe_options() -> RecipeOptions:
    """Return the options of the command."""
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

    return RecipeOptions((SuiteArguments, EndpointArguments, Limits), _check, ("token_limit",))


def _meanings() -> str:
    from edit_trl.evaluation.runs.scores import SCORES
    from edit_trl.evaluation.runs.tables import score_meanings

    return f"scores, overall and by task, kind of mistake and source:\n\n{score_meanings(SCORES['suite'])}"


def _check(arguments: SuiteArguments, endpoint: EndpointArguments, limits: Limits, recipe_folder: Path) -> str:
    from edit_trl.evaluation.suite.measure import read_inputs

    rows, source, client = read_inputs(arguments, endpoint, limits, recipe_folder)
    if client is None:
        refuse_missing_folder(arguments.model)
    return f"{len(list(rows))} dual CoTs of {source}; model {arguments.model}"


def _suite(*options: Any) -> None:
    from edit_trl.evaluation.runs.tables import run_table, score_meanings, shown_scores
    from edit_trl.evaluation.suite.measure import measure_suite

    run = measure_suite(*options, partial(print, file=sys.stderr))
    print(f"{run_table(run)}\n\n{score_meanings(shown_scores(run))}\n\n{run.path}")
