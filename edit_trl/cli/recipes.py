"""`edit-trl recipes`: the recipes that come with the package."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edit_trl.cli.parser import Parser
from edit_trl.common.errors import InputError
from edit_trl.common.files import check_writable, replacing
from edit_trl.common.shipped import recipe_names, recipes_folder, shipped_recipe

USAGE = """\
edit-trl recipes [PART]            list the recipes whose name starts with PART
       edit-trl recipes show NAME         print a recipe
       edit-trl recipes copy NAME [FILE]  copy a recipe, to change it"""


def main(argv: list[str] | None = None) -> int:
    """List, show or copy recipes; `argv` is the options, those of the process by default.

    Raises:
        InputError: There is no such recipe, or the copy would replace a file.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["show"]:
        print(Path(shipped_recipe(_parser("show").parse_args(argv[1:]).name)).read_text(encoding="utf-8"), end="")
    elif argv[:1] == ["copy"]:
        options = _parser("copy").parse_args(argv[1:])
        _copy(options.name, options.file, force=options.force)
    else:
        _list(_parser().parse_args(argv).part)
    return 0


def _parser(action: str | None = None) -> Parser:
    parser = Parser(
        prog="edit-trl recipes",
        usage=USAGE,
        description="The recipes that come with the package. Every command finds them by name: "
        "edit-trl train --config SmolLM2-135M-Instruct/edit/config_lora",
    )
    if action is None:
        parser.add_argument("part", nargs="?", default="", metavar="PART", help="the beginning of names")
    else:
        parser.add_argument("name", metavar="NAME", help="the name of a recipe")
    if action in (None, "copy"):  # also in the help of the list
        parser.add_argument("--force", action="store_true", help="copy: replace files that exist")
    if action == "copy":
        parser.add_argument("file", nargs="?", metavar="FILE", help="the copy (default: the recipe's file name)")
    return parser


def _list(part: str) -> None:
    names = [name for name in recipe_names() if name.startswith(part.removeprefix("recipes/"))]
    if not names:
        shipped_recipe(part)  # raises: names the nearest
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {_title(recipes_folder() / f'{name}.yaml')}".rstrip())


def _title(path: Path, most: int = 100) -> str:
    """The first sentence of the comment at the head of a recipe."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:])
    sentence = " ".join(lines).split(". ")[0].removesuffix(".")
    return sentence if len(sentence) <= most else f"{sentence[: most - 1]}…"


def _copy(name: str, file: str | None, *, force: bool) -> None:
    """Copy a recipe and the files that it names beside itself, such as worked examples."""
    source = Path(shipped_recipe(name))
    target = Path(file or source.name)
    if target.is_dir() or (file and file.endswith("/")):
        target /= source.name
    copies = {source: target} | {path: target.parent / path.relative_to(source.parent) for path in _beside(source)}
    existing = [str(path) for path in copies.values() if path.exists()]
    if existing and not force:
        raise InputError(f"{', '.join(existing)} would be replaced; name another file, or add --force")
    for path in copies.values():
        check_writable(path)
    for path, copy in copies.items():
        with replacing(copy) as draft:
            shutil.copyfile(path, draft)
        print(copy)


def _beside(source: Path) -> Iterator[Path]:
    """The files that a recipe names by their path from its own folder."""
    from edit_trl.common.yaml_file import read_yaml

    for text in _texts(read_yaml(source)):
        path = source.parent / text
        if path.is_file() and path != source:
            yield path


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and value:
        yield value
