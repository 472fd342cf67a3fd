"""A folder that another process works in, and files that change under a command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from robustness_cases.case import Case
from robustness_cases.commands import COMMANDS

# Held until the process ends.
_held: list[object] = []
# The folder that a command works in.
FOLDERS = {"train": "out", "evaluate": "out", "suite": "out", "generate": "out", "judge": "out"}


def cases() -> Iterator[Case]:
    for command, folder in FOLDERS.items():
        name = "a folder that another process holds"
        journals = command in ("generate", "judge")
        hold = _held_journal if journals else _held_folder
        words = COMMANDS[command]
        leaves = rf"{folder}/(journal-0\.(lock|pid)|\.edit_trl\.(lock|pid))"
        yield Case("processes", name, words, ("in use", r"process \d+"), prepare=hold(folder), leaves=leaves)
    # A lock that a killed process left behind holds nothing.
    for command, folder in FOLDERS.items():
        yield Case(
            "processes",
            "a lock that nobody holds",
            COMMANDS[command],
            check=lambda _folder, _outcome: None,
            prepare=_left_behind(folder),
        )


def _held_folder(name: str) -> Callable[[Path], None]:
    def hold() -> None:
        from edit_trl.common.locks import hold_folder

        _held.append(hold_folder(name))

    return _by_another_process(hold, Path(name, ".edit_trl.pid"))


def _held_journal(name: str) -> Callable[[Path], None]:
    def hold() -> None:
        from edit_trl.models.chat.journal import Journal

        _held.append(Journal(Path(name)).__enter__())

    return _by_another_process(hold, Path(name, "journal-0.lock"))


def _by_another_process(hold: Callable[[], None], sign: Path) -> Callable[[Path], None]:
    """Has a process hold something for as long as the case may take."""

    def prepare(_folder: Path) -> None:
        parent = os.getpid()
        child = os.fork()
        if not child:
            os.setsid()
            signal.alarm(60)  # it ends by itself
            hold()
            while os.getppid() == parent:
                time.sleep(0.2)
            os._exit(0)
        end = time.monotonic() + 20
        while not sign.exists() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)

    return prepare


def _left_behind(name: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / name).mkdir()
        (folder / name / ".edit_trl.lock").touch()
        (folder / name / ".edit_trl.pid").write_text("1")

    return prepare
