"""Weights on disk or on the Hub (L1): safetensors alone, and adapters on the model they were trained for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

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
