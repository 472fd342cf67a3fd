"""Whether parsed JSON has the types that this program writes: files of runs can be edited by hand, or cut."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any, Literal

from edit_trl.common.errors import show

# Larger numbers are no scores or log-probabilities, and their squares overflow.
_LARGEST = 1e100


def fits(values: Collection[Any], hint: Any) -> bool:
    """Return whether all of some values have a type.

    They are checked together, level by level, which is many times faster than one by one.

    Args:
        values: Parsed JSON.
        hint: A TypedDict or dataclass (all of its names are required), `list[...]`, `dict[str, ...]`, a union, a
            `Literal`, `str`, `bool`, `int` (64 bits), `float` (finite; integers are valid), `Any`, or
            `Annotated[list[...], range]`, whose range holds the possible lengths.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        inner, lengths = arguments
        return fits(values, inner) and all(len(value) in lengths for value in values)
    if origin is Literal:
        return all(isinstance(value, str) and value in arguments for value in values)
    if origin in (typing.Union, types.UnionType):
        simple = tuple(kind for kind in arguments if kind in (str, type(None)))
        others = [kind for kind in arguments if kind not in simple]
        rest = [value for value in values if not isinstance(value, simple)]
        return not rest if not others else any(fits(rest, kind) for kind in others)
    if origin is list:
        return all(type(value) is list for value in values) and fits(list(chain.from_iterable(values)), arguments[0])
    if origin is dict:
        inner = [value.values() for value in values if type(value) is dict]
        return len(inner) == len(values) and fits(list(chain.from_iterable(inner)), arguments[1])
    if names := _names(hint):
        return all(type(value) is dict and value.keys() == names.keys() for value in values) and all(
            fits([value[name] for value in values], kind) for name, kind in names.items()
        )
    found = set(map(type, values))
    if hint is float:
        return found <= {int, float} and all(abs(value) < _LARGEST for value in values)
    if hint is int:
        return found <= {int} and all(-(2**63) <= value < 2**63 for value in values)
    return found <= {hint}


def misfit(value: Any, hint: Any) -> str | None:
    """Return what is wrong with a value of a TypedDict or a dataclass; None if it fits."""
    names = _names(hint)
    if not isinstance(value, Mapping):
        return f"not an object, but {show(value)}"
    if odd := sorted(value.keys() ^ names.keys()):
        return ", ".join(f"`{name}` is {'unknown' if name in value else 'missing'}" for name in odd[:5])
    wrong = [f"`{name}` cannot be {show(value[name])}" for name, kind in names.items() if not fits([value[name]], kind)]
    return ", ".join(wrong) or None


@lru_cache
def _names(hint: Any) -> dict[str, Any]:
    """Return the type of each name of a TypedDict or a dataclass; {} for another type."""
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return typing.get_type_hints(hint, include_extras=True)
    return {}
