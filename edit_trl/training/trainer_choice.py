"""The trainers of a recipe, and the classes of their options.

`dual_cot` is ours. The others are TRL's preference trainers, to compare with: `dpo` (`trl.DPOTrainer`: DPO, DPO with an
NLL anchor, IPO), `orpo`, and `cpo` (CPO and SimPO). The last two were read in `trl.experimental` of TRL 1.16.
"""

import os
from collections.abc import Iterable
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from edit_trl.common.options import hints_of
from edit_trl.training.config import DualCoTConfig

TrainerName = Literal["dual_cot", "dpo", "orpo", "cpo"]


def options_class(trainer: TrainerName) -> type[TrainingArguments]:
    """The class of a trainer's options."""
    if trainer == "dual_cot":
        return DualCoTConfig
    if trainer == "dpo":
        from trl import DPOConfig

        return DPOConfig
    # TRL warns about experimental imports; a recipe that names the trainer has chosen it.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if trainer == "orpo":
        from trl.experimental.orpo import ORPOConfig

        return ORPOConfig
    from trl.experimental.cpo import CPOConfig

    return CPOConfig


def trainers_with(option: str, trainers: Iterable[TrainerName] = get_args(TrainerName)) -> list[TrainerName]:
    """The trainers that have this option."""
    return [trainer for trainer in trainers if option in hints_of([options_class(trainer)])]


def trainers_named(values: Iterable[Any]) -> list[TrainerName]:
    """The trainers named by values of the option `trainer`, each once; None names `dual_cot`.

    Values that name no trainer are left out: they are reported when the options are checked.
    """
    named = [value or "dual_cot" for value in values]
    return [trainer for trainer in get_args(TrainerName) if trainer in named] or ["dual_cot"]
