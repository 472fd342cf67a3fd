"""JSON from files that anybody may have written or edited: read strictly, and checked against annotations."""

from __future__ import annotations

import json
import re
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from edit_trl.common.errors import InputError, show

Checker = Callable[[Any], str | None]
"""Takes a value, and returns None or what is wrong with it, such as ".samples[0].tokens: 'x' is no integer"."""

MAX_DEPTH = 50
"""The most levels of lists and objects in each other. Arrow holds about 60, and functions that walk them recurse."""

_HALF = re.compile("[\ud800-\udfff]")


def read_json(text: str | bytes, place: str, *, finite: bool = True) -> Any:
    """Parse JSON of a file.

    Unlike `json.loads`, it refuses a key given twice, NaN and infinities unless `finite` is false, more than
    `MAX_DEPTH` levels of lists and objects, and text that cannot be encoded (half of a surrogate pair).

    Args:
        text: The JSON, bytes as UTF-8.
        place: The file, and the line where there are several, for the message.

    Raises:
        InputError: It is not such JSON.
    """
    try:
        text = text.decode(json.detect_encoding(text)) if isinstance(text, bytes) else text
        value = _DECODERS[finite].decode(text)
    except RecursionError:
        raise InputError(f"{place}: its lists or objects are nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(f"{place}: not JSON: {error.msg} ({line}column {error.colno})") from error
    except ValueError as error:  # bytes that are not UTF-8, an integer of thousands of digits, or NaN
        raise InputError(f"{place}: cannot be read: {str(error).split(';')[0]}") from error
    has_escapes = "\\ud" in text or "\\uD" in text
    if has_escapes or (text.count("[") + text.count("{") > MAX_DEPTH and _is_deep([value])):
        for column, part in value.items() if isinstance(value, dict) else enumerate([value]):
            if (problem := _unstorable([column, part])) is not None:
                raise InputError(f"{place}{f', {column!r}' if isinstance(value, dict) else ''}: {problem}")
    return value


def _is_deep(values: list[Any]) -> bool:
    """Return whether lists and objects are nested in more than `MAX_DEPTH` levels; a column counts as one."""
    for _ in range(MAX_DEPTH - 1):
        inner = chain.from_iterable(value.values() if type(value) is dict else value for value in values)
        values = [value for value in inner if type(value) is list or type(value) is dict]
        if not values:
            return False
    return True


def _unstorable(values: list[Any]) -> str | None:
    """Return why some values cannot be stored in a table or written to a file; None if they can."""
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in values:
            if isinstance(value, str) and (half := _HALF.search(value)):
                return f"has {half[0]!r}, half of a surrogate pair, which no file can hold; remove it"
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        if not inner:
            return None
        values = inner
    return "its lists or objects are nested too deeply to be read"


def read_json_file(path: Path, *, finite: bool = True) -> Any:
    """Read a file of one JSON value; see `read_json`.

    Raises:
        InputError: It cannot be read, or is not JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return read_json(content, str(path), finite=finite)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {show(twice)} is given twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


# `json.loads` would make one for each text.
_DECODERS = {
    finite: json.JSONDecoder(parse_constant=_refuse if finite else None, object_pairs_hook=_object)
    for finite in (True, False)
}


@cache
def checker(annotation: Any) -> Checker:
    """Return a function that checks a JSON value against an annotation.

    Of dataclasses and of TypedDicts every field must be there, unless it is `NotRequired`, and no other.
    `Annotated[list[X], n]` is a list of n values; integers have 64 bits, as in SQLite; numbers are finite, and so are
    sums of their squares.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return lambda value: None
    if origin in (Union, types.UnionType):
        return _union([checker(argument) for argument in arguments], arguments)
    if origin is Literal:
        choices = ", ".join(map(repr, arguments))
        return lambda value: None if value in arguments else f": {show(value)} is none of {choices}"
    if origin is Annotated:
        return _of_length(checker(arguments[0]), arguments[1])
    if origin is list:
        return _items(list, "list", checker(arguments[0]), bulk_checker(arguments[0]))
    if origin is dict:
        return _items(dict, "object", checker(arguments[1]), bulk_checker(arguments[1]))
    if is_typeddict(annotation) or is_dataclass(annotation):
        hints, optional = _fields_of(annotation)
        return _fields({name: checker(hint) for name, hint in hints.items()}, optional)
    noun, kinds, limit = _SCALARS[annotation]
    return lambda value: (
        None if type(value) in kinds and (limit is None or abs(value) < limit) else f": {show(value)} is no {noun}"
    )


@cache
def bulk_checker(annotation: Any) -> Callable[[Sequence[Any]], bool]:
    """Return a function that checks many JSON values against an annotation at once.

    It is many times faster than `checker`, since it looks at one field of all values after the other. It does not say
    which value is wrong, and may find one wrong that `checker` accepts; so `checker` has the last word.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return lambda values: True
    if origin in (Union, types.UnionType):
        return _bulk_union(annotation, arguments)
    if origin is Literal:
        return lambda values: all(map(arguments.__contains__, values))
    if origin is Annotated:
        check_list, length = bulk_checker(arguments[0]), arguments[1]
        return lambda values: check_list(values) and {length}.issuperset(map(len, values))
    if origin is list:
        check_items = bulk_checker(arguments[0])
        return lambda values: {list}.issuperset(map(type, values)) and check_items([*chain.from_iterable(values)])
    if origin is dict:
        check_values = bulk_checker(arguments[1])
        return lambda values: (
            {dict}.issuperset(map(type, values)) and check_values([*chain.from_iterable(map(dict.values, values))])
        )
    if is_typeddict(annotation) or is_dataclass(annotation):
        hints, optional = _fields_of(annotation)
        return _bulk_fields({name: bulk_checker(hint) for name, hint in hints.items()}, optional)
    _, kinds, limit = _SCALARS[annotation]
    return lambda values: (
        {*kinds}.issuperset(map(type, values)) and (limit is None or all(map(limit.__gt__, map(abs, values))))
    )


def _fields_of(annotation: Any) -> tuple[dict[str, Any], set[str]]:
    """Return the annotations of the fields of a TypedDict or a dataclass, and which fields may be missing."""
    hints = get_type_hints(annotation, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    return hints | {name: get_args(hints[name])[0] for name in optional}, optional


def _bulk_union(annotation: Any, arguments: tuple[Any, ...]) -> Callable[[Sequence[Any]], bool]:
    kinds = [(kind, bulk_checker(argument)) for argument in arguments for kind in _kinds(argument)]
    checks = dict(kinds)
    if len(checks) < len(kinds):  # the type of a value does not tell which alternative is meant
        check_value = checker(annotation)
        return lambda values: all(check_value(value) is None for value in values)

    def check(values: Sequence[Any]) -> bool:
        present = {*map(type, values)}
        return present <= checks.keys() and all(
            checks[kind](values if len(present) == 1 else [value for value in values if type(value) is kind])
            for kind in present
        )

    return check


def _kinds(annotation: Any) -> tuple[type, ...]:
    """Return the types of the JSON values that an alternative of a union may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation][1]
    if origin is Literal:
        return tuple({*map(type, arguments)})
    return (list,) if origin in (list, Annotated) else (dict,)


