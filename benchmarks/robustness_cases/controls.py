"""The commands with good input: a fault of the material would make every other case clean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robustness_cases.case import CONTROL, Case, Outcome
from robustness_cases.commands import COMMANDS


def cases() -> Iterator[Case]:
    for command, words in COMMANDS.items():
        typed, seconds = "Hello\n" if command == "chat" else "", 600 if command == "quickstart" else Case.seconds
        yield Case(CONTROL, "as it is", words, check=_succeeds, typed=typed, seconds=seconds)


def _succeeds(_folder: Path, _outcome: Outcome) -> None:
    """Anything with exit code 0 is right."""
