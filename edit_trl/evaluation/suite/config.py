"""The options of `edit-trl suite`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edit_trl.common.checks import at_least, difficulty_range
from edit_trl.common.options import find_beside
from edit_trl.data.dual_cots import DatasetSource
from edit_trl.evaluation.runs.measured_model import MeasuredModel, label_of_path
from edit_trl.evaluation.runs.schema import RunKind
from edit_trl.key_steps import KeyStepMethod


@dataclass(frozen=True)
class SuiteArguments(MeasuredModel):
    """The model, the pairs and the settings of a suite.

    Attributes:
        tokenizer: The tokenizer, as a path or Hub id; that of the model by default. A model at an endpoint needs one.
        dataset_name: Dual CoTs: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets or
            `edit-trl generate`, or a Hub id.
        dataset_config: Configuration of a Hub dataset.
        dataset_split: Split of the dataset; "train" if it has splits.
        dataset_revision: Branch, tag or commit of a Hub dataset.
        column_mapping: Renames columns of the dataset: {"correct": "chosen", "incorrect": "rejected"}.
        rows: Number of pairs made by the procedural teacher, instead of a dataset.
        families: Families of these problems; all by default.
        difficulty: Difficulty of these problems, 1 to 5.
        conversational: Ask these problems by messages, through the chat template; false for base models without one.
        from_run: The folder of a finished `edit-trl evaluate` run with several samples per question, instead
            of a dataset: each correct chain is paired with the most similar wrong chain of its question.
        pairs_per_question: The most pairs to make of a question of that run.
        limit: The most pairs to score, from the beginning of the data.
        key_step_method: How key steps are found: words, edit, fork, forks, spans (those in the rows) or reference.
        greedy: Also let the model continue the shared beginning of both chains.
        max_new_tokens: Maximum number of tokens of this continuation.
        batch_size: Pairs per batch; at an endpoint, the most pairs whose two chains are scored at a time.
    """

    kind: ClassVar[RunKind] = "suite"

    tokenizer: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    column_mapping: dict[str, str] | None = None
    rows: int | None = None
    families: list[str] | None = None
    difficulty: int = 1
    conversational: bool = True
    from_run: str | None = None
    pairs_per_question: int = 1
    limit: int | None = None
    key_step_method: KeyStepMethod = "words"
    greedy: bool = True
    max_new_tokens: int = 256
    batch_size: int = 8

    def errors(self) -> Iterator[str]:
        """See `MeasuredModel.errors`."""
        yield from super().errors()
        sources = [name for name in ("dataset_name", "rows", "from_run") if getattr(self, name) is not None]
        if not sources:
            yield (
                "no pairs: name `dataset_name` (a file, folder or Hub id), `rows` (of the embedded teacher's "
                "problems) or `from_run` (a finished run of `edit-trl evaluate`)"
            )
        if len(sources) > 1:
            yield f"`{'` and `'.join(sources)}` are different sources of pairs; leave one"
        if (self.families is not None or self.difficulty != 1) and self.rows is None:
            yield "`families` and `difficulty` need `rows`, how many pairs"
        yield from at_least(1, rows=self.rows, limit=self.limit, pairs_per_question=self.pairs_per_question)
        yield from at_least(1, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        yield from difficulty_range(difficulty=self.difficulty)

    def dataset(self, recipe_folder: Path) -> DatasetSource:
        """Return the source of the dual CoTs; a file may be beside the recipe."""
        name = find_beside(self.dataset_name, recipe_folder)
        return DatasetSource(name, self.dataset_config, self.dataset_split, self.dataset_revision, self.column_mapping)

    @property
    def measured_on(self) -> list[str]:
        """See `MeasuredModel.measured_on`."""
        if self.rows is not None:
            return ["procedural" if self.difficulty == 1 else f"procedural_{self.difficulty}"]
        return [label_of_path(str(self.dataset_name or self.from_run))]

    @property
    def max_greedy_tokens(self) -> int:
        """The most tokens to generate after the shared beginning; 0 to generate nothing."""
        return self.max_new_tokens if self.greedy else 0

    @property
    def settings(self) -> dict[str, Any]:
        """Everything on which the items depend, besides the model and the pairs; batches change the rounding."""
        names = ("key_step_method", "batch_size", "dtype", "load_in_4bit", "attn_implementation")
        settings = {name: getattr(self, name) for name in names} | {"max_new_tokens": self.max_greedy_tokens}
        return settings | self.settings_where_given
