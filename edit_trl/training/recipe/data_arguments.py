"""The options of a recipe that choose its data, its view and its trainer."""

import json
from dataclasses import dataclass, field

from edit_trl.common.errors import InputError
from edit_trl.data.views import View
from edit_trl.training.trainer_choice import TrainerName


@dataclass
class DataArguments:
    """Where the dual CoTs come from and which of them are used; TRL's names, plus what it lacks."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dual CoTs: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets or "
            "`edit-trl generate`, or a Hub id.",
            "aliases": ["--dataset"],
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."}
    )
    dataset_train_split: str | None = field(
        default=None, metadata={"help": "Split to train on; 'train' where the dataset has splits."}
    )
    dataset_test_split: str = field(
        default="test",
        metadata={"help": "Split to evaluate on where eval_strategy is not 'no'."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub id to evaluate on instead of dataset_test_split."},
    )
    column_mapping: dict | str | None = field(
        default=None,
        metadata={
            "help": "Renames columns of the dataset, as JSON or YAML: "
            '\'{"correct": "chosen", "incorrect": "rejected"}\'.'
        },
    )

    trainer: TrainerName = field(
        default="dual_cot",
        metadata={
            "help": "What trains on them. 'dual_cot': DualCoTTrainer. TRL's own, to compare with, each with "
            "its own options: 'dpo' (DPO, IPO, DPO with an NLL anchor by `loss_type: [sigmoid, sft]`), "
            "'orpo', 'cpo' (CPO; SimPO by `loss_type: simpo`)."
        },
    )
    view: View = field(
        default="pairs",
        metadata={
            "help": "As what the dual CoTs are trained on. 'pairs': as they are. 'rectified', "
            "'corrupted': the pairs that began as a wrong, or as a correct chain. 'chosen': each correct "
            "chain alone. 'unrectified': those that were correct from the start. 'repeat_sampling': those "
            "again and again, as many as all chains. 'dual_cot_sft': correct chains, and wrong ones marked "
            "as such. 'mt_cot', 'sbs': chain and answer as two tasks. 'scott': correct chains, and the "
            "answers of wrong ones. See edit_trl.data.views and recipes/baselines."
        },
    )
    mistake: list[str] | None = field(
        default=None,
        metadata={
            "help": "Only pairs with one of these kinds of mistake, as the column `mistake` names them. "
            "Views of chains alone are left as they are."
        },
    )
    rows: int | None = field(
        default=None,
        metadata={"help": "Only so many rows of the view, drawn with `seed`: systems of matched size."},
    )

    suite_eval_steps: int | None = field(
        default=None,
        metadata={
            "help": "Show the student a suite of dual CoTs every so many steps, and keep its scores in "
            "suite_history.jsonl; `metric_for_best_model: suite/key_preference` chooses weights by them."
        },
    )
    suite_dataset_name: str | None = field(
        default=None,
        metadata={"help": "The suite, as a file, folder or Hub id; the evaluation dataset by default."},
    )
    suite_dataset_split: str | None = field(default=None, metadata={"help": "Split of suite_dataset_name."})
    suite_rows: int | None = field(default=None, metadata={"help": "Only the suite's first so many pairs."})
    suite_accuracy_rows: int = field(
        default=0, metadata={"help": "How many of the suite's questions the student also answers."}
    )
    suite_max_new_tokens: int = field(
        default=256, metadata={"help": "Where the student's answers to a suite's questions are cut off."}
    )

    def __post_init__(self):
        if isinstance(self.column_mapping, str):
            try:
                self.column_mapping = json.loads(self.column_mapping)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"`column_mapping` is not JSON ({error}): {self.column_mapping!r}; write "
                    '\'{"theirs": "ours"}\''
                ) from error

    @property
    def suite_source(self) -> tuple[str | None, str | None]:
        """Where the suite is, and which split."""
        if self.suite_dataset_name:
            return self.suite_dataset_name, self.suite_dataset_split
        if self.eval_dataset_name:
            return self.eval_dataset_name, None
        return self.dataset_name, self.dataset_test_split
