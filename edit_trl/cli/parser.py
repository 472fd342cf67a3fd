"""The parser of the command lines that hold no options of a recipe."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from edit_trl.common.conversion import natural, nearest
from edit_trl.common.errors import InputError, show
from edit_trl.common.shipped import find_recipe


def read_values(text: str, option: str) -> dict[str, Any]:
    """Read a mapping of any values from the command line, such as {"enable_thinking": false}.

    Raises:
        InputError: It is none.
    """
    from edit_trl.common.yaml_file import parse_yaml

    values = parse_yaml(text, option)
    if not isinstance(values, dict):
        raise InputError(f"{option} must be a mapping, such as '{{\"enable_thinking\": false}}', got {show(text)}")
    return natural(values)


class RecipeAction(argparse.Action):
    """Takes the path or the name of a recipe, and keeps the path; see `edit_trl.common.shipped.find_recipe`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, name: Any, _: Any = None
    ) -> None:
        setattr(namespace, self.dest, find_recipe(name))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are sentences, as those of recipes are, and which names the nearest option.

    Raises:
        InputError: By `parse_args`: an argument is missing, unknown or of another type.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise an error of the command line."""
        raise InputError(f"{message[:300]} (see `{self.prog} --help`)")

    # type: typeshed gives the method overloads, for namespaces of other types, of which nothing here makes use.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse the whole command line."""
        options, unknown = self.parse_known_args(args, namespace)
        names = [name.lstrip("-") for action in self._actions for name in action.option_strings]
        problems = [
            f"unknown option {word[:80]}{nearest(word.split('=')[0].lstrip('-'), names, '--')}"
            if word.startswith("-")
            else f"unexpected {word[:80]!r}"
            for word in unknown
        ]
        if problems:
            raise InputError(problems)
        return options
