"""`edit-trl suite`: what a model thinks of a correct and a wrong chain of the same question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

USAGE = "edit-trl suite [--config RECIPE.yaml] [--OPTION VALUE ...]"

DESCRIPTION = (
    "Show a model a correct and a wrong chain of the same question: which does it find likelier, where would "
    "it go wrong, and which way does it take by itself? Run the command again to resume an interrupted run. "
    "Options, in the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)

HIDDEN = ("token_limit",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or resume its run.

    Args:
        argv: `--config RECIPE` and `--option value` over it.

    Raises:
        InputError: Anything wrong with the recipe, the pairs or the model, before anything is scored.
        FloatingPointError: A log-probability is not finite; names the pair.
    """
    argv = sys.argv[1:] if argv is None else argv
    from edit_trl.common.options import build_options, format_help, hints_of, read_options
    from edit_trl.evaluation.runs.tables import run_table
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.evaluation.suite.measure import measure_suite
    from edit_trl.models.chat.dispatch import Interrupted, Limits
    from edit_trl.models.chat.options import EndpointArguments

    classes = (SuiteArguments, EndpointArguments, Limits)
    if "--help" in argv or "-h" in argv:
        print(format_help(USAGE, DESCRIPTION, classes, HIDDEN))
        return 0
    path, options = read_options(argv, hints_of(classes).keys() - set(HIDDEN))
    arguments, endpoint, limits = build_options(path, options, classes, HIDDEN)
    recipe_folder = Path(path).parent if path else Path()
    try:
        run = measure_suite(arguments, endpoint, limits, recipe_folder, partial(print, file=sys.stderr))
    except Interrupted as interruption:
        print(f"{interruption}:\n  edit-trl suite {' '.join(argv)}", file=sys.stderr)
        return 130
    print(f"{run_table(run)}\n\n{run.path}")
    return 0
