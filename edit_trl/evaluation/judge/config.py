"""The options of `edit-trl judge`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edit_trl.common.checks import positive
from edit_trl.common.options import find_beside
from edit_trl.data.dual_cots import DatasetSource
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

    def beside(self, folder: Path) -> JudgeArguments:
        """Return the options with their files resolved from the working directory or, failing that, from a folder."""
        return replace(
            self,
            reference_dataset=find_beside(self.reference_dataset, folder),
            template=find_beside(self.template, folder),
        )

    @property
    def reference(self) -> DatasetSource | None:
        """The dataset of the reference chains, if there is one."""
        if self.reference_dataset is None:
            return None
        return DatasetSource(self.reference_dataset, self.reference_config, self.reference_split)

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from super().errors()
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
        yield from positive(limit=self.limit)


CLASSES = (JudgeArguments, JudgeOptions, Limits)
"""The dataclasses of the options, in the order that `judge_runs` takes them."""
