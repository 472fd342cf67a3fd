"""The recipes that come with the package, found by name from any folder.

An installed package has them in `edit_trl/recipes`; in a clone, `recipes` stands beside `edit_trl`. The name of a
recipe is its path there without `.yaml`, such as `SmolLM2-135M-Instruct/edit/config_lora`.
"""

import difflib
import os
from pathlib import Path

import edit_trl
from edit_trl.common.errors import InputError

_SUFFIX = ".yaml"


def recipes_folder() -> Path:
    """The folder of the recipes that come with the package."""
    package = Path(edit_trl.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of all recipes, task files and accelerate configurations, sorted."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{_SUFFIX}"))


def find_recipe(name: str) -> str:
    """Find a recipe: a path, or the name of one that comes with the package. A path that exists wins.

    Returns:
        The path.

    Raises:
        InputError: There is neither; names the recipes that are nearest.
    """
    return name if os.path.lexists(name) else shipped_recipe(name)


def shipped_recipe(name: str) -> str:
    """Return the path of a recipe that comes with the package.

    Args:
        name: Its name; it may have the ending `.yaml` and, as in the documentation, `recipes/` before it.

    Raises:
        InputError: There is none; names the recipes that are nearest.
    """
    asked = Path(name).as_posix().removeprefix("recipes/").removesuffix(_SUFFIX)
    names = recipe_names()
    if asked in names:
        return str(recipes_folder() / f"{asked}{_SUFFIX}")
    shown, hint = name or repr(name), _hint(asked, names)
    raise InputError(f"no recipe at {shown}: no such file, and `edit-trl recipes` lists no such name{hint}")


def _hint(asked: str, names: list[str]) -> str:
    """Return a hint at the recipes that end with the name, or else at the most similar one; "" without either."""
    close = [name for name in names if name.endswith(f"/{asked}")][:3]
    close = close or difflib.get_close_matches(asked[:80], names, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ""
