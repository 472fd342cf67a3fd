"""Atomic writing of files and folders, content hashes, and the git revision."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRAFT_SUFFIX = ".draft"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a draft path beside `path`; it replaces `path` when the block ends without an error.

    The block writes a file or a folder to the draft. A reader of `path` sees the old contents or the new ones, never
    a part. Parent folders are created. After an error the draft is removed. Its name contains the process id, so that
    two processes can write at the same time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}{DRAFT_SUFFIX}")
    _remove(draft)
    try:
        yield draft
        if draft.is_file():
            with draft.open("rb+") as file:
                os.fsync(file.fileno())  # or a power failure leaves an empty file under the final name
        if path.is_dir():
            _swap_folders(draft, path)
        else:
            os.replace(draft, path)
    finally:
        _remove(draft)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file completely or not at all, text as UTF-8."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def _swap_folders(draft: Path, path: Path) -> None:
    # No system call replaces a folder that is not empty: rename the old one first, and back if that fails.
    old = draft.with_suffix(".old")
    path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content_hash(value: Any) -> str:
    """Return a short hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def git_revision() -> str | None:
    """Return the git revision of the working directory, with "+" if files were changed; None outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.strip() or None
