"""`env` in a recipe: environment variables, which are set before anything that reads them is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edit_trl.common.conversion import convert
from edit_trl.common.errors import InputError
from edit_trl.common.yaml_file import read_words

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD)S?$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s]*:[^/\s]*@")
_NAME = re.compile(r"[^=\0]+")
# Each launched process has its own; the recipe would give all of them the same.
_OF_THE_LAUNCHER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def read_recipe_words(path: str | Path, *, again: bool = False) -> dict[str, Any]:
    """Read a recipe and set the environment variables of its `env`, as TRL's parser does.

    Libraries such as torch read some variables when they are imported, so commands call this before.

    Args:
        path: The recipe.
        again: Whether other processes will read the file again.

    Returns:
        The other options, as `edit_trl.common.yaml_file.read_words` returns them.

    Raises:
        InputError: See `read_words` and `take_environment`.
    """
    values = read_words(path, again=again)
    os.environ.update(take_environment(values, str(path)))
    return values


def take_environment(values: dict[str, Any], source: str) -> dict[str, str]:
    """Remove `env` from the options of a recipe and return its variables as texts.

    Args:
        values: The options, from which `env` is removed.
        source: The recipe, for messages.

    Raises:
        InputError: `env` is not a mapping of texts, sets a variable of the launcher, or holds a secret.
    """
    if "env" not in values:
        return {}
    env = values.pop("env")
    secret = []
    if isinstance(env, dict):
        secret = [name for name, value in env.items() if _is_secret(str(name), value)]
        env = {name: value for name, value in env.items() if name not in secret}
    variables, problems = convert({"env": env}, {"env": dict[str, str]})
    problems += [
        f"`env`: {name} looks like a secret, and a recipe is a file that is shared; remove it and export it "
        "in the shell before you start"
        for name in secret
    ]
    names = variables.get("env", {})
    problems += [f"`env`: {name!r} is no name of a variable" for name in names if not _NAME.fullmatch(name)]
    problems += [f"`env`: {name} is set by the launcher; remove it" for name in names if name in _OF_THE_LAUNCHER]
    if problems:
        raise InputError([f"{source}: {problem}" for problem in problems])
    return names


def _is_secret(name: str, value: Any) -> bool:
    return bool(_SECRET_NAME.search(name) or (isinstance(value, str) and _SECRET_VALUE.search(value)))
