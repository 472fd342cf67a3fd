"""The memory that a run will need, estimated from the model's configuration and the options.

Weights, adapter and optimizer states are counted; gradients, activations and the head come from a step on
fake tensors (`edit_trl.training.memory.trace`). No weights are loaded.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import get_peft_model
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from trl import ModelConfig, get_peft_config

from edit_trl.models.adapters import ADAPTER_CONFIG, adapter_base
from edit_trl.models.loading import load_config
from edit_trl.models.pairs.collation import BatchLayoutName
from edit_trl.models.pairs.tree_attention import tree_obstacle
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.lora_targets import make_model, settle_targets
from edit_trl.training.memory.longest_batch import batch_tokens
from edit_trl.training.memory.trace import trace_step
from edit_trl.training.objective import Objective
from edit_trl.training.recipe.resolving import RunArguments

Device = Literal["cuda", "cpu"]

GIB = 2**30

GPU_SIZES = (8, 12, 16, 24, 48, 80)
"""Memory of common GPUs, in GiB."""

# The share of a GPU's memory that a process can use: firmware, and a display if there is one, use the rest.
USABLE = 0.96

# The CUDA context with the libraries' kernels and workspaces; and the share that the allocator cannot reuse.
CUDA_CONTEXT = int(0.6 * GIB)
CUDA_FRAGMENTATION = 0.04

# Python with torch, transformers, TRL and datasets, and a tokenized dataset. Measured, see benchmarks/memory_check.py.
CPU_PROCESS = int(0.6 * GIB)

# Half precision is multiplied by oneDNN, which keeps the kernels and descriptions of the last 1,024 shapes;
# pairs differ in length, so a run has that many. Measured, see benchmarks/README.md.
CPU_KERNELS = int(0.6 * GIB)

# With an adapter, a step allocates blocks of many sizes, and holes of the heap stay unused (0.28 to 0.8 GiB in
# `edit_trl.common.malloc`'s setting). Measured, see benchmarks/README.md.
CPU_HOLES = int(0.45 * GIB)

# bitsandbytes: 4-bit weights in blocks of 64; statistics and 8-bit optimizer states in blocks of 256.
BLOCK, STATISTICS_BLOCK, OPTIMIZER_BLOCK, LEAST_8BIT_STATE = 64, 256, 256, 4096
CPU_8BIT_UPDATE = 24  # bytes per element, bitsandbytes 0.50


@dataclass(frozen=True)
class MemoryEstimate:
    """The peak memory of a run on one device, in bytes.

    Attributes:
        parts: The peak by part. Weights, adapter and optimizer are held all the time; gradients, activations
            and head are those at the moment of most memory.
        layout: The layout of the longest batch.
        batch_tokens: Tokens of the longest batch that have gradients, with padding.
        parameters: Number of parameters of the model, without the adapter.
        trained: Number of trained parameters, of the model or of its adapter.
    """

    parts: dict[str, int]
    layout: BatchLayoutName
    batch_tokens: int
    parameters: int
    trained: int

    @property
    def peak(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    def fits(self) -> list[int]:
        """The common GPUs that have enough memory, in GiB."""
        return [size for size in GPU_SIZES if self.peak <= size * GIB * USABLE]


def estimate_stage(run: RunArguments, examples: Sequence[dict[str, Any]], shards: int = 1) -> MemoryEstimate:
    """Estimate the peak of a stage on the device that its options choose.

    Args:
        run: The stage's arguments, of the trainer `dual_cot`.
        examples: Its longest batch, from `longest_batch`.
        shards: See `estimate_memory`.

    Raises:
        InputError: The student's configuration cannot be loaded.
    """
    model, training = run.model, run.training
    student = str(model.model_name_or_path)
    config = load_config(
        student,
        adapter_base(student) if (Path(student) / ADAPTER_CONFIG).is_file() else None,
        revision=model.model_revision,
        trust_remote_code=training.trust_remote_code,
        option="model_name_or_path",
    )
    mixed = None
    if training.fp16:
        mixed = torch.float16
    elif training.bf16 or (not training.use_cpu and run.values.get("bf16") is None):
        mixed = torch.bfloat16  # the GPU that the run is meant for is assumed to have it
    device: Device = "cpu" if training.use_cpu else "cuda"
    return estimate_memory(config, model, training, examples, device=device, mixed=mixed, shards=shards)


def estimate_memory(
    config: PretrainedConfig,
    model: ModelConfig,
    training: DualCoTConfig,
    examples: Sequence[dict[str, Any]],
    *,
    device: Device,
    mixed: torch.dtype | None = None,
    shards: int = 1,
) -> MemoryEstimate:
    """Estimate the peak memory of a run.

    Args:
        config: The student's configuration.
        model: TRL's model, adapter and quantization options.
        training: The trainer's options.
        examples: The longest batch, as examples for `DualCoTCollator`; see `made_up_examples`.
        device: The kind of device.
        mixed: The dtype of mixed precision; None without it.
        shards: The number of devices over which weights, gradients and optimizer states are sharded (FSDP2, ZeRO-3).
    """
    student, sizes = _student(config, model, training)
    has_tree = training.layout != "padded" and tree_obstacle(student) is None
    layout: BatchLayoutName = "tree" if has_tree else "padded"
    with_rejected = Objective(training).needs_rejected
    multiple: Any = training.pad_to_multiple_of  # TRL has made a number of its words
    step = trace_step(
        student,
        examples,
        layout,
        autocast=mixed,
        on_gpu=device == "cuda",
        pad_to_multiple_of=multiple,
        with_rejected=with_rejected,
        accumulate=training.gradient_accumulation_steps > 1,
    )
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    parts = {
        "weights": sum(sizes.values()) // shards,
        "adapter": gradients // shards if model.use_peft else 0,
        "optimizer": optimizer_bytes(training.optim, trained) // shards,
    }
    update = _update_bytes(training.optim, trained, device)
    if gradients + update > step.total:  # the peak is the optimizer's step, when the activations are freed
        parts |= {"gradients": gradients // shards, "activations": 0, "head": 0}
        parts["optimizer"] += update
    else:
        parts |= {
            "gradients": step.gradients // shards,
            "activations": step.activations + _gathered_layers(sizes, shards),
            "head": step.head,
        }
    if model.load_in_4bit or model.load_in_8bit:
        parts["activations"] += _dequantized_layer(student)
    if model.use_peft and device == "cpu":
        parts["activations"] += CPU_HOLES
    half = mixed is not None or any(p.dtype in (torch.bfloat16, torch.float16) for p in student.parameters())
    parts["overhead"] = _overhead(sum(parts.values()), device, half)
    trained_count = sum(parameter.numel() for parameter in trained)
    count = sum(parameter.numel() for parameter in student.parameters())
    return MemoryEstimate(
        parts=parts,
        layout=layout,
        batch_tokens=batch_tokens(examples, layout, with_rejected),
        parameters=count - (trained_count if model.use_peft else 0),
        trained=trained_count,
    )


def _overhead(size: int, device: Device, half: bool) -> int:
    """Return the bytes that come on top of `size`, for the device and its kernels."""
    if device == "cuda":
        return CUDA_CONTEXT + int(CUDA_FRAGMENTATION * size)
    return CPU_PROCESS + (CPU_KERNELS if half else 0)


def _student(config: PretrainedConfig, model: ModelConfig, training: DualCoTConfig) -> tuple[nn.Module, dict[str, int]]:
    """Return the student as it is trained, on the meta device, and the bytes of each weight of the base model.

    Its mode and checkpointing are set as `transformers.Trainer` does; read in transformers 5.24.
    """
    student: Any  # a PreTrainedModel, or the PeftModel of one
    with torch.device("meta"):
        student = make_model(config, model.dtype)
        adapter = get_peft_config(model)
        sizes = _weight_bytes(student, model)
        student.requires_grad_(adapter is None)
        if adapter is not None:
            student = get_peft_model(student, settle_targets(adapter, config))
            if (model.load_in_4bit or model.load_in_8bit) and not training.fp16:
                for parameter in student.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.bfloat16()  # as TRL does, see `settle_adapter_dtype`
    student.train()
    if training.gradient_checkpointing:
        options: Any = training.activation_checkpointing_kwargs  # `__post_init__` has read the text of an option
        kwargs = dict(options or {})
        every = kwargs.pop("every_n_layers", 1)
        kwargs.pop("offload", None)
        student.activation_checkpointing_enable(kwargs or None, every_n_layers=every)
        if adapter is not None:
            student.enable_input_require_grads()
    return student, sizes


def _weight_bytes(student: nn.Module, model: ModelConfig) -> dict[str, int]:
    """Return the bytes of each weight as it is stored; tied weights count once."""
    sizes = {name: parameter.nbytes for name, parameter in student.named_parameters()}
    if not (model.load_in_4bit or model.load_in_8bit):
        return sizes
    unquantized = set(get_keys_to_not_convert(student))
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name not in unquantized and f"{name}.weight" in sizes:
            numel, rows = module.weight.numel(), module.weight.shape[0]
            four_bit = model.load_in_4bit
            size = _four_bit_bytes(numel, model.use_bnb_nested_quant) if four_bit else numel + 4 * rows
            sizes[f"{name}.weight"] = size
    return sizes


def _four_bit_bytes(numel: int, nested: bool) -> int:
    blocks = -(-numel // BLOCK)
    if not nested:
        return numel // 2 + 4 * blocks + 4 * 16
    # A code book of 16 entries and, for the statistics, one of 256, in float32.
    return numel // 2 + blocks + 4 * -(-blocks // STATISTICS_BLOCK) + 4 * (16 + 256)


def _dequantized_layer(student: nn.Module) -> int:
    """Return the bytes of the largest layer in the compute dtype: a layer is dequantized while it runs."""
    linear = (m for name, m in student.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name)
    return max((module.weight.nbytes for module in linear), default=0)


def _gathered_layers(sizes: dict[str, int], shards: int) -> int:
    """Return the bytes of two layers: with sharding, the running one is gathered and the next one prefetched."""
    if shards == 1:
        return 0
    blocks: Counter[str] = Counter()
    for name, size in sizes.items():
        blocks[".".join(name.split(".")[:3])] += size
    return 2 * max(blocks.values())


def optimizer_bytes(name: Any, trained: Sequence[nn.Parameter]) -> int:
    """Return the bytes of an optimizer's states.

    Args:
        name: transformers' name of the optimizer, such as `adamw_torch_fused` or `paged_adamw_8bit`.
        trained: The trained weights.
    """
    text = str(getattr(name, "value", name))
    states = 1 if any(kind in text for kind in ("lion", "rmsprop", "adagrad")) else 2
    if "adafactor" in text or text.startswith("sgd"):
        return 0
    total = 0
    for parameter in trained:
        numel = parameter.numel()
        if "8bit" in text and numel >= LEAST_8BIT_STATE:
            total += states * (numel + 4 * -(-numel // OPTIMIZER_BLOCK))
        elif "4bit" in text and numel >= LEAST_8BIT_STATE:
            total += states * (numel // 2)
        elif "torch" in text:
            total += states * parameter.nbytes  # states have the dtype of the weights
        else:
            total += states * numel * 4
    return total


def _update_bytes(name: Any, trained: Sequence[nn.Parameter], device: Device) -> int:
    """Return the bytes that an optimizer allocates while it updates one weight; fused and paged ones allocate none.

    bitsandbytes' 8-bit optimizers on a CPU unpack both states of a weight to float32 and allocate buffers for
    the update.
    """
    if device == "cpu" and "8bit" in str(getattr(name, "value", name)):
        return CPU_8BIT_UPDATE * max(parameter.numel() for parameter in trained)
    return 0
