import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest
import torch
from conftest import ROWS
from safetensors.torch import load_file
from train_recipe_runs import run_file, stage

from edit_trl import train_recipe
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.common.options import hints_of
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.recipe.data_arguments import DataArguments
from edit_trl.training.recipe.resolving import argument_classes
from edit_trl.training.trainer_choice import TrainerName


def test_both_stages_through_the_command(recipe, tmp_path):
    """The real thing: `edit-trl train` launches each stage; a second call finds nothing to do."""
    command = [sys.executable, "-m", "edit_trl.cli.main", "train", "--config", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("warm_up", "key_steps"):
        folder = tmp_path / "out" / name
        assert {"adapter_model.safetensors", "README.md", "run.json"} <= {p.name for p in folder.iterdir()}
        assert run_file(folder)["finished"]
    # The adapter of the second stage is the first's, trained on: same shape, other weights.
    first, second = (
        load_file(tmp_path / "out" / name / "adapter_model.safetensors") for name in ("warm_up", "key_steps")
    )
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    before = (tmp_path / "out" / "key_steps" / "run.json").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("nothing to do") == 2
    assert (tmp_path / "out" / "key_steps" / "run.json").read_bytes() == before


def test_second_stage_starts_from_the_first(recipe, tmp_path):
    assert stage(recipe, "warm_up") == 0
    # With a learning rate of nothing, the second stage ends where the first did.
    assert stage(recipe, "key_steps", "--learning_rate", "0.0") == 0
    first, second = (
        load_file(tmp_path / "out" / name / "adapter_model.safetensors") for name in ("warm_up", "key_steps")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(tensor.abs().sum() > 0 for name, tensor in first.items() if "lora_B" in name)
    config = json.loads((tmp_path / "out" / "key_steps" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "student")


def test_full_fine_tuning_in_two_stages(recipe, tmp_path):
    assert stage(recipe, "warm_up", "--use_peft", "false") == 0
    assert stage(recipe, "key_steps", "--use_peft", "false", "--learning_rate", "0.0") == 0
    first, second = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("warm_up", "key_steps"))
    student = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], student[key]) for key in first)


def test_a_recipe_without_stages_is_one_run(recipe, tmp_path):
    recipe.write_text(recipe.read_text().split("stages:")[0])
    assert stage(recipe, None) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert run_file(tmp_path / "out")["results"]["train_loss"] > 0


def test_evaluates_and_keeps_the_results(recipe, tmp_path):
    evaluation = ("--eval_strategy", "epoch", "--eval_dataset_name", str(tmp_path / "rows.jsonl"))
    assert stage(recipe, "warm_up", *evaluation) == 0
    assert 0 <= run_file(tmp_path / "out" / "warm_up")["results"]["eval_key_accuracy"] <= 1


def test_takes_up_an_interrupted_run(recipe, tmp_path):
    """A run stopped after its first checkpoint goes on from there and ends as if it had not been."""
    options = ("--save_strategy", "steps", "--save_steps", "1", "--max_steps", "3")
    assert stage(recipe, "warm_up", *options) == 0
    whole = tmp_path / "out" / "warm_up"
    whole.rename(tmp_path / "whole")
    assert stage(recipe, "warm_up", *options) == 0
    for file in whole.glob("adapter_model.safetensors"):
        file.unlink()
    for number in (2, 3):  # as if killed after step 1
        for file in sorted((whole / f"checkpoint-{number}").rglob("*")):
            file.unlink()
        (whole / f"checkpoint-{number}").rmdir()
    state = run_file(whole)
    (whole / "run.json").write_text(json.dumps(state | {"finished": None}))
    assert stage(recipe, "warm_up", *options) == 0
    files = [folder / "adapter_model.safetensors" for folder in (tmp_path / "whole", whole)]
    first, second = map(load_file, files)
    assert all(torch.equal(first[key], second[key]) for key in first)
    log = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]


# Bad input: exit code 2, one message, nothing written.


def refused(capfd, tmp_path, code: int, *parts: str) -> None:
    errors = capfd.readouterr().err
    assert code == 2
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors
    assert not (tmp_path / "out").exists()


