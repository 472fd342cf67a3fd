"""Names of models and datasets: whether one is a Hub id or a path, and errors for paths that do not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypedDict

from edit_trl.common.errors import InputError

# The folders that the recipes read and write, which are no namespaces of the Hub.
_OWN_FOLDERS = ("outputs/", "data/", "recipes/")


class HubDataset(TypedDict):
    """A split of a dataset on the Hub; `config` and `split` are None where none is named."""

    dataset: str
    config: str | None
    split: str | None


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be a model or dataset on the Hub: "name" or "namespace/name", and no local path."""
    if not name or name.startswith(_OWN_FOLDERS) or Path(name).expanduser().exists():
        return False
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None


def looks_like_file(path: Path) -> bool:
    """Whether a path ends like a file name: "rows.jsonl", but not "Qwen3-0.6B" or "data.v2"."""
    return re.fullmatch(r"\.[a-z]{2,9}", path.suffix.lower()) is not None


def refuse_missing_path(source: str) -> None:
    """Raise an InputError if a dataset has no local path and cannot be on the Hub, such as "none.jsonl"."""
    if not is_hub_id(source) or looks_like_file(Path(source)):
        raise InputError(f"no such file or folder: {source!r} (looked in {Path.cwd()})")


def refuse_missing_folder(model: str, option: str = "model") -> None:
    """Raise an InputError if a model, given as `option`, has no local folder and cannot be on the Hub."""
    if Path(model).expanduser().is_file():
        raise InputError(f"`{option}: {model}` is a file, no such folder; name the folder of the model")
    if not Path(model).expanduser().is_dir() and not is_hub_id(model):
        raise InputError(f"`{option}: {model}`: no such folder (looked in {Path.cwd()})")
