"""TRL's own preference trainers on dual CoTs: the baselines of key-step learning.

They train on the pairs that `DualCoTTrainer` would train on. They save and resume as `transformers.Trainer` does,
without the guarantees of `edit_trl.training.resuming.resumable`: an incomplete checkpoint is not recognised, and a
resumed run need not end with the same weights.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.data.conversation import LOSES_THOUGHTS
from edit_trl.data.preparation import RowPreparation, prepare_dual_cots
from edit_trl.data.row import REQUIRED_COLUMNS, TEMPLATE_COLUMNS, is_chosen_alone, pairs_of, rows_of, with_prompts
from edit_trl.data.unused_columns import unused_columns
from edit_trl.models.adapters import adapter_base
from edit_trl.models.loading import load_tokenizer
from edit_trl.training.progress import ProgressMixin
from edit_trl.training.quantization import settle_adapter_dtype
from edit_trl.training.resuming.resumable import StopCallback
from edit_trl.training.resuming.stopping import StopSignals
from edit_trl.training.safeguards import SafeguardsMixin
from edit_trl.training.student import load_student
from edit_trl.training.trainer_choice import TrainerName, trl_trainer

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

logger = logging.get_logger(__name__)

REFERENCE_ADAPTER = "ref"
"""The name that `trl.DPOTrainer` gives its reference copy of an adapter that is trained further."""


def preference_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    name: str = "train",
    columns: Sequence[str] = TEMPLATE_COLUMNS,
) -> Dataset:
    """Convert dual CoTs to the rows of TRL's preference trainers.

    Args:
        dataset: Validated dual CoTs. A row with several wrong chains becomes several pairs; a row of a single
            chain becomes none.
        tokenizer: The student's tokenizer.
        max_length: Pairs with more tokens are dropped, not cut.
        name: The dataset's name in messages.
        columns: The columns of `TEMPLATE_COLUMNS` that the trainer reads.

    Returns:
        The columns `prompt`, `chosen` and `rejected`, those of `columns` that rows have, a row per pair.

    Raises:
        InputError: No pair is left, or the trainer would train on another text than `DualCoTTrainer`.
    """
    pairs = [
        _preference_row(pair, columns)
        for row in rows_of(with_prompts(dataset))
        if not is_chosen_alone(row)
        for pair in pairs_of(row)
    ]
    given = dataset.column_names
    if not pairs:
        raise InputError(f"{name} dataset: there is no pair, only correct chains alone; TRL's trainers need pairs")
    dataset = Dataset.from_list(pairs)
    # Only to learn which pairs are dropped, for which any alignment will do.
    prepared, report = prepare_dual_cots(dataset, RowPreparation(tokenizer, "edit", max_length), name=name)
    (logger.warning if report.dropped else logger.info)(f"{name} dataset: {report}")
    for note in report.notes:
        if LOSES_THOUGHTS in note:
            raise InputError(
                f"{name} dataset: {note}, which TRL's own trainers cannot be told; train on a student whose chat "
                "template keeps thoughts, or on rows without them"
            )
    if unused := unused_columns(given):
        logger.warning_once(f"{name} dataset: {unused}")
    return dataset.select([row - 1 for row in prepared["row"]])


def _preference_row(pair: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a pair that a trainer of TRL's reads.

    Raises:
        InputError: The pair has a value in a column that it would not read.
    """
    if pair.get("prefix"):
        raise InputError(
            "the rows have a `prefix`, which TRL's own trainers do not know; put it into prompt and chains"
        )
    given = {column: pair[column] for column in TEMPLATE_COLUMNS if pair.get(column)}
    if unread := [column for column in given if column not in columns]:
        raise InputError(f"the rows have `{unread[0]}`, which this trainer of TRL's does not read; use `trainer: dpo`")
    return {column: pair[column] for column in REQUIRED_COLUMNS} | given


def preference_trainer(
    trainer: TrainerName,
    student: str,
    model: "PreTrainedModel | PeftModel | None",
    args: Any,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    quantization_config: "BitsAndBytesConfig | None" = None,
    peft_config: "PeftConfig | None" = None,
    stop_signals: StopSignals | None = None,
) -> Trainer:
    """Make one of TRL's trainers.

    Args:
        trainer: The trainer's name.
        student: The student's Hub id or path, for its tokenizer and, without `model`, its weights.
        model: The student with an adapter that is trained further or was merged; its state before training is
            also the reference of DPO. None to load `student`.
        args: The trainer's options, an `options_class(trainer)`; the student is loaded with `model_init_kwargs`.
        train_dataset: Validated dual CoTs to train on.
        eval_dataset: Validated dual CoTs to evaluate on.
        quantization_config: How the student is quantized when it is loaded.
        peft_config: The configuration of a new adapter.
        stop_signals: If given, the run saves and raises `TrainingStopped` once a signal is received.

    Raises:
        InputError: No pair is left.
    """
    revision = (args.model_init_kwargs or {}).get("revision")
    tokenizer = load_tokenizer(
        student, adapter_base(student), revision=revision, trust_remote_code=args.trust_remote_code
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # ORPO's and CPO's trainers read no tools.
    columns = TEMPLATE_COLUMNS if trainer == "dpo" else ("chat_template_kwargs",)
    train_dataset = preference_pairs(train_dataset, tokenizer, args.max_length, columns=columns)
    if eval_dataset is not None:
        eval_dataset = preference_pairs(eval_dataset, tokenizer, args.max_length, "eval", columns)
    args.hub_token = None  # the Trainer pickles its arguments beside the weights

    reference = None
    if model is None:
        model = load_student(student, args, quantization_config)
        if trainer == "dpo" and peft_config is None and not args.precompute_ref_log_probs:
            # TRL would load this reference without `revision`; that of an adapter it makes itself.
            reference = load_student(student, args, quantization_config)
    elif trainer == "dpo" and not is_peft_model(model) and not args.precompute_ref_log_probs:
        reference = deepcopy(model)  # an adapter that was merged, which TRL could not load
    args.model_init_kwargs = None
    shared = {
        "model": model,
        "args": args,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "processing_class": tokenizer,
        "peft_config": peft_config,
        "callbacks": [StopCallback(stop_signals)],
    }
    theirs = trl_trainer(trainer)
    cls = type(theirs.__name__, (ProgressMixin, SafeguardsMixin, theirs), {})
    preference = cls(ref_model=reference, **shared) if trainer == "dpo" else cls(**shared)
    settle_adapter_dtype(preference.model, args.fp16)
    return preference


def drop_reference(trainer: Trainer) -> None:
    """Remove DPO's reference adapter, so that only the student is saved."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(model) and REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)
