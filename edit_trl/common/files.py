"""Atomic writing of files and folders, content hashes, and the git revision."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRAFT_SUFFIX = ".draft"

# Errors of a write, which do not name the file.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a draft path beside `path`; it replaces `path` when the block ends without an error.

    The block writes a file or a folder to the draft. A reader of `path` sees the old contents or the new ones, never
    a part. Parent folders are created. After an error the draft is removed. Its name contains the process id, so that
    two processes can write at the same time. A link is followed. A device or a pipe is not replaced: the draft, which
    is a temporary file then, is copied into it.

    Raises:
        OSError: It cannot be written; `filename` is the path, not the draft.
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (draft := Path(folder, path.name))
            with naming(path, draft), path.open("ab") as stream:
                stream.write(draft.read_bytes())
        return
    path = Path(os.path.realpath(path))
    draft = path.with_name(f"{path.name}.{os.getpid()}{DRAFT_SUFFIX}")
    with naming(path, draft):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removed_at_end(draft):
            yield draft
            _put_into_place(draft, path)


@contextmanager
def naming(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Put the name of what is written into errors of the system that name no file, such as of a full disk, or a draft.

    Raises:
        OSError: As it came, with `path` as its `filename`.
    """
    try:
        yield
    except OSError as error:
        if error.filename == str(draft) or (error.filename is None and error.errno in _DISK_ERRORS):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(path: Path) -> None:
    """Check, before anything expensive, that a file or folder can be written at a path; nothing is made.

    Raises:
        OSError: It cannot.
    """
    whole = Path(os.path.realpath(path))
    place = next(place for place in (whole, *whole.parents) if place.exists())
    code = None
    if place != whole and not place.is_dir():
        code = errno.ENOTDIR
    elif not os.access(place, os.W_OK | os.X_OK if place.is_dir() else os.W_OK):
        code = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
    if code is not None:
        raise OSError(code, os.strerror(code), str(path))


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file completely or not at all, text as UTF-8; see `replacing`."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def is_stream(path: Path) -> bool:
    """Return whether a path is written to and not replaced: a device, a pipe, or a name of an open file."""
    place = path.absolute()
    if place.parent == Path("/dev") or any(place.is_relative_to(names) for names in ("/dev/fd", "/proc")):
        return True
    return path.exists() and not (path.is_file() or path.is_dir())


@contextmanager
def _removed_at_end(draft: Path) -> Iterator[None]:
    _remove(draft)
    try:
        yield
    finally:
        _remove(draft)


def _put_into_place(draft: Path, path: Path) -> None:
    if draft.is_file():
        with draft.open("rb+") as file:
            os.fsync(file.fileno())  # or a power failure leaves an empty file under the final name
    if path.is_dir() and draft.is_dir():
        _swap_folders(draft, path)
    else:
        os.replace(draft, path)


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
    """Return the git revision of the working directory, with "+" if files were changed; None outside a repository.

    Programs that the repository's own configuration names are not run: it may be a folder from somewhere else.
    """
    names = _git("config", "--list", "--show-scope", "--name-only", "-z")
    if names is None:
        return None
    words = names.split("\0")  # a scope, a key, a scope, a key, ...
    foreign = {key for scope, key in zip(words[0::2], words[1::2], strict=False) if scope in ("local", "worktree")}
    values = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}
    values |= {key: "" for key in foreign if key.startswith("filter.") and key.endswith((".clean", ".process"))}
    values |= {key: "false" for key in foreign if key.startswith("filter.") and key.endswith(".required")}
    environment = {"GIT_CONFIG_COUNT": str(len(values))}
    for number, (key, value) in enumerate(values.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    revision = _git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+", **environment)
    return (revision or "").strip() or None


def _git(*words: str, **environment: str) -> str | None:
    """Return what a git command prints; None if it fails or there is no git."""
    # No index is written, and no object that a partial clone lacks is fetched by a command that it names.
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
    try:
        output = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=10, check=True, env=os.environ | environment
        )
    except (OSError, UnicodeError, subprocess.SubprocessError):
        return None
    return output.stdout
