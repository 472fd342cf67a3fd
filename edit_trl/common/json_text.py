"""JSON from files that anybody may have written or edited: read strictly, and checked against annotations."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints, is_typeddict

from edit_trl.common.errors import InputError, show

Checker = Callable[[Any], str | None]
"""Takes a value, and returns None or what is wrong with it, such as ".samples[0].tokens: 'x' is no integer"."""


def read_json(text: str | bytes, place: str, *, finite: bool = True) -> Any:
    """Parse JSON of a file.

    Unlike `json.loads`, it refuses NaN and infinities unless `finite` is false, nesting that is too deep, and text that
    cannot be encoded (half of a surrogate pair).

    Args:
        text: The JSON, bytes as UTF-8.
        place: The file, and the line where there are several, for the message.

    Raises:
        InputError: It is not such JSON.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=_refuse if finite else None)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError(f"{place}: its lists or objects are nested too deeply to be read") from None
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: has {error.object[error.start]!r}, half of a surrogate pair, which no file can hold; remove it"
        ) from error
    except ValueError as error:  # also bytes that are not UTF-8, and an integer of thousands of digits
        raise InputError(f"{place}: not JSON: {str(error).split(';')[0]}") from error
    return value


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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


@cache
def checker(annotation: Any) -> Checker:
    """Return a function that checks a JSON value against an annotation.

    Of dataclasses and of TypedDicts every field must be there and no other; `Annotated[list[X], n]` is a list of n
    values; numbers must be finite.
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
        return _items(list, "list", checker(arguments[0]), _quick_check(arguments[0]))
    if origin is dict:
        return _items(dict, "object", checker(arguments[1]), None)
    if is_typeddict(annotation) or is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        return _fields({name: checker(hint) for name, hint in hints.items()})
    noun, kinds = _SCALARS[annotation]
    return lambda value: None if type(value) in kinds and value not in _INFINITE else f": {show(value)} is no {noun}"


_SCALARS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    bool: ("true or false", (bool,)),
    int: ("integer", (int,)),
    float: ("number", (float, int)),
    type(None): ("null", (type(None),)),
}
_INFINITE = (math.inf, -math.inf)


def _union(checkers: list[Checker], arguments: tuple[Any, ...]) -> Checker:
    def check(value: Any) -> str | None:
        problems = [problem(value) for problem in checkers]
        if None in problems:
            return None
        # The deepest is about the alternative that was meant.
        return max((p for p, a in zip(problems, arguments, strict=True) if a is not type(None)), key=_depth)

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


def _quick_check(annotation: Any) -> Callable[[list], bool] | None:
    """Return a check of a long list of numbers, or of short lists of them, that calls nothing for each."""
    if annotation in _SCALARS:
        return lambda values: {*_SCALARS[annotation][1]}.issuperset(map(type, values))
    if get_origin(annotation) is Annotated:
        of_lists, length = get_args(annotation)
        check = _quick_check(*get_args(of_lists))
        return lambda values: (
            {list}.issuperset(map(type, values))
            and {length}.issuperset(map(len, values))
            and check(chain.from_iterable(values))
        )
    return None


def _items(kind: type, noun: str, check_item: Checker, is_fine: Callable[[list], bool] | None) -> Checker:
    def check(value: Any) -> str | None:
        if type(value) is not kind:
            return f": {show(value)} is no {noun}"
        if is_fine is not None and is_fine(value):
            return None
        for key, item in value.items() if kind is dict else enumerate(value):
            if (problem := check_item(item)) is not None:
                return f"[{key!r}]{problem}"
        return None

    return check


def _fields(checkers: dict[str, Checker]) -> Checker:
    def check(value: Any) -> str | None:
        if type(value) is not dict:
            return f": {show(value)} is no object"
        if value.keys() != checkers.keys():
            odd = ", ".join(sorted(map(str, value.keys() ^ checkers.keys())))
            return f": {odd} missing, or not known"
        for name, check_value in checkers.items():
            if (problem := check_value(value[name])) is not None:
                return f".{name}{problem}"
        return None

    return check
