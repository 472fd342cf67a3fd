"""Prompt templates: text files with {placeholders}."""

from __future__ import annotations

import string
from collections.abc import Collection
from importlib.resources.abc import Traversable
from pathlib import Path

from edit_trl.common.options import nearest

# Placeholders that a template need not have.
_OPTIONAL = {"task_description", "exemplars"}


def read_template(file: Path | Traversable) -> str:
    """Read a template, without the line break at the end of the file."""
    return file.read_text(encoding="utf-8").rstrip("\n")


def template_problems(text: str, allowed: frozenset[str], optional: Collection[str] = _OPTIONAL) -> list[str]:
    """Return the errors of a template: malformed, unknown and missing placeholders."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(text)]
    except ValueError as error:
        return [f"not a template: {error}; write a literal brace twice"]
    used = {field for field, _, _ in parts if field is not None}
    problems = [
        f"placeholder {{{field}}} takes no format: write the name alone"
        for field, format_spec, conversion in parts
        if format_spec or conversion
    ]
    choices = ", ".join(sorted(allowed))
    problems += [
        f"unknown placeholder {{{field}}}{nearest(field, allowed)}; choose from {choices}"
        for field in sorted(used - allowed)
    ]
    missing = sorted(allowed - set(optional) - used)
    return problems + [f"placeholder {{{field}}} is missing" for field in missing]
