"""Which layers get adapters, by architecture."""

import re

import pytest
import torch
from accelerate import init_empty_weights
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model
from transformers import Gemma3Config, GitConfig, GPT2Config
from trl import ModelConfig

from edit_trl.common.errors import InputError
from edit_trl.training.lora_targets import decoder_layers, head_name, lora_config, make_model, settle_targets

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def seeing() -> Gemma3Config:
    """A language model with a vision tower."""
    config = Gemma3Config(text_config=SIZES | {"head_dim": 16, "num_key_value_heads": 1}, vision_config=SIZES)
    config.architectures = ["Gemma3ForConditionalGeneration"]
    return config


def adapted(config, adapter: LoraConfig) -> set[str]:
    with init_empty_weights():
        model = get_peft_model(make_model(config), settle_targets(adapter, config))
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}


def test_of_a_model_that_sees_only_the_decoder_is_adapted():
    names = adapted(seeing(), LoraConfig(target_modules="all-linear"))
    assert len(names) == 7
    assert all(".language_model." in name for name in names)
    with init_empty_weights():
        pattern = decoder_layers(make_model(seeing()))
    assert re.fullmatch(pattern, "model.language_model.layers.0.mlp.down_proj")
    assert not re.fullmatch(pattern, "lm_head")


def test_a_head_may_have_any_name():
    """`output`, here; and the end of the name of many a layer that is none (`attention.output`)."""
    config = GitConfig(vision_config=SIZES, **SIZES)
    config.architectures = ["GitForCausalLM"]
    with init_empty_weights():
        assert head_name(make_model(config)) == "output"
        assert head_name(tiny_llama()) == "lm_head"
    with pytest.raises(InputError, match="`output`, the LM head of GitForCausalLM"):
        settle_targets(LoraConfig(target_modules=["query", "output"]), config)


@pytest.mark.parametrize("tied", [True, False])
def test_all_linear_leaves_the_head_out_tied_or_not(tied):
    config = tiny_llama().config
    config.architectures, config.tie_word_embeddings = ["LlamaForCausalLM"], tied
    names = adapted(config, LoraConfig(target_modules="all-linear"))
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)


def test_gpt2_has_layers_of_its_own_kind():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, architectures=["GPT2LMHeadModel"])
    assert len(adapted(config, LoraConfig(target_modules="all-linear"))) == 4


def test_targets_that_match_nothing(saved_student):
    options = ModelConfig(use_peft=True, lora_target_modules=["query_key_value", "dense"])
    with pytest.raises(InputError, match="matches nothing in LlamaForCausalLM; its linear layers are down_proj"):
        lora_config(options, str(saved_student))
    options = ModelConfig(use_peft=True, lora_target_modules=r".*(q|lm_h).*")
    with pytest.raises(InputError, match="`lm_head`, the LM head of LlamaForCausalLM"):
        lora_config(options, str(saved_student))


def test_others_are_left_to_peft(saved_student):
    assert lora_config(ModelConfig(), str(saved_student)) is None
    assert lora_config(ModelConfig(use_peft=True), str(saved_student)).target_modules is None
    every = lora_config(ModelConfig(use_peft=True, lora_target_modules=["all-linear"]), str(saved_student))
    assert every.target_modules == "all-linear"


def test_weights_are_made_in_the_dtype_asked_for():
    config = tiny_llama().config
    with init_empty_weights():
        assert make_model(config, "bfloat16").dtype == torch.bfloat16
        assert make_model(config, "float32").dtype == torch.float32
