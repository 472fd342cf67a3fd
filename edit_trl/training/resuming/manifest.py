"""The manifest of a checkpoint, and what is wrong with a checkpoint that cannot be resumed from.

The manifest describes the run and lists the files, so that one that is missing or cut short is noticed: the Trainer
resumes without an optimizer, a schedule or a random state that it does not find, to other weights.
"""

import json
import zipfile
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edit_trl.common.errors import InputError, brief
from edit_trl.common.json_text import read_json_file

MANIFEST = "edit_trl.json"
"""The file that describes a checkpoint's run; it exists if and only if the checkpoint is complete."""
WEIGHTS_ALONE = "has weights alone (`save_only_model`)"

# Larger files are compared by their size alone: to read them twice would take as long as to write them.
_HASHED_BYTES = 2**28
_CARD = "README.md"  # may be edited
# What a checkpoint without a list of its files must have, as patterns of which one has to match: those of a single
# process or data parallelism, FSDP and DeepSpeed. Read in transformers 5.24, `Trainer._save_checkpoint`.
_PARTS = {
    "weights": ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
    "trainer_state.json": ("trainer_state.json",),
}


def write_manifest(folder: Path, run: Mapping[str, Any], resumable: bool) -> None:
    """Describe a checkpoint whose files are all written.

    Args:
        folder: The checkpoint.
        run: The description of its run.
        resumable: Whether it holds more than weights.
    """
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in (MANIFEST, _CARD))
    listed = {file.relative_to(folder).as_posix(): _describe(file) for file in files}
    manifest = {"run": run, "resumable": resumable, "files": listed}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint; None without one.

    Raises:
        InputError: The file is no manifest.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    manifest = _read_object(file)
    valid = isinstance(manifest.get("run"), dict) and isinstance(manifest.get("resumable"), bool)
    files = manifest.get("files", {})
    if not (valid and isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values())):
        raise InputError(f"{file} does not describe a checkpoint")
    return manifest


def fault_of(folder: Path, described: bool = True) -> str | None:
    """Return why a checkpoint cannot be resumed from, such as "is damaged: optimizer.pt is missing"; None if it can.

    Args:
        folder: The checkpoint.
        described: Whether it must have a manifest; those of TRL's trainers have none.
    """
    try:
        manifest = read_manifest(folder)
        if manifest is None and described:
            return f"is not complete: no {MANIFEST} in it"
        if manifest is not None and not manifest["resumable"]:
            return WEIGHTS_ALONE
        _check_files(folder, (manifest or {}).get("files"))
    except InputError as error:
        return f"is damaged: {error}"
    return None


def _check_files(folder: Path, files: dict[str, dict[str, Any]] | None) -> None:
    if files is None:  # written by an earlier version, or by a trainer of TRL
        _check_parts(folder)
        return
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing")
        if file.stat().st_size != entry.get("bytes"):
            raise InputError(f"{file} has {file.stat().st_size} bytes, and {entry.get('bytes')} were written")
        if entry.get("sha256") is not None and _describe(file) != entry:
            raise InputError(f"{file} is not what was written")


def _check_parts(folder: Path) -> None:
    for part, patterns in _PARTS.items():
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            raise InputError(f"it has no {part}")
    for file in (folder / "trainer_state.json", *folder.glob("progress_*.json")):
        _read_object(file)
    for file in (*folder.glob("*.pt"), *folder.glob("*.pth")):
        if not zipfile.is_zipfile(file):
            raise InputError(f"{file} is cut short, or no file of torch")
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{file} is cut short, or no safetensors file ({brief(error)})") from error


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        size = file.stat().st_size
        return {"bytes": size, "sha256": file_digest(stream, "sha256").hexdigest() if size <= _HASHED_BYTES else None}


def _read_object(file: Path) -> dict[str, Any]:
    value = read_json_file(file, finite=False)  # a log may hold the loss that ended the run
    if not isinstance(value, dict):
        raise InputError(f"{file} holds no JSON object")
    return value
