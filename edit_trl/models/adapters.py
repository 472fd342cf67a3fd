"""PEFT adapters: the base model they belong to, and how they are put on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import refuse_missing_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_base(model: str) -> str | None:
    """The base model of a PEFT adapter; None for a whole model.

    Raises:
        InputError: The folder does not exist, or the adapter does not name its base.
    """
    from transformers.utils import find_adapter_config_file

    refuse_missing_folder(model)
    try:
        if find_adapter_config_file(model) is None:
            return None
    except OSError:
        return None  # not on the Hub: loading the model says so
    base = read_base_name(model)
    if not base:
        raise InputError(f"{model}: {ADAPTER_CONFIG} does not name its base model (`base_model_name_or_path`)")
    return base


def read_base_name(adapter: str) -> str | None:
    """The base model that an adapter's configuration names, if it names one.

    Raises:
        InputError: The configuration cannot be read.
    """
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(adapter).base_model_name_or_path
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{adapter}: its {ADAPTER_CONFIG} cannot be read: {error}") from error


def put_on(base: PreTrainedModel, adapter: str, *, is_trainable: bool = False) -> PeftModel:
    """Put an adapter on its base model.

    Args:
        base: The model that the adapter was trained on.
        adapter: Path or Hub id.
        is_trainable: Whether the adapter's weights will be trained further.

    Raises:
        InputError: The adapter is a pickle, or its shapes or layers are those of another model.
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
    with safe_open(_adapter_weights(adapter), framework="pt") as file:
        unmatched = set(get_peft_model_state_dict(loaded)) ^ set(file.keys())
    if unmatched:
        raise InputError(
            f"{adapter} is not an adapter of {name}: {len(unmatched)} of its weights have no counterpart "
            f"there, as {min(unmatched)}"
        )
    return loaded


def _check_depth(loaded: PeftModel, adapter: str, name: str) -> None:
    """PEFT writes `all-linear` out layer by layer: a deeper model would be adapted only in part, silently."""
    config = loaded.peft_config[loaded.active_adapter]
    targets = config.target_modules if isinstance(config.target_modules, set | list) else ()
    layers = {int(layer[1]) for target in targets if (layer := re.search(r"\blayers\.(\d+)\.", target))}
    depth = getattr(loaded.config, "num_hidden_layers", 0)
    if layers and layers == set(range(len(layers))) and len(layers) < depth:
        raise InputError(f"{adapter} is not an adapter of {name}: it has {len(layers)} layers, the model {depth}")


def refuse_pickled_adapter(adapter: str) -> None:
    """Refuse an adapter of pickled weights before PEFT loads them: it falls back to `adapter_model.bin`.

    Args:
        adapter: Path or Hub id of an adapter.

    Raises:
        InputError: It has no weights in safetensors.
    """
    if not Path(adapter).is_dir():
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            _adapter_weights(adapter)
            return
        except LocalEntryNotFoundError as error:  # no network, and it is not in the cache
            raise InputError(f"{adapter} is no folder here, and the Hub cannot be reached") from error
        except EntryNotFoundError:
            pass
    elif (Path(adapter) / ADAPTER_WEIGHTS).is_file():
        return
    raise InputError(
        f"{adapter} has no {ADAPTER_WEIGHTS}; pickled weights (adapter_model.bin) are not loaded. Save it "
        "anew as safetensors where you trust it"
    )


def _adapter_weights(adapter: str) -> str:
    """The path of an adapter's weights, downloaded from the Hub if need be."""
    if Path(adapter).is_dir():
        return str(Path(adapter) / ADAPTER_WEIGHTS)
    from huggingface_hub import hf_hub_download

    return hf_hub_download(adapter, ADAPTER_WEIGHTS)
