"""Merging, on a tiny model: what comes out is what the adapter was, and what does not fit is refused."""

import json
import shutil

import pytest
import torch
from conftest import byte_level_tokenizer, tiny_llama
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edit_trl.common.errors import InputError
from edit_trl.models.adapters import find_adapter_weights, put_on
from edit_trl.models.merging import merge_adapter

IDS = torch.arange(3, 40).unsqueeze(0)


@pytest.fixture
def adapter(tmp_path, saved_student):
    return make_adapter(saved_student, tmp_path / "adapter")


def make_adapter(student, folder):
    """An adapter that changes a lot."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(student), lora)
    model.save_pretrained(folder)
    return folder


def merge(adapter, tmp_path, **options):
    return merge_adapter(str(adapter), tmp_path / "merged", **options)


def test_the_merged_model_is_the_adapter_on_its_model(tmp_path, adapter, saved_student):
    out = tmp_path / "merged"
    report = merge_adapter(str(adapter), out)
    base = AutoModelForCausalLM.from_pretrained(saved_student)
    bare = base(IDS).logits
    before = PeftModel.from_pretrained(base, adapter).eval()(IDS).logits
    after = AutoModelForCausalLM.from_pretrained(out)(IDS).logits
    assert torch.allclose(before, after, atol=1e-5)
    assert (bare - after).abs().max() > 0.1  # the adapter does something
    assert 0 <= report.mean <= report.largest < 1e-4
    assert (report.dtype, report.tolerance, report.quantized_mean) == ("float32", 1e-3, None)


def test_what_is_saved_is_a_plain_model(tmp_path, adapter):
    out = tmp_path / "merged"
    merge_adapter(str(adapter), out, dtype="bfloat16")
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    with safe_open(out / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora" in key or "base_layer" in key]  # noqa: SIM118
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert [f.name for f in tmp_path.iterdir() if "draft" in f.name] == []


def test_after_4_bits_the_full_weights_are_taken(tmp_path):
    student = tmp_path / "student"
    # Wide enough for the blocks of 64 in which bitsandbytes quantizes.
    config = LlamaConfig(**{**tiny_llama().config.to_dict(), "hidden_size": 64, "head_dim": None})
    LlamaForCausalLM(config).save_pretrained(student)
    byte_level_tokenizer().save_pretrained(student)
    adapter = make_adapter(student, tmp_path / "adapter")
    out = tmp_path / "merged"
    report = merge_adapter(str(adapter), out, quantization="4-bit nf4")
    assert report.dtype == "bfloat16"
    assert report.mean <= report.tolerance == 0.1
    # What quantization had cost is seen, and is more than what merging costs.
    assert report.mean < report.quantized_mean < 1
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(out / "model.safetensors").values())


def test_the_merged_model_ends_as_the_adapter_was_trained_to(tmp_path, adapter, saved_student, tokenizer):
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(adapter)
    merge_adapter(str(adapter), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.eos_token_id == AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token_id == 1
    assert merged.generation_config.eos_token_id == [1, 2]
    # An answer that comes to this token ends there.
    with torch.no_grad():
        merged.lm_head.weight.zero_()
        merged.lm_head.weight[1] = merged.model(IDS).last_hidden_state[0, -1]
    assert merged.generate(IDS, max_new_tokens=5, do_sample=False)[0, IDS.size(1) :].tolist() == [1]


def test_the_ends_of_the_base_stay_where_the_adapter_has_them(tmp_path, adapter):
    before = json.loads((tmp_path / "student" / "generation_config.json").read_text())["eos_token_id"]
    merge_adapter(str(adapter), tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == before


# Bad input


def refused(tmp_path, call, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_outputs_that_differ_are_refused(tmp_path, adapter):
    refused(
        tmp_path,
        lambda: merge(adapter, tmp_path, tolerance=0.0, dtype="bfloat16"),
        *("log-probabilities differ by", "--dtype float32", "--tolerance"),
    )


def test_an_adapter_that_holds_no_numbers(tmp_path, adapter):
    file = adapter / "adapter_model.safetensors"
    save_file({k: torch.full_like(v, float("nan")) for k, v in load_file(file).items()}, file)
    refused(tmp_path, lambda: merge(adapter, tmp_path), "cannot be merged", "NaN")


@pytest.mark.parametrize("changes", [{"hidden_size": 48}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_model(tmp_path, adapter, changes):
    config = LlamaConfig(**{**tiny_llama().config.to_dict(), **changes, "head_dim": None})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    byte_level_tokenizer().save_pretrained(tmp_path / "other")
    refused(
        tmp_path,
        lambda: merge(adapter, tmp_path, base_model=str(tmp_path / "other")),
        f"{adapter} is not an adapter of {tmp_path / 'other'}",
    )


def test_an_adapter_of_another_name(tmp_path, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "ada/base"}))
    refused(
        tmp_path, lambda: merge(adapter, tmp_path, base_model="bob/base"), "is an adapter of ada/base, not of bob/base"
    )


def test_a_base_model_that_is_gone(tmp_path, adapter, saved_student):
    shutil.move(saved_student, tmp_path / "elsewhere")
    refused(tmp_path, lambda: merge(adapter, tmp_path), "the base model of", "or name it with --base_model")
    elsewhere = str(tmp_path / "elsewhere")
    assert merge(adapter, tmp_path, base_model=elsewhere).base_model == elsewhere


def test_a_base_model_that_is_quantized(tmp_path, adapter, saved_student):
    config = json.loads((saved_student / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (saved_student / "config.json").write_text(json.dumps(config))
    refused(tmp_path, lambda: merge_adapter(str(adapter), tmp_path / "merged"), "in a quantized form")


def test_what_is_no_adapter(tmp_path, saved_student):
    refused(tmp_path, lambda: merge(saved_student, tmp_path), "is a whole model, there is nothing to merge")
    refused(tmp_path, lambda: merge(tmp_path / "none", tmp_path), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, lambda: merge(tmp_path / "empty", tmp_path), "is no adapter")


def test_pickles_are_not_loaded(tmp_path, adapter, saved_student):
    """What would be run on loading makes a file; it is not made."""
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Trap()}, adapter / "adapter_model.bin")
    for call in (
        lambda: find_adapter_weights(str(adapter)),
        lambda: merge(adapter, tmp_path),
        lambda: put_on(AutoModelForCausalLM.from_pretrained(saved_student), str(adapter)),
    ):
        refused(tmp_path, call, "pickled weights (adapter_model.bin) are not loaded")
    assert not trap.exists()


def test_an_output_that_holds_something(tmp_path, adapter):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.tex").write_text("years of work")
    refused(tmp_path, lambda: merge_adapter(str(adapter), tmp_path / "kept"), "is not empty")
    assert (tmp_path / "kept" / "thesis.tex").read_text() == "years of work"
