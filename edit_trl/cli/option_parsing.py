"""`--config RECIPE` and `--option value` over it, for the commands whose options are dataclasses (L4)."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.options import convert, described, hints_of, nearest, read_yaml


def read_options(
    argv: Sequence[str], known: Iterable[str], flags: Collection[str] = ()
) -> tuple[str | None, dict[str, Any]]:
    """`--config PATH` and the other options, as YAML reads their values.

    Args:
        argv: The command's arguments.
        known: The names of its options.
        flags: Those that are true where no value follows.

    Raises:
        InputError: An option without a name or a value, or one that does not exist.
    """
    known, given = set(known), {}
    problems: list[str] = []
    name = None
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            given[name] = [value] if equals else []
            if name != "config" and name not in known:
                problems.append(f"unknown option --{name}{nearest(name, known, '--')}")
        elif name is None:
            problems.append(f"unexpected {word!r}")
        else:
            given[name].append(word)
    given |= {name: ["true"] for name in flags if given.get(name) == []}
    problems += [f"--{name} needs a value" for name, words in given.items() if not words and name in known]
    if problems:
        raise InputError(problems)
    config = given.pop("config", [])
    if len(config) > 1:
        raise InputError(f"--config takes one file, got {' '.join(config)}")
    return (config or [None])[0], {name: _value(words) for name, words in given.items()}


def build_options(
    path: str | None, options: Mapping[str, Any], classes: Sequence[type], hidden: Iterable[str] = ()
) -> list[Any]:
    """One of each class, from a recipe and from options that win over it.

    Args:
        path: A YAML file of `key: value`; None for options alone.
        options: As `read_options` gives them.
        classes: Dataclasses whose checks raise InputError.
        hidden: Fields that are no options.

    Raises:
        InputError: All that is wrong with them.
    """
    hints = {name: hint for name, hint in hints_of(classes).items() if name not in set(hidden)}
    values, problems = convert({**(read_yaml(path) if path else {}), **options}, hints)
    built = []
    for cls in classes:
        names = {field.name for field in fields(cls)}
        try:
            built.append(cls(**{name: value for name, value in values.items() if name in names}))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems, heading=f"{path or 'command line'}:")
    return built


def _value(words: list[str]) -> Any:
    """One word, or a list of them; lists, mappings and nothing are written as in YAML."""
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


def format_help(usage: str, description: str, classes: Sequence[type], hidden: Iterable[str] = ()) -> str:
    """What `--help` prints: each option of the classes, its default and what it is for.

    Args:
        usage: The line after "usage: ".
        description: A sentence or two.
        classes: Dataclasses whose docstrings describe their fields.
        hidden: Fields that are no options.
    """
    lines = [f"usage: {usage}", "", *textwrap.wrap(description, 100), ""]
    defaults = option_defaults(classes)
    for name, text in option_help(classes, hidden).items():
        default = defaults[name]
        shown = "" if default in (None, "") else f" (default: {default})"
        lines.append(f"  --{name}{shown}")
        lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def option_help(classes: Sequence[type], hidden: Iterable[str] = ()) -> dict[str, str]:
    """Every option and what it is for; of an option of several classes, what the first of them says."""
    known = hints_of(classes).keys() - set(hidden)
    texts: dict[str, str] = {}
    for cls in classes:
        for name, text in described(cls).items():
            texts.setdefault(name, text)
    return {name: text for name, text in texts.items() if name in known}


def option_defaults(classes: Sequence[type]) -> Mapping[str, Any]:
    """Every option's default."""
    return {field.name: field.default for cls in classes for field in fields(cls)}
