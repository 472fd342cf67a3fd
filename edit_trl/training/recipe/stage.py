"""One stage of a recipe: from its checked arguments to a trained and saved student.

`train_stage` is the walk of a row through the program:

    recipe.yaml -> rows -> token ids and key-step masks -> batches -> log-probabilities -> loss -> adapter
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, Trainer, TrainerCallback

from edit_trl.common.errors import InputError
from edit_trl.common.run_file import check_run_folder, check_same_run, read_run_file, write_run_file
from edit_trl.hub.model_card import include_earlier_stages
from edit_trl.models.adapters import adapter_base, remember_base
from edit_trl.models.loading import check_student, load_processor
from edit_trl.training.baselines import drop_reference, preference_trainer
from edit_trl.training.lora_targets import lora_config
from edit_trl.training.quantization import check_bitsandbytes, quantization_config
from edit_trl.training.recipe.adapter_options import check_adapter, is_adapter, merge_student, merges, set_dropout
from edit_trl.training.recipe.outline import Recipe
from edit_trl.training.recipe.resolving import RunArguments
from edit_trl.training.resuming.checkpoints import check_checkpoint, describe_run, last_checkpoint, written_whole
from edit_trl.training.resuming.stopping import StopSignals
from edit_trl.training.student import load_student
from edit_trl.training.trainer import DualCoTTrainer


@dataclass(frozen=True)
class StageStart:
    """The starting point of a stage.

    Attributes:
        folder: The stage's folder.
        student: The Hub id or path of the student: the recipe's model, or the folder of the stage before.
        checkpoint: The checkpoint to resume from, if there is one.
        finished: When the stage was finished, if it is.
    """

    folder: Path
    student: str
    checkpoint: str | None = None
    finished: str | None = None


def find_start(recipe: Recipe, run: RunArguments) -> StageStart:
    """Find out where a stage starts; nothing is loaded or written.

    Raises:
        InputError: The folder holds another run or other files, the stage before is not finished, or the
            checkpoint cannot be resumed.
    """
    folder, student = Path(run.training.output_dir), str(run.model.model_name_or_path)
    finished = check_run_folder(folder, run.values).get("finished")
    if finished:
        return StageStart(folder, student, finished=finished)
    return StageStart(folder, _previous_output(recipe, run) or student, _find_checkpoint(run, folder))


def is_last_stage(recipe: Recipe, run: RunArguments) -> bool:
    """Return whether the recipe ends with this run."""
    return run.stage == recipe.runs[-1][0]


def _previous_output(recipe: Recipe, run: RunArguments) -> str | None:
    """Return the folder of the stage before, whose student this one trains; None for a first stage."""
    names = [str(name) for name, _ in recipe.runs]
    position = names.index(str(run.stage))
    if not position:
        return None
    before = names[position - 1]
    folder = Path(run.training.output_dir).parent / before
    if not read_run_file(folder).get("finished"):
        raise InputError(
            f"stage {run.stage!r} starts from what stage {before!r} saved, but that is not "
            f"finished (looked in {folder}); run it first"
        )
    return str(folder)


def _find_checkpoint(run: RunArguments, folder: Path) -> str | None:
    """Return the checkpoint to resume from, checked as far as possible before anything is loaded."""
    named = run.training.resume_from_checkpoint
    if run.data.trainer == "dual_cot":
        checkpoint = named or last_checkpoint(folder)
        if checkpoint:
            check_checkpoint(checkpoint, describe_run(run.training))
    else:
        checkpoint = named or last_checkpoint(folder, described=False)
    if named:
        # The checkpoint may be in another run's folder.
        check_same_run(Path(named).parent, run.values, f"resume_from_checkpoint {named} belongs to")
    return checkpoint


def train_stage(
    run: RunArguments,
    start: StageStart,
    stop_signals: StopSignals | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train a stage and save its student, its card and its results.

    Args:
        run: The stage's arguments.
        start: Its starting point, from `find_start`.
        stop_signals: If given, the run saves and raises `TrainingStopped` once a signal is received.
        callbacks: Passed to `DualCoTTrainer`. The attribute `trainer` of each is set to the trainer, so that
            it can log.

    Raises:
        InputError: Rows, options or a student that cannot be trained, before anything is written; or a disk
            that is full.
        TrainingStopped: See `stop_signals`.
    """
    started = time.perf_counter()
    check_bitsandbytes(run.model, run.training)
    # Hop 1, recipe -> rows: `data.dual_cots` loads them, `data.views` selects.
    train_rows = run.data.load_train_rows(run.training.seed)
    eval_rows = None if run.training.eval_strategy == "no" else run.data.load_eval_rows()
    # Hop 2, rows -> token ids and key-step masks: the trainer prepares its datasets (`data.preparation`).
    trainer = _make_trainer(run, start.student, train_rows, eval_rows, stop_signals, callbacks)
    # Nothing was written so far, so bad input leaves nothing behind.
    if trainer.is_world_process_zero():
        write_run_file(start.folder, run.values, None, {})
    # Every process uses the folder, and on another node it may be on another disk.
    start.folder.mkdir(parents=True, exist_ok=True)
    trainer.accelerator.wait_for_everyone()
    if start.checkpoint:
        trainer.accelerator.print(f"Resuming from {start.checkpoint}")
    # Hops 3 to 6, at every step of `training.trainer`: ids -> a batch (`models.pairs.collation`) ->
    # per-token log-probabilities (`models.pairs.scoring`) -> loss (`losses`) -> weights.
    output = trainer.train(resume_from_checkpoint=start.checkpoint)
    results = dict(output.metrics)
    if eval_rows is not None:
        results |= trainer.evaluate()
    # Hop 7, weights -> saved adapter and card.
    _save(trainer, run, start)
    trainer.accelerator.print(f"Saved to {start.folder} after {time.perf_counter() - started:.0f} s")
    if trainer.is_world_process_zero():
        write_run_file(start.folder, run.values, time.strftime("%Y-%m-%d %H:%M:%S"), results)
    trainer.end()


