"""`edit-trl train --help`: the options of edit_trl, read from the source of their classes.

Importing the classes would import TRL and torch, which takes several seconds.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

TRAINING = Path(__file__).parents[1] / "training"
GROUPS = {
    "data": (TRAINING / "recipe" / "data_arguments.py", "DataArguments"),
    "DualCoTTrainer": (TRAINING / "config.py", "DualCoTConfig"),
}
OTHERS = """\
A recipe may also set every option of TRL's SFTConfig and ModelConfig and of transformers' TrainingArguments
(learning_rate, num_train_epochs, use_peft): see huggingface.co/docs/trl or `edit-trl train --help-all`."""


class Option(NamedTuple):
    """A field of an option class: its name, its default and its `metadata["help"]`."""

    name: str
    default: Any
    help: str


def own_options(file: Path, class_name: str) -> Iterator[Option]:
    """Yield the fields that a dataclass itself defines, without those of its bases.

    The fields are all `field(default=..., metadata={"help": ...})`.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    [cls] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and isinstance(node.target, ast.Name):
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.value.keywords}
            yield Option(node.target.id, arguments["default"], arguments["metadata"]["help"])


def short_help(parser: argparse.ArgumentParser) -> str:
    """Return the help of a parser and of edit_trl's own options, which are added to the parser."""
    for title, source in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, default, text in own_options(*source):
            suffix = "" if default is None else f" (default: {default})"
            # For printing alone: `store_true` prints no placeholder for a value.
            group.add_argument(f"--{name}", action="store_true", help=f"{text}{suffix}".replace("%", "%%"))
    return f"{parser.format_help()}\n{OTHERS}"


def full_help(parser: argparse.ArgumentParser) -> str:
    """Return the help of a parser and of the options of every trainer."""
    from edit_trl.training.recipe.resolving import make_parser
    from edit_trl.training.trainer_choice import TrainerName

    options = make_parser("edit-trl train", get_args(TrainerName)).format_help()
    return f"{parser.format_help()}\nEvery option of a recipe, here as --key value:\n\n{options}"