def test_bad_rows_named_with_file_and_row(recipe, tmp_path, capfd):
    data = tmp_path / "rows.jsonl"
    good = [json.dumps(row) for row in ROWS]
    data.write_text("\n".join([good[0], '{"prompt": "cut', good[1]]))
    refused(capfd, tmp_path, stage(recipe, "warm_up"), str(data), "2")
    data.write_text("\n".join([good[0], json.dumps(ROWS[1] | {"chosen": ""})]))
    refused(capfd, tmp_path, stage(recipe, "warm_up"), str(data), "row 2", "chosen")


def test_problems_of_a_later_stage_come_first(recipe, tmp_path, capfd):
    recipe.write_text(recipe.read_text() + "    preference_loss: ipo\n")
    refused(capfd, tmp_path, stage(recipe, "warm_up"), "stage key_steps: `preference_loss: ipo`")


def test_bad_data_of_a_later_stage_come_first(recipe, tmp_path, capfd):
    other = tmp_path / "pairs.jsonl"
    other.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | {"rejected": ""}) + "\n")
    text = recipe.read_text()
    recipe.write_text(f"{text}    dataset_name: {other}\n")
    refused(capfd, tmp_path, stage(recipe, "warm_up"), f"{other}, row 2, rejected")
    recipe.write_text(f"{text}    mistake: [logical]\n    eval_strategy: epoch\n    eval_dataset_name: {other}\n")
    refused(capfd, tmp_path, stage(recipe, "warm_up"), f"{other}, row 2, rejected", "stage key_steps: ", "mistake")
    with pytest.raises(InputError, match="stage key_steps: "):
        train_recipe(recipe)
    assert not (tmp_path / "out").exists()


def test_a_finished_recipe_starts_no_process(recipe, tmp_path, capfd, monkeypatch):
    for name in ("warm_up", "key_steps"):
        assert stage(recipe, name) == 0
    capfd.readouterr()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert main(["train", "--config", str(recipe)]) == 0
    assert capfd.readouterr().out.count("nothing to do") == 2


def test_a_finished_stage_needs_no_data(recipe, tmp_path, capfd):
    assert stage(recipe, "warm_up") == 0
    (tmp_path / "rows.jsonl").unlink()
    assert stage(recipe, "warm_up") == 0
    assert "nothing to do" in capfd.readouterr().out


def test_options_of_pairs_reach_the_stages_that_have_pairs(recipe, tmp_path, capfd):
    options = ("--rows", "2", "--preference_weight", "0.5")
    assert stage(recipe, "warm_up", *options) == 0
    note = "stage warm_up runs without --rows, --preference_weight: it trains on correct chains alone"
    assert note in capfd.readouterr().err
    assert run_file(tmp_path / "out" / "warm_up")["options"].keys().isdisjoint({"rows"})
    assert run_file(tmp_path / "out" / "warm_up")["options"]["preference_weight"] == 0
    assert stage(recipe, "key_steps", *options) == 0
    assert "runs without" not in capfd.readouterr().err
    kept = run_file(tmp_path / "out" / "key_steps")["options"]
    assert (kept["rows"], kept["preference_weight"]) == (2, 0.5)


def test_stage_that_does_not_exist(recipe, tmp_path, capfd):
    refused(capfd, tmp_path, stage(recipe, "warmup"), "no stage 'warmup'", "warm_up, key_steps")
    refused(capfd, tmp_path, stage(recipe, None), "name one with --stage")


def test_second_stage_without_the_first(recipe, tmp_path, capfd):
    refused(capfd, tmp_path, stage(recipe, "key_steps"), "is not finished", "run it first")


def test_output_dir_of_another_run(recipe, tmp_path, capfd):
    assert stage(recipe, "warm_up") == 0
    weights = (tmp_path / "out" / "warm_up" / "adapter_model.safetensors").read_bytes()
    assert stage(recipe, "warm_up", "--lora_r", "8") == 2
    errors = capfd.readouterr().err
    assert "holds another run (lora_r: 4 there, 8 now)" in errors
    assert (tmp_path / "out" / "warm_up" / "adapter_model.safetensors").read_bytes() == weights
    # What does not change the run is no other run.
    assert stage(recipe, "warm_up", "--logging_steps", "5") == 0
    assert "nothing to do" in capfd.readouterr().out


