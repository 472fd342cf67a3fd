"""Students loaded from disk, and the hash of their weights."""

import shutil

import pytest
import torch
from accelerate.utils import is_peft_model
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from edit_trl.common.errors import InputError
from edit_trl.models import identity
from edit_trl.models.adapters import adapter_base
from edit_trl.models.identity import model_hash
from edit_trl.models.loading import (
    NF4,
    ModelSource,
    check_student,
    load_config,
    load_tokenizer,
    load_trainable,
)


@pytest.fixture
def saved_adapter(tmp_path, saved_student):
    """An adapter that moves the model, beside its base."""
    model, _ = ModelSource(str(saved_student)).load()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(saved_student)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    return folder


def test_a_model_comes_back_as_it_was_saved(saved_student, model):
    loaded, tokenizer = ModelSource(str(saved_student)).load()
    assert not loaded.training
    assert loaded.dtype == torch.float32
    ids = torch.tensor([tokenizer("Is 1 more than 2?")["input_ids"]])
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_dtype_device_and_attention_are_what_was_asked_for(saved_student):
    loaded, _ = ModelSource(str(saved_student), dtype="bfloat16", device="cpu", attn_implementation="eager").load()
    assert loaded.dtype == torch.bfloat16
    assert loaded.device.type == "cpu"
    assert loaded.config._attn_implementation == "eager"


def test_four_bits(tmp_path, tokenizer):
    config = tiny_llama().config
    config.hidden_size, config.head_dim, config.intermediate_size = 128, 32, 128  # whole blocks of 64
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, tokenizer = ModelSource(str(tmp_path), quantization=NF4, device="cpu").load()
    weight = loaded.model.layers[0].self_attn.q_proj.weight
    assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("nf4", True)
    ids = torch.tensor([tokenizer("Is 1 more than 2?")["input_ids"]])
    assert loaded(ids).logits.isfinite().all()


def test_an_adapter_is_put_on_its_base_and_takes_its_tokenizer(saved_student, saved_adapter):
    base, tokenizer = ModelSource(str(saved_student)).load()
    loaded, of_base = ModelSource(str(saved_adapter)).load()
    assert is_peft_model(loaded)
    assert of_base.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(loaded(ids).logits, base(ids).logits)
    with loaded.disable_adapter():
        assert torch.equal(loaded(ids).logits, base(ids).logits)


def test_the_configuration_of_an_adapter_is_its_bases(saved_student, saved_adapter):
    base = adapter_base(str(saved_adapter))
    assert base == str(saved_student)
    assert adapter_base(base) is None
    assert load_config(str(saved_adapter), base).max_position_embeddings == 512


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("/nowhere/at/all", {}, "no such folder"),
        ("./nothing", {}, "no such folder"),
        ("no-such/model", {}, "cannot be loaded"),
        ("{student}", {"dtype": "int8"}, "`dtype: int8` is unknown"),
        ("{student}", {"dtype": "float33"}, "`dtype: float33` is unknown"),
        ("{student}", {"device": "abacus"}, "`device: abacus`"),
        ("{student}", {"device": "cuda:99"}, "GPUs"),
    ],
)
def test_what_cannot_be_loaded_is_said(saved_student, name, options, says):
    with pytest.raises(InputError, match=says):
        ModelSource(name.format(student=saved_student), **options).load()


def test_a_folder_without_tokenizer_or_model_is_said(tmp_path, model, saved_student):
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="no tokenizer"):
        ModelSource(str(tmp_path / "bare")).load()
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(str(tmp_path / "bare"))
    (tmp_path / "empty").mkdir()
    for load in (lambda folder: ModelSource(folder).load(), load_config):
        with pytest.raises(InputError, match="cannot be loaded"):
            load(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no weights"):
        model_hash(str(tmp_path / "empty"))


def test_the_hash_is_of_the_weights_and_not_of_the_place(tmp_path, saved_student, saved_adapter):
    copy = tmp_path / "copy"
    shutil.copytree(saved_student, copy)
    assert model_hash(str(copy)) == model_hash(str(saved_student))
    before, of_adapter = model_hash(str(saved_student)), model_hash(str(saved_adapter))
    assert of_adapter != before
    model, _ = ModelSource(str(saved_student)).load()
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-3
    model.save_pretrained(saved_student)
    assert model_hash(str(saved_student)) != before
    assert model_hash(str(saved_adapter)) != of_adapter


def test_large_files_are_sampled(tmp_path, saved_student, monkeypatch):
    monkeypatch.setattr(identity, "_WHOLE", 1024)
    monkeypatch.setattr(identity, "_END", 64)
    monkeypatch.setattr(identity, "_BLOCK", 16)
    before = model_hash(str(saved_student))
    assert model_hash(str(saved_student)) == before
    model, _ = ModelSource(str(saved_student)).load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(saved_student)
    assert model_hash(str(saved_student)) != before


def test_a_source_loads_what_it_names(saved_student, saved_adapter):
    model, tokenizer = ModelSource(str(saved_adapter), dtype="bfloat16").load()
    assert is_peft_model(model)
    assert model.dtype == torch.bfloat16
    assert ModelSource(str(saved_adapter)).load_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_an_adapter_is_loaded_to_be_trained_further(saved_student, saved_adapter):
    model = load_trainable(str(saved_adapter), {"dtype": "float32"})
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora" in name for name in trainable)
    assert all(parameter.requires_grad for parameter in load_trainable(str(saved_student), {}).parameters())


def test_a_student_that_cannot_be_loaded_is_said_before_it_is_loaded(saved_student, saved_adapter):
    check_student(str(saved_student))
    check_student(str(saved_adapter))
    with pytest.raises(InputError, match="`model_name_or_path: no-such/model` cannot be loaded"):
        check_student("no-such/model")
    for folder in (saved_student, saved_adapter):
        for weights in folder.glob("*.safetensors"):
            weights.rename(weights.with_suffix(".bin"))
        with pytest.raises(InputError, match="pickled weights"):
            check_student(str(folder))
