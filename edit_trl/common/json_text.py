"""JSON that people and other programs have written: parsed, and checked for values that cannot be stored elsewhere."""

from __future__ import annotations

import json
import math
from typing import Any

from edit_trl.common.errors import InputError

MAX_DEPTH = 50
"""The most levels of lists and objects in each other. Arrow stores about 60, and functions that walk them recurse."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON that `value_error` finds nothing wrong with.

    Args:
        text: The JSON; bytes are UTF-8.
        where: The beginning of messages, such as the file and the line.

    Raises:
        InputError: It is no JSON, or holds a value that cannot be stored elsewhere.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(f"{where}: not JSON: {error.msg} ({line}column {error.colno})") from error
    except RecursionError as error:
        raise InputError(f"{where}: cannot be read, nested too deep: {error}") from error
    except ValueError as error:  # not UTF-8, or an integer of thousands of digits
        raise InputError(f"{where}: cannot be read: {str(error).partition(';')[0]}") from error
    if issue := value_error(value):
        raise InputError(f"{where}{_place(value)} cannot be stored: {issue}")
    return value


def _place(value: Any) -> str:
    """Say in which row and column of a parsed file the first value stands that cannot be stored."""
    if isinstance(value, list):
        number, inner = next((n, one) for n, one in enumerate(value, 1) if value_error([one]))
        return f", row {number}{_place(inner)}"
    if isinstance(value, dict):
        name, inner = next(entry for entry in value.items() if value_error([entry]))
        return f", {name!r}{_place(inner) if isinstance(inner, list) and isinstance(inner[0], dict) else ''}"
    return ""


def value_error(value: Any, allow_nan: bool = True) -> str | None:
    """Return why a value cannot be written to a file and stored in a table; None if it can be.

    JSON can hold halves of surrogate pairs, integers of any size and any depth; UTF-8, Arrow and SQLite cannot.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if not one.isascii() and not _is_utf8(one):
                    return f"a half of a surrogate pair, which is no character, in {one[:40]!r}"
            elif isinstance(one, dict):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, list | tuple):
                inner += one
            elif isinstance(one, int):
                if not -(2**63) <= one < 2**64:
                    return "an integer of more than 64 bits; write it as text"
            elif isinstance(one, float):
                if not allow_nan and not math.isfinite(one):
                    return f"{one} is not a finite number"
            elif one is not None:
                return f"{type(one).__name__} is no type of JSON"
        if not inner:
            return None
        level = inner
    return f"lists and objects in each other, more than {MAX_DEPTH} levels deep"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
