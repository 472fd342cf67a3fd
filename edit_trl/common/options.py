"""Options by name (L0): text and YAML -> the types of dataclass fields; typos named with the nearest."""

import dataclasses
import difflib
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edit_trl.common.errors import InputError


def read_yaml(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """A YAML file of `key: value`.

    Args:
        path: The file.
        what: What messages call it.

    Raises:
        InputError: There is none, or it is not such a file.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no {what} at {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold options as `key: value`, got {type(values).__name__}")
    return values


def convert(values: Mapping[str, Any], hints: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values as their options' types.

    Args:
        values: By name, as YAML or the command line has them.
        hints: The type of each option.

    Returns:
        The values that could be converted, and what is wrong with the others.
    """
    converted, problems = {}, []
    for name, value in values.items():
        if name not in hints:
            problems.append(f"unknown key `{name}`{nearest(name, hints)}")
            continue
        try:
            converted[name] = _convert_value(value, hints[name])
        except (TypeError, ValueError) as error:
            problems.append(f"`{name}: {value!r}`: {error}")
    return converted, problems


def _convert_value(value: Any, hint: Any) -> Any:
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    kinds = [typing.get_origin(member) or member for member in members]
    if value is None:
        if type(None) in kinds:
            return None
        raise TypeError(f"must not be empty, expected {_describe(members)}")
    for member, kind in zip(members, kinds, strict=True):
        if kind is Literal and value in typing.get_args(member):
            return value
        # bool is an int to Python; 1 is a float to a person.
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    if isinstance(value, str):
        return _convert_text(value, members, kinds)
    raise TypeError(f"expected {_describe(members)}, got {type(value).__name__}")


def _convert_text(text: str, members: Sequence[Any], kinds: Sequence[Any]) -> Any:
    """PyYAML reads `1e-4` and a quoted number as text; say what else a text was meant to be."""
    if any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in kinds):
        return text  # checked by the class itself, which names the choices
    if list in kinds:
        return [text]  # one of a list, as on the command line
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    choices = [choice for m in members if typing.get_origin(m) is Literal for choice in typing.get_args(m)]
    close = difflib.get_close_matches(text, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"expected {_describe(members)}{hint}")


def _describe(members: Sequence[Any]) -> str:
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


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """A hint at the option that was probably meant, or nothing."""
    close = difflib.get_close_matches(name.replace("-", "_"), list(names), n=1, cutoff=0.6)
    return f"; did you mean `{prefix}{close[0]}`?" if close else ""


def hints_of(classes: Iterable[type]) -> dict[str, Any]:
    """Every field of some dataclasses and its type."""
    hints: dict[str, Any] = {}
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        hints |= {name: hint for name, hint in typing.get_type_hints(cls).items() if name in names}
    return hints


def described(cls: type) -> dict[str, str]:
    """What the `Attributes:` sections of a dataclass and its bases say of each field, in a line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
        pairs = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in pairs}
    return found
