"""One forward through the fused head, held against plain logits, for the families the recipes name."""

import pytest
import torch
from conftest import ROWS
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from edit_trl.collation import DualCoTCollator
from edit_trl.scoring import PairScorer
from edit_trl.tokenization import tokenize_dual_cot

TINY = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
GEMMA = {**TINY, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}


def gemma_3_with_vision() -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=GEMMA, vision_config=vision, image_token_index=399, mm_tokens_per_image=4
    )
    return Gemma3ForConditionalGeneration(config)


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY)),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**TINY, sliding_window=16)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "gemma3_vision": gemma_3_with_vision,
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TINY, num_local_experts=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4)),
}


@pytest.fixture
def examples(tokenizer):
    return [tokenize_dual_cot(row, tokenizer) | {"row": n} for n, row in enumerate(ROWS, 1)]


def plain_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_plain_logits(name, lora, examples):
    torch.manual_seed(0)
    model = MODELS[name]()
    add_fused_lm_head(model)
    if lora:
        model = get_peft_model(
            model,
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    scorer = PairScorer(model)
    batch = DualCoTCollator(pad_token_id=0)(examples)
    with torch.no_grad():
        logps = scorer(model.eval(), batch)
        for pair, example in enumerate(examples):
            for side, scored in (("chosen", logps.chosen), ("rejected", logps.rejected)):
                ids = example[f"{side}_ids"]
                expected = plain_logps(model, example["prompt_ids"], ids)
                torch.testing.assert_close(scored[pair, : len(ids)], expected, rtol=1e-4, atol=1e-4)
                assert not scored[pair, len(ids) :].any()
    assert logps.tokens == batch["attention_mask"].sum()


@pytest.mark.parametrize("name", MODELS)
def test_trains(name, examples):
    """Also in training mode, where some models ask for more inputs, every weight that is used learns."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    add_fused_lm_head(model)
    logps = PairScorer(model)(model, DualCoTCollator(pad_token_id=0)(examples))
    (logps.chosen.sum() + logps.rejected.sum()).backward()
    text = [n for n, p in model.named_parameters() if "vision" not in n and "multi_modal" not in n]
    grads = dict(model.named_parameters())
    assert text
    assert all(grads[n].grad is not None for n in text)


def test_correct_chains_alone(model, examples):
    add_fused_lm_head(model)
    scorer = PairScorer(model)
    batch = DualCoTCollator(pad_token_id=0)(examples)
    with torch.no_grad():
        both, alone = scorer(model, batch), scorer(model, batch, with_rejected=False)
    assert alone.rejected is None
    torch.testing.assert_close(alone.chosen, both.chosen)
    assert alone.tokens == batch["attention_mask"][:4].sum()


def test_leaves_other_forwards_alone(model, examples):
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    add_fused_lm_head(model)
    scorer = PairScorer(model)
    scorer(model, DualCoTCollator(pad_token_id=0)(examples))
    torch.testing.assert_close(model(ids).logits, before)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 6)
