"""Options of commands as dataclasses, read from a recipe and the command line.

`train` parses its options with TRL's parser; every other command with a recipe uses these functions.
"""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from edit_trl.common.conversion import Word, convert, nearest
from edit_trl.common.errors import InputError, collect_problems, raise_problems, show

# --- Reading ---------------------------------------------------------------------------------


def read_options(
    argv: Sequence[str], names: Iterable[str], flags: Collection[str] = ()
) -> tuple[str | None, dict[str, Any]]:
    """Split a command line into `--config PATH` and the other options, with values read as in YAML.

    Args:
        argv: The command's arguments.
        names: The names of its options.
        flags: Options that are true if no value follows.

    Returns:
        The path or name of the recipe (see `edit_trl.common.shipped.find_recipe`), or None, and the values by name.

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
    problems += [f"--{name} needs a value" for name, words in given.items() if not words and name in {*names, "config"}]
    if problems:
        raise InputError(problems)
    config = given.pop("config", [])
    if len(config) > 1:
        raise InputError(f"--config takes one file, got {' '.join(config)}")
    return (config[0] if config else None), {name: _parse_words(name, words) for name, words in given.items()}


def _parse_words(name: str, words: list[str]) -> Any:
    """Return the word, or the list of several; parse lists, mappings and null as YAML."""
    if len(words) > 1:
        return [Word(word) for word in words]
    (word,) = words
    if word[:1] in ("{", "["):
        from edit_trl.common.yaml_file import parse_yaml

        return parse_yaml(word, f"--{name} {show(word)}")
    return None if word == "null" else Word(word)


def read_mapping(mapping: Any, option: str) -> dict[str, str]:
    """Read a mapping of texts, which an option may hold as JSON, such as `column_mapping`.

    Raises:
        InputError: It is none.
    """
    from edit_trl.common.yaml_file import parse_yaml

    values: dict[str, Any] = {}
    problems: list[str] = []
    with collect_problems(problems):
        value = parse_yaml(mapping, option) if isinstance(mapping, str) else mapping
        values, problems = convert({option: value}, {option: dict[str, str]})
    raise_problems(f'{problem}; write it as {{"theirs": "ours"}}' for problem in problems)
    return values[option]


@overload
def find_beside(path: str, folder: Path) -> str: ...
@overload
def find_beside(path: None, folder: Path) -> None: ...
@overload
def find_beside(path: str | None, folder: Path) -> str | None: ...
def find_beside(path: str | None, folder: Path) -> str | None:
    """Look up a path of a recipe in the working directory, then in the recipe's `folder`.

    A Hub id, None and a path that does not exist are returned unchanged.
    """
    if path is None or Path(path).exists() or not (folder / path).exists():
        return path
    return str(folder / path)


# --- Converting and building -----------------------------------------------------------------


class Options:
    """Base of a dataclass of options, which checks their types and then their values, in Python as in a recipe.

    Numbers that are written as texts become numbers, and a text a list of one, where the field's type says so.

    Raises:
        InputError: Everything that is wrong.
    """

    def __post_init__(self) -> None:
        hints = hints_of([type(self)])
        values, problems = convert({name: getattr(self, name) for name in hints}, hints)
        raise_problems(problems)
        for name, value in values.items():
            if value != getattr(self, name):  # a whole number of a float stays as it is, as in records of earlier runs
                object.__setattr__(self, name, value)
        raise_problems(self.errors())

    def errors(self) -> Iterator[str]:
        """Yield a message for each thing that is wrong with the values."""
        yield from ()


def build_options(
    path: str | None,
    options: Mapping[str, Any],
    classes: Sequence[type],
    hidden: Iterable[str] = (),
    recipe: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Build one object of each class from a recipe and from options that override it.

    Args:
        path: A YAML file, whose `env` is set; None for options alone.
        options: Values by name, from `read_options`.
        classes: Dataclasses whose checks raise InputError.
        hidden: Fields that are not options.
        recipe: The values of the file, if it was read before.

    Raises:
        InputError: Every error of the recipe and the options at once.
    """
    from edit_trl.common.environment import read_recipe_words

    recipe = read_recipe_words(path) if path and recipe is None else recipe or {}
    hints = {name: hint for name, hint in hints_of(classes).items() if name not in set(hidden)}
    values, problems = convert({**recipe, **options}, hints)
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
    wrong = {match[1] for problem in problems if (match := re.match(r"`(\w+)", problem))}
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            built.append(cls(**{name: value for name, value in values.items() if name in names}))
        except InputError as error:
            # An option of another type was left out, and is not missing.
            missing = [re.match(r"`(\w+)` is missing", problem) for problem in error.problems]
            problems += [
                problem
                for problem, match in zip(error.problems, missing, strict=True)
                if not match or match[1] not in wrong
            ]
    if problems:
        raise InputError(problems, heading=heading)
    return built


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
