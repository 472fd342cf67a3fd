"""The one loader of models, adapters, tokenizers and configurations, from disk or the Hub.

Weights are loaded from safetensors only. An error of transformers or the Hub becomes an `InputError` of one sentence.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError, brief, raise_problems
from edit_trl.models.adapters import ADAPTER_CONFIG, adapter_base, describe_base, find_adapter_weights, put_on
from edit_trl.models.chat_templates import check_template, share_template
from edit_trl.models.folders import check_folder, one_line_errors, reason

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import (
        BitsAndBytesConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

logger = logging.getLogger(__name__)

NF4 = "4-bit nf4"
"""The quantization that QLoRA trains on (arXiv 2305.14314, section 3)."""

# While it loads a model, transformers replaces `PreTrainedModel.tie_weights` for the whole process
# (`init.no_tie_weights`, read in 5.24). Were two models loaded at once, a tied head could stay untied.
_ONE_LOAD = threading.Lock()


@dataclass(frozen=True)
class ModelSource:
    """Where a causal language model is loaded from, and how; can be sent to other machines.

    Attributes:
        model: A path or Hub id, of a model or of a PEFT adapter, which is put on its base model.
        dtype: Dtype of the weights, such as `bfloat16`; the dtype they were saved in where None.
        device: Such as `cpu` or `cuda:1`; where None, the GPU if there is one.
        trust_remote_code: Run code that comes with the model.
        attn_implementation: Such as `sdpa` or `eager`; transformers' choice where None.
        quantization: "4-bit nf4", "4-bit fp4" or "8-bit", by bitsandbytes; full weights where None.
    """

    model: str
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    quantization: str | None = None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model, in eval mode, and its tokenizer.

        Returns:
            The model (a `PeftModel` for an adapter) and the tokenizer: the adapter's own where it has one.

        Raises:
            InputError: The model or its tokenizer does not exist, is not a causal language model, or the dtype
                or device does not exist on this machine.
        """
        base = adapter_base(self.model)
        subject = f"`model: {self.model}`" if base is None else describe_base(base, self.model)
        model = replace(self, model=base or self.model).load_whole(subject)
        if base is not None:
            adapted: Any = put_on(model, self.model).eval()  # a PeftModel stands in for the model that it wraps
            model = adapted
        return model, load_tokenizer(self.model, base, trust_remote_code=self.trust_remote_code)

    def load_whole(self, subject: str) -> PreTrainedModel:
        """Load the weights of a model that is not an adapter, in eval mode.

        Args:
            subject: The name of the model in error messages.

        Raises:
            InputError: See `load`.
        """
        from transformers import AutoModelForCausalLM

        device = _device(self.device)
        options: dict[str, Any] = {"dtype": _dtype(self.dtype), "trust_remote_code": self.trust_remote_code}
        if self.attn_implementation:
            options["attn_implementation"] = self.attn_implementation
        if self.quantization is not None:
            options |= {"quantization_config": _bitsandbytes(self.quantization), "device_map": {"": device}}
        check_folder(self.model)
        model = _load_complete(AutoModelForCausalLM.from_pretrained, self.model, options, subject)
        # A quantized model is on its device already, and some cannot be moved.
        if self.quantization is None:
            model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that it is a method
        return model.eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer only."""
        return load_tokenizer(self.model, adapter_base(self.model), trust_remote_code=self.trust_remote_code)


def load_trainable(model: str, options: Mapping[str, Any]) -> PreTrainedModel | PeftModel:
    """Load a model the way TRL loads a student; an adapter is put on its base model, trainable.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter.
        options: Keyword arguments of `from_pretrained` for the weights, such as `dtype`.

    Raises:
        InputError: The model cannot be loaded; or the adapter does not name its base, holds pickles, or
            belongs to another model.
    """
    from trl.trainer.utils import create_model_from_path

    base = adapter_base(model)
    subject = model if base is None else describe_base(base, model)
    loaded = _load_complete(create_model_from_path, base or model, options, subject)
    return loaded if base is None else put_on(loaded, model, is_trainable=True)


def _load_complete(load: Callable[..., Any], model: str, options: Mapping[str, Any], subject: str) -> PreTrainedModel:
    """Load the weights of a model, all of them: transformers draws missing ones at random.

    Tied weights, and those that transformers computes itself, are not missing.

    Raises:
        InputError: The model cannot be loaded, weights are missing or of another shape, or its files hold layers
            that its configuration does not name.
    """
    # transformers logs a table of the weights, which the error says in a sentence.
    table = logging.getLogger("transformers.modeling_utils")
    level = table.level
    with one_line_errors(subject), _ONE_LOAD:
        table.setLevel(logging.ERROR)
        try:
            loaded, report = load(
                model,
                **{**options, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True},
            )
        finally:
            table.setLevel(level)
    missing = sorted(report["missing_keys"])
    shapes = [f"{name} {tuple(there)}, not {tuple(here)}" for name, there, here in sorted(report["mismatched_keys"])]
    own = {re.sub(r"\d+", "0", name) for name in loaded.state_dict()}
    others = sorted(name for name in report["unexpected_keys"] if re.sub(r"\d+", "0", name) in own)
    problems = [
        f"{subject}: weights {what} ({len(names)}): {', '.join(names[:4])}{', ...' * (len(names) > 4)}; {way_out}"
        for names, what, way_out in (
            (missing, "are missing in its files", "a part of the model would be random. Download or save it again"),
            (shapes, "have other shapes in its files than config.json says", "take both from the same model"),
            (others, "are in its files, but not in config.json", "a part of the model would be left out"),
        )
        if names
    ]
    raise_problems(problems)
    if report["unexpected_keys"]:
        names = sorted(report["unexpected_keys"])
        logger.warning(f"{subject}: {len(names)} weights are not {type(loaded).__name__}'s and left out, as {names[0]}")
    return loaded


def load_tokenizer(
    model: str,
    base: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    option: str = "model",
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model or adapter.

    Args:
        model: A path or Hub id.
        base: Where to look if there is none, such as an adapter's base model.
        revision: The branch, tag or commit on the Hub; the default branch where None.
        trust_remote_code: Run code that comes with the tokenizer.
        option: The option that names the model, for error messages.

    Raises:
        InputError: There is none, or it is broken.
    """
    from transformers import AutoTokenizer

    return _load_text_processing(AutoTokenizer, model, base, revision, trust_remote_code, option)


