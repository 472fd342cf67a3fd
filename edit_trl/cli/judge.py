"""`edit-trl judge`: lets a model judge how well chains of several models show the key steps (L4)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.common.options import format_help, read_options
from edit_trl.evaluation.judge.config import CLASSES, OPTIONS, JudgeConfig, read_judge_config
from edit_trl.evaluation.judge.inputs import align_runs, with_references
from edit_trl.evaluation.judge.judging import ChainSet, Judgement, JudgeTemplate, judge_chains
from edit_trl.evaluation.judge.measure import _read_all
from edit_trl.evaluation.judge.report import format_report, save_judgements, summarize
from edit_trl.models.chat.dispatch import Dispatcher, DispatchStats, Interrupted, stopped_by_signals
from edit_trl.models.chat.display import Display
from edit_trl.models.chat.journal import Journal

if TYPE_CHECKING:
    from edit_trl.models.chat.protocol import Teacher

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
    path, given = read_options(argv, OPTIONS)
    config = read_judge_config(path, given)
    arguments = config.arguments
    judge, template, runs, references = _read_all(arguments)
    sets, dropped = align_runs(runs, arguments.limit)
    if references is not None:
        sets = with_references(sets, references, str(arguments.reference_dataset))
    known = sum(chains.reference is not None for chains in sets)
    print(
        f"{len(sets)} items of {', '.join(runs)}; {known} with a reference; judge {judge.model!r}",
        file=sys.stderr,
    )
    try:
        judgements, stats = asyncio.run(_judge(judge, sets, template, config))
    except Interrupted as stopped:
        print(f"{stopped}:\n  edit-trl judge {' '.join(argv)}", file=sys.stderr)
        return 130
    report = summarize(judgements, list(runs)) | {
        "runs": {name: {"path": str(run.path), "model": run.record.model} for name, run in runs.items()},
        "not_in_every_run": dropped,
        "judge": {
            "model": judge.model,
            "models_as_reported": sorted(stats.models),
            "template": template.version,
            "temperature": config.options.temperature,
            "seed": config.options.seed,
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "cost": stats.cost,
        },
    }
    folder = Path(arguments.output_dir)
    save_judgements(judgements, report, folder)
    print(f"{folder / 'judgements.jsonl'}, {folder / 'report.json'}\n\n{format_report(report)}")
    if not report["outcomes"].get("judged"):
        raise InputError(
            f"not one judgement could be read; see what the judge wrote in {folder / 'judgements.jsonl'}"
        )
    return 0


async def _judge(
    judge: Teacher, sets: Sequence[ChainSet], template: JudgeTemplate, config: JudgeConfig
) -> tuple[list[Judgement], DispatchStats]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(judge.close)
        await judge.check()
        journal = stack.enter_context(Journal(config.arguments.output_dir))
        dispatcher = Dispatcher(judge, journal, config.limits)
        stack.enter_context(stopped_by_signals([dispatcher]))
        display = stack.enter_context(Display([dispatcher]))
        judgements = await judge_chains(
            sets, dispatcher, options=config.options, template=template, watcher=display
        )
    return judgements, dispatcher.stats
