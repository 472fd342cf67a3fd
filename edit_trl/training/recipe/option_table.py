"""A table of the options of recipes in the user's cache, to read a command line without importing TRL and torch.

A process that has imported TRL writes the table, and the next command reads it. It is JSON and is used only as long as
it was made by the same packages and the same sources of edit_trl. It answers only what is certain: where it is missing
or a value is of another kind, `edit_trl.training.recipe.resolving.parse_options` decides.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_args

from edit_trl.common.conversion import nearest
from edit_trl.common.errors import InputError
from edit_trl.common.files import content_hash, write_whole
from edit_trl.common.json_text import checker, read_json_file
from edit_trl.training.inherited_options import FORMER_NAMES
from edit_trl.training.recipe.outline import Recipe
from edit_trl.training.trainer_choice import TrainerName, trainers_named

PACKAGES = ("edit_trl", "trl", "transformers", "accelerate", "peft", "torch")
"""The packages that define options and their types."""


@dataclass(frozen=True)
class Option:
    """An option as `argparse` reads it.

    Attributes:
        flags: Its spellings, such as --learning_rate and --learning-rate.
        name: Its name.
        nargs: How many values it takes; 0 for a flag that means false.
        kind: What its values are, in `_READERS`; any other kind is not read by a table.
        has_none: Whether `none` and `null` are the value None.
    """

    flags: list[str]
    name: str
    nargs: str | int | None
    kind: str
    has_none: bool


@dataclass(frozen=True)
class OptionTable:
    """The options of every trainer.

    Attributes:
        made_by: A hash of the packages and sources that define the options.
        options: The options of a command line by trainer, in the order of TRL's parser.
        names: The names of all options by trainer.
    """

    made_by: str
    options: dict[str, list[Option]]
    names: dict[str, list[str]]


def table_file() -> Path:
    """Return the file of the table."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edit_trl" / "train_options.json"


def read_table() -> OptionTable | None:
    """Return the table; None if there is none, if it is broken, or if other packages or sources have made it."""
    try:
        values = read_json_file(table_file())
    except InputError:
        return None
    if checker(OptionTable)(values) is not None or values["made_by"] != _makers():
        return None
    if not values["options"].keys() == values["names"].keys() == {*get_args(TrainerName)}:
        return None
    options = {trainer: [Option(**option) for option in listed] for trainer, listed in values["options"].items()}
    return OptionTable(values["made_by"], options, values["names"])


def refresh_table(
    make_parser: Callable[..., argparse.ArgumentParser], all_names: Callable[[], Mapping[str, Sequence[str]]]
) -> None:
    """Write the table anew if `read_table` finds none.

    Args:
        make_parser: Returns the parser of the options of these `trainers`.
        all_names: Returns the names of all options by trainer.
    """
    if read_table() is not None:
        return
    trainers: tuple[TrainerName, ...] = get_args(TrainerName)
    options: dict[str, list[Option]] = {t: _options_of(make_parser(trainers=[t])) for t in trainers}
    table = OptionTable(_makers(), options, {trainer: [*names] for trainer, names in all_names().items()})
    with suppress(OSError):  # a home that cannot be written to: the next command is as slow as this one
        write_whole(table_file(), json.dumps(asdict(table)))


def read_options(argv: Sequence[str], recipe: Recipe) -> dict[str, Any] | None:
    """Return the values of options by name, as `parse_options` does; None where only that function can tell.

    Raises:
        InputError: An option does not exist; names the nearest one.
    """
    table = read_table() if argv else None
    if table is None:
        return None if argv else {}
    trainers = trainers_of(recipe, argv)
    parser, not_given = _TableParser(allow_abbrev=False, conflict_handler="resolve"), object()
    for trainer in trainers:
        for option in table.options[trainer]:
            parser.add(option)
    parser.set_defaults(**{name: not_given for trainer in trainers for name in table.names[trainer]})
    try:
        namespace, unknown = parser.parse_known_args(list(argv))
    except _NotCertain:
        return None
    refuse_unknown(unknown, trainers, table.names)
    return {name: value for name, value in vars(namespace).items() if value is not not_given}