def _save(trainer: Any, run: RunArguments, start: StageStart) -> None:
    if run.data.trainer != "dual_cot":
        drop_reference(trainer)
        if isinstance(trainer.model, PeftModel):
            remember_base(trainer.model)
    trainer.save_model()
    with written_whole("the state and the card", start.folder):
        trainer.save_state()
        trainer.create_model_card(dataset_name=_dataset_of(run))
    if trainer.is_world_process_zero():
        include_earlier_stages(start.folder, Path(start.student))


def _dataset_of(run: RunArguments) -> str | list[str] | None:
    """Return the dataset for the card: a list for a mixture, for which TRL's cards have no place."""
    names = run.data.train_source.names
    if len(names) == 1:
        return names[0]
    return names if run.data.trainer == "dual_cot" else None


def _make_trainer(
    run: RunArguments,
    student: str,
    train_rows: Dataset,
    eval_rows: Dataset | None,
    stop_signals: StopSignals | None,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """Make the run's trainer, with a new adapter, none, or the student's own adapter, trained further or merged."""
    training, model = run.training, run.model
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "use_safetensors": True,  # refuses pickles
        **(training.model_init_kwargs or {}),
    }
    check_student(student, revision=model.model_revision, trust_remote_code=training.trust_remote_code)
    quantization = quantization_config(model, training)
    if is_adapter(student):
        adapted = _load_adapted(student, run, quantization)
        # With the tokens and the template that came in the stage before, and not those of the base model.
        processing = load_processor(student, adapter_base(student), trust_remote_code=training.trust_remote_code)
        # All of it is used; TRL warns of arguments for a model that is loaded already.
        adapter = quantization = training.model_init_kwargs = None
    else:
        adapted, processing, adapter = None, None, lora_config(model, student, training.trust_remote_code)
    options: dict[str, Any] = {
        "args": training,
        "train_dataset": train_rows,
        "eval_dataset": eval_rows,
        "quantization_config": quantization,
        "peft_config": adapter,
    }
    if run.data.trainer != "dual_cot":
        return preference_trainer(run.data.trainer, student, adapted, stop_signals=stop_signals, **options)
    options["processing_class"] = processing
    trainer = DualCoTTrainer(student if adapted is None else adapted, callbacks=list(callbacks), **options)
    trainer.stop_signals = stop_signals
    given: Sequence[Any] = callbacks  # `TrainerCallback` has no such attribute
    for callback in given:
        callback.trainer = trainer
    return trainer


def _load_adapted(
    student: str, run: RunArguments, quantization: BitsAndBytesConfig | None
) -> PeftModel | PreTrainedModel:
    """Load an adapter with its model: to be trained further, or merged where the run says `use_peft: false`."""
    if not merges(run):
        check_adapter(student, run)
    model = load_student(student, run.training, quantization)
    assert isinstance(model, PeftModel)  # the student is an adapter
    if merges(run):
        return merge_student(model, student)
    if "lora_dropout" in run.values:
        set_dropout(model, run.model.lora_dropout)
    return model
