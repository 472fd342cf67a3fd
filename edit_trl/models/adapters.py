"""PEFT adapters: the base model they belong to, and how they are put on it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError, show
from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.run_file import read_run_file
from edit_trl.models.folders import check_folder, one_line_errors, reason

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_base(model: str, option: str = "model") -> str | None:
    """Return where the base model of a PEFT adapter is, a path or Hub id; None for a whole model.

    Args:
        model: A path or Hub id.
        option: The option that names it, for error messages.

    Raises:
        InputError: The folder does not exist, or files in it are broken; or the adapter does not name its base, or
            names one that is not there or that is an adapter itself.
    """
    from transformers.utils import find_adapter_config_file

    check_folder(model, option)
    try:
        if find_adapter_config_file(model) is None:
            return None
    except OSError:
        return None  # not on the Hub: loading the model says so
    name = read_base_name(model)
    if not name:
        raise InputError(f"{model}: {ADAPTER_CONFIG} does not name its base model (`base_model_name_or_path`)")
    base = find_base(name, model)
    if base == model or (Path(base) / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{model}: its base model {base} is an adapter too; merge that one (`edit-trl merge`), and name the "
            f"merged model in {ADAPTER_CONFIG} (`base_model_name_or_path`)"
        )
    check_folder(base, f"base model of {model}")
    return base


def find_base(name: str, adapter: str) -> str:
    """Return where the model is that an adapter names as its base: the first folder that exists, or a Hub id.

    A relative path is looked for from where the command runs, then in the adapter's folder and the one around it,
    then from where the run was started that trained the adapter. An absolute one that is gone may have been moved with
    its run, whose recipe may have named it by a relative path.

    Raises:
        InputError: There is no such folder, and the name is no Hub id.
    """
    names, places = [name], [Path()]
    if Path(adapter).is_dir():
        folder = Path(adapter).resolve()
        options = read_run_file(folder).get("options") or {}
        output = Path(str(options.get("output_dir", folder)))
        places += [folder, folder.parent]
        if not output.is_absolute() and folder.parts[-len(output.parts) :] == output.parts:
            places.append(folder.parents[len(output.parts) - 1])
        if Path(name).is_absolute():
            names.append(str(options.get("model_name_or_path") or name))
    for place, one in itertools.product(places, names):
        if (place / one).is_dir():
            return str(place / one)
    if is_hub_id(name):
        return name
    looked_in = ", ".join(str(place.resolve()) for place in dict.fromkeys(places))
    raise InputError(
        f"the base model of {adapter} is not there: {show(name)} (looked in {looked_in}); put it there, or correct "
        f"`base_model_name_or_path` in {ADAPTER_CONFIG}"
    )


def remember_base(model: PeftModel) -> None:
    """Make the path of an adapter's base model absolute in its configuration, so that it is found from anywhere."""
    for config in model.peft_config.values():
        name = config.base_model_name_or_path
        if name and Path(name).is_dir():
            config.base_model_name_or_path = str(Path(name).absolute())


def describe_base(base: str, adapter: str) -> str:
    """Return the name of an adapter's base model in error messages."""
    looked = "" if Path(base).is_dir() else " (no such folder here or beside the adapter, so looked for on the Hub)"
    return f"the base model {base} of {adapter}{looked}"


def read_base_name(adapter: str) -> str | None:
    """Return the base model that an adapter's configuration names, if it names one.

    Raises:
        InputError: The configuration cannot be read.
    """
    from peft import PeftConfig

    with one_line_errors(f"{adapter}: its {ADAPTER_CONFIG}"):
        return PeftConfig.from_pretrained(adapter).base_model_name_or_path


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

    weights = find_adapter_weights(adapter)
    name = base.config._name_or_path or type(base).__name__
    with one_line_errors(str(weights)), safe_open(weights, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
    _resize_embeddings(base, shapes)
    try:
        loaded = PeftModel.from_pretrained(base, adapter, is_trainable=is_trainable)
    except Exception as error:  # only PEFT runs here, on the adapter's files
        size = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
        raise InputError(
            f"{adapter} is not an adapter of {name}: {size or reason(error)} (see its {ADAPTER_CONFIG})"
        ) from error
    _check_depth(loaded, adapter, name)
    # Resized embeddings are saved whole as well, where PEFT saw at the time that they were resized.
    least, most = (set(get_peft_model_state_dict(loaded, save_embedding_layers=whole)) for whole in (False, True))
    unmatched = (least - shapes.keys()) | (shapes.keys() - most)
    if unmatched:
        raise InputError(
            f"{adapter} is not an adapter of {name}: {len(unmatched)} of its weights have no counterpart "
            f"there, as {min(unmatched)}"
        )
    return loaded


def _resize_embeddings(base: PreTrainedModel, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the base as many token embeddings as it had when an adapter was trained that holds them or the LM head."""
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    names = {name for name, module in base.named_modules() if module in layers}
    rows, width = base.get_input_embeddings().weight.shape
    held = {
        shape[0]
        for key, shape in shapes.items()
        if len(shape) == 2 and shape[1] == width and key.endswith(".weight") and any(f".{n}." in key for n in names)
    }
    if len(held) == 1 and held != {rows}:
        base.resize_token_embeddings(held.pop(), mean_resizing=False)


def _check_depth(loaded: PeftModel, adapter: str, name: str) -> None:
    """Refuse a deeper model: PEFT writes `all-linear` out layer by layer, so it would be adapted only in part."""
    config = loaded.peft_config[loaded.active_adapter]
    targets = config.target_modules if isinstance(config.target_modules, set | list) else ()
    layers = {int(layer[1]) for target in targets if (layer := re.search(r"\blayers\.(\d+)\.", target))}
    depth = getattr(loaded.config, "num_hidden_layers", 0)
    if layers and layers == set(range(len(layers))) and len(layers) < depth:
        raise InputError(f"{adapter} is not an adapter of {name}: it has {len(layers)} layers, the model {depth}")


def find_adapter_weights(adapter: str) -> Path:
    """Return the path of an adapter's weights in safetensors, downloaded from the Hub if need be.

    Call this before PEFT loads an adapter: it falls back to `adapter_model.bin`, a pickle.

    Raises:
        InputError: There are no such weights, or the Hub cannot be reached.
    """
    file = Path(adapter) / ADAPTER_WEIGHTS
    if not Path(adapter).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(adapter, ADAPTER_WEIGHTS))
        except LocalEntryNotFoundError as error:  # no network, and it is not in the cache
            raise InputError(f"{adapter} is no folder here, and the Hub cannot be reached") from error
        except EntryNotFoundError:
            pass
    elif file.is_file():
        return file
    raise InputError(
        f"{adapter} has no {ADAPTER_WEIGHTS}; pickled weights (adapter_model.bin) are not loaded. Save it "
        "anew as safetensors where you trust it"
    )
