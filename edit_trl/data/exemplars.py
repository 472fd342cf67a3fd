"""Worked examples, written by people, for a teacher's prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.common.yaml_file import read_value
from edit_trl.data.answers import check_answer
from edit_trl.data.files import read_rows

_REQUIRED = ("question", "chain", "answer")
_COLUMNS = (*_REQUIRED, "wrong_chain", "task")


@dataclass(frozen=True)
class Exemplar:
    """A worked example.

    Attributes:
        question: The question.
        chain: Correct reasoning that ends in the answer.
        answer: The answer.
        wrong_chain: Similar reasoning that ends in a wrong answer, for corrupting.
        task: The task of the questions whose prompts it is used in; every task where None.
    """

    question: str
    chain: str
    answer: str
    wrong_chain: str | None = None
    task: str | None = None


def load_exemplars(path: str | Path) -> list[Exemplar]:
    """Read a YAML or JSON Lines file of exemplars: `question`, `chain`, `answer`, `wrong_chain`, `task`.

    Raises:
        InputError: The errors, each with its file, entry and column; also a chain that does not end in the
            answer, or a wrong chain that does.
    """
    path = Path(path)
    entries = _read(path)
    errors = [
        f"{path}, entry {number}, {error}" for number, entry in enumerate(entries, 1) for error in _entry_errors(entry)
    ]
    raise_problems(errors, str(path))
    return [Exemplar(**{name: _text(value) for name, value in entry.items()}) for entry in entries]


def _read(path: Path) -> list[Any]:
    entries = read_rows(path) if path.suffix.lower() == ".jsonl" else read_value(path, "file of exemplars")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} must hold a list of exemplars, got {show(entries)}")
    return entries


def _entry_errors(entry: Any) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"must have {', '.join(_REQUIRED)}, got {show(entry)}"
        return
    yield from (f"{name!r} is no column; there are {', '.join(_COLUMNS)}" for name in entry if name not in _COLUMNS)
    errors = [
        f"column {name!r}: must be a text, got {show(entry.get(name))}"
        for name in _COLUMNS
        if (name in _REQUIRED or entry.get(name) is not None) and not _text(entry.get(name))
    ]
    yield from errors
    if errors:
        return
    answer = _text(entry["answer"])
    for column, expected in (("chain", "correct"), ("wrong_chain", "wrong")):
        if entry.get(column) is None:
            continue
        check = check_answer(_text(entry[column]), answer)
        if check.verdict != expected:
            value = "no answer" if check.value is None else f"the answer {check.value!r}"
            yield f"column {column!r}: has {value}, and the right one is {answer!r}"


def _text(value: Any) -> Any:
    """Return a text without surrounding space, or None; YAML reads an unquoted answer as a number or a boolean."""
    if isinstance(value, int | float):
        return str(value)
    return value.strip() if isinstance(value, str) and value.strip() else None
