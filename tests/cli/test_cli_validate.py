import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROWS, conversational

from edit_trl.cli.main import main
from edit_trl.cli.validate import recipe_kind
from edit_trl.common.yaml_file import read_words
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import resolve_runs

ROOT = Path(__file__).parents[2]

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


def test_plain_rows_that_run_together_or_meet_a_chat_model_are_warned_of(files, saved_student, capfd):
    recipe, data = files
    joined = [row | {"prompt": row["prompt"].rstrip()} for row in ROWS]
    data.write_text("".join(json.dumps(row) + "\n" for row in joined))
    assert main(["validate", "--dataset", str(data)]) == 0
    output = capfd.readouterr().out
    beginning = f"{joined[0]['prompt'][-12:]}{joined[0]['chosen'][:12]}"
    assert f"warning: {data}: in 4 of 4 rows the chain follows the prompt without a space" in output
    assert repr(beginning) in output
    assert "chat model" not in output
    assert main(["validate", "--config", str(recipe), "--model_name_or_path", str(saved_student)]) == 0
    assert f"the rows are plain text, and {saved_student} is a chat model" in capfd.readouterr().out
    data.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS))
    assert main(["validate", "--config", str(recipe), "--model_name_or_path", str(saved_student)]) == 0
    assert "warning" not in capfd.readouterr().out


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


URL = "http://127.0.0.1:9/v1"
KINDS = {
    "generate": {"base_urls": [URL], "dataset_name": "q.jsonl"},
    "evaluate": {"base_urls": [URL], "tasks": ["t.yaml"], "history": None},
    "suite": {"base_urls": [URL], "tokenizer": "one", "dataset_name": "rows.jsonl", "history": None},
    "judge": {"base_urls": [URL], "runs": ["one", "two"]},
}


@pytest.fixture
def folder(files, monkeypatch):
    folder = files[0].parent
    monkeypatch.chdir(folder)
    (folder / "q.jsonl").write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}) + "\n")
    (folder / "t.yaml").write_text("dataset_name: q.jsonl\n")
    return folder


def validate(folder, kind, *words, **values) -> int:
    recipe = {"model": "m", "output_dir": "out"} | KINDS[kind] | values
    (folder / "r.yaml").write_text(json.dumps(recipe))
    return main(["validate", "--config", "r.yaml", *words])


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("generate", "1 questions, 0 exemplars; teacher 'm' (openai_compatible)"),
        ("evaluate", "1 questions of 1 tasks; model m"),
        ("suite", "4 dual CoTs of rows.jsonl; model m"),
    ],
)
def test_every_kind_of_recipe_is_checked(folder, capfd, kind, line):
    assert validate(folder, kind) == 0
    assert capfd.readouterr().out == f"r.yaml: a recipe of `edit-trl {kind}`\n{line}\nvalid\n"
    assert not (folder / "out").exists()


def test_a_recipe_of_judge_names_runs(folder, capfd):
    assert validate(folder, "judge") == 2
    errors = capfd.readouterr().err
    assert "one" in errors
    assert "two" in errors


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("generate", {"templates": {"5": "x"}}, "unknown template '5'"),
        ("generate", {"base_urls": ["http://[::1"]}, "base URL 'http://[::1' is not a URL"),
        ("generate", {"student": "s", "student_base_urls": ["x"]}, "base URL 'x' is not a URL"),
        ("generate", {"output_dir": "a\0b"}, "`output_dir: 'a\\x00b'`: a text cannot hold the character U+0000"),
        ("generate", {"dataset_config": ["a", ["b"]]}, "`dataset_config[1]: ['b']`: expected a text"),
        ("generate", {"seed": 2**63}, "`seed: 9223372036854775808`: is too large a number"),
        ("generate", {"seed": 2**53}, "`seed` must be from 0 to 9007199254740991, got 9007199254740992"),
        ("generate", {"timeout": "inf"}, "`timeout: 'inf'`: expected a number"),
        ("generate", {"wrong_share": -0.1}, "`wrong_share` must be from 0 to 1, got -0.1"),
        ("generate", {"rows": 5, "difficulty": 9}, "`difficulty` must be from 1 to 5, got 9"),
        ("generate", {"rows": 5}, "`rows`: for procedural problems, but `dataset_name` gives the questions"),
        ("evaluate", {"tasks": ["none"]}, "no task 'none'"),
        ("evaluate", {"tasks": [["t"]]}, "`tasks[0]: ['t']`: expected a text, got list"),
        ("evaluate", {"temperature": -1}, "`temperature` cannot be negative, got -1.0"),
        ("evaluate", {"load_in_4bit": True}, "`load_in_4bit` is for models that are loaded"),
        ("evaluate", {"base_urls": None, "timeout": 5}, "`timeout` is for a model behind an endpoint"),
        ("evaluate", {"base_urls": None, "model": "a/b/c"}, "`model: a/b/c`: no such folder"),
        ("evaluate", {"seed": -1}, "`seed` must be from 0 to 9007199254740991, got -1"),
        ("suite", {"tokenizer": None}, "`tokenizer` is missing"),
        ("suite", {"dataset_name": "none.jsonl"}, "no such file or folder: 'none.jsonl'"),
        ("suite", {"difficulty": 3}, "`families` and `difficulty` need `rows`"),
        ("suite", {"tokens": 3}, "unknown key `tokens`"),
        ("judge", {"runs": ["one"]}, "`runs` must name two or more runs"),
        ("judge", {"max_cost": "nan"}, "`max_cost: 'nan'`: expected a number"),
    ],
)
def test_what_a_command_refuses_is_refused(folder, capfd, kind, values, message):
    assert validate(folder, kind, **values) == 2
    assert message in capfd.readouterr().err
    assert main([kind, "--config", "r.yaml"]) == 2
    assert message in capfd.readouterr().err


