"""A student that brings an adapter along: what a stage may ask of it, and what is refused before it is trained."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROWS
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from edit_trl import DualCoTConfig, DualCoTTrainer, train_recipe
from edit_trl.cli.main import run_command
from edit_trl.cli.validate import main as validate
from edit_trl.common.errors import InputError

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def recipe(tmp_path, saved_student):
    """Write a recipe of two stages; an option of None is left out."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")

    def write(second: dict | None = None, first: dict | None = None, **options) -> Path:
        values = {
            "model_name_or_path": str(saved_student),
            "dataset_name": str(data),
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "use_peft": True,
            "lora_r": 4,
            "lora_target_modules": "all-linear",
        } | options
        if second is not None:
            values["stages"] = [{"name": "one", **(first or {})}, {"name": "two", **second}]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return path

    return write


def adapter_config(folder) -> dict:
    return json.loads((Path(folder) / "adapter_config.json").read_text())


def refused(path: Path, capsys) -> str:
    """The message of validate, which train gives too, before it has trained the first stage."""
    assert run_command(validate, ["--config", str(path)]) == 2
    said = capsys.readouterr().err
    with pytest.raises(InputError) as caught:
        train_recipe(path)
    assert all(problem in said for problem in caught.value.problems)
    assert not (path.parent / "out").exists()
    return str(caught.value)


DIFFERENT = [
    ({"lora_r": 16}, "`lora_r: 16` differs", "has 4"),
    ({"lora_alpha": 8}, "`lora_alpha: 8` differs", "has 32"),
    ({"lora_target_modules": ["q_proj"]}, "`lora_target_modules: q_proj` differs", "has all-linear"),
    ({"lora_target_parameters": ["q_proj.weight"]}, "`lora_target_parameters: q_proj.weight` differs", "has None"),
    ({"lora_modules_to_save": ["embed_tokens"]}, "`lora_modules_to_save: embed_tokens` differs", "has None"),
    ({"use_rslora": True}, "`use_rslora: True` differs", "has False"),
    ({"use_dora": True}, "`use_dora: True` differs", "has False"),
    ({"lora_task_type": "SEQ_CLS"}, "`lora_task_type: SEQ_CLS` makes another model", "remove it"),
    ({"model_name_or_path": "other"}, "`model_name_or_path: other` would have no effect", "remove it"),
]


@pytest.mark.parametrize(("second", "option", "has"), DIFFERENT, ids=[next(iter(case[0])) for case in DIFFERENT])
def test_another_adapter_is_refused_with_both_values(recipe, capsys, second, option, has):
    message = refused(recipe(second), capsys)
    assert f"stage two: {option}" in message
    assert has in message


def test_a_first_stage_with_options_of_its_own(recipe, capsys):
    assert "that of stage one has 8" in refused(recipe({}, first={"lora_r": 8}), capsys)


def test_the_same_layers_in_other_words(recipe):
    folder = train_recipe(recipe({"lora_target_modules": SEVEN}))
    assert adapter_config(folder)["r"] == 4


def test_dropout_changes(recipe):
    folder = train_recipe(recipe({"lora_dropout": 0.3}, lora_dropout=0.0))
    assert adapter_config(folder.parent / "one")["lora_dropout"] == 0.0
    assert adapter_config(folder)["lora_dropout"] == 0.3


def test_dropout_is_applied(recipe):
    """The second stage starts from the same adapter and sees the same rows: only dropout can change its weights."""
    path = recipe({"lora_dropout": 0.5}, lora_dropout=0.0)
    with_dropout = load_file(train_recipe(path) / "adapter_model.safetensors")
    without = load_file(
        train_recipe(recipe({}, lora_dropout=0.0), output_dir=str(path.parent / "b")) / "adapter_model.safetensors"
    )
    assert any(not torch.allclose(with_dropout[name], without[name]) for name in without)


def test_use_peft_false_merges_and_trains_all_weights(recipe):
    folder = train_recipe(recipe({"use_peft": False, "learning_rate": 0.0}))
    assert not (folder / "adapter_config.json").exists()
    merged = AutoPeftModelForCausalLM.from_pretrained(folder.parent / "one").merge_and_unload().state_dict()
    saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert saved.keys() == merged.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, merged[name])


