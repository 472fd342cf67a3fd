"""A run of `edit-trl judge`: a model scores the chains of finished runs, and a report sums up its scores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError, collect_problems
from edit_trl.common.terminal import visible_line
from edit_trl.evaluation.judge.config import JudgeArguments
from edit_trl.evaluation.judge.inputs import References, align_runs, read_references, read_runs, with_references
from edit_trl.evaluation.judge.judging import ChainSet, Judgement, JudgeOptions, JudgeTemplate, judge_chains
from edit_trl.evaluation.judge.report import save_judgements, summarize
from edit_trl.evaluation.runs.schema import Run
from edit_trl.models.chat.dispatch import Dispatcher, DispatchStats, Limits, stopped_by_signals
from edit_trl.models.chat.display import Display
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import Teacher


def judge_runs(
    arguments: JudgeArguments, options: JudgeOptions, limits: Limits, recipe_folder: Path, say: Callable[[str], object]
) -> dict[str, Any]:
    """Let a model judge the chains of runs, and write the judgements and the report.

    Files that are not in the working directory are looked for in the recipe's folder. `say` is called with each
    message about the progress.

    Returns:
        The report: what `summarize` returns, `runs`, `not_in_every_run` and `judge`.

    Raises:
        InputError: Anything wrong with what the recipe names, before a request is sent.
        RunStopped: The run ended early; all answers received are in the journal.
    """
    judge, template, runs, sets, unmatched = read_inputs(arguments, recipe_folder)
    count = sum(chains.reference is not None for chains in sets)
    names = ", ".join(map(visible_line, runs))
    say(f"{len(sets)} items of {names}; {count} with a reference; judge {judge.model!r}")
    judgements, stats = asyncio.run(_judge(judge, sets, template, arguments.output_dir, options, limits))
    report = summarize(judgements, list(runs)) | {
        "runs": {name: {"path": str(run.path), "model": run.record.model} for name, run in runs.items()},
        "not_in_every_run": unmatched,
        "judge": {
            "model": judge.model,
            "models_as_reported": sorted(stats.models),
            "template": template.version,
            "temperature": options.temperature,
            "seed": options.seed,
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "cost": stats.cost,
        },
    }
    save_judgements(judgements, report, Path(arguments.output_dir))
    failures = [judgement.text for judgement in judgements if judgement.outcome == "failed"]
    if failures:
        say(f"{len(failures)} requests failed, such as: {visible_line(failures[0])}")
    return report


def read_inputs(
    arguments: JudgeArguments, recipe_folder: Path
) -> tuple[Teacher, JudgeTemplate, dict[str, Run], list[ChainSet], int]:
    """Read everything that a recipe names; nothing is sent.

    Returns:
        The judge, its template, the runs by name, the chains of each item, and how many items not all runs have.

    Raises:
        InputError: Everything that is wrong with it.
    """
    arguments = arguments.beside(recipe_folder)
    errors: list[str] = []
    judge: Teacher | None = None
    template: JudgeTemplate | None = None
    references: References | None = None
    runs: dict[str, Run] = {}
    with collect_problems(errors):
        judge = arguments.endpoint()
    with collect_problems(errors):
        template = JudgeTemplate.load(arguments.template)
    with collect_problems(errors):
        runs = read_runs(arguments.runs or [])
    with collect_problems(errors):
        references = read_references(arguments.reference) if arguments.reference else None
    if errors or judge is None or template is None:
        raise InputError(errors)
    sets, unmatched = align_runs(runs, arguments.limit)
    if references is not None:
        sets = with_references(sets, references, str(arguments.reference_dataset))
    return judge, template, runs, sets, unmatched


async def _judge(
    judge: Teacher,
    sets: Sequence[ChainSet],
    template: JudgeTemplate,
    folder: str,
    options: JudgeOptions,
    limits: Limits,
) -> tuple[list[Judgement], DispatchStats]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(judge.close)
        await judge.check()
        dispatcher = Dispatcher(judge, stack.enter_context(Journal(folder)), limits)
        stack.enter_context(stopped_by_signals([dispatcher]))
        display = stack.enter_context(Display([dispatcher]))
        judgements = await judge_chains(sets, dispatcher, options=options, template=template, watcher=display)
    return judgements, dispatcher.stats
