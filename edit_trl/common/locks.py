"""Locks of files and folders: one process writes at a time, and the second is told which process that is."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from edit_trl.common.errors import InputError
from edit_trl.common.files import naming

# What `hold_folder` leaves in a folder: names that do not count as its contents.
FOLDER_LOCK = (".edit_trl.lock", ".edit_trl.pid")


class Hold:
    """Holds a file for this process until `release`, or until the process ends in whatever way; a context manager.

    Args:
        path: What is held, for the message.
        lock_file: The lock, in a folder that exists. The number of the process stands beside it, with the suffix
            ".pid".
        wait: Seconds to wait for another process that holds it.

    Raises:
        InputError: Another process holds it.
        OSError: The lock cannot be written.
    """

    def __init__(self, path: Path, lock_file: Path, *, wait: float = 0.0):
        self._lock, self._owner = FileLock(lock_file), lock_file.with_suffix(".pid")
        try:
            with naming(lock_file):
                self._lock.acquire(timeout=wait)
        except Timeout as error:
            pid = self._owner.read_text(encoding="utf-8") if self._owner.exists() else "unknown"
            raise InputError(
                f"{path} is in use by process {pid}; wait until it ends, stop it, or choose another `output_dir`"
            ) from error
        try:
            with naming(self._owner):
                self._owner.write_text(str(os.getpid()), encoding="utf-8")
        except OSError:
            self._lock.release()
            raise

    def release(self) -> None:
        """Leave it to other processes."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold_folder(folder: str | Path) -> Hold:
    """Hold a folder, which is created if it is missing; see `Hold`.

    Raises:
        InputError: Another process holds it.
        OSError: The folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Hold(folder, folder / FOLDER_LOCK[0])
