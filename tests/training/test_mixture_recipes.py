"""`datasets` in a recipe: from its options to trained stages, their cards and their resumption."""

import json

import pytest
import yaml
from conftest import ROWS, conversational
from datasets import Dataset, DatasetDict
from train_recipe_runs import run_file, stage

from edit_trl import train_recipe
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.data.mixture import Mixture
from edit_trl.hub.recipe_file import recipe_text
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import parse_options, resolve_runs

OTHERS = [
    conversational(row | {"id": f"more {row['id']}", "prompt": f"Think. {row['prompt']}"}) | {"rating": 5}
    for row in ROWS
]


@pytest.fixture
def mixed(recipe, tmp_path):
    """The recipe of two stages, on a mixture of two files."""
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OTHERS))
    entries = [{"path": str(tmp_path / name), "fraction": 0.5} for name in ("rows.jsonl", "others.jsonl")]
    text = recipe.read_text().replace(f"dataset_name: {tmp_path}/rows.jsonl", f"datasets: {json.dumps(entries)}")
    recipe.write_text(text.replace("use_cpu", "test_split_size: 2\nuse_cpu"))
    return recipe


def problems(recipe, *argv: str, **options) -> list[str]:
    outline = read_recipe(recipe)
    with pytest.raises(InputError) as caught:
        resolve_runs(outline, parse_options(argv, outline) | options)
    return caught.value.problems


def change(recipe, **options) -> None:
    values = yaml.safe_load(recipe.read_text()) | options
    recipe.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))


def test_both_stages_train_on_the_mixture_and_evaluate_on_held_out_rows(mixed, tmp_path):
    folder = train_recipe(mixed, eval_strategy="epoch")
    for name in ("warm_up", "key_steps"):
        facts = json.loads((tmp_path / "out" / name / "card.json").read_text())["stages"][-1]
        assert facts["rows"]["train"].startswith("6 of 6 pairs kept")
        assert facts["rows"]["eval"].startswith("2 of 2 pairs kept")
        assert facts["dataset"] == [str(tmp_path / "rows.jsonl"), str(tmp_path / "others.jsonl")]
        assert "eval_loss" in run_file(tmp_path / "out" / name)["results"]
    card = (folder / "README.md").read_text()
    assert card.count("| `rows.jsonl`, `others.jsonl` | train |") == 2
    train, evaluated = (
        set(map(str, part.load()["prompt"]))
        for run in resolve_runs(read_recipe(mixed), {})[:1]
        for part in (run.data.train_source, run.data.eval_source)
    )
    assert (len(train), len(evaluated), train & evaluated) == (6, 2, set())


def test_a_run_is_the_same_run_when_it_is_started_again(mixed, tmp_path, capfd):
    as_json = json.dumps(yaml.safe_load(mixed.read_text())["datasets"])
    options = ("--save_strategy", "steps", "--save_steps", "1")
    assert stage(mixed, "warm_up", *options) == 0
    state = run_file(tmp_path / "out" / "warm_up")
    assert state["options"]["datasets"][0] == {"path": str(tmp_path / "rows.jsonl"), "fraction": 0.5}
    (tmp_path / "out" / "warm_up" / "run.json").write_text(json.dumps(state | {"finished": None}))
    assert stage(mixed, "warm_up", *options, "--datasets", as_json) == 0
    assert "Resuming from" in capfd.readouterr().out
    assert stage(mixed, "warm_up", *options, "--datasets", as_json.replace("0.5", "0.25", 1)) == 2
    assert "another run (datasets: " in capfd.readouterr().err


def test_datasets_on_the_command_line(recipe, tmp_path):
    path = str(tmp_path / "rows.jsonl")
    for words in (["--datasets", json.dumps([{"path": path}])], [f"--datasets=[{{path: {path}}}]"]):
        run = resolve_runs(read_recipe(recipe), parse_options(words))[0]
        assert run.data.dataset_name is None
        assert run.values["datasets"] == [{"path": path}]
        assert len(run.data.train_source.load()) == 4
    assert train_recipe(recipe, stage="warm_up", max_steps=1, datasets=[{"path": path}]).is_dir()


