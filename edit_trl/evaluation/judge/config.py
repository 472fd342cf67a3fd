"""The options of `edit-trl judge`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.options import convert, hints_of, read_yaml
from edit_trl.evaluation.judge.judging import JudgeOptions
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.options import EndpointArguments


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
