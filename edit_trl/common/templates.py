"""Prompt templates: text files with {placeholders}, checked when they are read."""

from __future__ import annotations

import difflib
import string
from collections.abc import Collection, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

# A template may do without these.
_OPTIONAL = {"task_description", "exemplars"}


def read_template(file: Path | Traversable) -> str:
    """A template's text; the line end of the file is not the prompt's."""
    return file.read_text(encoding="utf-8").rstrip("\n")


def template_problems(text: str, allowed: frozenset[str], optional: Collection[str] = _OPTIONAL) -> list[str]:
    """What is wrong with a template that may have these placeholders, and may do without some."""
    try:
        parsed = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return [f"not a template: {error}; a brace that is meant is written twice"]
    used = {field for field, _, _ in parsed}
    problems = [
        f"placeholder {{{field}}} is filled in as it is: write it without anything after the name"
        for field, form, conversion in parsed
        if form or conversion
    ]
    problems += [
        f"placeholder {{{field}}}: {_choose(field, sorted(allowed))}" for field in sorted(used - allowed)
    ]
    missing = sorted(allowed - set(optional) - used)
    return problems + [f"placeholder {{{field}}} is missing" for field in missing]


def _choose(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is none of this name; {hint}There are {', '.join(names)}"
