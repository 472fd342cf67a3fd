"""A command that reads a recipe, and that is run again after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edit_trl.common.options import build_options, format_help, hints_of, read_options
from edit_trl.models.chat.dispatch import Interrupted


def run_recipe(
    command: str,
    argv: Sequence[str] | None,
    description: str,
    classes: Sequence[type],
    run: Callable[..., None],
    hidden: Sequence[str] = (),
) -> int:
    """Read the options of a command and run it.

    Args:
        command: The name of the command.
        argv: `--config RECIPE` and `--option value`, which overrides the recipe; those of the process if None.
        description: What `--help` prints before the options.
        classes: The dataclasses of the options.
        run: Takes an object of each class, and the folder of the recipe (the working directory without one).
        hidden: Fields of the classes that are not options.

    Returns:
        The exit code; 130 after an interruption.

    Raises:
        InputError: Anything wrong with the options; also raised by `run`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        usage = f"edit-trl {command} [--config RECIPE.yaml] [--OPTION VALUE ...]"
        print(format_help(usage, description, classes, hidden))
        return 0
    path, options = read_options(argv, hints_of(classes).keys() - set(hidden))
    built = build_options(path, options, classes, hidden)
    try:
        run(*built, Path(path).parent if path else Path())
    except Interrupted as interruption:
        print(f"{interruption}:\n  edit-trl {command} {' '.join(argv)}", file=sys.stderr)
        return 130
    return 0
