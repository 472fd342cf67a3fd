"""A student from disk or the Hub (L3): model, adapter and tokenizer; and a hash of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.weights import put_on, refuse_missing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json", _ADAPTER)
# Files up to this size are hashed whole; of larger ones, both ends and so many blocks between them.
_WHOLE, _END, _BLOCKS, _BLOCK = 2**26, 2**20, 256, 2**12


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
        dtype: Of the weights, such as `bfloat16`; as they were saved where None.
        device: Such as `cpu` or `cuda:1`; the GPU where there is one and None is given.
        trust_remote_code: Run code that comes with the model.
        attn_implementation: Such as `sdpa` or `eager`; transformers' choice where None.
        load_in_4bit: NF4 with double quantization, as QLoRA trains on it, for a card that takes no more.

    Returns:
        The model (a `PeftModel` for an adapter) and the tokenizer: the adapter's own where it has one.

    Raises:
        InputError: No such model or tokenizer, one that is no causal language model, or a dtype or device
            that does not exist here.
    """
    from transformers import AutoModelForCausalLM

    place = _device(device)
    base = adapter_base(model)
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if load_in_4bit:
        options |= {"quantization_config": _nf4(), "device_map": {"": place}}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            base or model,
            dtype=_dtype(dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **options,
        )
        if base is not None:
            loaded = put_on(loaded, model)
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"`model: {model}` cannot be loaded: {_brief(error)}") from error
    loaded = loaded if load_in_4bit else loaded.to(place)
    return loaded.eval(), load_tokenizer(model, base, trust_remote_code=trust_remote_code)


def load_tokenizer(
    model: str, base: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or adapter.

    Args:
        model: A path or Hub id.
        base: Where to look next, such as an adapter's base model.
        trust_remote_code: Run code that comes with it.

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
        f"`model: {model}` has no tokenizer that can be loaded ({_brief(reason)}); save it beside the model"
    ) from reason


def load_config(model: str, base: str | None = None, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model, or of an adapter's base model; the weights are left alone.

    Args:
        model: A path or Hub id.
        base: The base model, where `model` is an adapter.
        trust_remote_code: Run code that comes with it.

    Raises:
        InputError: There is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base or model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"`model: {model}` cannot be loaded: {_brief(error)}") from error


def adapter_base(model: str) -> str | None:
    """The base model of a PEFT adapter; None for a whole model.

    Raises:
        InputError: No such folder, or an adapter that does not name its base.
    """
    from transformers.utils import find_adapter_config_file

    refuse_missing_folder(model)
    try:
        if find_adapter_config_file(model) is None:
            return None
    except OSError:
        return None  # not on the Hub: loading the model says so
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(model).base_model_name_or_path
    if not base:
        raise InputError(f"{model}: {_ADAPTER} does not name its base model (`base_model_name_or_path`)")
    return base


def model_hash(path_or_id: str) -> str:
    """A short hash that tells weights from others of the same name; an adapter's has its base's in it.

    Of a folder: names, sizes and bytes of the weight files and configurations, all bytes up to 64 MiB a
    file, and of larger ones 1 MiB at both ends and 256 blocks of 4 KiB between them, so that it costs
    nothing beside loading. Of a Hub id: the commit.

    Raises:
        InputError: There are no weights.
    """
    base = adapter_base(path_or_id)
    digest = hashlib.sha256(model_hash(base).encode() if base else b"")
    folder = Path(path_or_id)
    if not folder.is_dir():
        digest.update(_commit(path_or_id, _ADAPTER if base else "config.json").encode())
        return digest.hexdigest()[:16]
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    if not any(file.suffix != ".json" for file in files):
        raise InputError(f"{path_or_id} holds no weights (looked for {', '.join(_WEIGHTS[:3])})")
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        _hash_bytes(digest, file)
    return digest.hexdigest()[:16]


def _hash_bytes(digest, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
            return
        digest.update(stream.read(_END))
        for number in range(_BLOCKS):
            stream.seek(_END + number * (size - 2 * _END) // _BLOCKS)
            digest.update(stream.read(_BLOCK))
        stream.seek(size - _END)
        digest.update(stream.read(_END))


def _commit(model: str, name: str) -> str:
    from transformers.utils import cached_file, extract_commit_hash

    try:
        file = cached_file(model, name)
    except OSError as error:
        raise InputError(f"`model: {model}` cannot be loaded: {_brief(error)}") from error
    return extract_commit_hash(str(file), None) or ""


def _nf4():
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _device(device: str | None):
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"`device: {device}` is none: {_brief(error)}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device: {device}`: this machine has {torch.cuda.device_count()} GPUs")
    return place


def _dtype(dtype: str | None):
    import torch

    if dtype in (None, "auto"):
        return "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"`dtype: {dtype}` is none; use float32, bfloat16, float16 or auto")
    return found


def _brief(error: Exception | None) -> str:
    """What the Hub client says in fifty lines, in two."""
    return " ".join(str(error).split("\n")[:2])
