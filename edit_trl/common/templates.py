"""Prompt templates: text files with {placeholders}, checked when they are read."""

from __future__ import annotations

import difflib
import string
from collections.abc import Collection, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

# Placeholders that a template need not have.
_OPTIONAL = {"task_description", "exemplars"}


def read_template(file: Path | Traversable) -> str:
    """Read a template, without the line break at the end of the file."""
    return file.read_text(encoding="utf-8").rstrip("\n")


def template_problems(text: str, allowed: frozenset[str], optional: Collection[str] = _OPTIONAL) -> list[str]:
    """Check the placeholders of a template.

    Args:
        text: The template.
        allowed: The placeholders that it may have.
        optional: The placeholders that it need not have.

    Returns:
        What is wrong with it, a message each.
    """
    try:
        parsed = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return [f"not a template: {error}; a brace that is meant is written twice"]
    used = {field for field, _, _ in parsed}
    problems = [
        f"placeholder {{{field}}} is filled in as it is: write it without anything after the name"
        for field, format_spec, conversion in parsed
        if format_spec or conversion
    ]
    problems += [f"placeholder {{{field}}}: {unknown_name(field, sorted(allowed))}" for field in sorted(used - allowed)]
    missing = sorted(allowed - set(optional) - used)
    return problems + [f"placeholder {{{field}}} is missing" for field in missing]


def unknown_name(name: str, names: Sequence[str]) -> str:
    """The message for a name that does not exist, with the nearest one and all that do."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"there is none of this name; {hint}There are {', '.join(names)}"