def test_all_weights_of_a_merged_student_are_trained(recipe):
    folder = train_recipe(recipe({"use_peft": False}))
    merged = AutoPeftModelForCausalLM.from_pretrained(folder.parent / "one").merge_and_unload().state_dict()
    saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(not torch.equal(saved[name], merged[name]) for name in merged if "norm" in name or "proj" in name)


def test_a_merged_student_for_dpo(recipe):
    folder = train_recipe(recipe({"use_peft": False, "trainer": "dpo"}))
    assert (folder / "model.safetensors").is_file()


@pytest.fixture
def adapter(recipe) -> str:
    return str(train_recipe(recipe(lora_target_modules=["q_proj"])))


def test_one_target_is_a_name(adapter):
    assert adapter_config(adapter)["target_modules"] == ["q_proj"]


def test_a_student_that_is_an_adapter(recipe, adapter, capsys, tmp_path):
    options = {"model_name_or_path": adapter, "lora_target_modules": None, "output_dir": str(tmp_path / "next")}
    folder = train_recipe(recipe(use_peft=None, **options))
    assert adapter_config(folder)["target_modules"] == ["q_proj"]
    with pytest.raises(InputError) as caught:
        train_recipe(recipe(**options | {"output_dir": str(tmp_path / "more")}, lora_r=8, use_dora=True))
    assert caught.value.problems == [
        f"`{name}` differs from the adapter that is trained further: the adapter {adapter} has {has}. Remove it, or "
        "set `use_peft: false` to merge the adapter and train all weights"
        for name, has in (("lora_r: 8", 4), ("use_dora: True", False))
    ]
    whole = train_recipe(recipe(**options | {"output_dir": str(tmp_path / "whole"), "use_peft": False}))
    assert (whole / "model.safetensors").is_file()


def test_the_trainer_trains_an_adapter_further(adapter, tmp_path, tokenizer, dual_cots):
    args = DualCoTConfig(str(tmp_path / "o"), use_cpu=True, report_to="none", max_steps=1)
    trainer = DualCoTTrainer(adapter, args=args, train_dataset=dual_cots, processing_class=tokenizer)
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert names
    assert all("q_proj.lora_" in name for name in names)


def test_options_of_an_adapter_without_one(recipe, capsys):
    message = refused(recipe(use_peft=None), capsys)
    assert "`lora_r`, `lora_target_modules` need an adapter; set `use_peft: true`, or `false` for none" in message
    assert run_command(validate, ["--config", str(recipe(use_peft=False))]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_target_modules": ["nope"]}, "`lora_target_modules: nope` matches nothing in LlamaForCausalLM"),
        ({"lora_modules_to_save": ["nope"]}, "`lora_modules_to_save: nope` matches nothing in LlamaForCausalLM"),
        ({"lora_target_parameters": ["nope"]}, "`lora_target_parameters: nope` matches nothing in LlamaForCausalLM"),
        ({"router_aux_loss_coef": 0.1}, "`router_aux_loss_coef: 0.1` is for a mixture of experts"),
        ({"eos_token": "<nope>"}, "`eos_token: <nope>` is no token of the student's tokenizer"),
        ({"pad_token": "<nope>"}, "`pad_token: <nope>` is no token of the student's tokenizer"),
        ({"chat_template_kwargs": {"nope": 1}}, "has no variable 'nope'"),
        ({"model_init_kwargs": {"foo": 1}}, "`model_init_kwargs` has 'foo', which is no option of loading"),
        ({"lora_r": 0}, "`lora_r` must be at least 1, got 0"),
        ({"lora_dropout": 1.0}, "`lora_dropout` must be 0 or more and below 1, got 1.0"),
        ({"report_to": "nope"}, "`report_to: nope` is no tracker"),
        ({"attn_implementation": "nope"}, "`attn_implementation: nope`: expected one of eager"),
        ({"optim_args": "foo=1"}, "does not read 'foo'; remove it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_the_student_or_this_machine(recipe, capsys, options, message):
    assert message in refused(recipe({}, **options), capsys)
