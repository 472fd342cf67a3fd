import argparse
import json
from typing import get_args

import pytest

from edit_trl.common.errors import InputError
from edit_trl.training.recipe import option_table
from edit_trl.training.recipe.finished import find_finished
from edit_trl.training.recipe.option_table import read_options, read_table, refresh_table, table_file
from edit_trl.training.recipe.outline import Recipe, read_recipe
from edit_trl.training.recipe.resolving import all_names, make_parser, parse_options
from edit_trl.training.trainer_choice import TrainerName


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refresh_table(make_parser, all_names)
    return table_file()


WORDS = [
    [],
    ["--learning_rate", "1e-4", "--max-steps", "3"],
    ["--gradient_checkpointing", "--use_cpu", "false", "--dataset", "rows.jsonl", "--run_name", "none"],
    ["--lora_target_modules", "q_proj", "k_proj", "--view=chosen"],
    ["--no_dataloader_pin_memory"],
]
UNKNOWN = [
    ["--learnin_rate", "1"],
    ["--learnin_rate=1", "loose", "--beta", "0.1"],
    ["--warmup_ratio", "0.1", "--max_steps", "2"],
    ["--trainer", "dpo", "--preference_weight", "1"],
]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_options_are_read_as_by_the_parser_of_trl(words):
    assert read_options(words, Recipe(None, {})) == parse_options(words)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("words", UNKNOWN, ids=" ".join)
def test_unknown_options_have_the_same_message(words):
    with pytest.raises(InputError) as expected:
        parse_options(words)
    with pytest.raises(InputError) as error:
        read_options(words, Recipe(None, {}))
    assert str(error.value) == str(expected.value)


BAD = [["--max_steps", "many", "--learnin_rate", "1"], ["--max_steps"], ["--bf16", "perhaps"]]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_bad_values_are_left_to_the_parser_of_trl(words):
    assert read_options(words, Recipe(None, {})) is None


def break_off(text):
    return text[:100]


def of_others(text):
    return json.dumps(json.loads(text) | {"made_by": "another version"})


def without_a_trainer(text):
    values = json.loads(text)
    del values["options"]["dpo"]
    return json.dumps(values)


def of_another_form(text):
    values = json.loads(text)
    values["options"]["dual_cot"][0]["nargs"] = ["?"]
    return json.dumps(values)


@pytest.mark.parametrize("change", [break_off, of_others, without_a_trainer, of_another_form])
def test_a_stale_or_broken_table_is_not_used_and_made_anew(table, change):
    whole = table.read_text()
    assert read_table() is not None
    table.write_text(change(whole))
    assert read_table() is None
    assert read_options(["--learnin_rate", "1"], Recipe(None, {})) is None
    refresh_table(make_parser, all_names)
    assert table.read_text() == whole
    assert set(read_table().names) == {*get_args(TrainerName)}


def test_a_changed_source_makes_a_table_stale(table, monkeypatch):
    option_table._makers.cache_clear()
    monkeypatch.setattr(option_table, "PACKAGES", ("edit_trl",))
    assert read_table() is None
    option_table._makers.cache_clear()


def test_a_cache_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refresh_table(make_parser, all_names)
    assert read_options(["--max_steps", "3"], Recipe(None, {})) is None


RECIPE = """
model_name_or_path: some/student
dataset_name: rows.jsonl
output_dir: {folder}
learning_rate: 1e-4
bf16: false
eval_strategy: no
lora_target_modules: q_proj
seed: 3
"""
RECORDED = {
    "model_name_or_path": "some/student",
    "dataset_name": "rows.jsonl",
    "learning_rate": 0.0001,
    "bf16": False,
    "eval_strategy": "no",
    "lora_target_modules": ["q_proj"],
    "seed": 3,
}


@pytest.fixture
def finished(tmp_path):
    folder, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    folder.mkdir()
    recipe.write_text(RECIPE.format(folder=folder))
    options = RECORDED | {"output_dir": str(folder)}
    (folder / "run.json").write_text(json.dumps({"edit_trl": "0.1.0", "finished": "then", "options": options}))
    return recipe


def test_a_finished_run_is_known_by_its_options(finished):
    folder = finished.parent / "out"
    line = f"{folder} is finished (then), nothing to do"
    assert find_finished(read_recipe(finished), None, {}) == line
    assert find_finished(read_recipe(finished), None, {"seed": 3}) == line
    assert find_finished(read_recipe(finished), None, {"hub_token": "secret"}) == line
    assert find_finished(read_recipe(finished), "warm_up", {}) is None


@pytest.mark.parametrize("options", [{"seed": 4}, {"seed": True}, {"bf16": 0}, {"max_steps": 1}, {"trainer": "dpo"}])
def test_a_run_of_other_options_is_left_to_the_check_of_its_folder(finished, options):
    assert find_finished(read_recipe(finished), None, options) is None


@pytest.mark.parametrize("text", ["", "[]", '{"finished": 1}', '{"finished": null, "options": {}}'])
def test_an_unfinished_or_broken_record_is_no_finished_run(finished, text):
    (finished.parent / "out" / "run.json").write_text(text)
    assert find_finished(read_recipe(finished), None, {}) is None


def test_a_table_parser_has_the_options_of_the_parser_of_trl(table):
    flags = {flag for option in read_table().options["dual_cot"] for flag in option.flags}
    parser: argparse.ArgumentParser = make_parser()
    assert flags == {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
