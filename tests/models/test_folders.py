"""What is wrong with a model's folder is said before anything is loaded; weights that are missing are never made up."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import MODELS
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from edit_trl.common.errors import InputError
from edit_trl.models.adapters import adapter_base
from edit_trl.models.folders import check_folder
from edit_trl.models.identity import model_hash
from edit_trl.models.loading import ModelSource, check_student, load_processor, load_tokenizer, load_trainable

IDS = torch.tensor([[5, 6, 7, 8]])


def change(folder: Path, file: str, **values) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def leave_out(folder: Path, *parts: str) -> None:
    file = folder / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if not any(part in name for part in parts)}
    save_file(weights, file, metadata={"format": "pt"})


def shard(folder: Path) -> list[Path]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("model-*"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def save_adapter(base: Path, folder: Path, name: str) -> Path:
    """An adapter that moves the model, and names its base as `name`."""
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder)
    change(folder, "adapter_config.json", base_model_name_or_path=name)
    return folder


# Weights


@pytest.mark.parametrize("load", [lambda path: ModelSource(path).load(), lambda path: load_trainable(path, {})])
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: change(f, "config.json", num_hidden_layers=4), r"missing in its files \(18\): model.layers.2.input"),
        (lambda f: leave_out(f, "lm_head"), r"missing in its files \(1\): lm_head.weight; "),
        (lambda f: leave_out(f, "model.norm", "embed"), r"\(2\): model.embed_tokens.weight, model.norm.weight; "),
        (lambda f: change(f, "config.json", num_hidden_layers=1), r"not in config.json \(9\): model.layers.1.input"),
        (lambda f: change(f, "config.json", vocab_size=401), r"lm_head.weight \(400, 32\), not \(401, 32\)"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(saved_student, edit, says, load):
    edit(saved_student)
    with pytest.raises(InputError, match=says):
        load(str(saved_student))


def test_a_shard_that_lacks_weights(saved_student):
    shards = shard(saved_student)
    assert len(shards) > 2
    name = next(iter(load_file(shards[1])))
    index = json.loads((saved_student / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (saved_student / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = load_file(shards[1])
    del weights[name]
    save_file(weights, shards[1], metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"missing in its files \(1\): {name}"):
        ModelSource(str(saved_student)).load()


def test_the_base_of_an_adapter_is_whole_too(tmp_path, saved_student):
    adapter = save_adapter(saved_student, tmp_path / "adapter", str(saved_student))
    leave_out(saved_student, "lm_head")
    with pytest.raises(InputError, match=r"the base model .* of .*adapter: weights are missing .* lm_head"):
        ModelSource(str(adapter)).load()


@pytest.mark.parametrize("name", ["llama_tied", "gemma3", "gpt2", "phi3", "gemma3_vision", "mixtral"])
def test_what_is_tied_or_computed_is_not_missing(tmp_path, name, tokenizer):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = ModelSource(str(tmp_path)).load()
    assert torch.allclose(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5)


# Files


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: cut(f / "model.safetensors"), "model.safetensors is cut short"),
        (lambda f: cut(shard(f)[1]), "model-00002-of-.* is cut short"),
        (lambda f: shard(f)[1].unlink(), "model-00002-of-.* is missing, which model.safetensors.index.json names"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": [1]}'), "has no `weight_map`"),
        (lambda f: (f / "config.json").write_text('{"a": '), "config.json is no valid JSON: .* line 1 column 7"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json holds no JSON object but a list"),
        (lambda f: (f / "config.json").write_text('{"a":' * 10**5), "config.json is no valid JSON: .*recursion"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json is no valid JSON: 'utf-8'"),
        # transformers goes on without these two.
        (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json is no valid JSON"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is no valid JSON"),
    ],
)
def test_a_broken_file_is_named(saved_student, edit, says):
    edit(saved_student)
    for call in (check_folder, check_student, model_hash, lambda path: ModelSource(path).load()):
        with pytest.raises(InputError, match=says):
            call(str(saved_student))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer that can be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "no tokenizer that can be loaded"),
        (lambda f: (f / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m"), "is broken in line 2"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "no tokenizer that can be loaded .*utf-8"),
    ],
)
def test_a_broken_tokenizer_or_template(saved_student, edit, says):
    edit(saved_student)
    for load in (load_tokenizer, load_processor):
        with pytest.raises(InputError, match=says):
            load(str(saved_student))


@pytest.mark.parametrize("value", [0, "four", None, 1e30])
def test_a_configuration_with_a_value_of_another_kind(saved_student, value):
    change(saved_student, "config.json", num_attention_heads=value)
    with pytest.raises(InputError, match="cannot be loaded"):
        ModelSource(str(saved_student)).load()


def test_a_broken_tokenizer_of_an_adapter_is_not_replaced_by_its_bases(tmp_path, saved_student):
    adapter = save_adapter(saved_student, tmp_path / "adapter", str(saved_student))
    assert load_tokenizer(str(adapter), str(saved_student)).eos_token == "<|im_end|>"
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="adapter` has no tokenizer that can be loaded"):
        load_tokenizer(str(adapter), str(saved_student))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: cut(f / "adapter_model.safetensors"), "adapter_model.safetensors is cut short"),
        (lambda f: (f / "adapter_config.json").write_text("{no"), "adapter_config.json is no valid JSON"),
        (
            lambda f: change(f, "adapter_config.json", peft_type="NONE"),
            "adapter_config.json cannot be loaded: KeyError",
        ),
        (lambda f: change(f, "adapter_config.json", r="x"), "is not an adapter of .*: TypeError"),
        (lambda f: change(f, "adapter_config.json", base_model_name_or_path=5), "is no text: 5"),
        (lambda f: change(f, "adapter_config.json", base_model_name_or_path=str(f)), "is an adapter too; merge that"),
    ],
)
def test_a_broken_adapter(tmp_path, saved_student, edit, says):
    adapter = save_adapter(saved_student, tmp_path / "adapter", str(saved_student))
    edit(adapter)
    for load in (lambda path: ModelSource(path).load(), lambda path: load_trainable(path, {})):
        with pytest.raises(InputError, match=says):
            load(str(adapter))


def test_adapters_in_a_circle(tmp_path, saved_student):
    first = save_adapter(saved_student, tmp_path / "first", str(tmp_path / "second"))
    save_adapter(saved_student, tmp_path / "second", str(first))
    for call in (adapter_base, model_hash, check_student):
        with pytest.raises(InputError, match=r"its base model .*second is an adapter too"):
            call(str(first))


# An adapter whose base is named by a relative path


@pytest.mark.parametrize(
    ("place", "adapter", "run"),
    [
        ("student", "elsewhere/adapter", None),  # from where the command runs
        ("runs/out/warm_up/student", "runs/out/warm_up", None),  # in the adapter
        ("runs/out/student", "runs/out/warm_up", None),  # beside it
        ("student", "runs/out/warm_up", "runs/out/warm_up"),  # from where it was trained
    ],
)
def test_a_relative_base_is_found(tmp_path, saved_student, monkeypatch, place, adapter, run):
    world = tmp_path / "world"
    (world / adapter).parent.mkdir(parents=True)
    save_adapter(saved_student, world / adapter, "student")
    shutil.copytree(saved_student, world / place)
    if run:
        (world / adapter / "run.json").write_text(json.dumps({"options": {"output_dir": run}}))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(world if place == "student" and not run else tmp_path / "other")
    model, _ = ModelSource(str(world / adapter)).load()
    plain = LlamaForCausalLM.from_pretrained(saved_student)
    assert not torch.allclose(model(IDS).logits, plain(IDS).logits)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert model_hash(str(world / adapter)) != model_hash(str(world / place))


def test_where_the_command_runs_comes_first(tmp_path, saved_student, monkeypatch):
    adapter = save_adapter(saved_student, tmp_path / "out" / "adapter", "./base")
    shutil.copytree(saved_student, tmp_path / "out" / "base")
    shutil.copytree(saved_student, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    assert adapter_base(str(adapter)) == "base"
    monkeypatch.chdir(tmp_path)
    assert adapter_base("out/adapter") == str(tmp_path / "out" / "base")


@pytest.mark.parametrize("name", ["./gone", "../gone/student", "/gone/student", "a/b/c"])
def test_a_base_that_is_nowhere_is_said_with_the_places(tmp_path, saved_student, name):
    adapter = save_adapter(saved_student, tmp_path / "adapter", name)
    with pytest.raises(InputError) as error:
        ModelSource(str(adapter)).load()
    assert f"the base model of {adapter} is not there: {name!r} (looked in {Path.cwd()}" in str(error.value)
    assert str(adapter) in str(error.value).split("looked in")[1]


def test_a_base_that_may_be_on_the_hub_is_looked_for_there(tmp_path, saved_student):
    adapter = save_adapter(saved_student, tmp_path / "adapter", "gone/student")
    with pytest.raises(InputError, match=r"the base model gone/student of .* \(no such folder here or beside"):
        ModelSource(str(adapter)).load()
