"""`edit-trl suite`: whether a model prefers the correct to the wrong chain of the same question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from edit_trl.cli.recipe_command import run_recipe

DESCRIPTION = (
    "Score the correct and the wrong chain of each question under a model: which chain is more likely, at which "
    "token does greedy decoding leave the correct chain, and which of the two does it follow from their shared "
    "beginning? Run the command again to resume an interrupted run. "
    "Options, in the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)

HIDDEN = ("token_limit",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or resume its run; see `run_recipe`.

    Raises:
        InputError: Anything wrong with the recipe, the pairs or the model, before anything is scored.
        FloatingPointError: A log-probability is not finite; names the pair.
    """
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

    return run_recipe("suite", argv, DESCRIPTION, (SuiteArguments, EndpointArguments, Limits), _suite, HIDDEN)


def _suite(*options: Any) -> None:
    from edit_trl.evaluation.runs.tables import run_table
    from edit_trl.evaluation.suite.measure import measure_suite

    run = measure_suite(*options, partial(print, file=sys.stderr))
    print(f"{run_table(run)}\n\n{run.path}")
