"""`edit-trl judge`: lets a model judge how well chains of several models show the key steps (L4)."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.cli.option_parsing import format_help, read_options
from edit_trl.common.errors import InputError
from edit_trl.common.options import convert, hints_of, read_yaml
from edit_trl.evaluation.judge.inputs import align_runs, read_references, read_runs, with_references
from edit_trl.evaluation.judge.judging import ChainSet, Judgement, JudgeOptions, JudgeTemplate, judge_chains
from edit_trl.evaluation.judge.report import format_report, save_judgements, summarize
from edit_trl.models.chat.dispatch import Dispatcher, DispatchStats, Interrupted, Limits
from edit_trl.models.chat.display import Display
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.teachers.run import stopped_by_signals

if TYPE_CHECKING:
    from edit_trl.evaluation.judge.inputs import References
    from edit_trl.evaluation.runs.folder import Run
    from edit_trl.models.chat.protocol import Teacher

USAGE = "edit-trl judge --config RECIPE.yaml [--OPTION VALUE ...]"
DESCRIPTION = (
    "Let a model judge how well the chains of several models show the key steps: finished runs of "
    "`edit-trl evaluate` on the same questions, side by side in random order. Options, in the recipe or here:"
)


@dataclass(frozen=True)
class JudgeArguments(EndpointArguments):
    """What is judged, and where the result goes; also with the fields of `EndpointArguments`.

    Attributes:
        runs: Folders of two or more finished runs of `edit-trl evaluate`; the first chain of each item that
            all of them have is judged.
        reference_dataset: Dual CoTs whose correct chains are shown to the judge as solutions, found by task
            (where rows have one) and id: a file, a folder saved by datasets, or a Hub id. Without one, or
            where it has none of an item, key steps are judged by the question and its known answer.
        reference_config: Configuration of a Hub dataset.
        reference_split: Split; "train" where there are several.
        template: A prompt template of one's own, a text file.
        limit: Only the first so many items of each task.
        output_dir: Where the journal, judgements.jsonl and report.json go.
    """

    runs: list[str] | None = None
    reference_dataset: str | None = None
    reference_config: str | None = None
    reference_split: str | None = None
    template: str | None = None
    limit: int | None = None
    output_dir: str = "outputs/judge"

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError(problems)

    def _problems(self):
        if not self.model:
            yield "`model` is missing: the judge, as the endpoint names it"
        if not self.base_urls:
            yield "`base_urls` is missing: where the judge is, such as [http://127.0.0.1:8000/v1]"
        runs = self.runs or []
        if len(runs) < 2:
            given = f"only {runs[0]!r} is named" if runs else "none is named"
            yield f"`runs` must name two or more runs of `edit-trl evaluate`: {given}"
        twice = [run for run, count in Counter(str(Path(run)) for run in runs).items() if count > 1]
        if twice:
            yield f"`runs` names {', '.join(map(repr, twice))} more than once"
        yield from self.not_positive("timeout", "limit")


CLASSES = (EndpointArguments, JudgeArguments, JudgeOptions, Limits)
OPTIONS = hints_of(CLASSES)
"""Every option and its type."""


@dataclass(frozen=True)
class JudgeConfig:
    """A checked recipe.

    Attributes:
        arguments: What is judged.
        options: How.
        limits: How hard the judge is asked.
    """

    arguments: JudgeArguments
    options: JudgeOptions
    limits: Limits


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


def read_judge_config(path: str | Path | None, options: Mapping[str, Any]) -> JudgeConfig:
    """Read a recipe.

    Args:
        path: A YAML file of `key: value`; files that it names are looked for from where the command runs,
            then from the recipe's own folder.
        options: Values that win over the file's.

    Raises:
        InputError: All that is wrong with it.
    """
    values, problems = convert({**(read_yaml(path) if path else {}), **options}, OPTIONS)
    for name in ("reference_dataset", "template"):
        beside = Path(path).parent / values[name] if path and values.get(name) else None
        if beside and not Path(values[name]).exists() and beside.exists():
            values[name] = str(beside)
    built = []
    for cls in (JudgeArguments, JudgeOptions, Limits):
        try:
            names = {field.name for field in fields(cls)}
            built.append(cls(**{name: value for name, value in values.items() if name in names}))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems, heading=f"{path or 'command line'}:")
    return JudgeConfig(*built)


def _read_all(
    arguments: JudgeArguments,
) -> tuple[Teacher, JudgeTemplate, dict[str, Run], References | None]:
    """Everything that a recipe names; what is wrong with it is told at once."""
    problems: list[str] = []

    def of(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except InputError as error:
            problems.extend(error.problems)

    source, config, split = (
        arguments.reference_dataset,
        arguments.reference_config,
        arguments.reference_split,
    )
    read = (
        of(arguments.endpoint),
        of(lambda: JudgeTemplate.load(arguments.template)),
        of(lambda: read_runs(arguments.runs or [])),
        of(lambda: read_references(source, config, split)) if source else None,
    )
    if problems:
        raise InputError(problems)
    return read


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