def test_a_stage_or_an_option_that_names_a_dataset_replaces_the_mixture(mixed, tmp_path):
    rows = tmp_path / "rows.jsonl"
    mixed.write_text(mixed.read_text() + f"    dataset_name: {rows}\n")
    warm_up, key_steps = resolve_runs(read_recipe(mixed), {})
    assert isinstance(warm_up.data.train_source, Mixture)
    assert key_steps.data.train_source.name == str(rows)
    assert "test_split_size" not in key_steps.values
    for run in resolve_runs(read_recipe(mixed), parse_options(["--dataset", "others.jsonl"])):
        assert run.data.train_source.name == "others.jsonl"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": "a.jsonl"}, "`dataset_name` would have no effect beside `datasets`"),
        ({"dataset_train_split": "a", "dataset_config": "b"}, "`dataset_config`, `dataset_train_split` would have no"),
        ({"test_split_size": 1.5}, "`test_split_size` must be a share below 1 or a whole number of rows, got 1.5"),
        ({"test_split_size": 0}, "`test_split_size` must be a share below 1 or a whole number of rows, got 0"),
        ({"test_split_size": "half"}, "`test_split_size: 'half'`: expected a number"),
        ({"eval_dataset_name": "a.jsonl"}, "`test_split_size` and `eval_dataset_name` both name the rows to evaluate"),
        (
            {"datasets": None, "dataset_name": "a"},
            "`test_split_size` is for a mixture; write `datasets: [{path: ...}]`",
        ),
        ({"datasets": "a.jsonl"}, "`datasets` must be a list of datasets, each with a `path`"),
        ({"datasets": []}, "`datasets` must be a list of datasets"),
        ({"datasets": [{"path": "a", "fraction": "x"}]}, "`datasets[0]`: `fraction: 'x'`: expected a number"),
        ({"streaming": True}, "unknown key `streaming`; remove it: key steps are found before training"),
        (
            {"dataset_streaming": True},
            "unknown key `dataset_streaming`; remove it: key steps are found before training",
        ),
        (
            {"eval_strategy": "epoch", "test_split_size": None},
            "rows.jsonl is a file, which has no other split; set `test",
        ),
    ],
)
def test_what_a_mixture_refuses(mixed, options, message):
    change(mixed, **options)
    [problem] = problems(mixed)
    assert message in problem


def test_the_test_split_of_every_dataset(mixed, tmp_path):
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in map(conversational, ROWS)]
    splits = {"train": Dataset.from_list(rows[:2]), "test": Dataset.from_list(rows[2:])}
    for name in ("one", "two"):
        DatasetDict(splits).save_to_disk(tmp_path / name)
    entries = [{"path": str(tmp_path / name), "fraction": 0.1} for name in ("one", "two")]
    change(mixed, datasets=entries, test_split_size=None, eval_strategy="epoch")
    data = resolve_runs(read_recipe(mixed), {})[0].data
    assert (len(data.load_train_rows(0)), len(data.load_eval_rows())) == (4, 4)
    assert data.load_eval_rows()["prompt"][:] == [row["prompt"] for row in rows[2:]] * 2
    (tmp_path / "two" / "test").rename(tmp_path / "gone")
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match=f"{tmp_path}/two: no split 'test'; choose the split from: train"):
        data.load_eval_rows()


def test_columns_are_mapped_as_the_recipe_or_the_dataset_says(mixed, tmp_path):
    for name, prompt in (("rows.jsonl", "question"), ("others.jsonl", "problem")):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        text = "".join(json.dumps({prompt: row.pop("prompt")} | row) + "\n" for row in rows)
        (tmp_path / name).write_text(text)
    entries = [{"path": str(tmp_path / name)} for name in ("rows.jsonl", "others.jsonl")]
    entries[1]["column_mapping"] = {"problem": "prompt"}
    change(mixed, datasets=entries, column_mapping={"question": "prompt"}, test_split_size=None)
    assert len(resolve_runs(read_recipe(mixed), {})[0].data.train_source.load()) == 8


def test_validate_and_dry_run(mixed, tmp_path, capfd, caplog):
    assert main(["validate", "--config", str(mixed), "--eval_strategy", "epoch"]) == 0
    name = f"{tmp_path}/rows.jsonl + {tmp_path}/others.jsonl"
    assert f"{name} (train): 6 dual CoTs\n{name} (test): 2 dual CoTs\n" in capfd.readouterr().out
    assert caplog.messages == [f"{tmp_path}/others.jsonl: columns not used: rating"]
    assert main(["train", "--config", str(mixed), "--dry_run"]) == 0
    assert f"the longest of {name}" in capfd.readouterr().out
    (tmp_path / "others.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert main(["validate", "--config", str(mixed), "--learnig_rate", "1"]) == 2
    errors = capfd.readouterr().err
    assert "did you mean `--learning_rate`?" in errors
    assert "others.jsonl, prompt: is plain, but" in errors
    assert main(["validate", "--config", str(mixed), "--dataset", str(tmp_path / "rows.jsonl")]) == 0
    assert f"{tmp_path}/rows.jsonl: 4 dual CoTs" in capfd.readouterr().out


def test_a_suite_takes_the_held_out_rows(mixed):
    folder = train_recipe(mixed, stage="warm_up", suite_eval_steps=2)
    assert len((folder / "suite_history.jsonl").read_text().splitlines()) == 1
    data = resolve_runs(read_recipe(mixed), {})[0].data
    assert data.suite_source == data.eval_source


def test_a_baseline_of_trl_on_a_mixture(mixed):
    change(mixed, stages=None, trainer="dpo", chosen_key_weight=None, preference_weight=None, normalization=None)
    folder = train_recipe(mixed, max_steps=1)
    assert run_file(folder)["finished"]
    assert (folder / "README.md").is_file()


def test_paths_of_a_mixture_are_not_published():
    entries = [{"path": "/home/me/rows.jsonl", "fraction": 0.5}, {"path": "me/pairs", "data_dir": "/home/me"}]
    text = recipe_text([("run", {"datasets": entries})], "model")
    assert yaml.safe_load(text)["datasets"] == [
        {"path": "rows.jsonl", "fraction": 0.5},
        {"path": "me/pairs", "data_dir": "me"},
    ]
