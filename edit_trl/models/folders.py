"""The files of a model, checked before anything is loaded from them, and errors of loading as one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError, brief, raise_problems, show
from edit_trl.common.hub_ids import refuse_missing_folder

_INDEX = "model.safetensors.index.json"
# transformers passes over some of these where they are broken, such as the generation config with its EOS tokens.
_JSON_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", _INDEX),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("processor_config.json", "preprocessor_config.json", "chat_template.json"),
)


def check_folder(model: str, option: str = "model") -> None:
    """Check the files of a model or adapter: JSON that can be read, weights that are not cut; a Hub id passes.

    Raises:
        InputError: There is no such folder, or files in it are broken; names each.
    """
    refuse_missing_folder(model, option)
    folder = Path(model)
    if folder.is_dir():
        raise_problems([*_json_problems(folder), *_weight_problems(folder)], f"`{option}: {model}`")


def _json_problems(folder: Path) -> Iterator[str]:
    for file in (folder / name for name in _JSON_FILES):
        if not file.is_file():
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            yield f"{file} is no valid JSON: {brief(error)}"
            continue
        if not isinstance(value, dict):
            yield f"{file} holds no JSON object but a {type(value).__name__}"
        elif not isinstance(base := value.get("base_model_name_or_path"), str | None):
            yield f"`base_model_name_or_path` in {file} is no text: {show(base)}"
        elif file.name == _INDEX:
            yield from _shard_problems(folder, value.get("weight_map"))


def _shard_problems(folder: Path, weight_map: Any) -> Iterator[str]:
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        yield f"{folder / _INDEX} has no `weight_map` from weights to files"
        return
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            yield f"{folder / name} is missing, which {_INDEX} names"


def _weight_problems(folder: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            yield f"{file} is cut short or no safetensors file: {brief(error)}"


@contextmanager
def one_line_errors(subject: str) -> Iterator[None]:
    """Turn what transformers and the Hub client say in fifty lines into "`subject` cannot be loaded: ...".

    Raises:
        InputError: Something could not be loaded.
    """
    try:
        yield
    except InputError:
        raise
    # Only libraries run inside, on the user's files: whatever they raise (tokenizers a bare `Exception`, a
    # configuration with a text for a number anything at all) is about these files.
    except Exception as error:
        has_code = "trust_remote_code" in str(error)
        way_out = "; `trust_remote_code: true` runs it, if you trust its author" if has_code else ""
        raise InputError(f"{subject} cannot be loaded: {reason(error)}{way_out}") from error


def reason(error: Exception) -> str:
    """Return an error of a library as one line, with its type where the words alone may say nothing."""
    spoken = type(error) is Exception or isinstance(error, OSError | ValueError | ImportError | RuntimeError)
    return brief(error) if spoken and str(error) else f"{type(error).__name__}: {brief(error)}"
