"""Checks of the arguments of `DualCoTTrainer`."""

from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedTokenizerBase

from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.models.pairs.collation import DualCoTCollator
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.inherited_options import HONOURED
from edit_trl.training.quantization import is_packed
from edit_trl.training.reference import reference_problems
from edit_trl.training.requirements import requirement_problems


def check_model(model: object) -> None:
    """Check that the model of a `DualCoTTrainer` is a name or a loaded model.

    Raises:
        InputError: It is neither.
    """
    if not isinstance(model, str) and not (isinstance(model, nn.Module) and hasattr(model, "config")):
        raise InputError(f"`model` must be a Hub id, a folder as a text, or a loaded model, got {show(model)}")


def check_arguments(
    model: Any,
    args: Any,
    train_dataset: Any,
    eval_dataset: Any,
    peft_config: Any,
    data_collator: Any,
    compute_metrics: Any = None,
) -> None:
    """Check the arguments of `DualCoTTrainer` before a model is loaded.

    Raises:
        InputError: Arguments that cannot be used; the message names all of them.
    """
    problems: list[str] = []
    if not isinstance(data_collator, DualCoTCollator | None):
        problems.append(f"`data_collator` must be a DualCoTCollator, got {type(data_collator).__name__}")
    if not isinstance(args, DualCoTConfig):
        problems.append(f"`args` must be a DualCoTConfig, got {type(args).__name__}")
    elif args.reference == "adapter_off":
        problems += reference_problems(model, peft_config)
    if isinstance(train_dataset, dict):  # also a DatasetDict
        problems.append(
            f"`train_dataset` must be one datasets.Dataset, got a {type(train_dataset).__name__} of "
            f"{', '.join(map(show, train_dataset)) or 'nothing'}; choose a split, such as "
            f"`train_dataset=dataset[{next(iter(train_dataset), 'train')!r}]`"
        )
    elif not isinstance(train_dataset, Dataset):
        problems.append(
            f"`train_dataset` must be a datasets.Dataset, got {type(train_dataset).__name__}; key "
            "steps are found once before training, so a stream must be loaded first"
        )
    elif not len(train_dataset):
        problems.append("`train_dataset` has no rows")
    for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,):
        if not isinstance(dataset, Dataset | None):
            problems.append(
                "`eval_dataset` must be a datasets.Dataset, or several of them by name, got "
                f"{type(dataset).__name__}; `load_dual_cots` reads one from a file"
            )
    targets = getattr(peft_config, "target_modules", None) or ()
    adapted = isinstance(model, nn.Module) and is_peft_model(model)
    if "lm_head" in ([targets] if isinstance(targets, str) else targets) or (
        adapted and isinstance(model.get_output_embeddings(), BaseTunerLayer)
    ):
        problems.append(
            "LoRA on `lm_head` would never be trained: log-probabilities are computed from its weight "
            "directly. Remove 'lm_head' from the target modules ('all-linear' leaves it out)"
        )
    if isinstance(args, DualCoTConfig):
        problems += _option_problems(model, args, compute_metrics)
    if isinstance(model, nn.Module) and is_packed(model):
        problems.append(
            "bitsandbytes has repacked the 4-bit weights of `model` in a forward pass in eval mode, and gradients "
            "would be wrong; load it again, and train before anything else is computed with it"
        )
    raise_problems(problems)


def _option_problems(model: Any, args: DualCoTConfig, compute_metrics: Any) -> list[str]:
    """Return the options that need another argument, or something that is not installed."""
    problems = requirement_problems(args)
    if compute_metrics is None:
        defaults = {"batch_eval_metrics": False, "include_for_metrics": [], "eval_do_concat_batches": True}
        problems += [
            f"`{name}: {getattr(args, name)}` is about `compute_metrics`, which is not given; remove it"
            for name in HONOURED["compute_metrics"]
            if getattr(args, name) != defaults[name]
        ]
    if isinstance(model, nn.Module) and args.model_init_kwargs:
        problems.append("`model_init_kwargs` are for a model that the trainer loads; this one is loaded. Remove them")
    return problems


def tell_padding(model: Any, tokenizer: PreTrainedTokenizerBase, args: DualCoTConfig) -> None:
    """Set the `pad_token` of the options in a model's configurations, as TRL does for its own collator."""
    if args.pad_token is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
