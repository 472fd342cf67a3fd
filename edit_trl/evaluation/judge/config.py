"""The options of `edit-trl judge`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edit_trl.common.checks import positive
from edit_trl.common.errors import InputError
from edit_trl.common.options import build_options, find_beside, hints_of
from edit_trl.evaluation.judge.judging import JudgeOptions
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.options import EndpointArguments


@dataclass(frozen=True)
class JudgeArguments(EndpointArguments):
    """The runs to judge, and where the results go; with the fields of `EndpointArguments`.

    Attributes:
        runs: Folders of two or more finished runs of `edit-trl evaluate`. The first chain of each item that
            all of them have is judged.
        reference_dataset: Dual CoTs whose correct chains the judge is shown as solutions: a file, a folder
            saved by datasets, or a Hub id. Items are found by id, and by task if rows have one. Without a
            correct chain of an item, the judge is only shown the question and its known answer.
        reference_config: Configuration of a Hub dataset.
        reference_split: Split of the dataset; "train" if there are several.
        template: A text file with a prompt template, instead of the built-in one.
        limit: The most items to judge of each task, from its beginning.
        output_dir: The folder for the journal, judgements.jsonl and report.json.
    """

    runs: list[str] | None = None
    reference_dataset: str | None = None
    reference_config: str | None = None
    reference_split: str | None = None
    template: str | None = None
    limit: int | None = None
    output_dir: str = "outputs/judge"

    def __post_init__(self) -> None:
        errors = list(self._errors())
        if errors:
            raise InputError(errors)

    def _errors(self) -> Iterator[str]:
        if not self.model:
            yield "`model` is missing: the judge, as the endpoint names it"
        if not self.base_urls:
            yield "`base_urls` is missing: where the judge is, such as [http://127.0.0.1:8000/v1]"
        runs = self.runs or []
        if len(runs) < 2:
            named = f"only {runs[0]!r} is named" if runs else "none is named"
            yield f"`runs` must name two or more runs of `edit-trl evaluate`: {named}"
        twice = [run for run, count in Counter(str(Path(run)) for run in runs).items() if count > 1]
        if twice:
            yield f"`runs` names {', '.join(map(repr, twice))} more than once"
        yield from positive(timeout=self.timeout, limit=self.limit)


CLASSES = (EndpointArguments, JudgeArguments, JudgeOptions, Limits)

OPTIONS = hints_of(CLASSES)
"""Every option and its type."""


@dataclass(frozen=True)
class JudgeConfig:
    """A checked recipe.

    Attributes:
        arguments: The runs, and where the results go.
        options: How the judge is asked.
        limits: How hard the endpoint of the judge may be asked.
    """

    arguments: JudgeArguments
    options: JudgeOptions
    limits: Limits


def read_judge_config(path: str | Path | None, options: Mapping[str, Any]) -> JudgeConfig:
    """Read a recipe.

    Args:
        path: A YAML file of `key: value`. Files that it names are looked for in the working directory, then
            in the folder of the recipe.
        options: Values that override those of the file.

    Raises:
        InputError: Names everything that is wrong with the recipe.
    """
    path = str(path) if path else None
    arguments, judge_options, limits = build_options(path, options, (JudgeArguments, JudgeOptions, Limits))
    folder = Path(path).parent if path else Path()
    arguments = replace(
        arguments,
        reference_dataset=find_beside(arguments.reference_dataset, folder),
        template=find_beside(arguments.template, folder),
    )
    return JudgeConfig(arguments, judge_options, limits)
