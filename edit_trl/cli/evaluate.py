"""`edit-trl evaluate`: a model answers questions, and its answers are checked (L4)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.evaluation.accuracy.measure import _measure, _remember

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.evaluation.harness import HarnessTasks
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments

USAGE = "edit-trl evaluate [--config RECIPE.yaml] [--OPTION VALUE ...]"

DESCRIPTION = (
    "Let a model answer questions and check its answers. Run again, it goes on from what is done. "
    "Options, in the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)

# Prices and budgets are for teachers.
HIDDEN = ("prompt_price", "completion_price", "max_cost")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or go on with it.

    Args:
        argv: `--config RECIPE` and `--option value` over it.

    Raises:
        InputError: Anything wrong with the recipe, the tasks or the model, before anything is generated.
    """
    argv = sys.argv[1:] if argv is None else argv
    from edit_trl.common.options import build_options, format_help, hints_of, read_options
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.models.chat.dispatch import Interrupted, Limits
    from edit_trl.models.chat.options import EndpointArguments

    classes = (EvaluateArguments, EndpointArguments, Limits)
    if "--help" in argv or "-h" in argv:
        print(format_help(USAGE, DESCRIPTION, classes, HIDDEN))
        return 0
    path, options = read_options(argv, hints_of(classes).keys() - set(HIDDEN))
    arguments, endpoint, limits = build_options(path, options, classes, HIDDEN)
    try:
        return _evaluate(arguments, endpoint, limits, Path(path) if path else None)
    except Interrupted as stopped:
        print(f"{stopped}:\n  edit-trl evaluate {' '.join(argv)}", file=sys.stderr)
        return 130


def _evaluate(
    arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, recipe: Path | None
) -> int:
    from edit_trl.evaluation.harness import load_harness_tasks
    from edit_trl.evaluation.runs.history import check_history
    from edit_trl.evaluation.runs.tables import run_table

    if arguments.harness and endpoint.base_urls:
        raise InputError("`harness` needs the model on this machine: leave out `base_urls`")
    loaded = harness = None
    if arguments.harness:
        harness = load_harness_tasks(arguments.harness, arguments.harness_include_path)
    if arguments.tasks:
        check_history(arguments.history)
        tasks = arguments.read_tasks(recipe)
        print(f"{len(tasks.problems)} questions of {len(tasks.versions)} tasks", file=sys.stderr)
        run, loaded = _measure(arguments, endpoint, limits, tasks)
        _remember(run, arguments.history)
        print(f"{run_table(run)}\n\n{run.path}")
    if harness is not None:
        _run_harness(arguments, harness, loaded)
    return 0


def _run_harness(arguments: EvaluateArguments, tasks: HarnessTasks, loaded: Any) -> None:
    """lm-evaluation-harness, on the same model."""
    from edit_trl.evaluation.harness import evaluate_with_harness, format_harness, write_harness

    model, tokenizer = loaded or arguments.source.load()
    results = evaluate_with_harness(
        model,
        tokenizer,
        tasks,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        apply_chat_template=arguments.harness_chat_template,
        seed=arguments.seed,
    )
    print(format_harness(results))
    print(write_harness(results, arguments.folder))
