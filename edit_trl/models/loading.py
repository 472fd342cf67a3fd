"""The one loader of models, adapters, tokenizers and configurations, from disk or the Hub.

Weights are loaded from safetensors only. Whatever cannot be loaded is said in one sentence.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import refuse_missing_folder
from edit_trl.models.adapters import ADAPTER_CONFIG, adapter_base, put_on, refuse_pickled_adapter
from edit_trl.models.refusals import brief, one_line_errors, refuse_pickled_model

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NF4 = "4-bit nf4"
"""The quantization that QLoRA trains on (arXiv 2305.14314, section 3)."""

# While it loads a model, transformers replaces `PreTrainedModel.tie_weights` for the whole process
# (`init.no_tie_weights`, read in 5.24). Were two models loaded at once, a tied head could stay untied.
_ONE_LOAD = threading.Lock()


@dataclass(frozen=True)
class ModelSource:
    """Where a student is loaded from, and how; can be sent to other machines. See `load_student`."""

    model: str
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    load_in_4bit: bool = False

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model and its tokenizer."""
        return load_student(**vars(self))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer only."""
        base = adapter_base(self.model)
        return load_tokenizer(self.model, base, trust_remote_code=self.trust_remote_code)


def load_student(
    model: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in eval mode.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter, which is put on its base model.
        dtype: Of the weights, such as `bfloat16`; the dtype they were saved in where None.
        device: Such as `cpu` or `cuda:1`; where None, the GPU if there is one.
        trust_remote_code: Run code that comes with the model.
        attn_implementation: Such as `sdpa` or `eager`; transformers' choice where None.
        load_in_4bit: Load in NF4 with double quantization, as QLoRA trains, to fit a small GPU.

    Returns:
        The model (a `PeftModel` for an adapter) and the tokenizer: the adapter's own where it has one.

    Raises:
        InputError: The model or its tokenizer does not exist, is not a causal language model, or the dtype
            or device does not exist on this machine.
    """
    base = adapter_base(model)
    loaded = load_model(
        base or model,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        quantization=NF4 if load_in_4bit else None,
        subject=f"`model: {model}`",
    )
    if base is not None:
        loaded = put_on(loaded, model).eval()
    return loaded, load_tokenizer(model, base, trust_remote_code=trust_remote_code)


def load_model(
    model: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    subject: str | None = None,
) -> PreTrainedModel:
    """Load the weights of a whole causal language model, in eval mode.

    Args:
        model: A path or Hub id.
        dtype: See `load_student`.
        device: See `load_student`.
        trust_remote_code: See `load_student`.
        attn_implementation: See `load_student`.
        quantization: "4-bit nf4", "4-bit fp4" or "8-bit"; full weights where None.
        subject: What error messages call the model; "`model: MODEL`" where None.

    Raises:
        InputError: See `load_student`.
    """
    from transformers import AutoModelForCausalLM

    place = _device(device)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        options |= {"quantization_config": _bitsandbytes(quantization), "device_map": {"": place}}
    with one_line_errors(subject or f"`model: {model}`"), _ONE_LOAD:
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=_dtype(dtype), trust_remote_code=trust_remote_code, use_safetensors=True, **options
        )
    # A quantized model is on its device already, and some cannot be moved.
    return (loaded if quantization is not None else loaded.to(place)).eval()


def load_trainable_adapter(adapter: str, options: Mapping[str, Any]) -> PeftModel:
    """Load an adapter's base model the way TRL loads a student, and put the adapter on it, trainable.

    Args:
        adapter: The folder or Hub id of a PEFT adapter.
        options: Keyword arguments of `from_pretrained` for the base model, such as `dtype`.

    Raises:
        InputError: The adapter does not name its base, holds pickles, or belongs to another model.
    """
    from trl.trainer.utils import create_model_from_path

    base = adapter_base(adapter)
    if base is None:
        raise InputError(f"{adapter} is not an adapter: it has no {ADAPTER_CONFIG}")
    with one_line_errors(f"the base model {base} of {adapter}"), _ONE_LOAD:
        loaded = create_model_from_path(base, **{**options, "use_safetensors": True})
    return put_on(loaded, adapter, is_trainable=True)


def load_tokenizer(model: str, base: str | None = None, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model or adapter.

    Args:
        model: A path or Hub id.
        base: Where to look next, such as an adapter's base model.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        InputError: There is none.
    """
    from transformers import AutoTokenizer

    reason = None
    for place in (model, base):
        if place is None:
            continue
        refuse_missing_folder(place)
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            reason = error
    raise InputError(
        f"`model: {model}` has no tokenizer that can be loaded ({brief(reason)}); save it beside the model"
    ) from reason


def load_config(
    model: str,
    base: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    option: str = "model",
) -> PreTrainedConfig:
    """Load the configuration of a model, or of an adapter's base model, without the weights.

    Args:
        model: A path or Hub id.
        base: The base model, where `model` is an adapter.
        revision: The branch, tag or commit on the Hub; the default branch where None.
        trust_remote_code: Run code that comes with the model.
        option: The option that `model` was given as, for error messages.

    Raises:
        InputError: There is none.
    """
    from transformers import AutoConfig

    with one_line_errors(f"`{option}: {model}`"):
        return AutoConfig.from_pretrained(
            base or model, revision=revision or "main", trust_remote_code=trust_remote_code
        )


def check_student(
    student: str, *, revision: str | None = None, trust_remote_code: bool = False, option: str = "model_name_or_path"
) -> None:
    """Check that a student can be loaded, before anything heavy is done; nothing of its weights is read.

    Args:
        student: A path or Hub id, of a model or of an adapter folder.
        revision: See `load_config`.
        trust_remote_code: Run code that comes with the model.
        option: See `load_config`.

    Raises:
        InputError: There is no such model, no access or no network, or the folder holds pickled weights.
    """
    if (Path(student) / ADAPTER_CONFIG).is_file():
        refuse_pickled_adapter(student)
        return
    refuse_pickled_model(student)
    load_config(student, revision=revision, trust_remote_code=trust_remote_code, option=option)


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a model takes, prompt and response together; None if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _bitsandbytes(quantization: str) -> BitsAndBytesConfig:
    import torch
    from transformers import BitsAndBytesConfig

    bits, _, kind = quantization.partition(" ")
    if bits == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if bits != "4-bit":
        raise InputError(f"weights can be quantized as 4-bit nf4, 4-bit fp4 or 8-bit, not {quantization!r}")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind or "nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _device(device: str | None) -> torch.device:
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"`device: {device}` is none: {brief(error)}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device: {device}`: this machine has {torch.cuda.device_count()} GPUs")
    return place


def _dtype(dtype: str | None) -> torch.dtype | str:
    import torch

    if dtype in (None, "auto"):
        return "auto"
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise InputError(f"`dtype: {dtype}` is none; use float32, bfloat16, float16 or auto")
    return value