def _bulk_fields(
    checks: dict[str, Callable[[Sequence[Any]], bool]], optional: set[str]
) -> Callable[[Sequence[Any]], bool]:
    required = checks.keys() - optional

    def check(values: Sequence[Any]) -> bool:
        return (
            {dict}.issuperset(map(type, values))
            and all(required <= {*names} <= checks.keys() for names in {*map(tuple, values)})
            and all(
                check_field([value[name] for value in values if name in value]) for name, check_field in checks.items()
            )
        )

    return check


# The noun in messages, the types, and what absolute values are below.
_SCALARS: dict[Any, tuple[str, tuple[type, ...], float | None]] = {
    str: ("text", (str,), None),
    bool: ("true or false", (bool,), None),
    int: ("integer", (int,), 2**63),
    float: ("number", (float, int), 1e100),
    type(None): ("null", (type(None),), None),
}


def _union(checkers: list[Checker], arguments: tuple[Any, ...]) -> Checker:
    def check(value: Any) -> str | None:
        problems = [problem(value) for problem in checkers]
        if None in problems:
            return None
        # The deepest is about the alternative that was meant.
        return max((p for p, a in zip(problems, arguments, strict=True) if p and a is not type(None)), key=_depth)

    return check


def _depth(problem: str) -> int:
    return len(problem.split(": ")[0])


def _of_length(check_list: Checker, length: int) -> Checker:
    def check(value: Any) -> str | None:
        problem = check_list(value)
        if problem is None and len(value) != length:
            problem = f": {show(value)} has not {length} values"
        return problem

    return check


def _items(kind: Any, noun: str, check_item: Checker, are_fine: Callable[[Sequence], bool]) -> Checker:
    def check(value: Any) -> str | None:
        if type(value) is not kind:
            return f": {show(value)} is no {noun}"
        if are_fine([*value.values()] if kind is dict else value):
            return None
        items: Iterable[tuple[Any, Any]] = value.items() if kind is dict else enumerate(value)
        for key, item in items:
            if (problem := check_item(item)) is not None:
                return f"[{key!r}]{problem}"
        return None

    return check


def _fields(checkers: dict[str, Checker], optional: set[str]) -> Checker:
    def check(value: Any) -> str | None:
        if type(value) is not dict:
            return f": {show(value)} is no object"
        if odd := (value.keys() ^ checkers.keys()) - (optional - value.keys()):
            return f": {', '.join(sorted(map(str, odd)))} missing, or not known"
        for name, check_value in checkers.items():
            if name in value and (problem := check_value(value[name])) is not None:
                return f".{name}{problem}"
        return None

    return check
