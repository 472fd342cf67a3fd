"""A command that reads a recipe, and that is run again after an interruption."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edit_trl.common.options import build_options, format_help, hints_of, read_options
from edit_trl.common.shipped import find_recipe
from edit_trl.models.chat.dispatch import Interrupted


@dataclass(frozen=True)
class RecipeOptions:
    """The options of a command with a recipe, and what checks them.

    Attributes:
        classes: The dataclasses of the options.
        check: Takes an object of each class and the folder of the recipe, reads everything that they name without
            asking or loading a model, and returns a line about it.
        hidden: Fields of the classes that are not options.
    """

    classes: Sequence[type]
    check: Callable[..., str]
    hidden: Collection[str] = ()

    @property
    def names(self) -> set[str]:
        """The names of the options."""
        return hints_of(self.classes).keys() - set(self.hidden)

    def build(self, path: str | None, options: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> list[Any]:
        """Return what `check` takes; see `edit_trl.common.options.build_options`."""
        path = None if path is None else find_recipe(path)
        built = build_options(path, options, self.classes, self.hidden, recipe)
        return [*built, Path(path).parent if path else Path()]


def run_recipe(
    command: str,
    argv: Sequence[str] | None,
    description: str,
    options: RecipeOptions,
    run: Callable[..., None],
    epilog: Callable[[], str] | None = None,
) -> int:
    """Read the options of a command and run it.

    Args:
        command: The name of the command.
        argv: `--config RECIPE` and `--option value`, which overrides the recipe; those of the process if None.
        description: What `--help` prints before the options.
        options: The options of the command.
        run: Takes an object of each class, and the folder of the recipe (the working directory without one).
        epilog: Returns what `--help` prints after the options.

    Returns:
        The exit code; 130 after an interruption.

    Raises:
        InputError: Anything wrong with the options; also raised by `run`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        usage = f"edit-trl {command} [--config RECIPE.yaml] [--OPTION VALUE ...]"
        print(format_help(usage, description, options.classes, options.hidden))
        if epilog is not None:
            print(f"\n{epilog()}")
        return 0
    built = options.build(*read_options(argv, options.names))
    try:
        run(*built)
    except Interrupted as interruption:
        print(f"{interruption}:\n  {shlex.join(['edit-trl', command, *argv])}", file=sys.stderr)
        return 130
    return 0