def trainers_of(recipe: Recipe, argv: Sequence[str]) -> list[TrainerName]:
    """Return the trainers of a recipe's stages; the command line's `--trainer` wins."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trainer")
    trainer = parser.parse_known_args(list(argv))[0].trainer
    if trainer is not None:
        return trainers_named([trainer])
    return trainers_named(({**recipe.values, **stage}).get("trainer") for _, stage in recipe.runs)


def refuse_unknown(words: Sequence[str], trainers: Sequence[TrainerName], names: Mapping[str, Collection[str]]) -> None:
    """Refuse the words of a command line that belong to no option.

    Args:
        words: The words.
        trainers: The trainers of the recipe.
        names: The names of the options of every trainer.

    Raises:
        InputError: There are such words; names the nearest option of each.
    """
    problems = [
        f"unknown option {word}{meant(word.split('=')[0].lstrip('-'), trainers, names, '--')}"
        if word.startswith("-")
        else f"unexpected {word!r}"
        for word in words
        # The value after an unknown option is not a problem of its own.
        if word.startswith("-") or not words[words.index(word) - 1].startswith("-")
    ]
    if problems:
        raise InputError(problems)


def meant(name: str, trainers: Sequence[TrainerName], names: Mapping[str, Collection[str]], prefix: str = "") -> str:
    """Return a hint at the trainers that have an unknown option, and at the option that was probably meant."""
    if name in FORMER_NAMES:
        return f"; {FORMER_NAMES[name]}"
    others = " and ".join(trainer for trainer in names if name in names[trainer] and trainer not in trainers)
    elsewhere = f": it is an option of the trainer {others}, not of {' or '.join(trainers)}" if others else ""
    return elsewhere + nearest(name, {own for trainer in trainers for own in names[trainer]}, prefix)


class _NotCertain(Exception):
    """The command line has a value that the table cannot read, or that is wrong."""


class _TableParser(argparse.ArgumentParser):
    def add(self, option: Option) -> None:
        if option.nargs == 0:
            self.add_argument(*option.flags, dest=option.name, action="store_false")
            return
        constant: dict[str, Any] = {"const": True} if option.nargs == "?" else {}
        read = functools.partial(_read, option.kind, option.has_none)
        self.add_argument(*option.flags, dest=option.name, nargs=option.nargs, type=read, **constant)

    def error(self, message: str) -> NoReturn:
        raise _NotCertain(message)


_BOOLEANS = dict.fromkeys(("yes", "true", "t", "y", "1"), True) | dict.fromkeys(("no", "false", "f", "n", "0"), False)
_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "string_to_bool": lambda text: _BOOLEANS[text.lower()],
    "choice": str,
}


def _read(kind: str, has_none: bool, text: str) -> Any:
    if has_none and text.lower() in ("none", "null"):
        return None
    try:
        return _READERS[kind](text)
    except (LookupError, ValueError):
        raise _NotCertain from None


def _options_of(parser: argparse.ArgumentParser) -> list[Option]:
    return [
        Option(
            list(action.option_strings),
            action.dest,
            action.nargs,
            "choice" if action.choices is not None else getattr(action.type, "__name__", ""),
            "_accept_none" in getattr(action.type, "__qualname__", ""),
        )
        for action in parser._actions
        if action.dest != "help"
    ]


@functools.cache
def _makers() -> str:
    """Return a hash of what defines options: the packages, and our sources, which change without a version."""
    folder = Path(__file__).parents[2]
    files = [(str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*.py"))]
    sources = [(name, state.st_size, state.st_mtime_ns) for name, state in files]
    return content_hash([sys.version, str(folder), [version(package) for package in PACKAGES], sources])
