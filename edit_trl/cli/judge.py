"""`edit-trl judge`: a model judges how well the chains of several models show the key steps."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from edit_trl.common.errors import InputError
from edit_trl.common.options import format_help, read_options
from edit_trl.evaluation.judge.config import CLASSES, OPTIONS, read_judge_config
from edit_trl.evaluation.judge.measure import judge_runs
from edit_trl.evaluation.judge.report import JUDGEMENTS_FILE, REPORT_FILE, format_report
from edit_trl.models.chat.dispatch import Interrupted

USAGE = "edit-trl judge --config RECIPE.yaml [--OPTION VALUE ...]"

DESCRIPTION = (
    "Let a model judge how well the chains of several models show the key steps: finished runs of "
    "`edit-trl evaluate` on the same questions, side by side in random order. Options, in the recipe or here:"
)


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl judge`.

    Args:
        argv: The options; those of the process by default.

    Raises:
        InputError: Anything wrong with the recipe or what it names, before a request is sent; a run that
            stopped; or no judgement that could be read.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(format_help(USAGE, DESCRIPTION, CLASSES))
        return 0
    path, options = read_options(argv, OPTIONS)
    config = read_judge_config(path, options)
    try:
        report = judge_runs(config, partial(print, file=sys.stderr))
    except Interrupted as interruption:
        print(f"{interruption}:\n  edit-trl judge {' '.join(argv)}", file=sys.stderr)
        return 130
    folder = Path(config.arguments.output_dir)
    judgements = folder / JUDGEMENTS_FILE
    print(f"{judgements}, {folder / REPORT_FILE}\n\n{format_report(report)}")
    if not report["outcomes"].get("judged"):
        raise InputError(f"not one judgement could be read; see what the judge wrote in {judgements}")
    return 0
