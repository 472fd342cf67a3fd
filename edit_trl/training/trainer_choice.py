"""The trainers of a recipe, and the classes of their options.

`dual_cot` is ours. The others are TRL's preference trainers, to compare with: `dpo` (`trl.DPOTrainer`: DPO, DPO with an
NLL anchor, IPO), `orpo`, and `cpo` (CPO and SimPO). The last two were read in `trl.experimental` of TRL 1.16.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

TrainerName = Literal["dual_cot", "dpo", "orpo", "cpo"]


def trl_trainer(trainer: TrainerName) -> type[Trainer]:
    """Return the class of one of TRL's trainers."""
    return getattr(_module_of(trainer), f"{trainer.upper()}Trainer")


def options_class(trainer: TrainerName) -> type[TrainingArguments]:
    """Return the class of a trainer's options."""
    if trainer != "dual_cot":
        return getattr(_module_of(trainer), f"{trainer.upper()}Config")
    from edit_trl.training.config import DualCoTConfig  # imports TRL and torch

    return DualCoTConfig


def _module_of(trainer: TrainerName) -> ModuleType:
    # TRL warns about experimental imports; a recipe that names the trainer has chosen it.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return import_module("trl" if trainer == "dpo" else f"trl.experimental.{trainer}")


def trainers_named(values: Iterable[Any]) -> list[TrainerName]:
    """Return the trainers named by values of the option `trainer`, each once; None names `dual_cot`.

    Values that name no trainer are left out: they are reported when the options are checked.
    """
    named = [value or "dual_cot" for value in values]
    return [trainer for trainer in get_args(TrainerName) if trainer in named] or ["dual_cot"]