def test_options_win_over_a_recipe_of_any_kind(folder, capfd):
    assert validate(folder, "evaluate", "--limit", "0") == 2
    assert "`limit` must be at least 1, got 0" in capfd.readouterr().err
    assert validate(folder, "evaluate", "--taks", "t") == 2
    assert "unknown option --taks; did you mean `--tasks`?" in capfd.readouterr().err


def test_the_kind_of_a_recipe(folder):
    assert recipe_kind({"dataset_name", "output_dir"}) == "train"
    assert recipe_kind({"model", "dataset_name", "learning_rate", "max_steps"}) == "train"
    assert recipe_kind({"stages", "dataset_name", "model"}) == "train"
    generate = [path for path in (ROOT / "recipes/generate").glob("*.yaml") if path.stem != "bbh_tasks"]
    evaluate = list((ROOT / "recipes/evaluate").glob("*.yaml"))
    train = [*(ROOT / "recipes").glob("*/edit/*.yaml"), ROOT / "recipes/quickstart/config.yaml"]
    kinds = dict.fromkeys(generate, "generate") | dict.fromkeys(train, "train")
    kinds |= {path: {"judge": "judge", "suite": "suite"}.get(path.stem.split("_")[0], "evaluate") for path in evaluate}
    assert {path: recipe_kind(read_words(path)) for path in kinds} == kinds


def test_a_key_given_twice(files, capfd):
    recipe, _ = files
    text = recipe.read_text().strip()
    recipe.write_text(f"{text}\nseed: 1\nseed: 2\n")
    for command in ("validate", "train", "evaluate", "generate", "suite", "judge"):
        assert main([command, "--config", str(recipe)]) == 2
        assert capfd.readouterr().err == f"error: {recipe}, line 11: 'seed' is given twice, first in line 10\n"
    recipe.write_text(text.replace("preference_weight: 0.0", "preference_weight: 0.0\n    preference_weight: 1.0"))
    assert main(["validate", "--config", str(recipe)]) == 2
    assert "'preference_weight' is given twice, first in line 8" in capfd.readouterr().err


def test_spelled_values_of_a_training_recipe(files, capfd):
    recipe, _ = files
    more = "eval_strategy: no\nsave_strategy: off\nlr_scheduler_type: cosine_with_min_lr\n"
    recipe.write_text(f"{recipe.read_text()}{more}lr_scheduler_kwargs: {{min_lr: 1e-6}}\n")
    assert main(["validate", "--config", str(recipe)]) == 2
    assert "off" in capfd.readouterr().err  # not a strategy, unlike no
    recipe.write_text(recipe.read_text().replace("save_strategy: off", "save_strategy: no"))
    run, *_ = resolve_runs(read_recipe(recipe), {})
    assert (run.training.eval_strategy, run.training.save_strategy) == ("no", "no")
    assert run.training.lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_a_training_recipe_is_no_pipe(files, capfd):
    recipe, _ = files
    read, write = os.pipe()
    os.write(write, recipe.read_bytes())
    os.close(write)
    assert main(["train", "--config", f"/dev/fd/{read}"]) == 2
    assert f"/dev/fd/{read} is a pipe or a device; training reads its recipe more than once" in capfd.readouterr().err
    os.close(read)


def test_a_dataset_whose_name_is_no_name(capsys):
    assert main(["validate", "--dataset", "rows\x1b[31m.jsonl"]) == 2
    captured = capsys.readouterr()
    assert "valid" not in captured.out
    assert "`dataset_name" in captured.err


def test_a_dataset_alone_is_checked_without_torch(files):
    program = (
        "import sys; from edit_trl.cli.main import main; "
        f"assert main(['validate', '--dataset', {str(files[1])!r}]) == 0; "
        "assert not {'torch', 'transformers', 'trl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
