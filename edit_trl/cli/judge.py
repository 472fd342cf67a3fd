"""`edit-trl judge`: a model judges how well the chains of several models show the key steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edit_trl.cli.recipe_command import RecipeOptions, run_recipe
from edit_trl.common.errors import InputError
from edit_trl.common.terminal import visible_line
from edit_trl.evaluation.judge.config import CLASSES, JudgeArguments
from edit_trl.evaluation.judge.judging import JudgeOptions
from edit_trl.evaluation.judge.measure import judge_runs, read_inputs
from edit_trl.evaluation.judge.report import JUDGEMENTS_FILE, REPORT_FILE, format_report
from edit_trl.models.chat.dispatch import Limits

DESCRIPTION = (
    "Let a model judge how well the chains of several models show the key steps: finished runs of "
    "`edit-trl evaluate` on the same questions, side by side in random order. Options, in the recipe or here:"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or resume its run; see `run_recipe`.

    Raises:
        InputError: Anything wrong with the recipe or what it names, before a request is sent; a run that
            stopped; or no judgement could be read.
    """
    return run_recipe("judge", argv, DESCRIPTION, recipe_options(), _judge)


def recipe_options() -> RecipeOptions:
    """Return the options of the command."""
    return RecipeOptions(CLASSES, _check)


def _check(arguments: JudgeArguments, _options: JudgeOptions, _limits: Limits, recipe_folder: Path) -> str:
    judge, _, runs, sets, _ = read_inputs(arguments, recipe_folder)
    return f"{len(sets)} items of {', '.join(runs)}; judge {judge.model!r}"


def _judge(arguments: JudgeArguments, options: JudgeOptions, limits: Limits, recipe_folder: Path) -> None:
    report = judge_runs(arguments, options, limits, recipe_folder, partial(print, file=sys.stderr))
    folder = Path(arguments.output_dir)
    judgements = folder / JUDGEMENTS_FILE
    print(f"{judgements}, {folder / REPORT_FILE}\n\n{format_report(report)}")
    if not report["outcomes"].get("judged"):
        with judgements.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
        raise InputError(
            f"not one judgement could be read; see what the judge wrote in {judgements}. The first is "
            f"{first['outcome']}: {visible_line(first['judgement'])[:200]}"
        )
