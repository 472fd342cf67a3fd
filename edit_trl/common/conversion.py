"""Values of recipes, command lines and Python calls, converted to the declared types of options."""

from __future__ import annotations

import difflib
import enum
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

_BOOLEANS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-f]+|0o[0-7]+|0b[01]+)", re.IGNORECASE)
_DECIMAL = re.compile(r"[-+]?(?=[0-9.]*[0-9])(0|[1-9][0-9_]*)?(\.[0-9]*)?(e[-+]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.IGNORECASE)
_LARGEST = 2**63 - 1  # what SQLite, torch and endpoints take
# Nothing that an option is used for takes them: paths, prompts, names.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NO_MATCH = object()


class Word(str):
    """A scalar without quotes in YAML, or a word of a command line: the type of its option decides what it means.

    `no` and `1e-4` are texts for an option of texts, and a boolean and a number where those are meant.
    """


def natural(value: Any) -> Any:
    """Return a value without `Word`s, each read as YAML does where no type says what is meant."""
    if isinstance(value, Word):
        return _meaning(value)
    if isinstance(value, dict):
        return {_natural_key(key): natural(item) for key, item in value.items()}
    if isinstance(value, list):
        return [natural(item) for item in value]
    return value


def _natural_key(key: Any) -> Any:
    meaning = natural(key)
    return meaning if type(meaning) is int else str(key) if isinstance(key, str) else key


def _meaning(word: str) -> bool | int | float | str:
    """Return the boolean or number that a word spells, else the text. 010 and 1:30 are no numbers: readers differ."""
    text = word.strip()
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        if _WHOLE.fullmatch(text):
            return int(text, 0)
        if _DECIMAL.fullmatch(text):
            return float(text)
    except ValueError:  # thousands of digits, or 1__0
        return str(word)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) and "." in text else str(word)


def convert(values: Mapping[str, Any], hints: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert values of YAML, the command line or Python to the types in `hints`, inner values included.

    Returns:
        The converted values, and an error for each of the others.
    """
    converted, problems = {}, []
    for name, value in values.items():
        if name not in hints:
            problems.append(f"unknown key `{name:.80}`{nearest(name, hints)}")
            continue
        try:
            converted[str(name)] = _convert(value, hints[name], name)
        except _Mismatch as error:
            problems.append(str(error))
    return converted, problems


class _Mismatch(ValueError):
    """A value that does not have the type of its option; `path` is such as `column_mapping.text` or `tasks[0]`."""

    def __init__(self, path: str, value: Any, reason: str):
        shown = repr(str(value) if isinstance(value, Word) else natural(value))
        shown = "..." if path.endswith("_token") else shown  # a token is never shown
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        super().__init__(f"`{path}: {shown}`: {reason}")


def _convert(value: Any, hint: Any, path: str) -> Any:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    kinds = [typing.get_origin(member) or member for member in members]
    if value is None:
        if {None, type(None), Any} & {*kinds}:
            return None
        raise _Mismatch(path, value, f"must not be empty, expected {_describe(members)}")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and (found := _CONTROL.search(value)):
        raise _Mismatch(path, value, f"a text cannot hold the character U+{ord(found[0]):04X}")
    is_open = isinstance(value, Word) or (isinstance(value, str) and str not in kinds)
    meaning = _meaning(value) if is_open and Any not in kinds else value
    for member, kind in zip(members, kinds, strict=True):
        matched = _match(meaning, value, member, kind, path)
        if matched is not _NO_MATCH:
            return matched
    if isinstance(value, str):
        return _convert_text(value, members, kinds, path)
    raise _Mismatch(path, value, f"expected {_describe(members)}, got {type(value).__name__}")


def _match(meaning: Any, value: Any, member: Any, kind: Any, path: str) -> Any:
    """Return a value as one member of a type, or `_NO_MATCH`. A `Word` is never matched as a text here."""
    if kind is Any:
        return _convert_any(value, path)
    if kind is Literal:
        choices = typing.get_args(member)
        given = (str(value) if isinstance(value, str) else value, meaning)
        same = (choice for choice in choices for one in given if type(choice) is type(one) and choice == one)
        return next(same, _NO_MATCH)
    if kind in (int, float):
        return _number(meaning, kind, path) if type(meaning) in (int, float) else _NO_MATCH
    if kind is list and isinstance(meaning, list | tuple):
        (inner,) = typing.get_args(member) or (Any,)
        return [_convert(item, inner, f"{path}[{place}]") for place, item in enumerate(meaning)]
    if kind is dict and isinstance(meaning, Mapping):
        key_type, inner = typing.get_args(member) or (Any, Any)
        return {
            _key(key, key_type, path): _convert(item, inner, f"{path}.{key!s:.80}") for key, item in meaning.items()
        }
    if kind is str:
        return value if type(value) is str else _NO_MATCH
    return meaning if isinstance(kind, type) and isinstance(meaning, kind) else _NO_MATCH


def _key(key: Any, kind: Any, path: str) -> Any:
    return _natural_key(key) if kind is Any else _convert(key, kind, f"{path}, key")


def _convert_any(value: Any, path: str) -> Any:
    """Return a value of any type, without `Word`s; numbers must be finite."""
    if isinstance(value, Mapping):
        return {_natural_key(key): _convert(item, Any, f"{path}.{key!s:.80}") for key, item in value.items()}
    if isinstance(value, list):
        return [_convert(item, Any, f"{path}[{place}]") for place, item in enumerate(value)]
    value = natural(value)
    return _number(value, float, path) if isinstance(value, float) else value


def _number(value: float, kind: type, path: str) -> Any:
    """Return a number as an int or float; `_NO_MATCH` for a fraction where an int is meant."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _Mismatch(path, value, "must be a finite number")
    if abs(value) > _LARGEST and (kind is int or isinstance(value, int)):
        raise _Mismatch(path, value, "is too large a number")
    return kind(value) if kind is float or value == int(value) else _NO_MATCH


def _convert_text(text: str, members: Sequence[Any], kinds: Sequence[Any], path: str) -> Any:
    """Return a text that spells no other type of an option."""
    # The class of an enumeration checks its choices and names them.
    if str in kinds or any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in kinds):
        return str(text)
    if list in kinds:  # a list of one, as on the command line
        (inner,) = typing.get_args(members[kinds.index(list)]) or (Any,)
        return [_convert(text, inner, path)]
    choices = [choice for m in members if typing.get_origin(m) is Literal for choice in typing.get_args(m)]
    close = difflib.get_close_matches(text, map(str, choices), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise _Mismatch(path, text, f"expected {_describe(members)}{hint}")


def _describe(members: Iterable[Any]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    names |= {list: "a list", dict: "a mapping", type(None): "nothing"}
    parts = []
    for member in members:
        if typing.get_origin(member) is Literal:
            parts.append("one of " + ", ".join(map(str, typing.get_args(member))))
        else:
            kind = typing.get_origin(member) or member
            parts.append(names.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(part for part in parts if part != "nothing")


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the most similar name, or one that the name begins with, or "" if there is neither."""
    written, names = name[:80].replace("-", "_"), list(names)
    close = difflib.get_close_matches(written, names, n=1, cutoff=0.6)
    # TRL's `model_name_or_path` is `model` in most commands.
    close = close or [known for known in names if known.isidentifier() and written.startswith(f"{known}_")]
    return f"; did you mean `{prefix}{close[0]}`?" if close else ""
