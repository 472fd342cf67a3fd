"""The options of a recipe that choose its data, its view and its trainer."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edit_trl.common.options import read_mapping
from edit_trl.data.dual_cots import DatasetSource
from edit_trl.data.mixture import Mixture
from edit_trl.data.view_mixture import read_weights
from edit_trl.data.views import View, select_rows
from edit_trl.training.trainer_choice import TrainerName

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class DataArguments:
    """The options of a recipe that choose its dual CoTs and its trainer, under TRL's names where TRL has them.

    Each field's meaning is in its `metadata["help"]`, which `edit-trl train --help` prints.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dual CoTs: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets or "
            "`edit-trl generate`, or a Hub id.",
            "aliases": ["--dataset"],
        },
    )
    datasets: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "Instead of dataset_name: a mixture, as in TRL (see recipes/README.md). Each has a `path` and "
            'may have a `fraction`, `split` and others. As JSON: \'[{"path": "rows.jsonl"}]\'.'
        },
    )
    test_split_size: float | None = field(
        default=None,
        metadata={"help": "Hold out this share of the mixture, or this number of rows, to evaluate on."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    dataset_train_split: str | None = field(
        default=None, metadata={"help": "Split to train on; 'train' where the dataset has splits."}
    )
    dataset_test_split: str = field(
        default="test",
        metadata={"help": "Split to evaluate on if eval_strategy is not 'no'; with `datasets`, of each of them."},
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "File, folder or Hub id to evaluate on instead of dataset_test_split."}
    )
    column_mapping: dict | str | None = field(
        default=None,
        metadata={
            "help": "Renames columns of the dataset, as JSON or YAML: "
            '\'{"correct": "chosen", "incorrect": "rejected"}\'. With `datasets`, of those that have none of their own.'
        },
    )

    trainer: TrainerName = field(
        default="dual_cot",
        metadata={
            "help": "Which trainer. 'dual_cot': DualCoTTrainer. TRL's own, to compare with, each with its "
            "own options: 'dpo' (DPO, IPO; DPO with an NLL anchor by `loss_type: [sigmoid, sft]`), 'orpo', "
            "'cpo' (CPO; SimPO by `loss_type: simpo`)."
        },
    )
    view: View = field(
        default="pairs",
        metadata={
            "help": "Which rows the dual CoTs become: 'pairs', 'rectified', 'corrupted', 'chosen', 'rejected', "
            "'check', 'critique', 'lema', 'unrectified', 'repeat_sampling', 'dual_cot_sft', 'mt_cot', 'sbs' or "
            "'scott'. See edit_trl.data.views."
        },
    )
    views: dict | str | None = field(
        default=None, metadata={"help": "Instead of view: a mixture by weight, such as '{chosen: 1, check: 0.5}'."}
    )
    mistake: list[str] | None = field(
        default=None,
        metadata={"help": "Keep only pairs whose column `mistake` has one of these kinds; not for single chains."},
    )
    rows: int | None = field(
        default=None,
        metadata={"help": "Keep only this many rows of the view, drawn with `seed`: systems of equal size."},
    )

    suite_eval_steps: int | None = field(
        default=None,
        metadata={
            "help": "Measure the student on a suite of dual CoTs every this many steps. "
            "`metric_for_best_model: suite/key_preference` selects weights by its scores."
        },
    )
    suite_dataset_name: str | None = field(
        default=None, metadata={"help": "The suite, as a file, folder or Hub id; the evaluation dataset by default."}
    )
    suite_dataset_split: str | None = field(default=None, metadata={"help": "Split of suite_dataset_name."})
    suite_rows: int | None = field(
        default=None, metadata={"help": "Only this many pairs of the suite, from its start."}
    )
    suite_accuracy_rows: int = field(
        default=0, metadata={"help": "The number of the suite's questions that the student also answers."}
    )
    suite_max_new_tokens: int = field(
        default=256, metadata={"help": "The longest answer to a question of the suite, in tokens."}
    )

    stop_at_plateau: int | None = field(
        default=None,
        metadata={
            "help": "End the stage once its accuracy on the suite's questions, or the suite's metric_for_best_model, "
            "has not risen in this many suites in a row. Saves the last weights, or the best by "
            "load_best_model_at_end."
        },
    )

    def __post_init__(self):
        if self.column_mapping is not None:
            self.column_mapping = read_mapping(self.column_mapping, "column_mapping")
        if self.views is not None:
            self.views = read_weights(self.views)

    @property
    def _mapping(self) -> dict[str, str] | None:
        # `__post_init__` has read the text of an option.
        return None if isinstance(self.column_mapping, str) else self.column_mapping

    @property
    def _entries(self) -> list[dict[str, Any]]:
        return [] if isinstance(self.datasets, str) else self.datasets or []

    @property
    def _weights(self) -> Any:
        return self.views

    @property
    def view_names(self) -> list[str]:
        """The names of the views that the run trains on."""
        return list(self.views or [self.view])

    @property
    def train_source(self) -> DatasetSource | Mixture:
        """The dataset to train on."""
        if self.datasets:
            return self._mixture()
        return self._source(str(self.dataset_name), self.dataset_train_split)

    @property
    def eval_source(self) -> DatasetSource | Mixture:
        """The dataset to evaluate on."""
        if self.eval_dataset_name:
            return self._source(self.eval_dataset_name, None)
        if self.datasets and self.test_split_size is None:
            return Mixture(tuple(self._source_of(entry, self.dataset_test_split) for entry in self._entries))
        if self.datasets:
            return replace(self._mixture(), part="test")
        return self._source(str(self.dataset_name), self.dataset_test_split)

    @property
    def suite_source(self) -> DatasetSource | Mixture:
        """The dataset of the suite."""
        if self.suite_dataset_name:
            return self._source(self.suite_dataset_name, self.suite_dataset_split)
        return self.eval_source

    def _source(self, name: str, split: str | None) -> DatasetSource:
        return DatasetSource(name, self.dataset_config, split, self.dataset_revision, self._mapping)

    def _mixture(self) -> Mixture:
        sources = tuple(self._source_of(entry, entry.get("split") or "train") for entry in self._entries)
        fractions = tuple(entry["fraction"] for entry in self._entries if entry.get("fraction") is not None)
        return Mixture(sources, fractions if len(fractions) == len(sources) else None, self.test_split_size)

    def _source_of(self, entry: dict[str, Any], split: str) -> DatasetSource:
        """Return one dataset of the mixture."""
        options = {name: entry.get(name) for name in ("revision", "columns", "data_dir", "data_files")}
        mapping = entry.get("column_mapping")
        mapping = self._mapping if mapping is None else mapping
        return DatasetSource(entry["path"], entry.get("name"), split, column_mapping=mapping, **options)

    def train_view(self, rows: "Dataset", seed: int) -> "Dataset":
        """Return the rows to train on: the view of the dataset, its kinds of mistake and its number of rows.

        Raises:
            InputError: No row is left.
        """
        source = self.train_source.name
        return select_rows(
            rows, self.view, views=self._weights, mistake=self.mistake, rows=self.rows, seed=seed, source=source
        )

    def load_train_rows(self, seed: int) -> "Dataset":
        """Load the rows to train on.

        Raises:
            InputError: The dataset cannot be read, has rows that are no dual CoTs, or no row is left.
        """
        return self.train_view(self.train_source.load(), seed)

    def load_eval_rows(self) -> "Dataset":
        """Load the rows to evaluate on, in the same view.

        Raises:
            InputError: As in `load_train_rows`.
        """
        source = self.eval_source
        return select_rows(source.load(), self.view, views=self._weights, source=source.name)
