"""The target layers of LoRA adapters, found from a student's configuration before its weights are loaded."""

import re
from collections.abc import Sequence
from typing import Any

import transformers
from accelerate import init_empty_weights
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config

from edit_trl.common.errors import InputError
from edit_trl.models.loading import load_config


def make_model(config: PretrainedConfig, dtype: str | None = None) -> PreTrainedModel:
    """Make a student from its configuration, on the device of the surrounding context.

    It has the class that `trl.trainer.utils.create_model_from_path` chooses, read in TRL 1.16.

    Args:
        config: The student's configuration.
        dtype: The dtype of the weights; that of the configuration if None or "auto".
    """
    name = (config.architectures or [""])[0]
    cls: Any = getattr(transformers, name, None) or AutoModelForCausalLM
    make = cls.from_config if cls is AutoModelForCausalLM else cls._from_config
    return make(config) if dtype in (None, "auto") else make(config, dtype=dtype)


def lora_config(model: ModelConfig, student: str, trust_remote_code: bool = False) -> LoraConfig | None:
    """Return TRL's adapter configuration, with targets that fit the student's architecture.

    `all-linear` means every linear layer but the head. In a multimodal model that would include the vision or
    audio towers, which text never trains; there it becomes the layers of the text decoder.

    Args:
        model: TRL's model options.
        student: The student's Hub id or folder.
        trust_remote_code: As in the trainer's options.

    Returns:
        The configuration; None if the options ask for no adapter.

    Raises:
        InputError: The targets include the LM head, whatever the architecture calls it, or match no layer.
    """
    adapter: Any = get_peft_config(model)
    if adapter is None:
        return None
    named = (adapter.target_modules, adapter.modules_to_save, adapter.target_parameters)
    if not any(named):
        return adapter  # the student's configuration is not needed
    config = load_config(
        student, revision=model.model_revision, trust_remote_code=trust_remote_code, option="model_name_or_path"
    )
    _check_names(adapter, config)
    return settle_targets(adapter, config)


def settle_targets(adapter: Any, config: PretrainedConfig) -> LoraConfig:
    """Set the targets of an adapter's configuration in place, as described in `lora_config`, and return it."""
    if adapter.target_modules is None:
        return adapter  # PEFT's table for the architecture, in which no head occurs
    if isinstance(adapter.target_modules, str) and adapter.target_modules.isidentifier():
        # TRL makes a text of a list of one, and PEFT would read it as a regular expression for whole names.
        adapter.target_modules = {adapter.target_modules}
    all_linear = adapter.target_modules == "all-linear"
    if all_linear and config.get_text_config() is config:
        return adapter
    with init_empty_weights():
        student = make_model(config)
    if all_linear:
        adapter.target_modules = decoder_layers(student)
    else:
        _check_targets(adapter, student)
    return adapter


def decoder_layers(student: PreTrainedModel) -> str:
    """Return a regular expression for PEFT that matches the linear layers of the text decoder."""
    decoder = student.get_decoder()
    prefix = next(name for name, module in student.named_modules() if module is decoder)
    names = sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(decoder)})
    return rf"{re.escape(prefix)}\..*\.({'|'.join(names)})" if prefix else "all-linear"


def matched_layers(targets: str | Sequence[str] | None, config: PretrainedConfig) -> set[str]:
    """Return the names of the layers of a student that target modules mean."""
    if isinstance(targets, list) and len(targets) == 1:
        [targets] = targets  # as TRL does
    names: Any = targets
    adapter: Any = settle_targets(LoraConfig(target_modules=names), config)
    if adapter.target_modules is None:
        adapter.target_modules = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.model_type)
    with init_empty_weights():
        student = make_model(config)
    if adapter.target_modules == "all-linear":
        return set(_linear_layers(student)) - {head_name(student)}
    return {name for name, _ in student.named_modules() if name and check_target_module_exists(adapter, name)}


def head_name(student: PreTrainedModel) -> str | None:
    """Return the architecture's name for its LM head, such as `lm_head` or `embed_out`."""
    head = student.get_output_embeddings()
    return next((name for name, module in student.named_modules() if module is head), None)


def _check_names(adapter: LoraConfig, config: PretrainedConfig) -> None:
    """Refuse names of modules and parameters that the student does not have; PEFT would leave them out."""
    if not (adapter.modules_to_save or adapter.target_parameters):
        return
    with init_empty_weights():
        student = make_model(config)
    for option, names, there in (
        ("lora_modules_to_save", adapter.modules_to_save, student.named_modules()),
        ("lora_target_parameters", adapter.target_parameters, student.named_parameters()),
    ):
        full = [name for name, _ in there]
        missing = [name for name in names or () if not any(f".{other}".endswith(f".{name}") for other in full)]
        if missing:
            kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in full if name and not name[-1].isdigit()}))
            raise InputError(
                f"`{option}: {', '.join(missing)}` matches nothing in {type(student).__name__}; it has {kinds}"
            )


def _check_targets(adapter: LoraConfig, student: PreTrainedModel) -> None:
    targets = adapter.target_modules
    option = f"`lora_target_modules: {targets if isinstance(targets, str) else ', '.join(sorted(targets or ()))}`"
    head = head_name(student)
    if head is not None and check_target_module_exists(adapter, head):
        raise InputError(
            f"{option} puts an adapter on `{head}`, the LM head of "
            f"{type(student).__name__}, which would never be trained: log-probabilities are computed from "
            "its weight directly. Leave it out ('all-linear' does)"
        )
    names = [name for name, _ in student.named_modules()]
    if not any(check_target_module_exists(adapter, name) for name in names):
        kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(student)} - {head}))
        raise InputError(
            f"{option} matches nothing in {type(student).__name__}; its linear layers "
            f"are {kinds}, or 'all-linear' for all of them"
        )


def _linear_layers(model: nn.Module) -> list[str]:
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]
