"""Where the base model of an adapter is, seen from anywhere and after both have moved."""

import json

import pytest
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model

from edit_trl.common.errors import InputError
from edit_trl.models.adapters import find_base, remember_base


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    config = model.peft_config["default"]
    config.base_model_name_or_path = "student"
    monkeypatch.chdir(tmp_path)
    remember_base(model)
    assert config.base_model_name_or_path == str(tmp_path / "student")
    config.base_model_name_or_path = "Qwen/Qwen3-0.6B"
    remember_base(model)
    assert config.base_model_name_or_path == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("student", ["student", "models/student", "./models/student"])
def test_a_run_that_was_moved_with_its_base(tmp_path, monkeypatch, student):
    adapter = tmp_path / "moved" / "outputs" / "mine" / "key_steps"
    adapter.mkdir(parents=True)
    (tmp_path / "moved" / student).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    before = str(tmp_path / "before" / student)
    with pytest.raises(InputError, match="is not there"):
        find_base(before, str(adapter))
    options = {"model_name_or_path": student, "output_dir": "outputs/mine/key_steps"}
    (adapter / "run.json").write_text(json.dumps({"finished": "2026-01-01", "options": options}))
    assert find_base(before, str(adapter)) == str(tmp_path / "moved" / student)
    # One that is there is the one.
    (tmp_path / "before" / student).mkdir(parents=True)
    assert find_base(before, str(adapter)) == before
