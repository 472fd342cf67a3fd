"""ResumableTrainer: a run that was cut off and resumed ends with the weights of an uninterrupted run.

It corrects what `transformers.Trainer` leaves out of a checkpoint or does differently after a resume: the
order of the rows depends on the seed and the epoch alone; running sums that are logged later are part of the
checkpoint; a checkpoint at the last step of an epoch is written after the evaluation and logs that are due at
the epoch's end; nothing that happens before training changes the random state. Read in transformers 5.24.0.
"""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints
from transformers.utils import logging
from trl import SFTTrainer

from edit_trl.common.errors import InputError
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.resuming.attempts import Attempts
from edit_trl.training.resuming.checkpoints import (
    UNFINISHED,
    check_checkpoint,
    clear_unfinished,
    describe_rows,
    describe_run,
    finish_checkpoint,
    holding,
    last_checkpoint,
    move_files,
    written_whole,
)
from edit_trl.training.resuming.stopping import StopSignals
from edit_trl.training.safeguards import SafeguardsMixin

logger = logging.get_logger(__name__)

ADAPTER_OPTIONS = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")


class ResumableTrainer(SafeguardsMixin, SFTTrainer):
    """`trl.SFTTrainer` whose checkpoints are complete and can be resumed exactly.

    Attributes:
        stop_signals: If set, the run saves and raises `TrainingStopped` once a signal is received.
    """

    args: DualCoTConfig
    stop_signals: StopSignals | None = None
    _draft: Path | None = None
    """The folder to which a checkpoint is being written."""
    _resumed_from: str | None = None
    _max_tokens: int | None = None
    """The tokens of a batch that `auto_find_batch_size` has found, with `max_tokens_per_batch`."""
    _rows: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_ResumeCallback(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, as in `transformers.Trainer`.

        Raises:
            InputError: The checkpoint is missing, damaged or belongs to another run; another process trains in the
                folder; the disk is full; or the run would make no step.
            TrainingStopped: See `stop_signals`.
        """
        with holding(str(self.args.output_dir), self.args):
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train(self, resume_from_checkpoint: str | bool | None, *args: Any) -> TrainOutput:
        folder = str(self.args.output_dir)
        if self.args.should_save and clear_unfinished(folder):
            logger.warning(f"removed from {folder} the unfinished files of a run that was cut off")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(folder)
            if resume_from_checkpoint is None:
                raise InputError(f"no checkpoint to resume from in {folder}")
        self._resumed_from = resume_from_checkpoint or None
        eval_on_start = self.args.eval_on_start
        if self._resumed_from:
            check_checkpoint(self._resumed_from, self._description())
            self.args.eval_on_start = False  # its result is in the log already
        else:
            set_seed(self.args.seed)  # the random state must not depend on work before training, which may be cached
        self._attempts = Attempts(self)
        if self.args.auto_find_batch_size and self.args.max_tokens_per_batch is not None:
            self._train_batch_size = self.args.max_tokens_per_batch  # what an attempt makes smaller
        try:
            output = super().train(self._resumed_from, *args)
        except RuntimeError as error:
            if "No executable batch size found" not in str(error):  # accelerate's, of `auto_find_batch_size`
                raise
            raise InputError(
                "out of memory even with one pair in a batch (`auto_find_batch_size`); lower `max_length` to drop long "
                "pairs, or train with less memory (LoRA, 4 bits)"
            ) from error
        finally:
            self.args.eval_on_start = eval_on_start
        return output._replace(training_loss=output.metrics["train_loss"])

    def _description(self) -> dict[str, Any]:
        adapter, configs = None, getattr(self.accelerator.unwrap_model(self.model), "peft_config", None)
        if configs:
            [adapter_config, *_] = configs.values()
            options = {name: getattr(adapter_config, name, None) for name in ADAPTER_OPTIONS}
            adapter = {name: value for name, value in options.items() if value is not None}
        if self._rows is None:
            self._rows = describe_rows(self.train_dataset)
        return describe_run(self.args, adapter) | self._rows

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any):
        """Train, as in `transformers.Trainer`, which calls this again after running out of memory."""
        if self.args.auto_find_batch_size:
            self._attempts.begin()
            if self.args.max_tokens_per_batch is not None:
                self._max_tokens, batch_size = batch_size, self.args.train_batch_size
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch, num_train_epochs, *args: Any):
        """Make no step after the last one; in the middle of an epoch the Trainer would make one more."""
        state = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args)
        # Not that of the checkpoint, which may have been larger.
        self.state.train_batch_size = self._max_tokens or self._train_batch_size
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else state

    # Saving

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return folder if self._draft is None else str(self._draft.parent)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        draft, final = folder / UNFINISHED / name, folder / name
        with written_whole(name, folder):
            draft.mkdir(parents=True, exist_ok=True)
            self._draft = draft
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._draft = None
            progress = json.dumps(self._progress())
            (draft / f"progress_{self.args.process_index}.json").write_text(progress, encoding="utf-8")
            best = self.state.best_model_checkpoint == str(draft)
            if best:
                self.state.best_model_checkpoint = str(final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if best:
                    self.state.save_to_json(str(draft / "trainer_state.json"))
                finish_checkpoint(draft, final, self._description(), not self.args.save_only_model)
        self._attempts.saved.append(final)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            # Only now: until this checkpoint has its name, the one before may be the only good one.
            best_path = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), self.args.save_total_limit, best_path, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do not push while the checkpoint is being written."""
        if self._draft is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in the run's own folder each file appears whole."""
        own_folder = Path(str(self.args.output_dir))
        folder = Path(output_dir) if output_dir else own_folder
        if _internal_call or folder != own_folder:
            super().save_model(output_dir, _internal_call)
            return
        draft = folder / UNFINISHED / "model"
        with written_whole("the trained model", folder):
            super().save_model(str(draft), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                move_files(draft, folder)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    # Running sums between logs

    def _progress(self) -> dict[str, Any]:
        """Return the running sums of this process since the last log as JSON values; subclasses add theirs."""
        return {
            "loss": self._tr_loss.item(),
            "logged_loss": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
            "tokens": self._total_train_tokens,
        }

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        """Restore the running sums from a checkpoint."""
        self._tr_loss.fill_(progress["loss"])
        self._total_loss_scalar = progress["logged_loss"]
        self._globalstep_last_logged = progress["logged_at"]
        self._total_train_tokens = progress["tokens"]

    def _reset_progress(self) -> None:
        """Forget the running sums: a run begins, or begins again with smaller batches."""
        self._total_train_tokens = 0
        self._metrics["train"].clear()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the final `train_loss` of the whole run; speeds are those of this process."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


class StopCallback(TrainerCallback):
    """Saves a checkpoint after the step in which a signal was received, and ends the run.

    Args:
        signals: The signals of the run; None where nothing listens to them.
    """

    def __init__(self, signals: StopSignals | None):
        self.signals = signals
        self._stopping = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stopping = False
        if self.signals is not None:
            self.signals.training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.signals is not None and self.signals.agreed():
            self._stopping = control.should_save = True
            args.save_only_model = False  # the run resumes from this checkpoint

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stopping and self.signals is not None:
            raise self.signals.stopped(args, state)


class _ResumeCallback(StopCallback):
    """Acts on the trainer at the events of its training loop."""

    def __init__(self, trainer: ResumableTrainer):
        super().__init__(None)
        self._trainer = trainer
        self._postponed = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.signals, self._postponed = self._trainer.stop_signals, False
        super().on_train_begin(args, state, control)
        if self._trainer._resumed_from:
            file = Path(self._trainer._resumed_from) / f"progress_{args.process_index}.json"
            self._trainer._restore_progress(json.loads(file.read_text(encoding="utf-8")))
        else:
            self._trainer._reset_progress()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # With several processes accelerate does not pass the epoch through a loader that skips batches.
        batches = kwargs["train_dataloader"].batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        for sampler in (batches, getattr(batches, "sampler", None)):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control)
        # A run that resumes after this checkpoint would skip what is due at the end of the epoch.
        ends_epoch = state.epoch == int(state.epoch) or control.should_training_stop
        if control.should_save and ends_epoch:
            control.should_save, self._postponed = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._postponed:
            control.should_save, self._postponed = True, False
