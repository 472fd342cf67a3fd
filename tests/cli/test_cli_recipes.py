"""`edit-trl recipes`, and recipes found by name from any folder."""

from pathlib import Path

import pytest

from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.common.shipped import find_recipe, recipe_names, recipes_folder

ROOT = Path(__file__).parents[2] / "recipes"
LORA = "SmolLM2-135M-Instruct/edit/config_lora"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without any file."""
    monkeypatch.chdir(tmp_path)


def test_the_list_has_every_recipe_with_the_beginning_of_its_comment(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = [file.relative_to(ROOT).as_posix().removesuffix(".yaml") for file in ROOT.rglob("*.yaml")]
    assert [line.split()[0] for line in lines] == sorted(files) == recipe_names()
    (lora,) = [line for line in lines if line.startswith(f"{LORA} ")]
    assert lora.endswith("  EDIT on SmolLM2-135M-Instruct: LoRA")


def test_a_part_of_the_list(capsys):
    assert main(["recipes", "rounds"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"rounds/{name}" for name in ("dev", "own_mistakes", "rft", "rpo", "train")]


def test_show_prints_the_file(capsys):
    assert main(["recipes", "show", LORA]) == 0
    assert capsys.readouterr().out == (ROOT / f"{LORA}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [None, "mine.yaml", "new/folder/", "."])
def test_a_copy(file, capsys):
    assert main(["recipes", "copy", LORA, *([file] if file else [])]) == 0
    copy = Path(capsys.readouterr().out.strip())
    places = {None: "config_lora.yaml", "mine.yaml": "mine.yaml", "new/folder/": "new/folder/config_lora.yaml"}
    assert copy == Path(places.get(file, "config_lora.yaml"))
    assert copy.read_bytes() == (ROOT / f"{LORA}.yaml").read_bytes()


def test_a_copy_brings_the_files_that_the_recipe_names(capsys):
    assert main(["recipes", "copy", "generate/bbh", "mine/"]) == 0
    files = sorted(file.relative_to("mine").as_posix() for file in Path("mine").rglob("*.yaml"))
    assert files == ["bbh.yaml", "bbh_tasks.yaml", "exemplars/bbh.yaml"]


def test_a_copy_replaces_no_file(capsys):
    Path("mine").mkdir()
    Path("mine/bbh_tasks.yaml").write_text("own: text\n")
    assert main(["recipes", "copy", "generate/bbh", "mine/"]) == 2
    assert "error: mine/bbh_tasks.yaml would be replaced; name another file, or add --force" in capsys.readouterr().err
    assert [file.name for file in Path("mine").iterdir()] == ["bbh_tasks.yaml"]
    assert main(["recipes", "copy", "generate/bbh", "mine/", "--force"]) == 0
    assert Path("mine/bbh_tasks.yaml").read_bytes() == (ROOT / "generate/bbh_tasks.yaml").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["xyz"], "no recipe at xyz: no such file, and `edit-trl recipes` lists no such name"),
        (["show", "generate/gsm8"], "did you mean `generate/gsm8k`?"),
        (["show", "own_mistakes"], "did you mean `rounds/own_mistakes`?"),
        (["show", "../pyproject.toml"], "no recipe at ../pyproject.toml"),
        (["show"], "the following arguments are required: NAME"),
        (["copy", "a", "b", "c"], "unexpected 'c'"),
        (["--forse"], "unknown option --forse; did you mean `--force`?"),
    ],
)
def test_bad_names(words, message, capsys):
    assert main(["recipes", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [LORA, f"{LORA}.yaml", f"recipes/{LORA}.yaml"])
def test_a_recipe_is_found_by_name(name):
    assert Path(find_recipe(name)) == recipes_folder() / f"{LORA}.yaml"


def test_a_file_wins_over_a_name():
    Path("generate").mkdir()
    Path("generate/gsm8k").write_text("a: 1\n")
    assert find_recipe("generate/gsm8k") == "generate/gsm8k"


def test_commands_find_a_recipe_by_name(tmp_path, capsys):
    task = tmp_path / "own.yaml"
    task.write_text("tasks: procedural\nmodel: nowhere\n")
    assert main(["validate", "--config", "evaluate/procedural", "--model", "x"]) == 0
    assert main(["validate", "--config", "own.yaml"]) == 0  # the task by its name, beside a file of one's own
    assert main(["train", "--config", "SmolLM2-135M-Instruct/edit/config_lorra"]) == 2
    assert f"did you mean `{LORA}`?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "validate", "generate", "evaluate", "suite", "judge"])
def test_an_empty_name_is_no_recipe(command, capsys):
    """As of a variable of the shell that is not set."""
    assert main([command, "--config", ""]) == 2
    assert "no recipe at ''" in capsys.readouterr().err


def test_rounds_find_their_training_by_name(tmp_path):
    from edit_trl.teachers.generate_config import read_generate_config

    text = (ROOT / "rounds/own_mistakes.yaml").read_text(encoding="utf-8")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text.replace("train.yaml", "rounds/train").replace("rft.yaml", "rounds/rft"))
    found = read_generate_config(str(recipe), {}).arguments
    assert Path(found.train_recipe) == recipes_folder() / "rounds/train.yaml"
    assert Path(found.control_recipe) == recipes_folder() / "rounds/rft.yaml"
    recipe.write_text(text.replace("train.yaml", "rounds/trian"))
    with pytest.raises(InputError, match="did you mean `rounds/train`"):
        read_generate_config(str(recipe), {})
