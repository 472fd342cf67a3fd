"""Options of commands as dataclasses, read from a recipe and the command line.

`train` parses its options with TRL's parser; every other command with a recipe uses these functions.
"""

import dataclasses
import difflib
import enum
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edit_trl.common.errors import InputError

# --- Reading ---------------------------------------------------------------------------------


def read_yaml(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """Read a YAML mapping; `what` names the kind of file in messages.

    Raises:
        InputError: The file does not exist or is not a YAML mapping.
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


def read_options(
    argv: Sequence[str], names: Iterable[str], flags: Collection[str] = ()
) -> tuple[str | None, dict[str, Any]]:
    """Split a command line into `--config PATH` and the other options, with values read as in YAML.

    Args:
        argv: The command's arguments.
        names: The names of its options.
        flags: Options that are true if no value follows.

    Returns:
        The path, or None, and the values by name.

    Raises:
        InputError: An argument belongs to no option, or an option is unknown or has no value.
    """
    names, given = set(names), {}
    problems: list[str] = []
    name = None
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            given[name] = [value] if equals else []
            if name != "config" and name not in names:
                problems.append(f"unknown option --{name}{nearest(name, names, '--')}")
        elif name is None:
            problems.append(f"unexpected {word!r}")
        else:
            given[name].append(word)
    given |= {name: ["true"] for name in flags if given.get(name) == []}
    problems += [f"--{name} needs a value" for name, words in given.items() if not words and name in names]
    if problems:
        raise InputError(problems)
    config = given.pop("config", [])
    if len(config) > 1:
        raise InputError(f"--config takes one file, got {' '.join(config)}")
    return (config or [None])[0], {name: _parse_words(words) for name, words in given.items()}


def _parse_words(words: list[str]) -> Any:
    """Return the word, or the list of several; parse lists, mappings, booleans and null as YAML."""
    import yaml

    if len(words) > 1:
        return words
    (word,) = words
    if word[:1] in "{[" or word in ("null", "true", "false", "True", "False"):
        try:
            return yaml.safe_load(word)
        except yaml.YAMLError as error:
            raise InputError(f"{word!r} cannot be read: {error}") from error
    return word


def find_beside(path: str | None, folder: Path) -> str | None:
    """Look up a path of a recipe in the working directory, then in the recipe's `folder`.

    A Hub id, None and a path that does not exist are returned unchanged.
    """
    if path is None or Path(path).exists() or not (folder / path).exists():
        return path
    return str(folder / path)


# --- Converting and building -----------------------------------------------------------------


def build_options(
    path: str | None, options: Mapping[str, Any], classes: Sequence[type], hidden: Iterable[str] = ()
) -> list[Any]:
    """Build one object of each class from a recipe and from options that override it.

    Args:
        path: A YAML file; None for options alone.
        options: Values by name, from `read_options`.
        classes: Dataclasses whose checks raise InputError.
        hidden: Fields that are not options.

    Raises:
        InputError: Every error of the recipe and the options at once.
    """
    hints = {name: hint for name, hint in hints_of(classes).items() if name not in set(hidden)}
    values, problems = convert({**(read_yaml(path) if path else {}), **options}, hints)
    return build(classes, values, problems, f"{path or 'command line'}:")


def build(classes: Sequence[type], values: Mapping[str, Any], problems: Sequence[str], heading: str) -> list[Any]:
    """Build one object of each class from converted values.

    Args:
        classes: Dataclasses whose checks raise InputError.
        values: Values by name.
        problems: What is already known to be wrong with the values.
        heading: The first line of the error.

    Raises:
        InputError: The problems, and those that the classes find.
    """
    problems, built = list(problems), []
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            built.append(cls(**{name: value for name, value in values.items() if name in names}))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems, heading=heading)
    return built


def convert(values: Mapping[str, Any], hints: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert values of YAML or the command line to the types in `hints`.

    Returns:
        The converted values, and an error for each of the others.
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
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    kinds = [typing.get_origin(member) or member for member in members]
    if value is None:
        if type(None) in kinds:
            return None
        raise TypeError(f"must not be empty, expected {_describe(members)}")
    for member, kind in zip(members, kinds, strict=True):
        if kind is Literal and value in typing.get_args(member):
            return value
        # An integer is a valid float. In Python a bool is an int, but not a number for the user.
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    if isinstance(value, str):
        return _convert_text(value, members, kinds)
    raise TypeError(f"expected {_describe(members)}, got {type(value).__name__}")


def _convert_text(text: str, members: Sequence[Any], kinds: Sequence[Any]) -> Any:
    """Convert text to the first type that it fits: PyYAML reads `1e-4` and a quoted number as text."""
    if any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in kinds):
        return text  # the class checks it and names the choices
    if list in kinds:
        return [text]  # a list of one, as on the command line
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


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the most similar name, or "" if none is similar."""
    close = difflib.get_close_matches(name.replace("-", "_"), list(names), n=1, cutoff=0.6)
    return f"; did you mean `{prefix}{close[0]}`?" if close else ""


def hints_of(classes: Iterable[type]) -> dict[str, Any]:
    """Return the type of every field of the dataclasses, by name."""
    hints: dict[str, Any] = {}
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        hints |= {name: hint for name, hint in typing.get_type_hints(cls).items() if name in names}
    return hints


# --- Describing ------------------------------------------------------------------------------


def format_help(usage: str, description: str, classes: Sequence[type], hidden: Iterable[str] = ()) -> str:
    """Format the text of `--help`: each field of the dataclasses, its default and its description.

    Fields in `hidden` are not options.
    """
    defaults = {field.name: field.default for cls in classes for field in dataclasses.fields(cls)}
    lines = [f"usage: {usage}", "", *textwrap.wrap(description, 100), ""]
    for name, text in option_help(classes, hidden).items():
        has_default = defaults[name] not in (None, "")
        lines.append(f"  --{name}" + (f" (default: {defaults[name]})" if has_default else ""))
        lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def option_help(classes: Sequence[type], hidden: Iterable[str] = ()) -> dict[str, str]:
    """Return the description of every option by name, from the first class that describes it."""
    names = hints_of(classes).keys() - set(hidden)
    texts: dict[str, str] = {}
    for cls in classes:
        texts |= {name: text for name, text in _descriptions(cls).items() if name in names - texts.keys()}
    return texts


def _descriptions(cls: type) -> dict[str, str]:
    """Return the description of each field from the `Attributes:` sections of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
        pairs = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
        texts |= {name: " ".join(text.split()) for name, text in pairs}
    return texts
