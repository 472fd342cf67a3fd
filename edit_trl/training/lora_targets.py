"""Which layers of a student get adapters (L2), known from its configuration, before a weight is loaded."""

import re

import transformers
from accelerate import init_empty_weights
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config

from edit_trl.common.errors import InputError


def make_model(config: PretrainedConfig, dtype: str | None = None) -> PreTrainedModel:
    """A student of this configuration with weights as the surrounding context makes them.

    Of the class that `trl.trainer.utils.create_model_from_path` takes, read in TRL 1.16.

    Args:
        config: The student's.
        dtype: Of the weights; the configuration's own where None or "auto".
    """
    name = (config.architectures or [""])[0]
    cls = getattr(transformers, name, None) or AutoModelForCausalLM
    make = cls.from_config if cls is AutoModelForCausalLM else cls._from_config
    return make(config) if dtype in (None, "auto") else make(config, dtype=dtype)


def lora_config(model: ModelConfig, student: str, trust_remote_code: bool = False) -> LoraConfig | None:
    """TRL's adapter configuration, with the targets that the student's architecture asks for.

    `all-linear` is every linear layer but the head. Of a model that also sees or hears it would be those of
    the other towers too, which text never trains; there it becomes the decoder's layers.

    Args:
        model: TRL's options.
        student: Hub id or folder of the student.
        trust_remote_code: As in the trainer's options.

    Raises:
        InputError: The targets name the head, under whatever name the architecture has for it, or nothing.
    """
    adapter = get_peft_config(model)
    if adapter is None or adapter.target_modules is None:
        return adapter  # without a look at the student
    config = AutoConfig.from_pretrained(
        student, revision=model.model_revision, trust_remote_code=trust_remote_code
    )
    return settle_targets(adapter, config)


def settle_targets(adapter: LoraConfig, config: PretrainedConfig) -> LoraConfig:
    """`lora_config` for a student of which the configuration is at hand."""
    if adapter.target_modules is None:
        return adapter  # PEFT's table for the architecture, which has no head in it
    everything = adapter.target_modules == "all-linear"
    if everything and config.get_text_config() is config:
        return adapter
    with init_empty_weights():
        student = make_model(config)
    if everything:
        adapter.target_modules = decoder_layers(student)
    else:
        _check_targets(adapter, student)
    return adapter


def decoder_layers(student: PreTrainedModel) -> str:
    """A pattern of the linear layers of the text decoder, for PEFT."""
    decoder = student.get_decoder()
    prefix = next(name for name, module in student.named_modules() if module is decoder)
    names = sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(decoder)})
    return rf"{re.escape(prefix)}\..*\.({'|'.join(names)})" if prefix else "all-linear"


def head_name(student: PreTrainedModel) -> str | None:
    """What the architecture calls its LM head, such as `lm_head` or `embed_out`."""
    head = student.get_output_embeddings()
    return next((name for name, module in student.named_modules() if module is head), None)


def _check_targets(adapter: PeftConfig, student: PreTrainedModel) -> None:
    targets = adapter.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    head = head_name(student)
    if head is not None and check_target_module_exists(adapter, head):
        raise InputError(
            f"`lora_target_modules: {shown}` puts an adapter on `{head}`, the LM head of "
            f"{type(student).__name__}, which would never be trained: log-probabilities are computed from "
            "its weight directly. Leave it out ('all-linear' does)"
        )
    names = [name for name, _ in student.named_modules()]
    if not any(check_target_module_exists(adapter, name) for name in names):
        kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(student)} - {head}))
        raise InputError(
            f"`lora_target_modules: {shown}` matches nothing in {type(student).__name__}; its linear layers "
            f"are {kinds}, or 'all-linear' for all of them"
        )


def _linear_layers(model: nn.Module) -> list[str]:
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]
