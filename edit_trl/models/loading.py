"""A student from disk or the Hub (L3): model, adapter and tokenizer; and a hash of its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER = "adapter_config.json"


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


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def refuse_missing_folder(model: str, option: str = "model") -> None:
    """A path that does not exist would be asked of the Hub, which answers with fifty lines.

    Args:
        model: Path or Hub id.
        option: Which option it was given as.

    Raises:
        InputError: It looks like a path, and there is no such folder.
    """
    path = Path(model).expanduser()
    looks_like_path = path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    if looks_like_path and not path.is_dir():
        raise InputError(f"`{option}: {model}`: no such folder (looked in {Path.cwd()})")


def refuse_pickled_adapter(adapter: str) -> None:
    """PEFT takes `adapter_model.bin`, a pickle, where there are no safetensors; this says no first.

    Args:
        adapter: Path or Hub id of an adapter.

    Raises:
        InputError: It has no weights in safetensors.
    """
    if not Path(adapter).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            hf_hub_download(adapter, WEIGHTS)
            return
        except LocalEntryNotFoundError as error:  # no network, and it is not in the cache
            raise InputError(f"{adapter} is no folder here, and the Hub cannot be reached") from error
        except EntryNotFoundError:
            pass
    elif (Path(adapter) / WEIGHTS).is_file():
        return
    raise InputError(
        f"{adapter} has no {WEIGHTS}; pickled weights (adapter_model.bin) are not loaded. Save it anew as "
        "safetensors where you trust it"
    )


def refuse_pickled_model(model: str) -> None:
    """The same for a whole model's folder; from the Hub, transformers itself takes safetensors alone.

    Raises:
        InputError: A folder with a model, and no safetensors in it.
    """
    folder = Path(model)
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        pickles = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no other weights either"
        raise InputError(
            f"{model} has no weights in safetensors ({pickles}); pickled weights are not loaded. Save it "
            "anew as safetensors where you trust it"
        )


def put_on(base: PreTrainedModel, adapter: str, *, is_trainable: bool = False) -> PeftModel:
    """An adapter on its base model.

    Args:
        base: The model it was trained on.
        adapter: Path or Hub id.
        is_trainable: Whether the adapter goes on training.

    Raises:
        InputError: A pickle, or an adapter of another model: of other shapes or other layers.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    refuse_pickled_adapter(adapter)
    name = base.config._name_or_path or type(base).__name__
    try:
        loaded = PeftModel.from_pretrained(base, adapter, is_trainable=is_trainable)
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
        raise InputError(f"{adapter} is not an adapter of {name}: {reason}") from error
    _check_depth(loaded, adapter, name)
    with safe_open(_weights_file(adapter), framework="pt") as file:
        missing = set(get_peft_model_state_dict(loaded)) ^ set(file.keys())
    if missing:
        raise InputError(
            f"{adapter} is not an adapter of {name}: {len(missing)} of its weights have no counterpart "
            f"there, as {min(missing)}"
        )
    return loaded


def _check_depth(loaded: PeftModel, adapter: str, name: str) -> None:
    """PEFT writes `all-linear` out layer by layer: a deeper model would be half adapted, in silence."""
    config = loaded.peft_config[loaded.active_adapter]
    targets = config.target_modules if isinstance(config.target_modules, set | list) else ()
    layers = {int(found[1]) for target in targets if (found := re.search(r"\blayers\.(\d+)\.", target))}
    depth = getattr(loaded.config, "num_hidden_layers", 0)
    if layers and layers == set(range(len(layers))) and len(layers) < depth:
        raise InputError(
            f"{adapter} is not an adapter of {name}: it has {len(layers)} layers, the model {depth}"
        )


def _weights_file(adapter: str) -> str:
    if Path(adapter).is_dir():
        return str(Path(adapter) / WEIGHTS)
    from huggingface_hub import hf_hub_download

    return hf_hub_download(adapter, WEIGHTS)
