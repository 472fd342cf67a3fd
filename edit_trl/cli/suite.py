"""`edit-trl suite`: what a model thinks of a correct and a wrong chain of the same question (L4)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.evaluation.suite.measure import _measure

if TYPE_CHECKING:
    pass

USAGE = "edit-trl suite [--config RECIPE.yaml] [--OPTION VALUE ...]"

DESCRIPTION = (
    "Show a model a correct and a wrong chain of the same question: which does it find likelier, where would "
    "it go wrong, and which way does it take by itself? Run again, it goes on from what is done. Options, in "
    "the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)

HIDDEN = ("token_limit",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or go on with it.

    Args:
        argv: `--config RECIPE` and `--option value` over it.

    Raises:
        InputError: Anything wrong with the recipe, the pairs or the model, before anything is scored.
        FloatingPointError: A log-probability that is not finite; names the pair.
    """
    argv = sys.argv[1:] if argv is None else argv
    from edit_trl.common.options import build_options, format_help, hints_of, read_options
    from edit_trl.evaluation.runs.tables import run_table
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.models.chat.options import EndpointArguments

    classes = (SuiteArguments, EndpointArguments)
    if "--help" in argv or "-h" in argv:
        print(format_help(USAGE, DESCRIPTION, classes, HIDDEN))
        return 0
    path, options = read_options(argv, hints_of(classes).keys() - set(HIDDEN))
    arguments, endpoint = build_options(path, options, classes, HIDDEN)
    run = _measure(arguments, endpoint, Path(path).parent if path else Path())
    if arguments.history is not None:
        from edit_trl.evaluation.runs.history import record_run

        record_run(run, arguments.history)
    print(f"{run_table(run)}\n\n{run.path}")
    return 0
