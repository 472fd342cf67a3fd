"""A hash that identifies a model's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.models.loading import _ADAPTER, _brief, adapter_base

if TYPE_CHECKING:
    pass

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json", _ADAPTER)

# Files up to this size are hashed whole; of larger ones, both ends and so many blocks between them.
_WHOLE, _END, _BLOCKS, _BLOCK = 2**26, 2**20, 256, 2**12


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


_ENDS = 65536


def _fingerprint(folder: Path) -> str:
    """Tells the weights in a folder from others of the same path, such as before and after training."""
    if not folder.is_dir():
        return "hub"
    hasher = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        size = path.stat().st_size
        hasher.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            hasher.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            hasher.update(file.read())
    return f"weights {hasher.hexdigest()[:16]}"