def test_output_dir_with_other_files(recipe, tmp_path, capfd):
    (tmp_path / "out" / "warm_up").mkdir(parents=True)
    (tmp_path / "out" / "warm_up" / "thesis.tex").write_text("years of work")
    assert stage(recipe, "warm_up") == 2
    assert "is not empty and holds no run of edit-trl" in capfd.readouterr().err


def test_output_dir_that_is_a_file(recipe, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "warm_up").write_text("a file")
    assert stage(recipe, "warm_up") == 2
    assert "is a file; choose another" in capfd.readouterr().err


def test_student_that_does_not_exist(recipe, tmp_path, capfd):
    code = stage(recipe, "warm_up", "--model_name_or_path", str(tmp_path / "nobody"))
    refused(capfd, tmp_path, code, "`model_name_or_path: ", "nobody`: no such folder")


def test_a_model_path_that_does_not_exist_is_told_with_the_other_problems(recipe, tmp_path, capfd):
    options = ("--model_name_or_path", "outputs/nobody", "--dataset_name", "outputs/nothing.jsonl")
    refused(capfd, tmp_path, stage(recipe, "warm_up", *options), "`model_name_or_path: outputs/nobody`: no such folder")
    assert main(["validate", "--config", str(recipe), *options]) == 2
    errors = capfd.readouterr().err
    assert "no such file or folder: 'outputs/nothing.jsonl'" in errors
    assert "`model_name_or_path: outputs/nobody`: no such folder" in errors


def test_accelerate_config_by_name(recipe, tmp_path, capfd):
    assert main(["train", "--config", str(recipe), "--accelerate_config", "nothing"]) == 2
    assert "no accelerate configuration 'nothing'" in capfd.readouterr().err


def test_a_hub_token_reaches_no_file(recipe, tmp_path):
    assert stage(recipe, "warm_up", "--hub_token", "hf_secret") == 0
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or b"hf_secret" not in file.read_bytes(), file


# Help


def run_help(option: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edit_trl.cli.main", "train", option],
        env=os.environ | {"COLUMNS": "110"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_help_lists_our_options_with_their_defaults():
    done = run_help("--help")
    lines = done.stdout.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 110
    text = " ".join(done.stdout.split())
    for name in ("config", "stage", "dry_run", "accelerate_config", "num_processes", "help-all"):
        assert f"--{name} " in text
    own = [field for field in fields(DualCoTConfig) if field.name in DualCoTConfig.__annotations__]
    assert len(own) >= 24
    for field in (*fields(DataArguments), *own):
        default = "" if field.default is None else f" (default: {field.default})"
        assert f"--{field.name} {field.metadata['help']}{default}" in text, field.name
    for other in ("SFTConfig", "ModelConfig", "TrainingArguments", "--help-all"):
        assert other in lines[-2] + lines[-1], other
    assert "torch" not in done.stderr
    assert "transformers" not in done.stderr


def test_help_all_lists_every_option_of_every_trainer(capfd):
    assert main(["train", "--help-all"]) == 0
    text = capfd.readouterr().out
    names = hints_of([cls for trainer in get_args(TrainerName) for cls in argument_classes(trainer)])
    assert len(names) > 200
    for name in ("config", "stage", "num_processes", *names):
        assert re.search(rf"^ +(-\w, )?--{name}\b", text, flags=re.MULTILINE), name


def test_launched_processes_have_the_environment_of_the_recipe(recipe, tmp_path):
    cache = tmp_path / "cache"
    recipe.write_text(f"env:\n  HF_DATASETS_CACHE: {cache}\n{recipe.read_text()}")
    command = [sys.executable, "-m", "edit_trl.cli.main", "train", "--config", str(recipe), "--stage", "warm_up"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((cache / "edit_trl").iterdir())  # the rows that the process has prepared
    alone = [sys.executable, "-m", "edit_trl.cli.train", *command[4:], "--output_dir", str(tmp_path / "alone")]
    (cache / "edit_trl").rename(tmp_path / "first")
    done = subprocess.run(alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((cache / "edit_trl").iterdir())
