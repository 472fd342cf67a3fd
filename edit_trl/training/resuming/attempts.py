"""Attempts of a run with `auto_find_batch_size`: one that ran out of memory leaves nothing behind."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, set_seed

from edit_trl.common.errors import InputError


class Attempts:
    """Lets a run start again, with smaller batches, from where it started.

    `transformers.Trainer` goes on with the weights and the optimizer of the attempt that failed, and with its
    checkpoints in the folder; read in transformers 5.24, `_inner_training_loop`.

    Args:
        trainer: The trainer, whose `train` has begun.

    Attributes:
        saved: The checkpoints of the attempt.
    """

    def __init__(self, trainer: Trainer):
        self.saved: list[Path] = []
        self._trainer = trainer
        self._weights: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def begin(self) -> None:
        """Begin an attempt: remember the weights at the first one, restore them at the others.

        Raises:
            InputError: Weights that were trained already are sharded and cannot be restored.
        """
        trainer = self._trainer
        if self._weights is None:
            model: Any = trainer.model
            trained = [p for p in model.parameters() if p.requires_grad]
            self._weights = [(p, p.detach().to("cpu", copy=True)) for p in trained]
            self._optimizer, self._scheduler = trainer.optimizer, trainer.lr_scheduler
            self._states = [deepcopy(each.state_dict()) for each in (self._optimizer, self._scheduler) if each]
            return
        if trainer.state.global_step > trainer._initial_global_step and (
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        ):
            raise InputError(
                f"out of memory at step {trainer.state.global_step} with `per_device_train_batch_size: "
                f"{trainer._train_batch_size}`, and `auto_find_batch_size` cannot restore sharded weights; "
                "set a smaller batch size and start again"
            )
        self._restore()

    def _restore(self) -> None:
        trainer = self._trainer
        with torch.no_grad():
            for parameter, values in self._weights or ():
                parameter.copy_(values)
        trainer.optimizer, trainer.lr_scheduler = self._optimizer, self._scheduler
        stateful: list[Any] = [each for each in (self._optimizer, self._scheduler) if each]
        for each, state in zip(stateful, self._states, strict=True):
            each.load_state_dict(deepcopy(state))
        if trainer.args.should_save:
            for checkpoint in self.saved:
                shutil.rmtree(checkpoint, ignore_errors=True)
        self.saved.clear()
        set_seed(trainer.args.seed)
