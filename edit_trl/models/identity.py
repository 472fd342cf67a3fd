"""The hash that identifies a model's weights, in evaluation records and in the journal of local models."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edit_trl.common.errors import InputError
from edit_trl.models.adapters import ADAPTER_CONFIG, adapter_base
from edit_trl.models.folders import one_line_errors

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json", ADAPTER_CONFIG)

# Files of up to _WHOLE bytes are hashed whole; of larger ones, _END bytes at both ends and _BLOCKS blocks of
# _BLOCK bytes between them.
_WHOLE, _END, _BLOCKS, _BLOCK = 2**26, 2**20, 256, 2**12


def model_hash(path_or_id: str) -> str:
    """Hash a model's weights; the hash has 16 hexadecimal digits.

    For a folder, names, sizes and bytes of the weight files and configurations are hashed. Files above 64 MiB are
    sampled (1 MiB at both ends and 256 blocks of 4 KiB between them), so that hashing takes much less time than
    loading. For a Hub id, the commit is hashed. The hash of an adapter includes its base model's.

    Raises:
        InputError: There are no weights.
    """
    base = adapter_base(path_or_id)
    digest = hashlib.sha256(model_hash(base).encode() if base else b"")
    folder = Path(path_or_id)
    if not folder.is_dir():
        from transformers.utils import cached_file, extract_commit_hash

        with one_line_errors(f"`model: {path_or_id}`"):
            config = cached_file(path_or_id, ADAPTER_CONFIG if base else "config.json")
        digest.update((extract_commit_hash(str(config), None) or "").encode())
        return digest.hexdigest()[:16]
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    if not any(file.suffix != ".json" for file in files):
        raise InputError(f"{path_or_id} holds no weights (looked for {', '.join(_WEIGHTS[:3])})")
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        _hash_bytes(digest, file)
    return digest.hexdigest()[:16]


def _hash_bytes(digest: hashlib._Hash, file: Path) -> None:
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
