"""A bad input, what came of it, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["clean", "unclear", "silent", "traceback"]
VERDICTS: tuple[Verdict, ...] = ("clean", "unclear", "silent", "traceback")

CONTROL = "good input"
"""The kind of the cases that have no fault: they show that the others fail for theirs."""

# Control characters that a terminal obeys; line breaks, tabs and the carriage return of progress bars are none.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What may stay of a run that could not begin: the lock of its folder.
_LOCKS = r"(?:.*/)?\.edit_trl\.(?:lock|pid)"


@dataclass(frozen=True)
class Case:
    """A command with a bad input, in a folder of its own with copies of the material.

    Attributes:
        kind: The kind of fault, for the table.
        name: The fault, unique together with the command.
        words: The command line. `@URL@` stands for the endpoint, here and in the files.
        said: Regular expressions for what the message must name: the file, the option, the value. Without one the
            command has to succeed.
        check: Looks at a run that succeeded, and returns what is wrong with its result, or None. Without it a run
            that succeeds is silent about the fault. With both, a refusal and a right result are clean.
        files: Files that are written into the folder.
        prepare: Changes the folder before the command.
        answer: Number and body of a request -> what the endpoint answers; see `endpoint.Endpoint`.
        pays: How many requests may be answered before the fault can be told.
        loads: Whether a model has to be loaded before the fault can be told.
        leaves: A regular expression for new and changed paths that are no half-written ones.
        nobody: Whether the command runs without the rights of root.
        rooted: Whether `prepare` needs the rights of root.
        room: Options of a tmpfs that is mounted at `m`.
        typed: What the command reads from standard input.
        real: Whether the command runs in a fresh interpreter.
        seconds: The time limit.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    said: str | tuple[str, ...] | None = None
    check: Callable[[Path, Outcome], str | None] | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[Path], Any] | None = None
    answer: Callable[[int, dict], Any] | None = None
    pays: int = 0
    loads: bool = False
    leaves: str = r"$^"
    nobody: bool = False
    rooted: bool = False
    room: str | None = None
    typed: str = ""
    real: bool = False
    seconds: int = 60

    @property
    def needs_root(self) -> bool:
        return self.nobody or self.rooted or self.room is not None

    @property
    def command(self) -> str:
        return self.words[0] if self.words else "edit-trl"

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.command}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """What came of a command.

    Attributes:
        code: The exit code; None where the time limit passed.
        out: Standard output.
        err: Standard error.
        changed: Paths that are new, changed or gone.
        paid: How many requests the endpoint answered.
        loaded: Whether a model was loaded.
    """

    code: int | None
    out: str
    err: str
    changed: list[str]
    paid: int = 0
    loaded: bool = False

    @property
    def message(self) -> str:
        """The message of the error: from its line to the end of standard error."""
        lines = re.split(r"[\r\n]+", self.err)
        starts = [number for number, line in enumerate(lines) if re.match(r"(edit-trl [a-z]+: )?error: ", line)]
        return "\n".join(lines[starts[-1] :]) if starts else ""

    @property
    def last_line(self) -> str:
        lines = [line for line in re.split(r"[\r\n]+", self.err or self.out) if line.strip()]
        return lines[-1] if lines else ""


def judge(case: Case, outcome: Outcome, folder: Path) -> tuple[Verdict, str]:
    """Return the verdict on a command, and what was wrong with it."""
    if outcome.code is None:
        return "traceback", f"not done after {case.seconds} s"
    if "Traceback (most recent call last)" in outcome.out + outcome.err:
        return "traceback", outcome.last_line
    if _CONTROL.search(outcome.out + outcome.err):
        return "unclear", "control characters on the terminal: " + repr(_around_control(outcome.out + outcome.err))
    if outcome.code == 0:
        if case.check is None:
            return "silent", f"exit code 0: {outcome.last_line}"
        try:
            wrong = case.check(folder, outcome)
        except (OSError, LookupError, ValueError) as error:
            wrong = f"exit code 0, and no result: {error!r}"
        return ("silent", wrong) if wrong else ("clean", "")
    if outcome.code != 2:
        return "traceback", f"exit code {outcome.code}: {outcome.last_line}"
    if case.said is None:
        return "unclear", f"refused: {outcome.message or outcome.last_line}"
    return _judge_refusal(case, outcome)


def _judge_refusal(case: Case, outcome: Outcome) -> tuple[Verdict, str]:
    if not outcome.message:
        return "unclear", f"no line that begins with `error: `: {outcome.err[-300:]!r}"
    patterns = (case.said,) if isinstance(case.said, str) else case.said or ()
    missing = [one for one in patterns if not re.search(one, outcome.message, re.DOTALL | re.IGNORECASE)]
    if missing:
        return "unclear", f"the message does not say {' nor '.join(map(repr, missing))}: {outcome.message}"
    left = [path for path in outcome.changed if not re.fullmatch(f"{_LOCKS}|{case.leaves}", path)]
    if left:
        return "unclear", f"left behind or changed: {', '.join(left)}"
    if outcome.paid > case.pays:
        return "unclear", f"{outcome.paid} requests were paid before it was refused"
    if outcome.loaded and not case.loads:
        return "unclear", "a model was loaded before it was refused"
    return "clean", ""


def _around_control(text: str) -> str:
    place = _CONTROL.search(text)
    return text[max(place.start() - 40, 0) : place.end() + 20] if place else ""
