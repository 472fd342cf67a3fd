"""TRL's own preference trainers on dual CoTs (L3): what key-step learning is compared with.

The pairs are those that `DualCoTTrainer` would train on: the same rows, dropped for the same reasons. Saving
and resuming are as in `transformers.Trainer`, which is less than `edit_trl.training.resuming.resumable`
gives: a checkpoint that was cut off while being written is not told from a whole one, and a resumed run need
not end in the same bits.
"""

from typing import TYPE_CHECKING

from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging
from trl import DPOTrainer
from trl.trainer.utils import create_model_from_path

from edit_trl.common.errors import InputError
from edit_trl.data.preparation import RowPreparation, prepare_dual_cots
from edit_trl.data.row import REQUIRED_COLUMNS, is_chosen_alone, pairs_of, rows_of
from edit_trl.training.quantization import settle_adapter_dtype
from edit_trl.training.resuming.stopping import StopSignals, TrainingStopped
from edit_trl.training.trainer_choice import TrainerName, options_class

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

logger = logging.get_logger(__name__)

REFERENCE_ADAPTER = "ref"
"""What TRL's DPOTrainer calls its copy of an adapter that goes on training."""


def preference_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, name: str = "train"
) -> Dataset:
    """Dual CoTs as TRL's preference trainers take them.

    Args:
        dataset: Validated dual CoTs. Several wrong chains are several pairs; correct chains alone are none.
        tokenizer: The student's.
        max_length: Pairs with more tokens are dropped rather than cut.
        name: What messages call the dataset.

    Returns:
        `prompt`, `chosen` and `rejected` of each pair, and nothing else.

    Raises:
        InputError: No pair is left.
    """
    pairs = [
        {column: pair[column] for column in REQUIRED_COLUMNS}
        for row in rows_of(dataset)
        if not is_chosen_alone(row)
        for pair in pairs_of(row)
    ]
    if not pairs:
        raise InputError(
            f"{name} dataset: there is no pair, only correct chains alone; TRL's trainers need pairs"
        )
    found = Dataset.from_list(pairs)
    # Any alignment will do: it is asked which pairs are kept.
    prepared, report = prepare_dual_cots(found, RowPreparation(tokenizer, "edit", max_length), name=name)
    (logger.warning if report.dropped else logger.info)(f"{name} dataset: {report}")
    return found.select([row - 1 for row in prepared["row"]])


def preference_trainer(
    trainer: TrainerName,
    student: str,
    model: PreTrainedModel | None,
    args: TrainingArguments,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    quantization_config: "BitsAndBytesConfig | None" = None,
    peft_config: "PeftConfig | None" = None,
    stop_signals: StopSignals | None = None,
) -> Trainer:
    """One of TRL's trainers, ready to train.

    Args:
        trainer: Which.
        student: The student's id or path, for its tokenizer and, without `model`, its weights.
        model: The student with an adapter that goes on training, if it has one. It is also what DPO refers
            to, as it is before training.
        args: Of `options_class(trainer)`; `model_init_kwargs` are how the student is loaded.
        train_dataset: Validated dual CoTs.
        eval_dataset: Likewise.
        quantization_config: For a student that is loaded here.
        peft_config: Trains a new adapter.
        stop_signals: Where given, the run saves and raises `TrainingStopped` once a signal is received.

    Raises:
        InputError: No pair is left.
    """
    options, args.model_init_kwargs = dict(args.model_init_kwargs or {}), None
    tokenizer = AutoTokenizer.from_pretrained(
        student, revision=options.get("revision"), trust_remote_code=args.trust_remote_code
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    train_dataset = preference_pairs(train_dataset, tokenizer, args.max_length)
    if eval_dataset is not None:
        eval_dataset = preference_pairs(eval_dataset, tokenizer, args.max_length, "eval")
    args.hub_token = None  # Trainer pickles its arguments beside the weights

    def load() -> PreTrainedModel:
        options["trust_remote_code"] = args.trust_remote_code
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            options["device_map"] = None  # each process holds the whole model
        return create_model_from_path(student, **options)

    shared = {
        "model": load() if model is None else model,
        "args": args,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "processing_class": tokenizer,
        "peft_config": peft_config,
        "callbacks": [_StopCallback(stop_signals)] if stop_signals is not None else None,
    }
    if trainer == "dpo":
        # Of an adapter TRL makes its own reference; of whole weights it would load another revision.
        whole = model is None and peft_config is None and not args.precompute_ref_log_probs
        made = DPOTrainer(ref_model=load() if whole else None, **shared)
    else:
        made = _experimental_trainer(trainer)(**shared)
    settle_adapter_dtype(made.model, args.fp16)
    return made


def drop_reference(trainer: Trainer) -> None:
    """Take away DPO's reference adapter, so that the student alone is saved."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(model) and REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)


def _experimental_trainer(trainer: TrainerName) -> type[Trainer]:
    options_class(trainer)  # silences what TRL says of every import of these
    if trainer == "orpo":
        from trl.experimental.orpo import ORPOTrainer

        return ORPOTrainer
    from trl.experimental.cpo import CPOTrainer

    return CPOTrainer


class _StopCallback(TrainerCallback):
    """Saves after the step in which the run was told to stop, and ends it."""

    def __init__(self, signals: StopSignals):
        self._signals = signals
        self._stopping = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._signals.training = True

    def on_step_end(self, args, state, control, **kwargs):
        if self._signals.agreed():
            self._stopping = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self._stopping:
            raise TrainingStopped(
                f"stopped by {self._signals.received or 'a signal to another process'} after step "
                f"{state.global_step} of {state.max_steps}; checkpoint-{state.global_step} is in "
                f"{args.output_dir}"
            )
