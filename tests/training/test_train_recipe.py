"""`train_recipe`: the stages of a recipe in this process, as the command trains them in theirs."""

import gc
import json
import signal
import threading

import pytest
import torch
from conftest import ROWS
from safetensors.torch import load_file
from train_recipe_runs import run_file, stage
from transformers import LlamaForCausalLM, TrainerCallback

from edit_trl import train_recipe
from edit_trl.cli import train_recipe as train_recipe_module
from edit_trl.common.errors import InputError
from edit_trl.training.recipe import stage as stage_module


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(first, second) -> None:
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def problems(*args, **options) -> list[str]:
    with pytest.raises(InputError) as caught:
        train_recipe(*args, **options)
    return caught.value.problems


def test_it_ends_with_the_weights_of_the_command(recipe, tmp_path, capfd):
    """Also where stages differ in what accelerate keeps for all that runs in a process: the precision."""
    text = recipe.read_text().replace("  - name: warm_up\n", "  - name: warm_up\n    bf16: true\n")
    recipe.write_text(text + "    gradient_accumulation_steps: 2\n    layout: padded\n")
    for name in ("warm_up", "key_steps"):
        assert stage(recipe, name, "--learning_rate", "3e-3") == 0
    (tmp_path / "out").rename(tmp_path / "command")
    torch.rand(3)  # whatever the caller has drawn before
    folder = train_recipe(recipe, learning_rate=3e-3)
    assert folder == tmp_path / "out" / "key_steps"
    for name in ("warm_up", "key_steps"):
        assert_same_weights(tmp_path / "command" / name, tmp_path / "out" / name)
    assert run_file(folder)["options"] == run_file(tmp_path / "command" / "key_steps")["options"]
    capfd.readouterr()
    assert train_recipe(recipe, learning_rate=3e-3) == folder
    assert capfd.readouterr().out.count("nothing to do") == 2


def test_a_run_that_was_cut_off_is_resumed(recipe, tmp_path, monkeypatch):
    options = {"stage": "warm_up", "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    train_recipe(recipe, **options)
    (tmp_path / "out").rename(tmp_path / "whole")

    class CutOff(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    make_trainer = stage_module._make_trainer

    def cut_off(run, *args):
        trainer = make_trainer(run, *args)
        trainer.add_callback(CutOff())
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "_make_trainer", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, **options)
    folder = train_recipe(recipe, **options)
    assert_same_weights(tmp_path / "whole" / "warm_up", folder)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]


def test_one_stage(recipe, tmp_path):
    assert "is not finished" in problems(recipe, stage="key_steps")[0]
    assert "it has: warm_up, key_steps" in problems(recipe, stage="warmup")[0]
    assert not (tmp_path / "out").exists()
    assert train_recipe(recipe, stage="warm_up") == tmp_path / "out" / "warm_up"
    assert not (tmp_path / "out" / "key_steps").exists()
    assert train_recipe(recipe, stage="key_steps") == tmp_path / "out" / "key_steps"


def test_without_stages_and_without_a_recipe(recipe, tmp_path):
    recipe.write_text(recipe.read_text().split("stages:")[0])
    assert train_recipe(recipe) == tmp_path / "out"
    options = {
        "model_name_or_path": tmp_path / "student",  # a path is a name too
        "dataset_name": tmp_path / "rows.jsonl",
        "output_dir": tmp_path / "alone",
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lr_scheduler_kwargs": {},
        "max_length": None,
        "max_steps": 1,
        "learning_rate": 1,
        "use_cpu": True,
        "report_to": "none",
    }
    assert train_recipe(None, **options) == tmp_path / "alone"
    kept = run_file(tmp_path / "alone")["options"]
    assert (kept["learning_rate"], kept["max_length"]) == (1.0, None)
    assert kept["lora_target_modules"] == ["q_proj", "v_proj"]


def test_bad_options(recipe, tmp_path):
    [typo] = problems(recipe, learnig_rate=1e-4)
    assert typo == "unknown key `learnig_rate`; did you mean `learning_rate`?"
    found = problems(recipe, rejected_key_wieght=1.0, max_steps="many", bf16=1, preference_loss="sigmoit")
    assert len(found) == 4
    assert "did you mean `rejected_key_weight`?" in found[0]
    assert "expected a whole number" in found[1]
    assert "did you mean 'sigmoid'?" in found[3]
    assert "no recipe at" in problems(tmp_path / "nowhere.yaml")[0]
    assert not (tmp_path / "out").exists()


def test_an_option_of_no_trainer_of_the_recipe_is_refused(recipe):
    recipe.write_text(recipe.read_text() + "  - name: dpo\n    trainer: dpo\n")
    assert "did you mean `learning_rate`?" in problems(recipe, learnig_rate=1e-4)[0]


def test_a_suite_is_run(recipe, tmp_path):
    suite = tmp_path / "suite.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = train_recipe(recipe, stage="warm_up", suite_eval_steps=1, suite_dataset_name=suite)
    lines = (folder / "suite_history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_suite/preference" in entry for entry in log) == 2


def test_the_model_of_a_stage_is_freed_before_the_next(recipe, monkeypatch):
    def models() -> int:
        return sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects())

    gc.collect()
    counts, before, train_stage = [], models(), stage_module.train_stage

    def count(*args):
        counts.append(models() - before)
        train_stage(*args)

    monkeypatch.setattr("edit_trl.cli.train_recipe.train_stage", count)
    train_recipe(recipe, max_steps=1)
    assert counts == [0, 0]
    assert models() == before


def test_signals_are_left_alone_also_in_a_thread(recipe, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    folders = []
    thread = threading.Thread(target=lambda: folders.append(train_recipe(recipe, stage="warm_up")))
    thread.start()
    thread.join()
    assert folders == [tmp_path / "out" / "warm_up"]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_environment_of_a_recipe_is_set_and_may_be_late(recipe, monkeypatch, environment):
    told = []
    monkeypatch.setattr(train_recipe_module.logger, "warning", told.append)
    recipe.write_text(f"env: {{EDIT_TRL_TEST: 1}}\n{recipe.read_text()}")
    folder = train_recipe(recipe, stage="warm_up", max_steps=1)
    assert environment["EDIT_TRL_TEST"] == "1"
    assert "env" not in run_file(folder)["options"]
    assert [line.split(": ")[1][:13] for line in told] == ["EDIT_TRL_TEST"]
    assert "use `edit-trl train`, or export" in told[0]
    train_recipe(recipe, stage="warm_up", max_steps=1)
    assert len(told) == 1
