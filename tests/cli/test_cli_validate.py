import json

import pytest
from conftest import ROWS

from edit_trl.cli.main import main

RECIPE = """
model_name_or_path: never/loaded
dataset_name: {data}
output_dir: {output}
use_cpu: true
bf16: false
stages:
  - name: warm_up
    preference_weight: 0.0
  - name: key_steps
"""


@pytest.fixture
def files(tmp_path):
    data, recipe = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe.write_text(RECIPE.format(data=data, output=tmp_path / "out"))
    return recipe, data


def test_valid(files, capfd, tmp_path):
    recipe, data = files
    assert main(["validate", "--config", str(recipe)]) == 0
    output = capfd.readouterr().out
    assert f"{data}: 4 dual CoTs" in output
    assert f"stage key_steps -> {tmp_path / 'out' / 'key_steps'}" in output
    assert output.endswith("valid\n")
    assert not (tmp_path / "out").exists()


def test_recipe_and_dataset_problems_at_once(files, capfd):
    recipe, data = files
    recipe.write_text(recipe.read_text().replace("use_cpu", "use_cup") + "    rejected_key_weight: -1\n")
    data.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | {"rejected": ROWS[1]["chosen"]}) + "\n")
    assert main(["validate", "--config", str(recipe)]) == 2
    errors = capfd.readouterr().err
    assert "unknown key `use_cup`; did you mean `use_cpu`?" in errors
    assert "`rejected_key_weight` must be a finite number" in errors
    assert "row 2" in errors


def test_dataset_alone(files, capfd):
    assert main(["validate", "--dataset", str(files[1])]) == 0
    assert "4 dual CoTs" in capfd.readouterr().out
    assert main(["validate", "--dataset", str(files[1]) + "x.jsonl"]) == 2


def test_column_mapping(files, capfd):
    recipe, data = files
    rows = [{"question": r["prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in ROWS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["validate", "--config", str(recipe)]) == 2
    assert '{"question": "prompt"}' in capfd.readouterr().err
    assert main(["validate", "--config", str(recipe), "--column_mapping", '{"question": "prompt"}']) == 0


def test_options_of_the_recipe_are_checked_too(files, capfd):
    assert main(["validate", "--config", str(files[0]), "--max_key_fraction", "3"]) == 2
    assert "`max_key_fraction` must be above 0 and at most 1, got 3.0" in capfd.readouterr().err


def test_nothing_to_check(capfd):
    assert main(["validate"]) == 2
    assert "nothing to check" in capfd.readouterr().err