def load_processor(
    model: str, base: str | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | ProcessorMixin:
    """Load the processor of a model that also sees or hears, and the tokenizer of any other; see `load_tokenizer`."""
    from transformers import AutoProcessor

    option = "model_name_or_path"
    try:
        return _load_text_processing(AutoProcessor, model, base, revision, trust_remote_code, option)
    except InputError:
        # transformers does not say why where it is the tokenizer that is broken.
        load_tokenizer(model, base, revision=revision, trust_remote_code=trust_remote_code, option=option)
        raise


def _load_text_processing(
    auto: Any, model: str, base: str | None, revision: str | None, trust_remote_code: bool, option: str
) -> Any:
    check_folder(model, option)
    # What is there and cannot be read is an error, and not a reason to take another tokenizer.
    has_own = any((Path(model) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    for place in [model] if has_own or base is None else [model, base]:
        try:
            with one_line_errors(place):
                loaded = auto.from_pretrained(place, revision=revision or "main", trust_remote_code=trust_remote_code)
            break
        except InputError as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    else:
        raise InputError(
            f"`{option}: {model}` has no tokenizer that can be loaded ({reason(cause)}); save it beside the model"
        ) from cause
    check_template(share_template(loaded))
    return loaded


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
        option: The option that names the model, for error messages.

    Raises:
        InputError: There is none.
    """
    from transformers import AutoConfig

    with one_line_errors(f"`{option}: {model}`"):
        return AutoConfig.from_pretrained(
            base or model, revision=revision or "main", trust_remote_code=trust_remote_code
        )


def check_student(student: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Check that a student can be loaded, without reading its weights.

    Args:
        student: A path or Hub id of a model, or the folder of an adapter.
        revision: See `load_config`.
        trust_remote_code: See `load_config`.

    Raises:
        InputError: There is no such model, no access or no network; or the folder holds pickled weights or broken
            files, or an adapter whose base model is not there.
    """
    folder = Path(student)
    check_folder(student, "model_name_or_path")
    if (folder / ADAPTER_CONFIG).is_file():
        find_adapter_weights(student)
        adapter_base(student, "model_name_or_path")
        return
    # From the Hub, only safetensors are loaded.
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        pickles = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no other weights either"
        raise InputError(
            f"{student} has no weights in safetensors ({pickles}); pickled weights are not loaded. Save it "
            "anew as safetensors where you trust it"
        )
    load_config(student, revision=revision, trust_remote_code=trust_remote_code, option="model_name_or_path")


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model takes, prompt and response together; None if its configuration does not say."""
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
        raise InputError(f"`device: {device}` does not exist: {brief(error)}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device: {device}`: this machine has {torch.cuda.device_count()} GPUs")
    return place


def _dtype(dtype: str | None) -> torch.dtype | str:
    import torch

    if dtype in (None, "auto"):
        return "auto"
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise InputError(f"`dtype: {dtype}` is unknown; use float32, bfloat16, float16 or auto")
    return value
