"""A trained run, and `edit-trl push` on it."""

import json

import pytest
import yaml
from conftest import ROWS, byte_level_tokenizer, conversational, tiny_llama
from train_recipe_runs import RECIPE, stage

from edit_trl.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both stages of a recipe, trained once for this module."""
    folder = tmp_path_factory.mktemp("run")
    tiny_llama().save_pretrained(folder / "student")
    byte_level_tokenizer().save_pretrained(folder / "student")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(student=folder / "student", data=data, output=folder / "out"))
    options = ("--save_strategy", "steps", "--save_steps", "1")
    assert stage(path, "warm_up", *options) == 0
    assert stage(path, "key_steps", *options) == 0
    return folder


def push(*argv) -> int:
    return main(["push", *map(str, argv)])


def metadata(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---\n")[1])
