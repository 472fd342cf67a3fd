"""A judge reads the chains of several runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.evaluation.judge.config import JudgeArguments
from edit_trl.evaluation.judge.inputs import read_references, read_runs
from edit_trl.evaluation.judge.judging import JudgeTemplate

if TYPE_CHECKING:
    from edit_trl.evaluation.judge.inputs import References
    from edit_trl.evaluation.runs.schema import Run
    from edit_trl.models.chat.protocol import Teacher


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
