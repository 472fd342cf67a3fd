"""How much memory a stage of a recipe will need, before its model is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PretrainedConfig

from edit_trl.common.errors import InputError, brief
from edit_trl.training.memory.estimate import MemoryEstimate, estimate_memory

if TYPE_CHECKING:
    from edit_trl.training.recipe.resolving import RunArguments


def estimate_stage(run: "RunArguments", examples: Sequence[dict[str, Any]], shards: int = 1) -> MemoryEstimate:
    """Estimate the peak of a stage on the device that its options choose.

    Args:
        run: The stage's arguments, of the trainer `dual_cot`.
        examples: Its longest batch, from `longest_batch`.
        shards: The number of devices over which weights, gradients and optimizer states are sharded.

    Raises:
        InputError: The student's configuration cannot be read.
    """
    return estimate_memory(
        _student_config(run),
        run.model,
        run.training,
        examples,
        device="cpu" if run.training.use_cpu else "cuda",
        mixed=_mixed_precision(run),
        shards=shards,
    )


def _student_config(run: "RunArguments") -> PretrainedConfig:
    """The configuration of the student; for an adapter, that of its base model."""
    student = run.model.model_name_or_path
    adapter = Path(student) / "adapter_config.json"
    if adapter.is_file():
        student = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    try:
        return AutoConfig.from_pretrained(
            student, revision=run.model.model_revision, trust_remote_code=run.training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"`model_name_or_path: {student}`: its configuration cannot be read: {brief(error)}"
        ) from error


def _mixed_precision(run: "RunArguments") -> torch.dtype | None:
    """The dtype of mixed precision; None without it. A GPU is assumed to have bf16 unless `bf16` is set."""
    if run.training.fp16:
        return torch.float16
    if run.training.bf16 or (not run.training.use_cpu and run.values.get("bf16") is None):
        return torch.bfloat16
    return None
