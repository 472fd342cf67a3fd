"""Quantized students: the options that `load_in_4bit` and `load_in_8bit` imply, and their requirements."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from packaging.version import Version
from torch import nn
from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig, get_quantization_config

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TrainingArguments

    from edit_trl.training.config import DualCoTConfig

# 4-bit layers on every device, and parameters that FSDP2 can shard.
MINIMUM = Version("0.48")
# Optimizers on a CPU (bitsandbytes pull request 1901).
MINIMUM_FOR_CPU_OPTIMIZERS = Version("0.50")
# In transformers' names of the optimizers of bitsandbytes.
OPTIMIZER_MARKS = ("8bit", "paged", "bnb")
_NOT_OF_BITSANDBYTES = ("torch", "galore", "apollo")


def implied_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a quantized student implies and the recipe leaves open.

    TRL's defaults are float32 for the computation (its `dtype`), no double quantization, adapters on the
    layers that PEFT lists for the architecture (mostly queries and values; none for some), and AdamW with
    float32 states. QLoRA (arXiv 2305.14314, sections 3 and 4) has NF4, double quantization, bf16, adapters on
    every linear layer (which it finds to matter most), and paged optimizer states.

    Args:
        values: The options that were given.

    Returns:
        The implied options by name, without those given; empty for a student that is not quantized.
    """
    if not (values.get("load_in_4bit") or values.get("load_in_8bit")):
        return {}
    implied = {
        "dtype": compute_dtype(bool(values.get("use_cpu"))),
        "gradient_checkpointing": True,
        "optim": _optimizer(bool(values.get("use_cpu"))),
    }
    if not values.get("lora_target_parameters"):
        implied["lora_target_modules"] = "all-linear"  # PEFT leaves the head out, whatever it is called
    if implied["dtype"] == "float16" and not values.get("bf16"):
        implied["fp16"] = True
    if values.get("load_in_4bit"):
        implied |= {"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    return {name: value for name, value in implied.items() if name not in values}


def compute_dtype(use_cpu: bool) -> str:
    """Return bfloat16; float16 on a GPU without bfloat16."""
    return "float16" if _on_gpu(use_cpu) and not is_torch_bf16_gpu_available() else "bfloat16"


def _on_gpu(use_cpu: bool) -> bool:
    return torch.cuda.is_available() and not use_cpu


def _optimizer(use_cpu: bool) -> str:
    if _on_gpu(use_cpu):
        return "paged_adamw_8bit"
    # On a CPU bitsandbytes would warn and not page.
    installed = _installed()
    return "adamw_8bit" if installed and installed >= MINIMUM_FOR_CPU_OPTIMIZERS else "adamw_torch_fused"


def quantization_config(model: ModelConfig, training: "DualCoTConfig") -> "BitsAndBytesConfig | None":
    """Return TRL's configuration for bitsandbytes, with a compute dtype and a storage that can be sharded."""
    # 'auto' is the dtype of the weights, which bitsandbytes does not know.
    if model.load_in_4bit and model.dtype in (None, "auto"):
        model.dtype = compute_dtype(training.use_cpu)
    config = get_quantization_config(model)
    # FSDP and ZeRO-3 shard floating-point parameters only; and FSDP needs one dtype per layer, that of the
    # norms and adapters.
    sharded = training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    deepspeed = getattr(training, "deepspeed_plugin", None)
    sharded = sharded or (deepspeed is not None and deepspeed.zero_stage == 3)
    if config is not None and config.load_in_4bit and sharded and model.bnb_4bit_quant_storage is None:
        config.bnb_4bit_quant_storage = config.bnb_4bit_compute_dtype
    return config


def settle_adapter_dtype(model: nn.Module, fp16: bool) -> None:
    """Cast the adapter of a quantized student to the dtype in which it is trained, in place.

    QLoRA has "weight gradients for the LoRA parameters which use 16-bit BrainFloat" (arXiv 2305.14314,
    section 3), and TRL 1.16 casts the adapters of a quantized model to bfloat16 when the trainer is made.
    This changes fp16 training alone: GPUs that need fp16 have no bfloat16, and the gradient scaler does not
    unscale bfloat16 gradients, so the adapter becomes float32.

    Args:
        model: The student with its adapter.
        fp16: Whether training is in fp16.
    """
    quantized = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    if not (fp16 and quantized and is_peft_model(model)):
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def keep_unpacked(model: nn.Module) -> None:
    """Make a 4-bit student compute its forward passes in eval mode with the weights that it is trained on, in place.

    On a CPU with AVX512-BF16, bitsandbytes repacks the weights of a 4-bit layer at the first forward pass in eval mode,
    with statistics rounded to bfloat16. The packed product has no backward pass: every gradient after that would be
    wrong, and nothing would say so. The layers must never be packed, since the rounding cannot be undone. Every student
    that is trained comes here once, before its first forward pass. Read in bitsandbytes 0.50, `Linear4bit.forward`.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            layer: Any = module
            layer.support_avx512bf16_for_cpu = False


def is_packed(model: nn.Module) -> bool:
    """Return whether bitsandbytes has repacked weights of a model, see `keep_unpacked`."""
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def check_bitsandbytes(model: ModelConfig, training: "TrainingArguments") -> None:
    """Check that the bitsandbytes that a run needs is installed, without importing it.

    Raises:
        InputError: bitsandbytes is missing, or too old for the device.
    """
    needs = [f"`{name}: true`" for name in ("load_in_4bit", "load_in_8bit") if getattr(model, name)]
    optimizer = str(getattr(training.optim, "value", training.optim))
    needs_optimizer = any(mark in optimizer for mark in OPTIMIZER_MARKS)
    needs_optimizer &= not any(other in optimizer for other in _NOT_OF_BITSANDBYTES)
    needs += [f"`optim: {optimizer}`"] if needs_optimizer else []
    if not needs:
        return
    installed, on_gpu = _installed(), _on_gpu(training.use_cpu)
    if installed is None:
        raise InputError(
            f"{' and '.join(needs)} needs bitsandbytes, which is not installed here; "
            f"`pip install 'bitsandbytes>={MINIMUM}'`, or train without it (LoRA: remove the option)"
        )
    if installed < MINIMUM:
        raise InputError(
            f"{' and '.join(needs)} on {'a GPU' if on_gpu else 'a CPU'} needs bitsandbytes {MINIMUM} or newer, but "
            f"{installed} is installed; `pip install -U 'bitsandbytes>={MINIMUM}'`"
        )
    if needs_optimizer and not on_gpu and installed < MINIMUM_FOR_CPU_OPTIMIZERS:
        raise InputError(
            f"`optim: {optimizer}` on a CPU needs bitsandbytes {MINIMUM_FOR_CPU_OPTIMIZERS} or newer, but "
            f"{installed} is installed; `pip install -U 'bitsandbytes>={MINIMUM_FOR_CPU_OPTIMIZERS}'`, or "
            "set `optim: adamw_torch_fused`"
        )


def _installed() -> Version | None:
    """Return the version of bitsandbytes, without importing it; None if it is not installed."""
    try:
        return Version(version("bitsandbytes")) if find_spec("bitsandbytes") else None
    except PackageNotFoundError:
        return None
