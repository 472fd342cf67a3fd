"""Whether a name is a Hub id, a path or a file, and errors for paths that do not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    pass


def _looks_like_file(path: Path) -> bool:
    # Letters only: "Qwen3-0.6B" and "data.v2" are names of folders and repositories.
    return re.fullmatch(r"\.[a-z]{2,9}", path.suffix.lower()) is not None


def refuse_missing_path(source: str) -> None:
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) is not None
    if not is_hub_id or _looks_like_file(Path(source)):
        raise InputError(f"no such file or folder: {source!r} (looked in {Path.cwd()})")


def is_hub_id(name: str | None) -> bool:
    """Whether a model's or dataset's name is one on the Hub: "name" or "namespace/name", and no path here."""
    if not name or Path(name).expanduser().exists():
        return False
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name) is not None
